import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from resilient_heads.statistics.functional import confidence, cross_entropy, delta_loss, rank, top2diff

PROPERTY = settings(max_examples=40, deadline=None, derandomize=True, database=None)
INF, NAN = math.inf, math.nan
Floats = NDArray[np.float64]

FINITE = st.floats(-1e4, 1e4, width=32)
ODD = st.sampled_from([0.0, -0.0, 1.0, INF, -INF, NAN, 3.4e38, -3.4e38, 1e-45])


@st.composite
def logits_and_classes(draw: st.DrawFn, odd: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    rows, classes = draw(st.integers(1, 5)), draw(st.integers(2, 7))
    value = st.one_of(FINITE, ODD) if odd else st.one_of(FINITE, st.sampled_from([0.0, 1.0, 2.0]))
    values = [draw(st.lists(value, min_size=rows * classes, max_size=rows * classes)) for _ in range(2)]
    target = draw(st.lists(st.integers(0, classes - 1), min_size=rows, max_size=rows))
    first, second = (torch.tensor(v, dtype=torch.float32).view(rows, classes) for v in values)
    return first, second, torch.tensor(target)


def softmax_reference(logits: Floats) -> Floats:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def loss_reference(logits: Floats, target: NDArray[np.int64]) -> Floats:
    """Sum the odds against the target: another route than a difference of two logs."""
    with np.errstate(over="ignore"):
        return np.array(
            [
                np.logaddexp.reduce([other - row[c] for k, other in enumerate(row) if k != c] + [0.0])
                for row, c in zip(logits, target, strict=True)
            ]
        )


@PROPERTY
@given(logits_and_classes())
def test_finite_logits_agree_with_numpy(case: tuple[Tensor, Tensor, Tensor]) -> None:
    golden, faulty, target = case
    g, f, t = golden.double().numpy(), faulty.double().numpy(), target.numpy()
    found = cross_entropy(golden, target)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found, loss_reference(g, t), rtol=1e-12, atol=1e-11)
    expected = np.abs(loss_reference(f, t) - loss_reference(g, t))
    np.testing.assert_allclose(delta_loss(golden, faulty, target), expected, rtol=1e-12, atol=1e-11)
    np.testing.assert_allclose(
        confidence(golden, target), softmax_reference(g)[np.arange(len(t)), t], rtol=1e-12, atol=1e-300
    )
    ordered = np.sort(softmax_reference(g), axis=1)
    np.testing.assert_allclose(top2diff(golden), ordered[:, -1] - ordered[:, -2], rtol=1e-12, atol=1e-15)


