"""Run a model without changing it: in evaluation mode, by one thread at a time, restored after an interrupt too."""

import os
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from resilient_heads.errors import ArgumentError, ForwardError, InjectionError, ModelError, ResilientHeadsError


@dataclass(frozen=True, slots=True, eq=False)
class _Use:
    """A block that uses a model.

    Attributes:
        purpose: What the block does.
        thread: The thread that runs it.
        modules: All modules of the model.
    """

    purpose: str
    thread: threading.Thread
    modules: frozenset[nn.Module]


_USES: list[_Use] = []
"""All blocks that use a model, in the order in which they began."""


@contextmanager
def undone(undo: Callable[[], None]) -> Iterator[None]:
    """Run the block, then ``undo``, however the block ends; a KeyboardInterrupt inside of ``undo`` runs it once more.

    Enter it before the first change. ``undo`` must do no harm when it runs twice, or before the first change.
    """
    try:
        try:
            yield
        finally:
            undo()
    finally:
        undo()


@contextmanager
def in_use(model: nn.Module, purpose: str) -> Iterator[None]:
    """Keep other threads from using the model, or a part of it, inside the block; the same thread may nest blocks.

    Args:
        model: The model.
        purpose: What the block does, for the error in another thread, such as ``"an inject block"``.

    Raises:
        InjectionError: A block in another thread uses one of the model's modules.
    """
    use = _Use(purpose, threading.current_thread(), frozenset(model.modules()))

    def release() -> None:
        if use in _USES:
            _USES.remove(use)

    with undone(release):
        _USES.append(use)  # Before the search, without a lock: of two threads, the first in the list goes on.
        for other in list(_USES):
            if other is use:
                break
            if other.thread is not use.thread and not other.modules.isdisjoint(use.modules):
                raise InjectionError(
                    f"The model is in use by {other.purpose} in the thread {other.thread.name!r}. Wait until that is "
                    "done, or give each thread a copy of the model, made beforehand by copy.deepcopy(model)."
                )
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run the block without gradients and with every module in evaluation mode; restore each module's mode on exit.

    Buffers that the model writes to in evaluation mode, as observers of ranges do, get their values back: otherwise
    they would keep what faults put there.

    Raises:
        InjectionError: Another thread uses the model.
    """
    modes: list[tuple[nn.Module, bool]] = []
    buffers: list[tuple[Tensor, Tensor, int]] = []
    gradients = torch.is_grad_enabled()

    def restore() -> None:
        for module, training in modes:
            module.training = training
        for buffer, values, version in buffers:
            if buffer._version != version:
                (buffer if buffer.shape == values.shape else buffer.resize_(values.shape)).copy_(values)
        torch.set_grad_enabled(gradients)

    with in_use(model, "a measurement, such as a campaign,"):
        modes += [(module, module.training) for module in model.modules()]
        buffers += [(one, one.detach().clone(), one._version) for one in model.buffers() if _has_versions(one)]
        with undone(restore):
            model.eval()
            # Not inference_mode: tensors that a module caches inside the block must stay usable in training.
            torch.set_grad_enabled(False)
            yield


def _has_versions(tensor: Tensor) -> bool:
    """Return whether a tensor holds plain values and counts the writes to them."""
    held = not (is_lazy(tensor) or tensor.is_meta or tensor.is_inference() or tensor.requires_grad)
    return held and type(tensor) is Tensor and tensor.layout == torch.strided and not tensor.is_quantized


def run_model(model: nn.Module, images: Tensor, *, during: str) -> Any:
    """Run a model on a batch, and return what it returns.

    Args:
        model: The model.
        images: ``(N, ...)``. The model gets a copy, because some models write into their input.
        during: What the pass is for, as errors name it, such as ``"the golden run"``.

    Raises:
        ForwardError: The model's own code raised an error.
        ModelError: The memory does not suffice for this batch.
    """
    try:
        return model(images.clone(memory_format=torch.preserve_format))
    except ResilientHeadsError:
        raise
    except Exception as error:
        what = f"a batch of shape {tuple(images.shape)}, {images.dtype}, {images.device}, in {during}"
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error):
            raise ModelError(f"The memory does not suffice for {what}; pass a smaller batch_size.") from error
        raise ForwardError(f"{type(model).__name__} cannot run on {what}: {reason_of(error)}") from error


def reason_of(error: BaseException | None) -> str:
    """Return the class of an error and the first line of its message; without a message, the code that raised it."""
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    frames = traceback.extract_tb(None if error is None else error.__traceback__)
    if not first and frames and frames[-1].line:
        first = f"at `{frames[-1].line}`, line {frames[-1].lineno} of {os.path.basename(frames[-1].filename)}"
    return f"{type(error).__name__}: {first:.300}" if first else f"{type(error).__name__}"


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter; the CPU for a model without parameters."""
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def usable_device(device: torch.device | str) -> torch.device:
    """Return a device on which a tensor can be made.

    Args:
        device: A device or its name. ``"cuda"`` means the GPU that a launcher such as torchrun names in ``LOCAL_RANK``.

    Raises:
        ArgumentError: PyTorch knows no such device, or this machine has none.

    >>> usable_device("cpu")
    device(type='cpu')
    """
    rank = os.environ.get("LOCAL_RANK", "")
    chosen = f"cuda:{rank}" if device == "cuda" and rank.isdecimal() else device
    try:
        usable = torch.device(chosen)
        torch.zeros(1, device=usable).item()
    except (RuntimeError, AssertionError, NotImplementedError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [repr(error)])[0]
        raise ArgumentError(f"The device {str(chosen)!r} cannot be used, try 'cpu' or 'cuda': {reason:.160}") from error
    return usable
