"""Which tensor of a layer a fault is injected into."""

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass

from resilient_heads.checks import whole_number

Key = int | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """A tensor that passes through a module.

    Attributes:
        path: Which tensor, if there are several: a position, a name, or a tuple of them for nested containers. None
            takes the first floating tensor.
        batch_index: Row of the batch; None injects into every row.
        call: Which run of the module within one forward pass, from 0; None injects into every run.
        batch_dim: Dimension that counts the rows of the batch; None treats the whole tensor as one row.

    Raises:
        ArgumentError: A batch_index, call or batch_dim that is no whole number, or a call below 0.
    """

    path: Key | tuple[Key, ...] | None = None
    batch_index: int | None = None
    call: int | None = None
    batch_dim: int | None = 0

    def __post_init__(self) -> None:
        if self.path is not None and not isinstance(self.path, tuple):
            object.__setattr__(self, "path", (self.path,))
        for name, least in (("batch_index", None), ("call", 0), ("batch_dim", None)):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, whole_number(name, value, least=least))

    @property
    def keys(self) -> tuple[Key, ...] | None:
        """The path as a tuple."""
        assert self.path is None or isinstance(self.path, tuple)
        return self.path


@dataclass(frozen=True, slots=True, kw_only=True)
class Output(Activation):
    """What a module returns: a tensor, or a tensor in a tuple, list, mapping, dataclass or ModelOutput.

    >>> Output(batch_index=2).batch_index
    2
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Input(Activation):
    """An argument of a module. In ``path``, a position counts positional arguments, and a name names an argument.

    >>> Input(path="query").keys
    ('query',)
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A parameter or buffer of a module; the fault stays until the block ends.

    Attributes:
        name: ``"weight"``, ``"bias"``, ``"running_mean"``, or an inner tensor of a tensor subclass, such as
            ``"weight.qdata"`` of a quantised layer. None takes every parameter of the layer.

    >>> StoredTensor(name="running_mean").name
    'running_mean'
    """

    name: str | None = "weight"


Target = Output | Input | StoredTensor


def names_matching(pattern: str, names: Iterable[str]) -> list[str]:
    """Return the name that equals a text; if there is none, the names that match it as a pattern with ``*`` and ``?``.

    So a name may hold any character.

    >>> names_matching("block[0]", ["block[0]", "block0"]), names_matching("block*", ["block[0]", "block0"])
    (['block[0]'], ['block[0]', 'block0'])
    """
    names = list(names)
    return [pattern] if pattern in names else [name for name in names if fnmatch.fnmatchcase(name, pattern)]