@PROPERTY
@given(logits_and_classes(odd=True))
def test_ranks_agree_with_counting(case: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, _, classes = case
    logits = logits.nan_to_num(nan=0.5, posinf=INF, neginf=-INF)
    found = rank(logits, classes)
    assert found.dtype == torch.int64
    for row, c, place in zip(logits.tolist(), classes.tolist(), found.tolist(), strict=True):
        assert place == sum(value >= row[c] for k, value in enumerate(row) if k != c)


def test_losses_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0], [1000.0, 0.0], [0.0, 1000.0]])
    target = torch.tensor([0, 0, 0, 0])
    expected = [math.log(2), math.log(4 / 3), 0.0, 1000.0]
    np.testing.assert_allclose(cross_entropy(logits, target), expected, rtol=1e-7)
    swapped = delta_loss(logits[[0, 0]], logits[[3, 1]], target[:2])
    np.testing.assert_allclose(swapped, [1000 - math.log(2), math.log(2) - math.log(4 / 3)], rtol=1e-7)
    np.testing.assert_allclose(confidence(logits, target), [0.5, 0.75, 1.0, 0.0], rtol=1e-7)
    np.testing.assert_allclose(top2diff(logits), [0.0, 0.5, 1.0, 1.0], rtol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_the_loss_is_taken_in_double_precision(dtype: torch.dtype) -> None:
    # exp(-20) is lost beside 1 in single precision, so the loss would be 0.
    logits = torch.tensor([[20.0, 0.0]], dtype=dtype)
    target = torch.tensor([0])
    for found in (cross_entropy(logits, target), top2diff(logits), confidence(logits, target)):
        assert found.dtype == torch.float64
    assert cross_entropy(logits, target).item() == pytest.approx(math.log1p(math.exp(-20)), rel=1e-6)
    assert 1 - confidence(logits, target).item() == pytest.approx(math.exp(-20), rel=1e-6)
    assert 1 - top2diff(logits).item() == pytest.approx(2 * math.exp(-20), rel=1e-6)


def test_single_precision_extremes_stay_finite() -> None:
    # Where float32 itself would overflow: 2.55e38 - (-2.55e38).
    big = 2.5521177519070385e38
    logits = torch.tensor([[big, -big]])
    assert cross_entropy(logits, torch.tensor([1])).item() == 2 * big
    assert delta_loss(torch.zeros(1, 2), logits, torch.tensor([1])).item() == pytest.approx(2 * big)


def test_non_finite_entries_are_kept() -> None:
    golden = torch.tensor([[2.0, 1.0, 0.0]]).repeat(6, 1)
    faulty = torch.tensor(
        [
            [NAN, 1.0, 0.0],
            [2.0, NAN, 0.0],
            [INF, 1.0, 0.0],
            [2.0, INF, 0.0],
            [-INF, 1.0, 0.0],
            [2.0, -INF, 0.0],
        ]
    )
    found = delta_loss(golden, faulty, torch.zeros(6, dtype=torch.long))
    assert found.shape == (6,)
    assert found[[0, 1, 2]].isnan().all()
    assert found[[3, 4]].tolist() == [INF, INF]
    before = math.log(1 + math.exp(-1) + math.exp(-2))
    assert found[5].item() == pytest.approx(before - math.log(1 + math.exp(-2)))


@PROPERTY
@given(logits_and_classes(odd=True))
def test_no_sample_is_ever_dropped(case: tuple[Tensor, Tensor, Tensor]) -> None:
    golden, faulty, target = case
    for found in (
        cross_entropy(faulty, target),
        delta_loss(golden, faulty, target),
        top2diff(faulty),
        confidence(faulty, target),
        rank(faulty, target),
    ):
        assert found.shape == (len(golden),)
    with_nan = faulty.isnan().any(dim=1)
    assert delta_loss(golden, faulty, target)[with_nan].isnan().all()
    assert top2diff(faulty)[with_nan].isnan().all()


@PROPERTY
@given(logits_and_classes(odd=True))
def test_a_masked_fault_changes_no_finite_loss(case: tuple[Tensor, Tensor, Tensor]) -> None:
    golden, _, target = case
    found = delta_loss(golden, golden.clone(), target)
    assert ((found == 0) | found.isnan()).all()
    assert (found[golden.isfinite().all(dim=1)] == 0).all()


def test_a_tie_counts_against_the_class() -> None:
    logits = torch.tensor([[1.0, 1.0, 0.0, 0.0, -1.0]]).repeat(5, 1)
    assert rank(logits, torch.arange(5)).tolist() == [1, 1, 3, 3, 4]
    assert rank(torch.zeros(3, 3), torch.arange(3)).tolist() == [2, 2, 2]
    assert rank(torch.tensor([[0.0, -0.0]]).repeat(2, 1), torch.arange(2)).tolist() == [1, 1]
    assert rank(torch.tensor([[INF, -INF, INF]]).repeat(3, 1), torch.arange(3)).tolist() == [1, 2, 1]


@PROPERTY
@given(logits_and_classes())
def test_a_rank_does_not_depend_on_the_order_of_the_classes(case: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, _, classes = case
    mirrored = rank(logits.flip(1), logits.shape[1] - 1 - classes)
    assert torch.equal(rank(logits, classes), mirrored)
    alone_on_top = rank(logits, classes) == 0
    assert torch.equal(alone_on_top, (logits.argmax(dim=1) == classes) & (top2diff_of_logits(logits) > 0))


def top2diff_of_logits(logits: Tensor) -> Tensor:
    ordered = logits.sort(dim=1).values
    return ordered[:, -1] - ordered[:, -2]


def test_a_rank_beside_a_nan_is_still_a_number() -> None:
    logits = torch.tensor([[3.0, NAN, 5.0]]).repeat(3, 1)
    found = rank(logits, torch.arange(3))
    assert found.dtype == torch.int64
    assert ((found >= 0) & (found < 3)).all()


def test_top2diff_lies_between_zero_and_one() -> None:
    logits = torch.tensor([[5.0, 5.0, 1.0], [1e38, -1e38, 0.0], [0.0, 0.0, 0.0], [INF, 0.0, 0.0]])
    found = top2diff(logits)
    assert found[:3].tolist() == [0.0, 1.0, 0.0]
    assert found[3].isnan()
