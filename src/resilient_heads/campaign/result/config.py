"""Everything that a user chooses for a campaign, as one frozen value."""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from torch import nn

from resilient_heads.campaign.design.designs import Design, StratifiedDesign, UniformDesign, design_from_dict
from resilient_heads.campaign.design.fault_space import SINGLE_FLIP
from resilient_heads.campaign.figures.stopping import StoppingRule
from resilient_heads.campaign.result.fault_record import as_record, from_record
from resilient_heads.campaign.result.protocol import GOLDENEYE, Protocol
from resilient_heads.checks import instance_of, one_of, seed_number, strings, whole_number
from resilient_heads.display import as_code
from resilient_heads.errors import ArgumentError
from resilient_heads.injection.faults.fault_model import FaultModel

Engine = Literal["incremental", "full"]

_SPEED_ONLY = ("engine", "memory_limit")
"""Choices that change no trial, so a campaign's files do not record them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CampaignConfig:
    """Everything that you choose for a campaign; :func:`run_campaign` runs it.

    Attributes:
        protocol: How faults are applied: ``"goldeneye"`` restricts faulty values to the site's range, ``"raw"`` does
            not; or a :class:`Protocol`. The attribute is a :class:`Protocol`.
        design: How many trials each site has, and which faults they draw.
        until: When the campaign stops before the end of its design; None runs the whole design.
        fault: What one trial injects; by default it flips one bit of one neuron.
        seed: Seed of all draws. Trial i at a site is a function of (seed, site, i) alone.
        layers: Names of the sites to inject into, or patterns such as ``"layer4.*"``; None takes every site.
        modules: Further modules whose outputs become sites: classes, names or patterns of names.
        batch_size: Trials in one forward pass. It changes no draw, but it can change the last bits of a result.
        chunk_size: Trials of each site in one file, a multiple of ``batch_size``; None takes four batches.
        engine: ``"incremental"`` computes only the operations after a site and drops images that have become golden
            again; ``"full"`` computes the whole model for each batch. Both give the same bits.
        memory_limit: Bytes that golden activations may take on the model's device; None takes half of the free memory.

    Raises:
        ArgumentError: A choice is of the wrong type or out of range.

    To change one choice of a config, use ``dataclasses.replace``:

    >>> from dataclasses import replace
    >>> config = CampaignConfig(design=UniformDesign(trials_per_site=1000), layers=["fc"])
    >>> replace(config, seed=1).layers
    ('fc',)
    """

    protocol: Protocol = GOLDENEYE
    design: Design = UniformDesign(trials_per_site=4096)  # noqa: RUF009  a frozen value
    until: StoppingRule | None = None
    fault: FaultModel = SINGLE_FLIP
    seed: int = 0
    layers: Sequence[str] | None = None
    modules: Sequence[str | type[nn.Module]] = ()
    batch_size: int = 64
    chunk_size: int | None = None
    engine: Engine = "incremental"
    memory_limit: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.protocol, Protocol):
            object.__setattr__(self, "protocol", Protocol.named(self.protocol))
        if not isinstance(self.design, UniformDesign | StratifiedDesign):
            raise ArgumentError(
                f"design must be a design, such as UniformDesign(trials_per_site=1000); found {self.design!r}."
            )
        if self.until is not None:
            instance_of("until", self.until, StoppingRule, example="StoppingRule(half_width=0.001)")
        if not isinstance(self.fault, FaultModel):
            raise ArgumentError(
                "fault must be a FaultModel, such as FaultModel(effect=Negate()), which a campaign injects into the "
                f"output of every layer; found {self.fault!r:.80}. For one layer, weights or inputs, call inject()."
            )
        one_of("engine", self.engine, ("incremental", "full"))
        plain: dict[str, Any] = {"seed": seed_number(self.seed), "modules": _modules(self.modules)}
        plain["batch_size"] = whole_number("batch_size", self.batch_size, least=1)
        for name in ("chunk_size", "memory_limit"):
            if getattr(self, name) is not None:
                plain[name] = whole_number(name, getattr(self, name), least=1)
        if self.layers is not None:
            plain["layers"] = strings("layers", self.layers, example='["fc"]')
        for name, value in plain.items():
            object.__setattr__(self, name, value)
        if self.trials_per_chunk % self.batch_size:
            raise ArgumentError(
                f"chunk_size must be a multiple of batch_size, {self.batch_size}; found {self.chunk_size}."
            )

    def __repr__(self) -> str:
        return as_code(self)

    @property
    def trials_per_chunk(self) -> int:
        """Trials of each site in one file."""
        return 4 * self.batch_size if self.chunk_size is None else self.chunk_size

    def as_dict(self) -> dict[str, Any]:
        """Return the choices that determine the trials, as JSON-able values; classes by module and name."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            **{name: value for name, value in values.items() if name not in _SPEED_ONLY},
            "protocol": dataclasses.asdict(self.protocol),
            "design": self.design.as_dict(),
            "until": None if self.until is None else dataclasses.asdict(self.until),
            "fault": as_record(self.fault),
            "layers": None if self.layers is None else list(self.layers),
            "modules": [_module_as_record(one) for one in self.modules],
            "chunk_size": self.trials_per_chunk,
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        """Undo :meth:`as_dict`; raise TypeError, KeyError or ValueError for other content."""
        until = content["until"]
        values = {
            **content,
            "protocol": Protocol(**content["protocol"]),
            "design": design_from_dict(content["design"]),
            "until": None if until is None else StoppingRule(**until),
            "fault": from_record(content["fault"]),
            "modules": tuple(_module_from_record(one) for one in content["modules"]),
        }
        return cls(**values)


def _modules(modules: object) -> tuple[str | type[nn.Module], ...]:
    """Return names and classes of modules as a tuple."""
    given = tuple(modules) if isinstance(modules, Sequence) and not isinstance(modules, str) else (None,)
    if not all(isinstance(one, str) or (isinstance(one, type) and issubclass(one, nn.Module)) for one in given):
        raise ArgumentError(f"modules must be a sequence of names and classes, such as [nn.GELU]; found {modules!r}.")
    return given


class MissingClass(str):
    """The module and name of a class that a record names and that is not imported."""


def _module_as_record(one: str | type[nn.Module]) -> str | dict[str, str]:
    """Return a name, or the module and the name of a class; they are never confused, since a name may have dots."""
    if isinstance(one, MissingClass):
        return {"class": str(one)}
    return one if isinstance(one, str) else {"class": f"{one.__module__}:{one.__qualname__}"}


def _module_from_record(one: str | dict[str, str]) -> str | type[nn.Module]:
    """Undo :func:`_module_as_record`. A file may not import code, so the class is one that is imported already."""
    if isinstance(one, str):
        return one
    module, _, name = one["class"].partition(":")
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) and issubclass(found, nn.Module) else MissingClass(one["class"])
