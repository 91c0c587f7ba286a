"""Undo faults in stored tensors, wherever the block has moved them."""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from resilient_heads.errors import InjectionError
from resilient_heads.incremental.recording.tape import kind_of
from resilient_heads.incremental.recording.words import same_bits, words
from resilient_heads.injection.apply.core import FaultyTensor, Write
from resilient_heads.injection.random.streams import Indices

_ACTIVE: list["StoredFaults"] = []
"""The faults in stored tensors of all blocks that have not ended, in the order of their blocks."""


class StoredFaults:
    """The faults in one stored tensor, and how to undo them. Make the object before the first write.

    Attributes:
        what: What errors call the tensor.
        held: The memory that the faults are written to; the model's tensor may get other memory later.
        problem: Why the fault was not in the model until the block's end, or still is; empty if all is well.

    Args:
        layer: Name of the module that holds the tensor.
        name: Name of the tensor in the module, such as ``"weight"`` or ``"weight.qdata"``.
        tensor: The tensor.
        unchanged: The :func:`versions` of the model before the block. A tensor that still has its version has not
            received the faults, even if it is equal by chance, as layers are that were initialised as copies.
    """

    def __init__(self, layer: str, name: str, tensor: Tensor, unchanged: dict[int, int]) -> None:
        self.what = f"the {name} of {layer!r}"
        self.held = (
            tensor.detach()
        )  # Not .data, so that autograd sees the writes: old values have no gradient any more.
        self.problem = ""
        self._place = layer, name
        self._tensor = tensor
        self._version = _version(tensor)
        self._unchanged = unchanged
        self._before = self._versions()
        self._copy: Tensor | None = self.held.clone()
        self._elements = np.zeros(0, dtype=np.int64)
        self._golden = self._faulty = self.held.new_empty(0)
        self._restoring: list[tuple[Tensor, Indices, Tensor]] | None = None

    def target(self) -> FaultyTensor:
        """Return the tensor to write faults into."""
        assert self._copy is not None
        return FaultyTensor(self.held, self._copy, self.what)

    def verified(self, writes: Sequence[Write]) -> None:
        """Remember the elements that changed, in place of a copy of the whole tensor."""
        self._elements, self._golden, self._faulty = _changes(writes)
        self._note_write(self._before)
        _ACTIVE.append(self)
        self._copy = None

    def search(self, model: nn.Module) -> None:
        """Find the tensors of the model that hold the faults now; where they are gone, ``problem`` says so."""
        if self._copy is not None or self._restoring is not None:
            return
        mine = self._hand_over()
        elements, golden, faulty = self._elements[mine], self._golden[mine], self._faulty[mine]
        in_place = np.zeros(len(elements), dtype=np.bool_)
        if _has_memory(self.held):
            in_place = (words(_values(self.held, elements)) == words(faulty)).cpu().numpy()
        restoring = [(self.held, elements[in_place], golden[in_place])]
        self._restoring = restoring  # Even if the search fails.
        if not len(elements):
            return
        current = [one for one in _tensors_of(model) if self._unchanged.get(_storage(one)) != _version(one)]
        restored = {_storage(self.held)} if in_place.all() and _version(self._tensor) == self._version else set()
        distinct = _has_memory(self.held) and not _is_constant(self.held)  # A constant may be a value of the user's.
        for other in {_memory(one): one.detach() for one in [*current, *_plain(self._tensor)]}.values():
            if distinct and other.shape == self.held.shape and _storage(other) != _storage(self.held):
                alike = _equal(_values(other, elements[:1]), faulty[:1].to(other))
                if alike and _equal(other, self.held.to(other)):
                    restoring.append((other, elements, golden.to(other)))
                    restored.add(_storage(other))
        here = _tensor_at(model, *self._place)
        now = [] if here is None else list(_plain(here))
        if not any(_storage(one) in restored for one in now):
            moved = [
                one.detach() for one in now if _storage(one) != _storage(self.held) and one.shape == self.held.shape
            ]
            holds = any(_any_equal(_values(one, elements), faulty) for one in moved)
            done = "still holds the fault" if holds else "was overwritten, moved or replaced inside the inject block"
            self.problem = f"{self.what} {done}"

    def restore(self) -> None:
        """Write the fault-free values; a second call does no harm."""
        if self._copy is not None:  # The body has not run yet, but a write that went wrong may have gone anywhere.
            words(self.held).copy_(words(self._copy))
        before = self._versions()
        for tensor, elements, golden in self._restoring or ():
            words(tensor).unsqueeze(0)[_index(tensor, elements)] = words(golden)
        self._note_write(before)
        if self in _ACTIVE:
            _ACTIVE.remove(self)

    def _versions(self) -> dict["StoredFaults", int]:
        """Return the versions of the tensors of all blocks before a write of this one."""
        return {one: _version(one._tensor) for one in (self, *_ACTIVE)}

    def _note_write(self, before: dict["StoredFaults", int]) -> None:
        """Note by how much this write raised the versions, so that no block takes it for a write of the user's."""
        for one, version in before.items():
            one._version += _version(one._tensor) - version
        memory, risen = _storage(self.held), _version(self._tensor) - before[self]
        for unchanged in {id(one._unchanged): one._unchanged for one in before}.values():
            if memory in unchanged:
                unchanged[memory] += risen

    def _hand_over(self) -> NDArray[np.bool_]:
        """Give elements that a later block changed as well to that block; return a mask of the elements that remain."""
        mine = np.ones(len(self._elements), dtype=np.bool_)
        for later in _ACTIVE[_ACTIVE.index(self) + 1 :]:
            if _memory(later.held) == _memory(self.held):
                _, here, there = np.intersect1d(
                    self._elements, later._elements, assume_unique=True, return_indices=True
                )
                first = mine[here]
                words(later._golden)[there[first]] = words(self._golden)[here[first]]
                mine[here] = False
        return mine


