"""Recognise the forward passes that activation checkpointing computes again in the backward pass.

A recomputed pass must meet the faults of the pass that it repeats, else gradients belong to no pass at all.
"""

import hashlib
import inspect
import sys
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from resilient_heads.errors import InjectionError
from resilient_heads.incremental.recording.words import words
from resilient_heads.injection.apply.hooks import Hook, Kind, hooked

_SAMPLED = 4096
"""Elements by which two runs of a module are distinguished; all elements would slow down training."""
_KEPT = 4096
"""Runs of a module that can be repeated later: more than a step of training with gradient accumulation has."""


@dataclass(slots=True, eq=False)
class Run:
    """One run of a module with faults.

    Attributes:
        call: Number of the run in its forward pass.
        first_images: For each fault, the number of the first image.
        key: Identifies the values that the module took or returned, before the faults.
        repeated: Whether a backward pass has computed the run again.
    """

    call: int
    first_images: tuple[int, ...]
    key: bytes = b""
    repeated: bool = False


@dataclass(slots=True, eq=False)
class CheckpointedRuns:
    """The runs of one module that a backward pass may compute again."""

    runs: deque[Run] = field(default_factory=lambda: deque(maxlen=_KEPT))

    def keep(self, run: Run, value: object) -> None:
        """Remember a run."""
        run.key = _key(value)
        self.runs.append(run)

    def repeated(self, value: object, what: str) -> Run:
        """Return the run that a backward pass repeats.

        Raises:
            InjectionError: No run gave the same values, or several did, with different faults.
        """
        key = _key(value)
        same = [run for run in self.runs if run.key == key]
        candidates = [run for run in same if not run.repeated] or same
        if not candidates:
            raise InjectionError(
                f"A backward pass computes {what} again, but no forward pass inside the inject block gave the same "
                "values. Run forward and backward in the same block, on a model that repeats its values bit by bit, "
                "with the checkpointing of torch.utils.checkpoint."
            )
        if len({(run.call, run.first_images) for run in candidates}) > 1:
            raise InjectionError(
                f"A backward pass computes {what} again, and several forward passes inside the inject block gave the "
                "same values with different faults. Call backward() after each of them, and run passes that need no "
                "gradient under torch.no_grad()."
            )
        candidates[-1].repeated = True
        return candidates[-1]


@dataclass(slots=True, eq=False)
class PassState:
    """The present forward pass of a model inside an inject block.

    Attributes:
        may_repeat: Whether a backward pass may compute parts of it again.
        checkpointed: Whether a fault lies in such a part.
        ended: Whether the block has ended.
    """

    may_repeat: bool = True
    checkpointed: bool = False
    ended: bool = False

    def start(self) -> None:
        """Begin a forward pass of the whole model."""
        self.may_repeat = torch.is_grad_enabled() or in_checkpoint()
        self.checkpointed = False

    def finish(self, output: object) -> None:
        """End it. A backward pass after the block would compute it again without faults: let that raise."""
        for tensor in tree_leaves(output) if self.checkpointed else ():
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                tensor.register_hook(self._require_block)  # type: ignore[no-untyped-call]

    def _require_block(self, _gradient: Tensor) -> None:
        """Raise InjectionError if the block has ended."""
        if self.ended:
            raise InjectionError(
                "backward() was called after the inject block, but activation checkpointing computes the forward pass "
                "again in it, now without the faults. Call backward() inside the block."
            )


@contextmanager
def backward_inside(model: nn.Module, layers: Collection[str]) -> Iterator[None]:
    """Refuse to recompute layers with faulty weights for a forward pass before the block, or after the block's end.

    A pass before the block had no faults; a backward pass after it would compute the layers again without faults.

    Args:
        model: The model.
        layers: Names of layers whose weights are faulty.

    Raises:
        InjectionError: In such a backward pass.
    """
    if isinstance(model, torch.jit.ScriptModule):  # It takes no hooks, and runs no checkpointing.
        yield
        return
    state, kept = PassState(), [False]

    def begin(*_: object) -> None:
        if not torch.compiler.is_compiling() and not in_backward():
            state.start()

    def run(*_: object) -> None:
        if torch.compiler.is_compiling():  # Compiled code keeps what it computes.
            return
        if in_backward():
            if not kept[0]:
                raise InjectionError(
                    "A backward pass computes a layer with faulty weights again, but no forward pass inside the inject "
                    "block ran it. Run forward and backward in the same block."
                )
        elif state.may_repeat and in_checkpoint():
            state.checkpointed = kept[0] = True

    def end(_module: nn.Module, _inputs: object, output: object) -> None:
        if not torch.compiler.is_compiling() and not in_backward():
            state.finish(output)

    # A function of a module that encloses the layer may use its weights without running it.
    modules = {
        module
        for name, module in model.named_modules(remove_duplicate=False)
        if not isinstance(module, torch.jit.ScriptModule)
        and any(not name or layer == name or layer.startswith(f"{name}.") for layer in layers)
    }
    hooks: list[tuple[nn.Module, Kind, Hook]] = [(model, "input", Hook(begin))]
    hooks += [(module, "input", Hook(run)) for module in modules]
    try:
        with hooked(model, [*hooks, (model, "output", Hook(end))]):
            yield
    finally:
        state.ended = True


def in_backward() -> bool:
    """Whether this code runs inside of a backward pass."""
    return torch._C._current_graph_task_id() != -1


def in_checkpoint() -> bool:
    """Whether this code runs inside of :func:`torch.utils.checkpoint.checkpoint`."""
    module = sys.modules.get("torch.utils.checkpoint")
    code = None if module is None else inspect.unwrap(module.checkpoint).__code__
    frame = None if code is None else sys._getframe(1)
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame is not None


def _key(value: Any) -> bytes:
    """Return a digest of some elements of all tensors in a value."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tree_leaves(value):
        if isinstance(tensor, Tensor):
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            flat = words(tensor.detach()).reshape(-1)
            step = flat.numel() // _SAMPLED | 1  # An odd step does not keep to a column.
            digest.update(flat[::step].contiguous().cpu().numpy().tobytes())
    return digest.digest()
