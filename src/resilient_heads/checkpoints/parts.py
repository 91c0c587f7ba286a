"""Which tensors of a checkpoint are a model's: training scripts put names around names, and other things beside them.

A part of a checkpoint is a mapping in it, and a prefix of the names in this mapping. ``DataParallel``, Lightning and
averages of weights add a prefix before every name; compiled, sharded and checkpointed layers add a word inside names.
No list of prefixes is needed: a prefix is what stands before a name of the model.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_COUNTER = "num_batches_tracked"
_EXTRA_STATE = "_extra_state"  # what a module's get_extra_state() gives, often a mapping
_AVERAGES = "n_averaged"  # AveragedModel's counter, beside the names
_DEPTH = 4
_MOST_PREFIXES = 8
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Part:
    """The tensors below a prefix of one mapping in a checkpoint.

    Attributes:
        label: How the user names it: the keys that lead to the mapping and the prefix, with dots.
        tensors: Value by the model's name, for names that the model has.
        missing: Names of the model without a value.
        unexpected: Names below the prefix that the model does not have, without the prefix.
        misfits: A sentence for each tensor that does not fit.
        others: Names of the mapping that are not below the prefix.
        versions: The versions of the model's modules, by path; some modules cannot load without them.
    """

    label: str
    tensors: dict[str, Any]
    missing: tuple[str, ...]
    unexpected: dict[str, Any]
    misfits: tuple[str, ...]
    others: tuple[str, ...]
    versions: dict[str, Any]

    @property
    def fits(self) -> bool:
        """Whether the part holds all tensors of the model and nothing else."""
        return not (self.missing or self.unexpected or self.misfits)

    def differences(self) -> str:
        """Return up to five of each kind of difference, as a sentence."""
        found = []
        for words, names in (("missing", self.missing), ("unexpected", tuple(self.unexpected))):
            if names:
                more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
                found.append(f"{words}: {', '.join(names[:_SHOWN])}{more}")
        return "; ".join([*found, *self.misfits[:_SHOWN]])


class _StateDict(NamedTuple):
    """A mapping in a checkpoint that holds tensors by name."""

    path: tuple[str, ...]
    values: dict[str, Any]
    versions: dict[str, Any]


def parts_of(content: Mapping[Any, Any], expected: Mapping[str, Any]) -> list[Part]:
    """Return the parts of a checkpoint that share a name with a model; those that share most come first.

    Args:
        content: What a file of weights holds.
        expected: The model's state dict, with its parameters (``keep_vars=True``), so that tied ones are known.
    """
    ties = _ties(expected)
    parts = [part for found in _state_dicts(content, ()) for part in _below_prefixes(found, expected, ties)]
    return sorted(parts, key=lambda part: (not part.fits, -len(part.tensors), len(part.unexpected)))


def choices(parts: list[Part]) -> list[Part]:
    """Return the first part, which fits, and all others that the user may mean instead of it.

    These are other weights that fit, and weights with most of the names that do not fit.
    """
    first = parts[0]
    taken = {id(value) for value in first.tensors.values()}
    return [first] + [
        part
        for part in parts[1:]
        if (part.fits and not _same(first, part))
        or (
            not part.fits
            and 2 * len(part.tensors) > len(first.tensors)
            and taken.isdisjoint(id(value) for value in part.tensors.values())
        )
    ]


def _same(first: Part, second: Part) -> bool:
    """Whether two parts hold equal values, bit for bit."""
    return first.tensors.keys() == second.tensors.keys() and all(
        isinstance(value, Tensor)
        and isinstance(other := second.tensors[name], Tensor)
        and value.dtype == other.dtype
        and torch.equal(value, other)
        for name, value in first.tensors.items()
    )


def _state_dicts(content: Any, path: tuple[str, ...]) -> Iterator[_StateDict]:
    """Yield each mapping with tensors by name."""
    if not isinstance(content, Mapping) or len(path) >= _DEPTH:
        return
    if any(isinstance(value, Tensor) for value in content.values()):
        values = {
            str(name): value
            for name, value in content.items()
            if not isinstance(value, Mapping) or str(name).endswith(_EXTRA_STATE)
        }
        yield _StateDict(path, values, getattr(content, "_metadata", None) or {})
    for name, value in content.items():
        if isinstance(name, str):
            yield from _state_dicts(value, (*path, name))


def _below_prefixes(state: _StateDict, expected: Mapping[str, Any], ties: dict[str, tuple[str, ...]]) -> Iterator[Part]:
    """Yield a part for each prefix below which a mapping has names of the model."""
    names = state.values.keys()
    plain = {name: name for name in names}
    parts = list(_parts_named(state, plain, {name: name for name in expected}, expected, ties))
    wanted = _without_wrappers(expected)
    if not any(part.fits for part in parts) and wanted is not None:
        # Wrappers of single layers, in the checkpoint or in the model, leave a word inside names. What does not share
        # the wrappers before a name stands beside the weights.
        for start in _leading_wrappers(names):
            saved = _without_wrappers(name for name in names if name.startswith(start))
            if saved is not None:
                parts += _parts_named(state, saved, wanted, expected, ties)
    yield from parts


def _parts_named(
    state: _StateDict,
    saved: dict[str, str],
    wanted: dict[str, str],
    expected: Mapping[str, Any],
    ties: dict[str, tuple[str, ...]],
) -> Iterator[Part]:
    """Yield the parts whose names, as ``saved`` spells them, are a prefix and a name as ``wanted`` spells it."""
    prefixes: Counter[str] = Counter()
    for name in saved:
        start = 0
        while start <= len(name):
            if name[start:] in wanted:
                prefixes[name[:start]] += 1
            start = name.find(".", start) + 1 or len(name) + 1
    chosen = [prefix for prefix, _ in prefixes.most_common(_MOST_PREFIXES)]
    parts = [_part(state, saved, prefix, wanted, expected, ties) for prefix in chosen]
    complete = [prefix for prefix, part in zip(chosen, parts, strict=True) if part.fits]
    for prefix, part in zip(chosen, parts, strict=True):
        inner = tuple(other.removeprefix(prefix) for other in complete if other != prefix and other.startswith(prefix))
        rest = {name: value for name, value in part.unexpected.items() if not name.startswith(inner)}
        yield replace(part, unexpected=rest)  # an average below a longer prefix is another part


def _part(
    state: _StateDict,
    saved: dict[str, str],
    prefix: str,
    wanted: dict[str, str],
    expected: Mapping[str, Any],
    ties: dict[str, tuple[str, ...]],
) -> Part:
    """Return the part below one prefix."""
    below = {name.removeprefix(prefix): state.values[key] for name, key in saved.items() if name.startswith(prefix)}
    found = {wanted[name]: value for name, value in below.items() if name in wanted}
    missing = _fill(found, wanted.values(), expected, ties)
    return Part(
        label=".".join([*state.path, *([prefix[:-1]] if prefix else [])]),
        tensors=found,
        missing=tuple(missing),
        unexpected={name: value for name, value in below.items() if not (name in wanted or _ignored(name, wanted))},
        misfits=(*_misfits(found, expected), *_untied(found, ties)),
        others=tuple(key for name, key in saved.items() if not name.startswith(prefix)),
        versions={
            f"{name}.".removeprefix(prefix)[:-1]: version
            for name, version in state.versions.items()
            if f"{name}.".startswith(prefix)
        },
    )


def _fill(
    found: dict[str, Any], names: Iterable[str], expected: Mapping[str, Any], ties: dict[str, tuple[str, ...]]
) -> list[str]:
    """Add what a checkpoint may leave out: tied tensors that are stored once, and counters; return what is missing."""
    missing = []
    for name in names:
        if name in found:
            continue
        twin = next((other for other in ties.get(name, ()) if other in found), None)
        if twin is not None:
            found[name] = found[twin]
        elif name.endswith(f".{_COUNTER}"):
            found[name] = expected[name]  # PyTorch before 1.0 did not count; no output depends on the number
        else:
            missing.append(name)
    return missing


def _ignored(name: str, wanted: Mapping[str, str]) -> bool:
    """Whether a name that the model lacks means nothing: a counter of a layer that has none, of an average."""
    start, _, last = name.rpartition(".")
    return name == _AVERAGES or (last == _COUNTER and f"{start}.running_mean" in wanted)


def _ties(expected: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return, for each tensor that has several names, the other names."""
    names: dict[int, list[str]] = {}
    for name, tensor in expected.items():
        names.setdefault(id(tensor), []).append(name)
    return {
        name: tuple(other for other in group if other != name)
        for group in names.values()
        if len(group) > 1
        for name in group
    }


