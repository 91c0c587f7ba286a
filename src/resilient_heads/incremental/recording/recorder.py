"""Record a forward pass at the level of ATen operators."""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from resilient_heads.incremental.recording.tape import (
    BufferVersion,
    MarkedTensor,
    Opaque,
    Step,
    Tape,
    View,
    as_list,
    copy_memory,
    flat_views,
    is_plain,
    kind_of,
    size_of,
)

_PLAIN_VALUES = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
)


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records every operation inside the block, and keeps the content of some buffers in ``kept``."""

    supports_higher_order_operators = True

    def __init__(self, keep: Iterable[BufferVersion] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tape = Tape()
        self.kept: dict[BufferVersion, Tensor] = {}
        self._keep = frozenset(keep)
        self._buffers: dict[int, int] = {}
        self._storages: list[StorageWeakRef] = []  # while a weak reference lives, no new storage gets the address
        self._alive: list[Tensor] = []
        self._opaque_values = 0
        self._versions: list[int] = []

    def mark(self, name: str, tensor: Tensor) -> None:
        """Mark a tensor, so that the operations after it can be found by name."""
        mark = MarkedTensor(self.view(tensor), len(self.tape.steps))
        self.tape.marks.setdefault(name, []).append(mark)

    def view(self, tensor: Tensor) -> View:
        """Return a tensor as a view of its buffer; memory that no recorded operation made is external."""
        address = _address(tensor)
        if address is None:
            if not isinstance(tensor, nn.Parameter):  # A weight is read as it is; any other may hold results.
                self._obstruct(f"an operation reads a {kind_of(tensor) or type(tensor).__name__}")
            address = -id(tensor)
            self._alive.append(tensor)
        buffer = self._buffers.get(address)
        if buffer is None:
            buffer = self._register(address, tensor)
            self.tape.external.add(buffer)
        return self._describe(buffer, tensor)

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation and record it."""
        kwargs = kwargs or {}
        if not isinstance(func, torch._ops.OpOverload):
            self._obstruct(f"the model calls {func}, which runs operations of its own")
            return func(*args, **kwargs)
        opaque_before = self._opaque_values
        recorded_args = tuple(self._recorded(value) for value in args)
        recorded_kwargs = tuple((name, self._recorded(value)) for name, value in kwargs.items())
        views = tuple(flat_views((recorded_args, tuple(value for _, value in recorded_kwargs))))
        written = _written(func, recorded_args, dict(recorded_kwargs))
        for buffer in written:
            self._before_write(buffer)
        result = func(*args, **kwargs)
        for buffer in written:
            self._versions[buffer] += 1
        known = len(self._versions)
        outputs = tuple(self._output(value) for value in as_list(result))
        self.tape.steps.append(
            Step(
                func=func,
                args=recorded_args,
                kwargs=recorded_kwargs,
                outputs=outputs,
                views=views,
                reads=frozenset(view.buffer for view in views),
                writes=frozenset(written),
                creates=frozenset(view.buffer for view in outputs if view is not None and view.buffer >= known),
                opaque=self._opaque_values > opaque_before,
            )
        )
        return result

    def finish(self, logits: Tensor) -> None:
        """Note the result of the pass, and release what only recording needs."""
        self.tape.logits = self.view(logits)
        self._storages.clear()
        self._alive.clear()

    def _recorded(self, value: Any) -> Any:
        """Return an argument with its tensors replaced by views."""
        if isinstance(value, Tensor):
            return self.view(value)
        if isinstance(value, list | tuple):
            return tuple(self._recorded(item) for item in value)
        if not isinstance(value, _PLAIN_VALUES):
            return self._opaque(value)
        # The one object math.nan equals itself within tuples, so that equal steps compare as equal.
        return math.nan if isinstance(value, float) and math.isnan(value) else value

    def _opaque(self, value: object) -> Opaque:
        """Describe an object; one that may hold tensors of the pass makes the pass unfit to be run again."""
        self._opaque_values += 1
        if not isinstance(value, torch.ScriptObject | torch.Generator):
            self._obstruct(f"an operation takes or gives a {type(value).__name__}")
        return Opaque(type(value).__name__)

    def _output(self, tensor: Any) -> View | None:
        """Register a result; one that is not a tensor is None."""
        if not isinstance(tensor, Tensor):
            self._recorded(tensor)
            return None
        address = _address(tensor)
        if address is None:
            self._obstruct(f"a result is a {kind_of(tensor) or type(tensor).__name__}")
            address = -id(tensor)
            self._alive.append(tensor)
        buffer = self._buffers.get(address)
        return self._describe(self._register(address, tensor) if buffer is None else buffer, tensor)

    def _register(self, address: int, tensor: Tensor) -> int:
        """Give a memory block its number."""
        buffer = len(self._versions)
        self._buffers[address] = buffer
        self._versions.append(0)
        self.tape.bases.append(self._describe(buffer, tensor))
        if address >= 0:
            storage = tensor.untyped_storage()
            self._storages.append(StorageWeakRef(storage))  # type: ignore[no-untyped-call]
            if _shows_all(tensor, storage.nbytes()):
                self.tape.dense.add(buffer)
        return buffer

    def _describe(self, buffer: int, tensor: Tensor) -> View:
        """Describe a tensor, and keep it if the caller wants its content."""
        version = self._versions[buffer]
        content = BufferVersion(buffer, version)
        if content in self._keep and content not in self.kept:
            with torch.utils._python_dispatch._disable_current_modes():
                self.kept[content] = tensor.data if is_plain(tensor) else tensor
        size = size_of(tensor)
        if not is_plain(tensor):
            return View(buffer, version, tensor.dtype, size, (), 0)
        if tensor.is_conj() or tensor.is_neg():
            self._obstruct("a tensor is conjugated lazily")
        return View(buffer, version, tensor.dtype, size, tuple(tensor.stride()), int(tensor.storage_offset()))

    def _before_write(self, buffer: int) -> None:
        """Copy a kept buffer whose content is about to change."""
        content = BufferVersion(buffer, self._versions[buffer])
        if content in self.kept:
            with torch.utils._python_dispatch._disable_current_modes():
                self.kept[content] = copy_memory(self.kept[content])

    def _obstruct(self, reason: str) -> None:
        """Note why no part of the pass can be run again."""
        self.tape.obstacle = self.tape.obstacle or reason


