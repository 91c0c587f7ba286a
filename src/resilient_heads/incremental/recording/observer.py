"""Repeat a recorded pass and act at each of its operations."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from resilient_heads.incremental.recording.recorder import RunModel
from resilient_heads.incremental.recording.tape import Step, Tape, View, flat_tensors, size_of

Observe = Callable[[int, Step, dict[View, Tensor], Callable[[], Any]], Any]
"""Called with the number of a step, the step, its tensor arguments by view, and a function that runs the operation;
returns what that function returned."""


def observe_pass(run: RunModel, tape: Tape, images: Tensor, observe: Observe) -> bool:
    """Run the model again, and call ``observe`` for each operation as long as the pass repeats the tape.

    Returns:
        False if the pass ran another operation than the recorded one, or the same one on other shapes.
    """
    observer = _StepObserver(tape, observe)
    with observer:
        run(None, images)
    return observer.repeats_tape


class _StepObserver(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Calls a function for each operation inside the block, as long as the pass repeats the tape."""

    def __init__(self, tape: Tape, observe: Observe) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.repeats_tape = True
        self._observe = observe
        self._steps = enumerate(tape.steps)

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation, observed."""
        kwargs = kwargs or {}
        number, step = next(self._steps, (-1, None))
        tensors = flat_tensors((args, tuple(kwargs.values())))
        # The tape lacks an operation whose failure the model catches, so the pass can stray from it.
        if step is None or step.func is not func or [v.size for v in step.views] != [size_of(t) for t in tensors]:
            self.repeats_tape = False
        if step is None or not self.repeats_tape:
            return func(*args, **kwargs)
        return self._observe(number, step, dict(zip(step.views, tensors, strict=True)), lambda: func(*args, **kwargs))
