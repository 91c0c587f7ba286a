"""Forward slices that run again, on passes small enough to follow by hand."""

import pytest
import torch
from torch import Tensor, nn

from helpers.marked_pass import Mark, MarkedPass, marking, use_integers_
from resilient_heads.incremental.equivalence.batch_sizes import record_smaller_batches
from resilient_heads.incremental.recording.recorded_pass import RecordedPass, locate_images
from resilient_heads.incremental.slice_runner import SliceRunner

pytestmark = pytest.mark.engine


def overwrites_its_input(x: Tensor, mark: Mark) -> Tensor:
    total = x * 1
    y = mark(x + 1)
    total += y
    total.relu_()
    return total * 2


def clears_what_it_read(x: Tensor, mark: Mark) -> Tensor:
    first = x * 3
    y = mark(x + 1)
    z = y * first
    first.zero_()
    return z


@pytest.mark.parametrize("function", [overwrites_its_input, clears_what_it_read])
def test_golden_content_is_the_same_for_every_rerun(function: object) -> None:
    recorded = MarkedPass.of(marking(function), torch.randn(4, 3))  # type: ignore[arg-type]
    runner = SliceRunner(RecordedPass(4, recorded.tape, {}))
    golden = recorded.golden(recorded.forward_slice.golden_inputs)
    for _ in range(2):
        tensor, memory = recorded.copy_source(golden)
        tensor[1] += 5
        faulty = tensor.clone()
        logits = runner.run(recorded.forward_slice, golden, recorded.logits, memory)
        if function is overwrites_its_input:
            expected = (recorded.images + faulty).relu() * 2
        else:
            expected = faulty * (recorded.images * 3)
        assert torch.equal(logits, expected)
        _, memory = recorded.copy_source(golden)
        assert torch.equal(runner.run(recorded.forward_slice, golden, recorded.logits, memory), recorded.logits)


def test_an_operator_whose_result_depends_on_the_batch_size_runs_on_the_full_batch() -> None:
    weight = torch.randn(40, 7)
    run = marking(lambda x, mark: torch.sigmoid(mark(x * 2).relu()) @ weight)
    recorded = MarkedPass.of(run, torch.randn(16, 40))
    full = locate_images(run, recorded.tape, recorded.images)
    small = record_smaller_batches(run, full, recorded.images, [4])[4]
    operators = [recorded.tape.steps[number].operator for number in small.inexact]
    assert "sigmoid" in operators  # full vectors and the remaining elements are computed differently
    assert "relu" not in operators  # it is exact on every CPU


def test_zeros_do_not_hide_that_an_operator_is_inexact() -> None:
    layer = nn.Linear(6, 6)
    run = marking(lambda x, mark: layer(mark(x * 1)) * 2)

    def inexact(images: Tensor) -> list[frozenset[int]]:
        full = locate_images(run, MarkedPass.of(run, images).tape, torch.randn(8, 6))
        return [small.inexact for small in record_smaller_batches(run, full, images, [2, 4]).values()]

    # Every sum of zeros has the same bits, in any order.
    assert inexact(torch.zeros(8, 6)) == inexact(torch.randn(8, 6))


def test_golden_rows_are_dropped_and_the_others_are_exact() -> None:
    layers = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 5))
    use_integers_(layers)
    run = marking(lambda x, mark: layers[1:](mark(layers[0](x))))
    recorded = MarkedPass.of(run, torch.randn(32, 6).mul(3).round())
    full = locate_images(run, recorded.tape, recorded.images)
    smaller = record_smaller_batches(run, full, recorded.images, range(4, 32, 4))
    requested: list[int] = []

    def smaller_pass(size: int) -> RecordedPass | None:
        requested.append(size)
        return smaller.get(size)

    runner = SliceRunner(full, smaller_pass, tuple(range(4, 32, 4)))
    golden = recorded.golden(runner.golden_inputs(recorded.forward_slice))
    tensor, memory = recorded.copy_source(golden)
    changed = torch.arange(0, 32, 3)
    tensor[changed] = 7.0
    hidden = torch.tensor([1, 4])  # changed, but not above 0 before or after: the ReLU hides it
    tensor[hidden] = torch.where(tensor[hidden] < 0, tensor[hidden] - 1, tensor[hidden])
    faulty = tensor.clone()
    logits = runner.run(recorded.forward_slice, golden, recorded.logits, memory)
    assert requested == [12]
    assert torch.equal(logits, layers[1:](faulty))
    assert not torch.equal(logits[changed], recorded.logits[changed])
