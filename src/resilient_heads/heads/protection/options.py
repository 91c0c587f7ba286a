"""What a protected head does against faults."""

from dataclasses import dataclass, fields

from resilient_heads.errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class Protection:
    """Which protections a head has; any but ``checksum`` with ``median``.

    Attributes:
        bounds: Hold every value against a bound that no fault-free value can exceed, whatever the input; what is beyond
            it, or NaN, becomes 0.
        checksum: Hold the sum of every result against what it has to be, and take a second computation of the samples
            where they differ by more than rounding can: that of the largest logits and rows. Meant for float32 and
            float64, and for logits of like size; a class masked by a huge bias hides faults in the others.
        median: Compute three times and take the elementwise median; in any format.

    Raises:
        ModelError: None is chosen, or ``checksum`` and ``median``.
    """

    bounds: bool = False
    checksum: bool = False
    median: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, bool):
                raise ModelError(f"{field.name} must be True or False, found {value!r}.")
        if not (self.bounds or self.checksum or self.median):
            raise ModelError("Choose at least one protection: bounds=True, checksum=True or median=True.")
        if self.checksum and self.median:
            raise ModelError(
                "checksum and median contradict each other: the median outvotes whatever a checksum could find. "
                "Choose one of them."
            )

    def __str__(self) -> str:
        return " + ".join(field.name for field in fields(self) if getattr(self, field.name))
