"""Recording and slicing, on passes small enough to follow by hand."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from helpers.marked_pass import Mark, MarkedPass, marking
from resilient_heads.incremental.recording.batch_layout import BatchLayout, layout_from_shapes, resolve_order
from resilient_heads.incremental.recording.recorder import record
from resilient_heads.incremental.recording.tape import ControlFlowError
from resilient_heads.incremental.recording.words import same_bits, words

pytestmark = pytest.mark.engine


def test_a_slice_holds_what_depends_on_the_tensor_and_leads_to_the_logits() -> None:
    def function(x: Tensor, mark: Mark) -> Tensor:
        before = x * 2
        y = mark(x + 1)
        y.exp()  # leads nowhere
        independent = before.sin()
        return (y * 3).reshape(-1, 2).t().t() + independent

    assert MarkedPass.of(marking(function), torch.randn(3, 2)).operators() == ["mul", "add"]


def test_new_memory_at_a_freed_address_is_a_new_buffer() -> None:
    def function(x: Tensor, mark: Mark) -> Tensor:
        for _ in range(50):
            x = x + 1  # each result is freed by the next
        return mark(x) * 2

    recorder, _ = record(marking(function), torch.randn(64, 64))
    assert len(recorder.tape.bases) == 52


DECISIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "item": lambda y: y * float(y.sum()),
    "branch": lambda y: y if bool((y > 0).all()) else -y,
    "mask": lambda y: y[y > 0].sum() + y,
    "nonzero": lambda y: y + y.nonzero().shape[0],
}


@pytest.mark.parametrize("kind", DECISIONS)
def test_a_decision_on_values_after_the_tensor_is_refused(kind: str) -> None:
    with pytest.raises(ControlFlowError):
        MarkedPass.of(marking(lambda x, mark: DECISIONS[kind](mark(x + 1))), torch.randn(3, 2))


@pytest.mark.parametrize("kind", DECISIONS)
def test_a_decision_on_values_before_the_tensor_is_golden(kind: str) -> None:
    run = marking(lambda x, mark: mark(DECISIONS[kind](x) + 1) * 2)
    assert MarkedPass.of(run, torch.randn(3, 2)).operators() == ["mul"]


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("interleaved", [False, True])
def test_images_are_selected_from_a_folded_tensor(dim: int, interleaved: bool) -> None:
    layout = BatchLayout(dim, 3, interleaved)
    shape, small = [2, 2, 2], [2, 2, 2]
    shape[dim], small[dim] = 12, 6
    source = torch.randn(shape)
    selected = layout.select_images(source, torch.tensor([2, 0]), torch.empty(small))
    for position, image in enumerate((2, 0)):
        assert torch.equal(layout.of_image(selected, position), layout.of_image(source, image))


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("interleaved", [False, True])
def test_the_order_of_a_folded_tensor_is_found_by_changing_images(dim: int, interleaved: bool) -> None:
    layout = BatchLayout(dim, 3, interleaved)
    shape = [2, 2, 2]
    shape[dim] = 12
    golden, first, second = torch.zeros(shape), torch.zeros(shape), torch.zeros(shape)
    layout.of_image(first, 1).fill_(1)
    layout.of_image(second, 0).fill_(1)
    assert resolve_order(BatchLayout(dim, 3), [golden, first, second], (1, 0)) == layout


def test_the_batch_dimension_follows_from_two_shapes() -> None:
    assert layout_from_shapes((8, 5), (3, 5), 8, 3) == BatchLayout(0, 1)
    assert layout_from_shapes((5, 16), (5, 6), 8, 3) == BatchLayout(1, 2)
    assert layout_from_shapes((5,), (5,), 8, 3) is None


@pytest.mark.parametrize(("large", "small"), [((8, 8), (3, 3)), ((9,), (3,)), ((8,), (3, 1))])
def test_shapes_that_do_not_grow_with_the_batch_are_refused(large: tuple[int, ...], small: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="do not belong"):
        layout_from_shapes(large, small, 8, 3)


def test_words_differ_for_the_two_zeros_and_same_bits_takes_all_nans_as_equal() -> None:
    nan = torch.tensor([float("nan")])
    assert torch.equal(words(nan), words(nan.clone()))
    assert not torch.equal(words(torch.tensor([0.0])), words(torch.tensor([-0.0])))
    assert same_bits(nan, -nan)
    assert not same_bits(nan, torch.tensor([0.0]))
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
