"""``until=`` gives the same bytes for any number of processes that share a campaign."""

from pathlib import Path

import pytest

import resilient_heads as rh
from helpers.small_campaign import arguments, campaign
from resilient_heads import cli
from resilient_heads.campaign.result.prefix import Prefix
from resilient_heads.campaign.result.results import CampaignResult
from resilient_heads.campaign.result.store import CampaignFolder
from resilient_heads.campaign.trials.columns import Trials

pytest.importorskip("pyarrow")
RULES = {
    "early": rh.StoppingRule(half_width=0.12),
    "relative": rh.StoppingRule(half_width=0.5, metric="masked", relative=True),
    "losses": rh.StoppingRule(half_width=1.4, metric="delta_loss", relative=True),
    "never": rh.StoppingRule(half_width=1e-6),
}


@pytest.fixture(scope="module", params=RULES)
def single(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[rh.StoppingRule, bytes]:
    """A rule and the bytes of a single process."""
    rule, folder = RULES[request.param], tmp_path_factory.mktemp("single")
    trials = len(campaign(folder / "c", until=rule).trials)
    assert (trials == 180) == (request.param == "never")
    return rule, (folder / "c/result.parquet").read_bytes()


@pytest.mark.parametrize(
    ("ranks", "shared_disk"), [((0, 1), False), ((1, 0), True), ((2, 0, 1), True), ((0, 1, 2), False)]
)
def test_any_processes_give_the_same_bytes(
    single: tuple[rh.StoppingRule, bytes], ranks: tuple[int, ...], shared_disk: bool, tmp_path: Path
) -> None:
    rule, expected = single
    for rank in ranks:  # one after another: the first knows nothing of the others, the last knows all
        folder = tmp_path / ("c" if shared_disk else f"c{rank}")
        campaign(folder, until=rule, shard=rh.Shard(rank=rank, world_size=len(ranks)))
    folders = [tmp_path / "c"] if shared_disk else [tmp_path / f"c{rank}" for rank in ranks]
    rh.merge_campaign(*folders)
    assert (folders[0] / "result.parquet").read_bytes() == expected


def test_a_resumed_campaign_leaves_out_what_came_after_the_stop(
    single: tuple[rh.StoppingRule, bytes], tmp_path: Path
) -> None:
    rule, expected = single
    # Shards that see nothing of each other run beyond the stop; a single process that finds their chunks does not care.
    for rank in (2, 1):
        campaign(tmp_path / "c", until=rule, shard=rh.Shard(rank=rank, world_size=3))
    campaign(tmp_path / "c", until=rule)
    assert (tmp_path / "c/result.parquet").read_bytes() == expected


def test_the_prefix_ends_at_the_first_chunk_that_is_enough(tmp_path: Path) -> None:
    result = campaign(tmp_path / "c", until=RULES["early"])
    whole, record = campaign(None), CampaignFolder.open(tmp_path / "c").record
    chunks: list[Trials] = [
        whole.trials.where((whole.trials.trial >= 8 * n) & (whole.trials.trial < 8 * n + 8)) for n in range(12)
    ]
    last = int(result.trials.trial.max()) // 8
    assert 0 < last < 11
    prefix = Prefix(record)
    gap = {number: chunk for number, chunk in enumerate(chunks) if number != 1}
    assert not prefix.complete(gap.get)  # chunk 1 decides, and is not known yet
    assert prefix.holds(11)
    assert prefix.complete(dict(enumerate(chunks)).get)
    assert prefix.holds(last)
    assert not prefix.holds(last + 1)
    estimate = result.scope("network").layer_averaged.sdc
    assert (estimate.high - estimate.low) / 2 <= 0.12
    short = Prefix(record)
    assert not short.complete(dict(enumerate(chunks[:last])).get)


def test_until_and_pilot_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = arguments(tmp_path / "c")
    assert cli.main([*words, "--until", "sdc:0.12"]) == 0
    early = campaign(None, until=RULES["early"])
    assert CampaignResult.load(tmp_path / "c").trials.trial.tolist() == early.trials.trial.tolist()
    assert cli.main([*arguments(tmp_path / "r"), "--until", "masked:50%"]) == 0
    assert CampaignResult.load(tmp_path / "r").config.until == RULES["relative"]
    pilot = [*arguments(tmp_path / "p"), "--seed", "1"]
    assert cli.main(pilot) == 0
    assert cli.main([*arguments(tmp_path / "s"), "--pilot", str(tmp_path / "p"), "--total-trials", "150"]) == 0
    found = CampaignResult.load(tmp_path / "s")
    assert len(found.trials) == 150
    assert found.config.design == rh.neyman_design(CampaignResult.load(tmp_path / "p"), total_trials=150)
    capsys.readouterr()
    for extra, match in [
        (["--until", "sdc"], "--until must be METRIC:WIDTH"),
        (["--until", "harm:0.1"], 'found "harm"'),
        (["--until", "sdc:0%"], "half_width must be a number above 0"),
        (["--pilot", str(tmp_path / "p")], "pass both or neither"),
        (["--pilot", str(tmp_path / "none"), "--total-trials", "150"], "There is no folder"),
        (["--pilot", str(tmp_path / "p"), "--total-trials", "150", "--seed", "1"], "pass another seed="),
    ]:
        assert cli.main([*arguments(tmp_path / "x"), *extra]) == 1
        assert match in capsys.readouterr().err
