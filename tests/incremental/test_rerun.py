"""Recording, slicing and playing, on passes small enough to follow by hand."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from resilient_heads.incremental.equivalence.batch_sizes import record_smaller_batches
from resilient_heads.incremental.recording.batch_layout import BatchLayout, layout_from_shapes, resolve_order
from resilient_heads.incremental.recording.forward_slice import slice_after
from resilient_heads.incremental.recording.recorded_pass import RecordedPass, locate_images
from resilient_heads.incremental.recording.recorder import Recorder, record
from resilient_heads.incremental.recording.tape import ControlFlowError, copy_memory
from resilient_heads.incremental.recording.words import words
from resilient_heads.incremental.slice_runner import SliceRunner

pytestmark = pytest.mark.engine


@pytest.fixture(autouse=True)
def _no_grad() -> object:
    with torch.no_grad():
        yield


def marked(
    function: Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor],
) -> Callable[[Recorder | None, Tensor], Tensor]:
    """Return a run in which ``function`` points out one tensor."""

    def run(recorder: Recorder | None, images: Tensor) -> Tensor:
        def here(tensor: Tensor) -> Tensor:
            if recorder is not None:
                recorder.mark("here", tensor)
            return tensor

        return function(images, here)

    return run


def names(run: Callable[[Recorder | None, Tensor], Tensor], images: Tensor) -> list[str]:
    """Return the operations that come after the marked tensor."""
    recorder, _ = record(run, images)
    piece = slice_after(recorder.tape, recorder.tape.marks["here"][0])
    return [recorder.tape.steps[number].func._schema.name for number in piece.steps]


def test_only_what_depends_on_the_tensor_and_leads_to_the_logits_is_run() -> None:
    def function(x: Tensor, here: Callable[[Tensor], Tensor]) -> Tensor:
        before = x * 2
        y = here(x + 1)
        y.exp()  # leads nowhere
        aside = before.sin()
        return (y * 3).reshape(-1, 2).t().t() + aside

    assert names(marked(function), torch.randn(3, 2)) == ["aten::mul", "aten::add"]


def test_what_is_written_over_is_golden_again_for_every_rerun() -> None:
    def function(x: Tensor, here: Callable[[Tensor], Tensor]) -> Tensor:
        total = x * 1
        y = here(x + 1)
        total += y
        total.relu_()
        return total * 2

    run = marked(function)
    images = torch.randn(4, 3)
    recorder, logits = record(run, images)
    piece = slice_after(recorder.tape, recorder.tape.marks["here"][0])
    player = SliceRunner(RecordedPass(4, recorder.tape, {}), lambda size: None, ())
    kept, _ = record(run, images, piece.golden_inputs | {piece.source.view.content})
    golden = kept.kept
    for _ in range(2):
        root = copy_memory(golden[piece.source.view.content])
        root[1] += 5
        played = player.run(piece, golden, root)
        expected = (images + ((images + 1) + torch.tensor([[0.0], [5.0], [0.0], [0.0]]))).relu() * 2
        assert torch.equal(played.logits, expected)
        assert torch.equal(player.run(piece, golden, copy_memory(golden[piece.source.view.content])).logits, logits)


def test_a_buffer_is_kept_as_it_was_when_it_was_read() -> None:
    def function(x: Tensor, here: Callable[[Tensor], Tensor]) -> Tensor:
        first = x * 3
        y = here(x + 1)
        z = y * first
        first.zero_()  # nobody may read this one
        return z

    run = marked(function)
    images = torch.randn(4, 3)
    recorder, logits = record(run, images)
    piece = slice_after(recorder.tape, recorder.tape.marks["here"][0])
    kept, _ = record(run, images, piece.golden_inputs | {piece.source.view.content})
    player = SliceRunner(RecordedPass(4, recorder.tape, {}), lambda size: None, ())
    root = copy_memory(kept.kept[piece.source.view.content])
    assert torch.equal(player.run(piece, kept.kept, root).logits, logits)


def test_memory_that_was_freed_is_not_taken_for_new_memory() -> None:
    def function(x: Tensor, here: Callable[[Tensor], Tensor]) -> Tensor:
        for _ in range(50):
            x = x + 1  # each result is freed by the next
        return here(x) * 2

    recorder, _ = record(marked(function), torch.randn(64, 64))
    assert len(recorder.tape.bases) == 52


DECISIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "item": lambda y: y * float(y.sum()),
    "branch": lambda y: y if bool((y > 0).all()) else -y,
    "mask": lambda y: y[y > 0].sum() + y,
    "nonzero": lambda y: y + y.nonzero().shape[0],
}


@pytest.mark.parametrize("kind", DECISIONS)
def test_decisions_on_values_are_refused(kind: str) -> None:
    run = marked(lambda x, here: DECISIONS[kind](here(x + 1)))
    with pytest.raises(ControlFlowError):
        names(run, torch.randn(3, 2))
    # Before the tensor they are golden, and do no harm.
    assert names(marked(lambda x, here: here(DECISIONS[kind](x) + 1) * 2), torch.randn(3, 2)) == ["aten::mul"]


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("interleaved", [False, True])
def test_rows_are_picked_and_found(dim: int, interleaved: bool) -> None:
    rows = BatchLayout(dim, 3, interleaved)
    shape = [2, 2, 2]
    shape[dim] = 12
    source = torch.randn(shape)
    images = torch.tensor([2, 0])
    small = [*shape]
    small[dim] = 6
    picked = rows.select_images(source, images, torch.empty(small))
    for place, image in enumerate(images.tolist()):
        assert torch.equal(rows.of_image(picked, place), rows.of_image(source, image))
    before, after = torch.zeros(shape), torch.zeros(shape)
    rows.of_image(after, 1).fill_(1)
    other = torch.zeros(shape)
    rows.of_image(other, 0).fill_(1)
    assert resolve_order(BatchLayout(dim, 3), [before, after, other], (1, 0)) == rows


def test_rows_from_shapes() -> None:
    assert layout_from_shapes((8, 5), (3, 5), 8, 3) == BatchLayout(0, 1)
    assert layout_from_shapes((5, 16), (5, 6), 8, 3) == BatchLayout(1, 2)
    assert layout_from_shapes((5,), (5,), 8, 3) is None
    for many, few in (((8, 8), (3, 3)), ((9,), (3,)), ((8,), (3, 1))):
        with pytest.raises(ValueError, match="do not belong"):
            layout_from_shapes(many, few, 8, 3)


def test_words_tell_zeros_apart_and_nans_alike() -> None:
    nan = torch.tensor([float("nan")])
    assert torch.equal(words(nan), words(nan.clone()))
    assert not torch.equal(words(torch.tensor([0.0])), words(torch.tensor([-0.0])))


def test_an_operator_that_differs_with_the_batch_is_run_on_the_whole_of_it() -> None:
    torch.manual_seed(0)
    weight = torch.randn(40, 7)

    def function(x: Tensor, here: Callable[[Tensor], Tensor]) -> Tensor:
        y = here(x * 2)
        return torch.sigmoid(y.relu()) @ weight

    run, images = marked(function), torch.randn(16, 40)
    recorder, _ = record(run, images)
    whole = locate_images(run, recorder.tape, images)
    small = record_smaller_batches(run, whole, images, [4])[4]
    kinds = [recorder.tape.steps[number].func._schema.name for number in small.inexact]
    assert "aten::sigmoid" in kinds  # full vectors and what is left over take different paths
    assert "aten::relu" not in kinds


def test_values_that_hide_a_difference_do_not_make_an_operator_exact() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 6)

    def inexact(images: Tensor) -> list[frozenset[int]]:
        run = marked(lambda x, here: layer(here(x)) * 2)
        recorder, _ = record(run, images)
        whole = locate_images(run, recorder.tape, torch.randn(8, 6))
        return [batch.inexact for batch in record_smaller_batches(run, whole, images, [2, 4]).values()]

    # Of a batch of zeros every sum has the same bits, in whatever order.
    assert inexact(torch.zeros(8, 6)) == inexact(torch.randn(8, 6))


def test_rows_that_are_golden_again_are_dropped_and_the_rest_is_exact() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 5))

    def run(recorder: Recorder | None, images: Tensor) -> Tensor:
        x = layers[0](images)
        if recorder is not None:
            recorder.mark("here", x)
        return layers[1:](x)

    images = torch.randn(32, 6)
    recorder, logits = record(run, images)
    whole = locate_images(run, recorder.tape, images)
    made: list[int] = []

    fewer = record_smaller_batches(run, whole, images, range(4, 32, 4))

    def smaller(size: int) -> RecordedPass | None:
        made.append(size)
        return fewer[size]

    piece = slice_after(recorder.tape, recorder.tape.marks["here"][0])
    player = SliceRunner(whole, smaller, tuple(range(4, 32, 4)))
    kept, _ = record(run, images, player.golden_inputs(piece) | {piece.source.view.content})
    root = copy_memory(kept.kept[piece.source.view.content])
    struck = torch.arange(0, 32, 3)
    root[struck, 0] = 7.0
    dead = torch.tensor([1, 4])  # changed, but negative before and after: the ReLU hides it
    root[dead] = torch.where(root[dead] < 0, root[dead] - 1, root[dead])
    faulty = root.clone()
    played = player.run(piece, kept.kept, root)
    assert set(played.images.tolist()) == set(struck.tolist())
    assert made
    assert torch.equal(played.logits, layers[1:](faulty)[played.images])
    assert not torch.equal(played.logits, logits[played.images])
