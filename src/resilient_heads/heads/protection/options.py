"""What a protected head does against faults."""

from dataclasses import asdict, dataclass, fields

from resilient_heads.checks import true_or_false
from resilient_heads.errors import ArgumentError


@dataclass(frozen=True, slots=True, kw_only=True)
class Protection:
    """Which protections a head has: range restriction, and either ABFT checksum or median vote (TMR).

    Attributes:
        bounds: Range restriction. Values that no fault-free input can cause, and NaN, become 0. The limits follow from
            the weights and the input (Cauchy-Schwarz); no calibration data is needed.
        checksum: ABFT checksum. The head compares the sum of every result with the expected sum, and takes a second
            computation for each row of the batch whose sums differ by more than rounding. For float32 and float64,
            and for logits of similar size: a class that a huge bias masks hides faults in the other classes.
        median: Median vote, a form of triple modular redundancy (TMR). The head computes three times and takes the
            elementwise median, in any format.

    Raises:
        ArgumentError: No protection is chosen, or both ``checksum`` and ``median``.

    >>> import resilient_heads as rh
    >>> print(rh.Protection(bounds=True, checksum=True))
    bounds + checksum
    """

    bounds: bool = False
    checksum: bool = False
    median: bool = False

    def __post_init__(self) -> None:
        for name, chosen in asdict(self).items():
            true_or_false(name, chosen)
        if not (self.bounds or self.checksum or self.median):
            raise ArgumentError("Choose at least one protection: bounds=True, checksum=True or median=True.")
        if self.checksum and self.median:
            raise ArgumentError(
                "Choose checksum=True or median=True, not both: the median vote masks every fault that a checksum "
                "detects."
            )

    def __str__(self) -> str:
        return " + ".join(field.name for field in fields(self) if getattr(self, field.name))
