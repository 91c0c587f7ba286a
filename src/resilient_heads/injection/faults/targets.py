"""Which tensor of a layer is struck."""

from dataclasses import dataclass

from resilient_heads.errors import FaultError
from resilient_heads.injection.faults.elements import whole

Key = int | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """A tensor that passes a module.

    Attributes:
        path: Which one, where there are several: a position, a name, or a tuple of them for nested containers. None
            takes the first floating tensor.
        batch_index: Row that is struck; None strikes every row.
        call: Which of a module's calls within one run of the model, from 0; None strikes each.
        batch_dim: Dimension that counts samples; None where the whole tensor is one sample.
    """

    path: Key | tuple[Key, ...] | None = None
    batch_index: int | None = None
    call: int | None = None
    batch_dim: int | None = 0

    def __post_init__(self) -> None:
        if self.path is not None and not isinstance(self.path, tuple):
            object.__setattr__(self, "path", (self.path,))
        for name in ("batch_index", "call", "batch_dim"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, whole(name, value))
        if self.call is not None and self.call < 0:
            raise FaultError(f"call counts from 0, found {self.call}.")

    @property
    def keys(self) -> tuple[Key, ...] | None:
        """The path as a tuple."""
        assert self.path is None or isinstance(self.path, tuple)
        return self.path


@dataclass(frozen=True, slots=True, kw_only=True)
class Output(Activation):
    """What a module returns: a tensor, or one inside of a tuple, list, mapping, dataclass or ModelOutput."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Input(Activation):
    """What a module is given: a position counts positional arguments, a name is that of an argument."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A parameter or buffer of a module, from now on until the block ends.

    Attributes:
        name: ``"weight"``, ``"bias"``, ``"running_mean"``, or the inner tensor of a wrapped one, such as
            ``"weight.qdata"`` of a quantised layer. None means each parameter of the layer.
    """

    name: str | None = "weight"


Place = Output | Input | StoredTensor
