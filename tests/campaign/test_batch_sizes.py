"""Models that accept only some batch sizes."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import resilient_heads as rh
from helpers.small_net import IMAGES, LABELS, SmallNet, small_campaign
from resilient_heads.errors import ForwardError, InjectionError, ModelError


def accept(condition: Callable[[int], bool]) -> Callable[[Tensor], Tensor]:
    def check(logits: Tensor) -> Tensor:
        if not condition(len(logits)):
            raise ValueError(f"no batch of {len(logits)}")
        return logits

    return check


MODELS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "view": (lambda logits: logits.view(4, 5), 4),
    "one": (accept(lambda size: size == 1), 1),
    "two": (accept(lambda size: size == 2), 2),
    "five": (accept(lambda size: size == 5), 5),
    "all": (accept(lambda size: size == 16), 16),
    "more than there are": (accept(lambda size: size == 32), 32),
    "multiples": (accept(lambda size: size % 4 == 0), 8),
    "at least": (accept(lambda size: size >= 4), 8),
    "at most": (accept(lambda size: size <= 2), 2),
    "at least more": (accept(lambda size: size > 8), 9),
}


@pytest.mark.parametrize("engine", ["incremental", "full"])
@pytest.mark.parametrize("name", MODELS)
def test_a_campaign_keeps_to_the_batch_sizes_of_the_model(name: str, engine: str) -> None:
    end, size = MODELS[name]
    result = small_campaign(SmallNet(end=end), batch_size=size, engine=engine)
    expected = small_campaign(SmallNet(), batch_size=size, engine=engine)
    assert [site.site for site in result.sites] == [site.site for site in expected.sites]
    assert np.array_equal(result.trials.outcome, expected.trials.outcome)
    assert np.array_equal(result.trials.after, expected.trials.after)
    assert result.record.golden.eligible.all()
    rh.replay(result, SmallNet(end=end), (IMAGES, LABELS), site="conv2", trial=31)


@pytest.mark.parametrize(
    "calibration", [IMAGES, (IMAGES, LABELS), [IMAGES[:4], IMAGES[4:7]]], ids=["all", "pair", "two"]
)
def test_calibration_keeps_to_the_batch_size(calibration: object) -> None:
    options = {"protocol": "goldeneye", "batch_size": 4, "calibration": calibration}
    limits = [
        [site.range_limit for site in small_campaign(SmallNet(end=end), **options).sites]
        for end in (lambda logits: logits.view(4, 5), None)
    ]
    assert limits[0] == pytest.approx(limits[1], rel=1e-6)


def test_a_batch_size_that_the_model_refuses_is_named() -> None:
    model = SmallNet(end=accept(lambda size: size == 4))
    with pytest.raises(
        ForwardError, match=r"batch of shape \(8, 3, 12, 12\).*in the golden run: ValueError: no batch of 8"
    ):
        small_campaign(model, batch_size=8)
    with pytest.raises(ForwardError, match=r"batch of shape \(6, 3, 12, 12\).*in the search .*no batch of 6"):
        rh.find_sites(model, IMAGES[:6])


def test_fewer_trials_than_images_in_a_batch_are_named() -> None:
    model = SmallNet(end=accept(lambda size: size == 8))
    with pytest.raises(ModelError, match=r"has 5 trials for each site.*Pass trials_per_site=8 or more.*no batch of 5"):
        small_campaign(model, trials_per_site=5)


@pytest.mark.parametrize("engine", ["incremental", "full"])
def test_statistics_over_the_batch_are_noticed_with_one_batch_size(engine: str) -> None:
    model = SmallNet(middle=lambda x: x - x.mean(dim=0, keepdim=True), end=accept(lambda size: size == 8))
    with torch.no_grad():
        labels = torch.cat([model(part) for part in IMAGES.split(8)]).argmax(dim=1)
    with pytest.raises(InjectionError, match="A fault in one image at 'conv1' changes the logits of other images"):
        small_campaign(model, (IMAGES, labels), engine=engine)


class Layouts(nn.Module):
    """Layers whose outputs have the batch in other places, for batches of one size."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.embed = nn.Linear(4, 6)
        self.sequence_first = nn.Linear(6, 6)
        self.windows = nn.Linear(6, 6)
        self.interleaved = nn.Linear(6, 6)
        self.constant = nn.Linear(6, 6)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) != self.size:
            raise ValueError(f"no batch of {len(x)}")
        x = self.embed(x)
        x = self.sequence_first(x.transpose(0, 1)).transpose(0, 1)
        x = self.windows(x.reshape(self.size * 2, -1, 6)).reshape(self.size, -1, 6)
        x = self.interleaved(torch.cat([x[:, :4], x[:, 4:]]))
        x = torch.cat([x[: self.size], x[self.size :]], dim=1) + self.constant(torch.ones(self.size, 1, 6))
        return self.fc(x.mean(1))


def test_places_of_images_are_found_with_one_batch_size() -> None:
    sites = rh.find_sites(Layouts(4), torch.randn(4, 8, 4))
    found = {site.name: (site.shape, site.dim, site.fold, site.interleaved) for site in sites.reached}
    assert found == {
        "embed": ((8, 6), 0, 1, False),
        "windows": ((2, 4, 6), 0, 2, False),
        "interleaved": ((2, 4, 6), 0, 2, True),
        "fc": ((3,), 0, 1, False),
    }
    reason = "which part of its output belongs to which image is unclear"
    assert sites.uninjectable == {"sequence_first": reason, "constant": reason}
