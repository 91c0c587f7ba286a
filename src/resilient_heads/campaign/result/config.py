"""What a campaign is told to do, as frozen values."""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from resilient_heads.checks import one_of
from resilient_heads.errors import ArgumentError

if TYPE_CHECKING:
    from resilient_heads.campaign.design.designs import Design
    from resilient_heads.campaign.figures.stopping import StoppingRule
    from resilient_heads.injection.faults.fault_model import FaultModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """How a flip is applied and which images are struck.

    Attributes:
        name: Name in results and tables.
        range_detector: ``"clamp"`` limits a flipped value at its site to the largest absolute value that calibration
            images gave there, ``"zero"`` makes it 0 beyond that; None lets it pass as it is.
        min_top2diff: Only images that the fault-free model classifies correctly, and whose two largest softmax
            probabilities differ by more than this, are struck.

    Raises:
        ArgumentError: A value that means nothing.
    """

    name: str
    range_detector: Literal["clamp", "zero"] | None = None
    min_top2diff: float = 0.0

    def __post_init__(self) -> None:
        if self.range_detector not in ("clamp", "zero", None):
            raise ArgumentError(f'range_detector must be "clamp", "zero" or None, found {self.range_detector!r}.')
        if not 0 <= self.min_top2diff < 1:
            raise ArgumentError(f"min_top2diff must lie in [0, 1), found {self.min_top2diff}.")


GOLDENEYE = Protocol(name="goldeneye", range_detector="clamp")
"""The published campaign: a range detector at the struck site (Mahmoud et al., *GoldenEye*, DSN 2022)."""

RAW = Protocol(name="raw")
"""The flip as it happens: values of 1e38, infinities and NaN go on through the network."""

PROTOCOLS = {protocol.name: protocol for protocol in (GOLDENEYE, RAW)}


def protocol_named(protocol: Protocol | str) -> Protocol:
    """Return a protocol by its name.

    Raises:
        ArgumentError: There is none of that name.
    """
    if isinstance(protocol, Protocol):
        return protocol
    return PROTOCOLS[one_of("protocol", protocol, tuple(PROTOCOLS))]


@dataclass(frozen=True, slots=True, kw_only=True)
class CampaignConfig:
    """Everything that determines a campaign's trials, and where they ran.

    Attributes:
        protocol: How faults are applied.
        design: Where trials strike, and how many there are.
        fault: What a trial does.
        until: When the campaign stops before the design's end, or None.
        seed: Trial i of a layer is a function of (seed, layer, i) alone.
        batch_size: Trials run at once; it changes no draw, but perhaps the last bits of what comes of it.
        chunk_size: Trials of each site that are written to disk together.
        model: Class name of the model.
        model_sha256: Digest of its state dict.
        data_sha256: Digest of images and labels.
        calibration_sha256: Digest of the images that gave the ranges; empty without a range detector.
        environment: Versions and device.
    """

    protocol: Protocol
    design: "Design"
    fault: "FaultModel"
    until: "StoppingRule | None"
    seed: int
    batch_size: int
    chunk_size: int
    model: str
    model_sha256: str
    data_sha256: str
    calibration_sha256: str
    environment: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        from resilient_heads.campaign.result.fault_record import as_record

        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            **values,
            "protocol": dataclasses.asdict(self.protocol),
            "design": self.design.as_dict(),
            "fault": as_record(self.fault),
            "until": None if self.until is None else dataclasses.asdict(self.until),
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        """Undo :meth:`as_dict`; TypeError, KeyError or ValueError where it is something else."""
        # The command line reads protocols without loading torch.
        from resilient_heads.campaign.design.designs import design_from_dict
        from resilient_heads.campaign.figures.stopping import StoppingRule
        from resilient_heads.campaign.result.fault_record import from_record

        until = content["until"]
        values = {
            **content,
            "protocol": Protocol(**content["protocol"]),
            "design": design_from_dict(content["design"]),
            "fault": from_record(content["fault"]),
            "until": None if until is None else StoppingRule(**until),
        }
        return cls(**values)
