"""How a campaign applies faults, and into which images. This module loads without torch."""

from dataclasses import dataclass
from typing import Literal

from resilient_heads.checks import one_of, real_number
from resilient_heads.display import as_code


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """How a campaign applies faults, and into which images.

    Attributes:
        name: Name in results and tables.
        range_detector: The range restriction at the fault site. ``"clamp"`` limits a faulty value to the largest
            absolute value that the calibration images gave there, ``"zero"`` replaces a value beyond that by 0, and
            None passes every value on.
        min_top2diff: Faults are injected only into images that the golden run classifies correctly and whose two
            largest softmax probabilities differ by more than this, in ``[0, 1)``.

    Raises:
        ArgumentError: An unknown range detector, or a difference outside ``[0, 1)``.

    >>> Protocol.named("goldeneye").range_detector
    'clamp'
    """

    name: str
    range_detector: Literal["clamp", "zero"] | None = None
    min_top2diff: float = 0.0

    def __post_init__(self) -> None:
        if self.range_detector is not None:
            one_of("range_detector", self.range_detector, ("clamp", "zero"))
        margin = real_number("min_top2diff", self.min_top2diff, least=0, below=1)
        object.__setattr__(self, "min_top2diff", margin)

    def __repr__(self) -> str:
        return as_code(self)

    @classmethod
    def named(cls, name: str) -> "Protocol":
        """Return the built-in protocol ``"goldeneye"`` or ``"raw"``.

        Raises:
            ArgumentError: No protocol has this name.
        """
        return PROTOCOLS[one_of("protocol", name, tuple(PROTOCOLS))]


GOLDENEYE = Protocol(name="goldeneye", range_detector="clamp")
"""The published campaign with a range detector at the fault site (Mahmoud et al., *GoldenEye*, DSN 2022)."""

RAW = Protocol(name="raw")
"""No range detector: values of 1e38, infinities and NaN pass on through the network."""

PROTOCOLS = {protocol.name: protocol for protocol in (GOLDENEYE, RAW)}
