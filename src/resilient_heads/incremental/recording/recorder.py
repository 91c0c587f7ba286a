"""Watch a forward pass at the level of ATen operators."""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from resilient_heads.incremental.recording.tape import Mark, Moment, Step, Tape, View, flat_views, is_plain


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down every operation inside the block, and keeps the content of buffers that are asked for.

    Args:
        keep: Moments whose content is wanted.
    """

    def __init__(self, keep: Iterable[Moment] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tape = Tape()
        self.kept: dict[Moment, Tensor] = {}
        self._keep = frozenset(keep)
        self._buffers: dict[int, int] = {}
        self._storages: list[StorageWeakRef] = []  # a storage whose weak reference lives keeps its address for itself
        self._alive: list[Tensor] = []
        self._versions: list[int] = []

    def mark(self, name: str, tensor: Tensor) -> None:
        """Point out a tensor."""
        mark = Mark(self.view(tensor), len(self.tape.steps))
        self.tape.marks.setdefault(name, []).append(mark)

    def view(self, tensor: Tensor) -> View:
        """Return how a tensor looks at its buffer; memory that was not known before is external."""
        key = _address(tensor)
        if key is None:  # weights of a tensor subclass; they pass as they are
            key = -id(tensor)
            self._alive.append(tensor)
        number = self._buffers.get(key)
        if number is None:
            number = self._register(key, tensor)
            self.tape.external.add(number)
        return self._view(number, tensor)

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation and write it down."""
        kwargs = kwargs or {}
        own_args = tuple(self._noted(value) for value in args)
        own_kwargs = tuple((name, self._noted(value)) for name, value in kwargs.items())
        seen = flat_views((own_args, tuple(value for _, value in own_kwargs)))
        written = _written(func, own_args, dict(own_kwargs))
        for buffer in written:
            self._before_write(buffer, args, kwargs)
        result = func(*args, **kwargs)
        for buffer in written:
            self._versions[buffer] += 1
        known = len(self._versions)
        results = result if isinstance(result, list | tuple) else (result,)
        outputs = tuple(self._output(value) if isinstance(value, Tensor) else None for value in results)
        self.tape.steps.append(
            Step(
                func=func,
                args=own_args,
                kwargs=own_kwargs,
                outputs=outputs,
                views=tuple(seen),
                reads=frozenset(view.buffer for view in seen),
                writes=frozenset(written),
                creates=frozenset(view.buffer for view in outputs if view is not None and view.buffer >= known),
            )
        )
        return result

    def finish(self, logits: Tensor) -> None:
        """Note the result, and let go of what was only needed while recording."""
        self.tape.logits = self.view(logits)
        self._storages.clear()
        self._alive.clear()

    def _noted(self, value: Any) -> Any:
        """Return an argument with its tensors replaced by how they look at their buffers."""
        if isinstance(value, Tensor):
            return self.view(value)
        if isinstance(value, list | tuple):
            return tuple(self._noted(item) for item in value)
        return math.nan if isinstance(value, float) and math.isnan(value) else value  # one object equals itself

    def _output(self, tensor: Tensor) -> View:
        """Register a result."""
        key = _address(tensor)
        if key is None:
            self._stop(f"a result is a {type(tensor).__name__}")
            key = -id(tensor)
        number = self._buffers.get(key)
        return self._view(self._register(key, tensor) if number is None else number, tensor)

    def _register(self, key: int, tensor: Tensor) -> int:
        """Give a buffer its number."""
        number = len(self._versions)
        self._buffers[key] = number
        self._versions.append(0)
        self.tape.roots.append(self._view(number, tensor))
        if key >= 0:
            storage = tensor.untyped_storage()
            self._storages.append(StorageWeakRef(storage))  # type: ignore[no-untyped-call]
            if _shows_all(tensor, storage.nbytes()):
                self.tape.whole.add(number)
        return number

    def _view(self, number: int, tensor: Tensor) -> View:
        """Describe a tensor, and keep it if its content is asked for."""
        version = self._versions[number]
        if (number, version) in self._keep and (number, version) not in self.kept:
            with torch.utils._python_dispatch._disable_current_modes():
                self.kept[number, version] = tensor.data if is_plain(tensor) else tensor
        size = tuple(tensor.shape)
        if not is_plain(tensor):
            return View(number, version, tensor.dtype, size, (), 0)
        if tensor.is_conj() or tensor.is_neg():
            self._stop("a tensor is conjugated lazily")
        return View(number, version, tensor.dtype, size, tuple(tensor.stride()), int(tensor.storage_offset()))

    def _before_write(self, buffer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Copy a buffer whose content is wanted and about to change."""
        moment = buffer, self._versions[buffer]
        if moment in self.kept:
            root = self.kept[moment]
            with torch.utils._python_dispatch._disable_current_modes():
                self.kept[moment] = copy_memory(root)

    def _stop(self, reason: str) -> None:
        """Note why the pass cannot be run again in part."""
        if self.tape.obstacle is None:
            self.tape.obstacle = (len(self.tape.steps), reason)


Run = Callable[["Recorder | None", Tensor], Tensor]
"""Runs the model on images and returns the logits; a recorder, if there is one, is told of the tensors that matter."""


def record(run: Run, images: Tensor, keep: Iterable[Moment] = ()) -> tuple[Recorder, Tensor]:
    """Record a pass over some images.

    Args:
        run: Runs the model.
        images: ``(N, ...)``.
        keep: Moments whose content is wanted.
    """
    recorder = Recorder(keep)
    recorder.tape.images = recorder.view(images).buffer
    with recorder:
        logits = run(recorder, images)
    recorder.finish(logits)
    return recorder, logits


def copy_memory(root: Tensor) -> Tensor:
    """Return a tensor like ``root`` on a copy of all memory behind it."""
    copied = root.untyped_storage().clone()  # type: ignore[no-untyped-call]
    blank = torch.empty(0, dtype=root.dtype, device=root.device)
    return blank.set_(copied, root.storage_offset(), root.size(), root.stride())


def _address(tensor: Tensor) -> int | None:
    """Return what tells one tensor's memory from another's, or None for a tensor without plain memory."""
    return tensor.untyped_storage()._cdata if is_plain(tensor) else None


def _shows_all(tensor: Tensor, nbytes: int) -> bool:
    """Whether a tensor shows every byte of its memory exactly once."""
    if tensor.numel() * tensor.element_size() != nbytes:
        return False
    expected = 1
    for size, stride in sorted(zip(tensor.shape, tensor.stride(), strict=True), key=lambda pair: pair[1]):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


@functools.cache
def _mutable(func: Any) -> tuple[tuple[int, str], ...]:
    """Return position and name of the arguments that an operator writes to."""
    arguments = func._schema.arguments
    return tuple(
        (position, argument.name)
        for position, argument in enumerate(arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
    """Return the buffers that an operation writes to."""
    written = (args[at] if at < len(args) else kwargs.get(name) for at, name in _mutable(func))
    return list(dict.fromkeys(view.buffer for view in flat_views(tuple(written))))