def versions(model: nn.Module) -> dict[int, int]:
    """Return the version of each tensor that a model holds, by its memory. Each write in place raises the version."""
    return {_storage(tensor): _version(tensor) for tensor in _tensors_of(model)}


def undo_all(faults: Sequence[StoredFaults], model: nn.Module) -> None:
    """Undo the faults of a block, the last one first; one that cannot be undone does not stop the others."""
    if faults:
        clear_caches()  # They may hold what was computed from faulty weights.
    for one in reversed(faults):
        for step in (partial(one.search, model), one.restore):
            try:
                step()
            except Exception as error:
                one.problem = f"{one.what} still holds the fault ({error})"


def clear_caches() -> None:
    """Clear what a surrounding ``autocast`` or ``parametrize.cached()`` has computed from weights."""
    torch.clear_autocast_cache()
    parametrize._cache.clear()


def require_undone(faults: Sequence[StoredFaults], body: BaseException | None = None) -> None:
    """Raise InjectionError if a fault was not in its tensor until the block's end, or still is.

    Args:
        faults: The faults of the block, undone.
        body: What the body of the block raised. It gets a note; an InjectionError that follows from it is raised only
            if a fault is left in the model.
    """
    problems = [one.problem for one in faults if one.problem]
    if not problems:
        return
    text = "; ".join(problems)
    text = (
        f"{text[0].upper()}{text[1:]}. So a part of the block may have run without the fault, and values that were "
        "computed from faulty ones, as by an optimizer's step, are left in the model. Load the weights again, and "
        "move, train or replace them before the block or after it."
    )
    if body is None or (isinstance(body, Exception) and any("still holds" in one for one in problems)):
        raise InjectionError(text) from body
    body.add_note(text)


def _changes(writes: Sequence[Write]) -> tuple[Indices, Tensor, Tensor]:
    """Return the elements that writes into a stored tensor changed: flat indices, golden and faulty values."""
    flat = [np.ravel_multi_index([one.cpu().numpy() for one in write.index], write.images.shape) for write in writes]
    elements, first, which = np.unique(np.concatenate(flat), return_index=True, return_inverse=True)
    last = np.zeros(len(first), dtype=np.int64)
    last[which] = np.arange(len(which))  # The last write to an element decides.
    dtype = writes[0].images.dtype
    golden = torch.cat([words(write.replaced) for write in writes])[first]
    faulty = torch.cat([words(write.written) for write in writes])[last]
    changed = (golden != faulty).cpu()
    return elements[changed.numpy()], golden[changed].view(dtype), faulty[changed].view(dtype)


