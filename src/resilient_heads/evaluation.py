"""Run a model without changing it: in evaluation mode, by one thread at a time, restored after an interrupt too."""

import os
import sys
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
from resilient_heads.wrappers import is_exported


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
_UNCOMPILED: list[object] = []
"""All blocks inside which compiled code runs uncompiled."""
_STANCE: list[Any] = []
"""What was chosen for compiled code before these blocks."""


@contextmanager
def undone(undo: Callable[[], None]) -> Iterator[None]:
    """Run the block, then ``undo``, however the block ends; a KeyboardInterrupt inside of ``undo`` runs it once more.

    Enter it before the first change. ``undo`` must do no harm when it runs twice, or before the first change.
    """
    done = False
    try:
        try:
            yield
        finally:
            undo()
            done = True
    finally:
        if not done:
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
    they would keep what faults put there. Compiled parts of the model run uncompiled inside the block.

    Raises:
        ModelError: The model's ``eval`` raised an error.
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
        with undone(restore), uncompiled():
            _switch_to_evaluation(model)
            # Not inference_mode: tensors that a module caches inside the block must stay usable in training.
            torch.set_grad_enabled(False)
            yield


def _has_versions(tensor: Tensor) -> bool:
    """Return whether a tensor holds plain values and counts the writes to them."""
    held = not (is_lazy(tensor) or tensor.is_meta or tensor.is_inference() or tensor.requires_grad)
    return held and type(tensor) is Tensor and tensor.layout == torch.strided and not tensor.is_quantized


def _switch_to_evaluation(model: nn.Module) -> None:
    """Put every module into evaluation mode; an exported program has none, since its graph is fixed."""
    if not any(is_exported(module) for module in model.modules()):
        try:
            model.eval()
        except Exception as error:
            raise ModelError(f"eval() of {type(model).__name__} raised an error. {reason_of(error)}") from error
    elif not is_exported(model):
        model.training = False
        for child in model.children():
            _switch_to_evaluation(child)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run compiled code as it was before, inside the block, since it ignores hooks and hides its operators."""
    if "torch._dynamo.eval_frame" not in sys.modules:  # Nothing is compiled, and the import takes seconds.
        yield
        return
    dynamo: Any = sys.modules["torch._dynamo.eval_frame"]
    block = object()

    def leave() -> None:
        if block in _UNCOMPILED:
            _UNCOMPILED.remove(block)
        if _STANCE and not _UNCOMPILED:
            dynamo._set_stance(_STANCE[0])
            _STANCE.clear()

    with undone(leave):
        # The switch is global to the process. Without a lock: who finds the list empty comes before the first change.
        if not _UNCOMPILED:
            _STANCE[:] = [dynamo._stance]
        _UNCOMPILED.append(block)
        torch.compiler.set_stance("force_eager")
        yield


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
    """Return the device of the model's first parameter; the CPU for a model without parameters.

    A parameter that accelerate keeps elsewhere has the device on which its module runs.
    """
    for module in model.modules():
        device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
        for parameter in module.parameters(recurse=False):
            return parameter.device
    return torch.device("cpu")


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
