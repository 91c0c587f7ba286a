"""The library of today and the version that made the file of golden trials agree trial by trial.

The file was made before the redesign of 2026, with the campaigns of ``helpers.golden_campaigns``. Make it again only if
a change of the trials is intended.
"""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import resilient_heads as rh
from helpers.golden_campaigns import choices, images, network
from resilient_heads.campaign.trials.columns import COLUMNS

CAMPAIGNS = choices()
ROUNDED = ("delta_loss", "confidence_change")
"""Columns that exponentials enter, so that their last bits depend on the CPU."""


@pytest.fixture(scope="module")
def golden() -> dict[str, NDArray[np.generic]]:
    with np.load(Path(__file__).parent / "golden" / "trials.npz") as content:
        return dict(content)


def run(name: str, **options: object) -> rh.CampaignResult:
    labelled = images()
    settings: dict = {"batch_size": 8, "progress": False, **CAMPAIGNS[name], **options}
    return rh.run_campaign(network(), labelled, calibration=labelled[0] * 2, **settings)


def test_every_golden_campaign_is_run(golden: dict[str, NDArray[np.generic]]) -> None:
    assert golden["names"].tolist() == list(CAMPAIGNS)


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_trials_are_the_golden_ones(name: str, golden: dict[str, NDArray[np.generic]]) -> None:
    chosen = golden["campaign"] == list(CAMPAIGNS).index(name)
    trials = run(name).trials
    for column in COLUMNS:
        tolerance = 1e-9 if column in ROUNDED else 0.0
        np.testing.assert_allclose(
            trials.columns[column], golden[column][chosen], rtol=tolerance, atol=tolerance, err_msg=column
        )


def test_both_engines_give_the_golden_trials(golden: dict[str, NDArray[np.generic]]) -> None:
    chosen = golden["campaign"] == list(CAMPAIGNS).index("goldeneye")
    np.testing.assert_array_equal(run("goldeneye", engine="full").trials.outcome, golden["outcome"][chosen])


def test_other_trials_are_noticed(golden: dict[str, NDArray[np.generic]]) -> None:
    chosen = golden["campaign"] == list(CAMPAIGNS).index("raw")
    assert (run("raw", seed=4).trials.neuron != golden["neuron"][chosen]).any()