def _misfits(found: dict[str, Any], expected: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each tensor that cannot be copied into the model's without a loss."""
    for name, value in found.items():
        tensor = expected[name]
        if not isinstance(tensor, Tensor) or is_lazy(tensor) or is_lazy(value):
            continue
        if not isinstance(value, Tensor):
            yield f"{name} is a {type(value).__name__} in the checkpoint, a tensor in the model"
        elif value.shape != tensor.shape:
            yield f"{name} is {tuple(value.shape)} in the checkpoint, {tuple(tensor.shape)} in the model"
        elif value.is_meta and not tensor.is_meta:
            yield f"{name} has no values in the checkpoint: it is on the meta device"
        elif tensor.is_meta and not value.is_meta:
            yield f"{name} is on the meta device in the model; call model.to_empty(device=...) first"
        elif value.layout != tensor.layout:
            yield f"{name} is {value.layout} in the checkpoint, {tensor.layout} in the model"
        elif value.is_floating_point() != tensor.is_floating_point() or value.is_complex() != tensor.is_complex():
            yield f"{name} is {value.dtype} in the checkpoint, {tensor.dtype} in the model"
        elif _too_large(value, tensor.dtype):
            yield f"{name} has values too large for the model's {tensor.dtype}"


def _too_large(value: Tensor, dtype: torch.dtype) -> bool:
    """Whether a finite number is larger than the largest of another dtype, or an integer becomes another one."""
    if value.is_meta or value.is_quantized or dtype.is_complex or value.dtype == dtype:
        return False
    if not dtype.is_floating_point:
        return not torch.equal(value.to(dtype).to(value.dtype), value)
    largest = torch.finfo(dtype).max
    if torch.finfo(value.dtype).max <= largest:
        return False
    sizes = (value.float() if value.dtype.itemsize == 1 else value).abs()  # PyTorch computes little with 8 bits
    return bool(((sizes > largest) & sizes.isfinite()).any())


def _untied(found: dict[str, Any], ties: dict[str, tuple[str, ...]]) -> Iterator[str]:
    """Yield a sentence for each tensor that the model has once and the checkpoint twice, with other values."""
    for name, others in ties.items():
        for other in others:
            values = found.get(name), found.get(other)
            both = all(isinstance(value, Tensor) and not value.is_meta for value in values)
            if name < other and both and values[0] is not values[1] and not torch.equal(*values):  # type: ignore[arg-type]
                yield f"{name} and {other} are one tensor in the model, and differ in the checkpoint"


def _leading_wrappers(names: Iterable[str]) -> list[str]:
    """Return every sequence of wrappers' words with which a name begins, the shortest first; the first is empty."""
    found = {""}
    for name in names:
        start = 0
        while (end := name.find(".", start)) > 0 and name[start:end] in _WRAPPERS:
            found.add(name[: end + 1])
            start = end + 1
    return sorted(found, key=len)


def _without_wrappers(names: Iterable[str]) -> dict[str, str] | None:
    """Return each name by the same name without the words of wrappers; None if two names would be equal."""
    names = list(names)
    short = {".".join(word for word in name.split(".") if word not in _WRAPPERS): name for name in names}
    return short if len(short) == len(names) else None
