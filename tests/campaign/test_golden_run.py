"""Golden runs of models that exclude classes, or whose logits are no numbers."""

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import resilient_heads as rh
from helpers.small_net import IMAGES, SmallNet, small_campaign
from resilient_heads.campaign.trials.outcomes import Outcome, classify, judge
from resilient_heads.errors import InjectionError


def give(value: float, rows: slice = slice(None), column: int = 2) -> Callable[[Tensor], Tensor]:
    def change(logits: Tensor) -> Tensor:
        logits = logits.clone()
        logits[rows, column] = value
        return logits

    return change


def labels_of(model: SmallNet) -> Tensor:
    with torch.no_grad():
        return model(IMAGES).nan_to_num(nan=-1e9, posinf=-1e9, neginf=-1e9).argmax(dim=1)


@pytest.mark.parametrize("engine", ["incremental", "full"])
def test_a_class_that_the_model_excludes_is_no_due(engine: str) -> None:
    excluding, plain = SmallNet(end=give(-torch.inf)), SmallNet(end=give(-1e6))
    labels = labels_of(excluding)
    result, other = (small_campaign(model, (IMAGES, labels), engine=engine) for model in (excluding, plain))
    assert np.array_equal(result.trials.outcome, other.trials.outcome)
    assert len(np.unique(result.trials.outcome)) >= 3
    assert np.array_equal(result.trials.delta_loss, other.trials.delta_loss, equal_nan=True)
    assert result.record.golden.eligible.all()


def test_exhaustive_runs_exclude_the_same_class() -> None:
    for closed_form in (False, True):
        counts = [
            rh.run_exhaustive(
                SmallNet(end=give(value)),
                (IMAGES[:4], labels_of(SmallNet(end=give(value)))[:4]),
                closed_form=closed_form,
                batch_size=128,
                progress=False,
            )["fc"].outcomes
            for value in (-torch.inf, -1e6)
        ]
        assert torch.equal(*counts)


@pytest.mark.parametrize(
    ("golden", "faulty", "outcome"),
    [
        ([2.0, 1.0, -torch.inf], [2.0, 1.0, -torch.inf], Outcome.MASKED),
        ([2.0, 1.0, -torch.inf], [2.0, 1.5, -torch.inf], Outcome.TOLERABLE),
        ([2.0, 1.0, -torch.inf], [2.0, 3.0, -torch.inf], Outcome.SDC),
        ([2.0, 1.0, -torch.inf], [2.0, 1.0, 3.0], Outcome.SDC),
        ([2.0, 1.0, -torch.inf], [2.0, 1.0, 0.0], Outcome.TOLERABLE),
        ([2.0, 1.0, -torch.inf], [2.0, 1.0, torch.inf], Outcome.DUE),
        ([2.0, 1.0, -torch.inf], [2.0, 1.0, torch.nan], Outcome.DUE),
        ([2.0, 1.0, -torch.inf], [2.0, -torch.inf, -torch.inf], Outcome.DUE),
        ([2.0, 1.0, -torch.inf], [-torch.inf, 1.0, -torch.inf], Outcome.DUE),
    ],
)
def test_a_due_is_a_number_that_became_none(golden: list[float], faulty: list[float], outcome: Outcome) -> None:
    one, other = torch.tensor([golden]), torch.tensor([faulty])
    assert judge(one, other, torch.tensor([0])).outcome.tolist() == classify(one, other).tolist() == [outcome]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_no_numbers_are_named_as_the_reason(value: float) -> None:
    model = SmallNet(end=give(value))
    with pytest.raises(InjectionError, match=r"logits of the fault-free model hold NaN or \+Inf for all 16 images"):
        small_campaign(model, (IMAGES, labels_of(model)))


def test_images_without_numbers_are_not_eligible() -> None:
    limit = IMAGES.amax((1, 2, 3)).median()

    class Spoiling(SmallNet):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.where(x.amax((1, 2, 3)) > limit, torch.nan, 0.0)[:, None]

    model = Spoiling()
    with torch.no_grad():
        logits = torch.cat([model(batch) for batch in IMAGES.split(8)])
    spoilt = logits.isnan().any(dim=1).numpy()
    assert 0 < spoilt.sum() < 16
    result = small_campaign(model, (IMAGES, logits.nan_to_num(nan=-1e9).argmax(dim=1)), engine="full", batch_size=8)
    assert not result.record.golden.eligible[spoilt].any()


def test_a_margin_that_no_image_has_is_named_as_the_reason() -> None:
    model = SmallNet(end=lambda logits: logits * 1e-4)
    protocol = rh.Protocol(name="strict", min_top2diff=0.5)
    with pytest.raises(InjectionError, match=r"classifies 16 of 16 .* none of these has a Top2Diff above 0\.5 and"):
        small_campaign(model, (IMAGES, labels_of(model)), protocol=protocol)
    with pytest.raises(InjectionError, match="classifies none of the 16 images correctly, so"):
        small_campaign(model, (IMAGES, (labels_of(model) + 1) % 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("last", "warned"), [(nn.Softmax(1), True), (nn.LogSoftmax(1), False), (nn.Sigmoid(), False)])
def test_probabilities_in_place_of_logits_get_a_warning(last: nn.Module, warned: bool, dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(6, 40), last).to(dtype).eval()
    images = torch.randn(8, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.no_grad():
        data = [(images, model(images).argmax(dim=1))]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rh.run_campaign(model, data, protocol="raw", trials_per_site=1, layers=["0"], progress=False)
    messages = [str(warning.message) for warning in caught]
    assert [message.startswith("The model gives probabilities, not logits") for message in messages] == [True] * warned
