"""A recorded pass in which one tensor is marked, for tests that run again what depends on it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from resilient_heads.incremental.recording.forward_slice import ForwardSlice, slice_after
from resilient_heads.incremental.recording.recorder import Recorder, RunModel, record
from resilient_heads.incremental.recording.tape import BufferVersion, GoldenContent, Tape, copy_memory

Mark = Callable[[Tensor], Tensor]


def marking(function: Callable[[Tensor, Mark], Tensor]) -> RunModel:
    """Return a model that calls ``function`` with images and with what marks a tensor."""

    def run(recorder: Recorder | None, images: Tensor) -> Tensor:
        def mark(tensor: Tensor) -> Tensor:
            if recorder is not None:
                recorder.mark("source", tensor)
            return tensor

        return function(images, mark)

    return run


@dataclass(frozen=True)
class MarkedPass:
    """A pass and the forward slice of its marked tensor."""

    run: RunModel
    images: Tensor
    tape: Tape
    logits: Tensor
    forward_slice: ForwardSlice

    @classmethod
    def of(cls, run: RunModel, images: Tensor) -> "MarkedPass":
        recorder, logits = record(run, images)
        return cls(run, images, recorder.tape, logits, slice_after(recorder.tape, recorder.tape.marks["source"][0]))

    def operators(self) -> list[str]:
        """Return the operators of the slice."""
        return [self.tape.steps[number].operator for number in self.forward_slice.steps]

    def golden(self, contents: Iterable[BufferVersion]) -> dict[BufferVersion, Tensor]:
        """Return golden content and that of the source."""
        recorder, _ = record(self.run, self.images, {*contents, self.forward_slice.source.view.content})
        return recorder.kept

    def copy_source(self, golden: GoldenContent) -> tuple[Tensor, Tensor]:
        """Return a copy of the marked tensor, and all of its memory."""
        view = self.forward_slice.source.view
        memory = copy_memory(golden[view.content])
        return view.on(memory), memory


def use_integers_(model: torch.nn.Module) -> None:
    """Round a model's parameters to small integers in place: its sums are exact in any order, on every CPU."""
    for parameter in model.parameters():
        parameter.copy_(parameter.mul(9).round().clamp(-3, 3))