RunModel = Callable[[Recorder | None, Tensor], Tensor]
"""Runs the model on images and returns the logits; marks the tensors of interest if a recorder is given."""


def record(run: RunModel, images: Tensor, keep: Iterable[BufferVersion] = ()) -> tuple[Recorder, Tensor]:
    """Record a pass over some images; return the recorder, with the tape and the content to keep, and the logits."""
    recorder = Recorder(keep)
    recorder.view(images)
    with recorder:
        logits = run(recorder, images)
    recorder.finish(logits)
    return recorder, logits


def _address(tensor: Tensor) -> int | None:
    """Return what identifies a tensor's memory, or None for a tensor that is not plain strided memory."""
    return tensor.untyped_storage()._cdata if is_plain(tensor) else None


def _shows_all(tensor: Tensor, nbytes: int) -> bool:
    """Return whether a tensor shows every byte of its memory exactly once."""
    if tensor.numel() * tensor.element_size() != nbytes:
        return False
    expected = 1
    for size, stride in sorted(zip(tensor.shape, tensor.stride(), strict=True), key=lambda pair: pair[1]):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return True


@functools.cache
def _mutable_arguments(func: Any) -> tuple[tuple[int, str], ...]:
    """Return position and name of the arguments that an operator writes to."""
    return tuple(
        (position, argument.name)
        for position, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
    """Return the buffers that an operation writes to."""
    written = (args[at] if at < len(args) else kwargs.get(name) for at, name in _mutable_arguments(func))
    return list(dict.fromkeys(view.buffer for view in flat_views(tuple(written))))