def _tensors_of(model: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors with memory that a model's modules hold, those inside of tensor subclasses too."""
    for module in model.modules():
        for values in (module._parameters, module._buffers, vars(module)):
            for value in values.values():
                if type(value) is nn.Parameter or type(value) is Tensor:  # The usual case, at half of the cost.
                    if _has_memory(value):
                        yield value
                elif isinstance(value, Tensor):
                    yield from _plain(value)


def _plain(tensor: Tensor) -> Iterator[Tensor]:
    """Yield a tensor, or the tensors that a tensor subclass is made of, as far as they have memory."""
    parts = () if type(tensor) is nn.Parameter or type(tensor) is Tensor else inner_names(tensor)
    for part in parts:
        yield from _plain(getattr(tensor, part))
    if not parts and _has_memory(tensor):
        yield tensor


def inner_names(tensor: Tensor) -> list[str]:
    """Return the names of the tensors that a tensor subclass (quantised, distributed) is made of."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    return [] if flatten is None else [name for name in flatten()[0] if isinstance(getattr(tensor, name), Tensor)]


def _tensor_at(model: nn.Module, layer: str, name: str) -> Tensor | None:
    """Return the tensor of a name in a layer, as far as there is one."""
    module = dict(model.named_modules(remove_duplicate=False)).get(layer)
    first, *rest = name.split(".")
    if module is None:
        return None
    found = {**vars(module), **module._parameters, **module._buffers}.get(first)
    for part in rest:
        found = getattr(found, part, None)
    return found if isinstance(found, Tensor) else None


def _has_memory(tensor: Tensor) -> bool:
    """Whether a tensor's elements can be read one by one."""
    if tensor.is_meta or tensor.is_complex() or is_lazy(tensor) or kind_of(tensor) is not None:
        return False
    return not tensor.numel() or tensor.untyped_storage().nbytes() > 0


def _version(tensor: Tensor) -> int:
    """Return how often a tensor was written to in place; tensors of inference mode do not count it."""
    return 0 if tensor.is_inference() else int(tensor._version)


def _is_constant(tensor: Tensor) -> bool:
    """Whether all elements have the same value."""
    held = words(tensor)
    return bool((held == held.flatten()[:1]).all())


def _storage(tensor: Tensor) -> int:
    """Return a number that identifies the memory of a tensor; views of one tensor share it."""
    return int(tensor.untyped_storage()._cdata)


def _memory(tensor: Tensor) -> tuple[object, ...]:
    """Equal for two tensors that show the same memory in the same way."""
    return _storage(tensor), tensor.storage_offset(), tensor.dtype, tensor.shape, tensor.stride()


def _values(tensor: Tensor, elements: Indices) -> Tensor:
    """Return the elements of flat indices, ``(S,)``."""
    return words(tensor).unsqueeze(0)[_index(tensor, elements)].view(tensor.dtype)


def _index(tensor: Tensor, elements: Indices) -> tuple[Tensor, ...]:
    """Return flat indices as one index tensor for each dimension; a dimension of size 1 comes first."""
    return tuple(torch.from_numpy(one).to(tensor.device) for one in np.unravel_index(elements, (1, *tensor.shape)))


def _equal(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors of one dtype have the same values, any kind of NaN being the same."""
    if first.dtype.is_floating_point and first.dtype.itemsize > 1:
        return same_bits(first, second)
    return torch.equal(words(first), words(second))


def _any_equal(values: Tensor, faulty: Tensor) -> bool:
    """Whether one of some values is the faulty one, rounded to their dtype."""
    found, expected = values.double(), faulty.to(values).double()
    return bool(((found == expected) | (found.isnan() & expected.isnan())).any())
