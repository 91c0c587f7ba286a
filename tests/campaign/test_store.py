import dataclasses
import errno
import json
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import resilient_heads as rh
from helpers.small_campaign import campaign, files, labelled, net
from resilient_heads import files as atomic
from resilient_heads.campaign.result.store import CampaignFolder
from resilient_heads.campaign.run.execution import Execution
from resilient_heads.errors import (
    ArgumentError,
    DamagedFileWarning,
    DataError,
    InjectionError,
    MissingExtraError,
    ResultError,
    StoreError,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted campaign; do not write to it."""
    folder = tmp_path_factory.mktemp("whole") / "campaign"
    campaign(folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    copy = tmp_path / "campaign"
    for name, content in files(whole).items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(content)
    return copy


def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by the first trial of each chunk that is run."""
    started: list[int] = []
    run = Execution.run

    def counted(self: Execution, start: int, stop: int, **options: object) -> object:
        started.append(start)
        return run(self, start, stop, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Execution, "run", counted)
    return started


def test_the_folder_holds_what_it_says(whole: Path) -> None:
    assert list(files(whole)) == [
        "campaign.json",
        "golden.parquet",
        "result.parquet",
        *(f"trials/chunk-{chunk:06d}.parquet" for chunk in range(12)),
    ]
    record = json.loads((whole / "campaign.json").read_text())
    assert record["config"]["seed"] == 0
    assert record["config"]["chunk_size"] == 8
    assert {"torch", "device", "threads", "resilient_heads"} <= set(record["environment"])


def test_a_folder_changes_nothing(whole: Path, tmp_path: Path) -> None:
    in_memory = campaign(None)
    assert files(in_memory.save(tmp_path / "r")).items() <= files(whole).items()
    loaded = rh.CampaignResult.load(whole)
    for name, column in in_memory.trials.columns.items():
        assert loaded.trials.columns[name].tobytes() == column.tobytes()
        assert loaded.trials.columns[name].dtype == column.dtype
    assert loaded.summary() == in_memory.summary()
    other_chunks = campaign(None, chunk_size=40)
    for name, column in in_memory.trials.columns.items():
        assert other_chunks.trials.columns[name].tobytes() == column.tobytes(), name


def test_what_is_there_is_not_run_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files(folder)
    started = runs(monkeypatch)
    campaign(folder)
    assert started == []
    for chunk in (3, 11):
        (folder / f"trials/chunk-{chunk:06d}.parquet").unlink()
    (folder / "result.parquet").unlink()
    campaign(folder)
    assert started == [24, 88]
    assert files(folder) == before


def test_leftovers_of_a_kill_are_removed(folder: Path) -> None:
    before = files(folder)
    names = (
        "trials/.chunk-000004.parquet.abc",
        ".campaign.json.x1",
        ".result.parquet.x2",
        ".golden.parquet.q",
        ".lock-0",
    )
    for name in names:
        (folder / name).write_bytes(b"half")
    campaign(folder)
    assert files(folder) == before


def test_other_shards_files_are_left_alone(folder: Path) -> None:
    """What looks left over may be what another process is writing."""
    other = folder / "trials/.chunk-000004.parquet.abc"
    other.write_bytes(b"half")
    campaign(folder, shard=rh.Shard(rank=1, world_size=2))
    assert other.exists()


@pytest.mark.parametrize("keep", [0, 3, 4, 100, -9, -1])
def test_a_truncated_chunk_is_told_and_run_again(folder: Path, keep: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before, chunk = files(folder), folder / "trials/chunk-000002.parquet"
    chunk.write_bytes(chunk.read_bytes()[:keep])
    (folder / "result.parquet").unlink()
    started = runs(monkeypatch)
    with pytest.raises(ResultError, match=r"1 of 12 chunks are missing: 2.*chunk-000002.*damaged"):
        rh.merge_campaign(folder)
    with pytest.warns(DamagedFileWarning, match=r"chunk-000002\.parquet is damaged: .* writes it again"):
        campaign(folder)
    assert started == [16]
    assert files(folder) == before


def test_a_chunk_in_the_place_of_another_is_run_again(folder: Path) -> None:
    before = files(folder)
    (folder / "trials/chunk-000002.parquet").write_bytes(before["trials/chunk-000003.parquet"])
    (folder / "result.parquet").unlink()
    with pytest.warns(DamagedFileWarning, match="does not hold the trials of chunk 2"):
        campaign(folder)
    assert files(folder) == before


def test_foreign_files_are_refused_and_left(folder: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    other = tmp_path / "other"
    campaign(other, seed=1)
    chunk = folder / "trials/chunk-000002.parquet"
    pq.write_table(pa.table({"a": [1]}), tmp_path / "foreign.parquet")
    cases = [
        ((other / "trials/chunk-000002.parquet").read_bytes(), "belongs to another campaign"),
        ((tmp_path / "foreign.parquet").read_bytes(), "is not a file of this library"),
        (b"my notes on chunk 2", "is not a Parquet file"),
    ]
    for content, message in cases:
        chunk.write_bytes(content)
        for run in (campaign, rh.merge_campaign):
            with pytest.raises(ResultError, match=message):
                run(folder)
        assert chunk.read_bytes() == content
    chunk.unlink()
    (folder / "trials/chunk-000012.parquet").write_bytes(b"")
    with pytest.raises(ResultError, match="holds chunk-000012"):
        campaign(folder)


def test_another_campaign_is_refused_by_name(folder: Path) -> None:
    before = files(folder)
    images, labels = labelled()
    moved = net()
    with torch.no_grad():
        moved.fc.bias[0] += 1e-3
    cases: list[tuple[dict, str]] = [
        ({"model": moved}, r"model_sha256 is \w{12}\.\.\. there and \w{12}\.\.\. now \(load the same weights\)"),
        ({"data": (images * 1.001, labels)}, "pass the same images and labels"),
        ({"seed": 5}, r"seed is 0 there and 5 now \(pass seed=0, or --seed 0\)"),
        ({"protocol": rh.Protocol(name="raw", min_top2diff=0.01)}, "pass the same protocol"),
        ({"trials_per_site": 91}, "pass trials_per_site=90, or --trials-per-site 90"),
        ({"chunk_size": 12}, "pass chunk_size=8, or --chunk-size 8"),
        ({"batch_size": 2}, "pass batch_size=4, or --batch-size 4"),
        ({"layers": ["fc"]}, "pass the same layers"),
        ({"protocol": "goldeneye", "calibration": images}, "pass the same protocol"),
    ]
    for options, message in cases:
        with pytest.raises(ResultError, match=message) as refusal:
            campaign(folder, **options)
        assert str(refusal.value).count(" there and ") == 1, refusal.value
    assert files(folder) == before


def test_other_kinds_of_machine_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bits may differ with the number of threads and the version of PyTorch, but not with that of Python."""
    record = CampaignFolder.open(folder).record
    of_other_python = dataclasses.replace(record, environment={**record.environment, "python": "3.99"})
    (folder / "campaign.json").write_text(of_other_python.to_json())
    assert campaign(folder).record.environment["python"] == "3.99"
    other = dataclasses.replace(
        record,
        environment={**record.environment, "threads": "7"},
        golden=dataclasses.replace(record.golden, loss=record.golden.loss + 1),
    )
    (folder / "campaign.json").write_text(other.to_json())
    with pytest.raises(
        ResultError, match=r"another campaign: threads is 7 there and \d+ now \(set OMP_NUM_THREADS=7\)\. To"
    ):
        campaign(folder)


def test_a_model_that_computes_something_else_is_refused(folder: Path) -> None:
    """The same weights and images, as another rank or another machine has them, but another golden run."""
    model = net()
    forward = model.forward
    model.forward = lambda x: forward(x) * 1.0001  # type: ignore[method-assign]
    with pytest.raises(ResultError, match=r"golden_sha256 is .* now \(the model computes something else"):
        campaign(folder, model=model)


def test_a_full_disk_loses_nothing(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, fsync, written = tmp_path / "campaign", os.fsync, 0

    def full(handle: int) -> None:
        nonlocal written
        written += 1
        if written > 9:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "fsync", full)
        with pytest.raises(StoreError, match=r"No space left on device.*chunks written before are kept.*same command"):
            campaign(folder)
    kept = files(folder)
    assert 1 < len(kept) < 12
    assert kept == {name: content for name, content in files(whole).items() if name in kept}
    campaign(folder)
    assert files(folder) == files(whole)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file is no folder; pass another path"):
        campaign(tmp_path / "file")
    with pytest.raises(StoreError, match=r"cannot be used: .*file is no folder"):
        campaign(tmp_path / "file" / "campaign")


def test_folders_of_something_else_are_refused(tmp_path: Path) -> None:
    for content, message in (
        ("{}", "not the record of a campaign"),
        ("not json", "not the record of a campaign"),
        ('{"format": "x/1"}', "format is 'x/1'"),
    ):
        other = tmp_path / "other"
        other.mkdir(exist_ok=True)
        (other / "campaign.json").write_text(content)
        for run in (campaign, rh.merge_campaign):
            with pytest.raises(ResultError, match=message):
                run(other)
        assert files(other) == {"campaign.json": content.encode()}
    with pytest.raises(ResultError, match=r"it has no campaign\.json"):
        rh.merge_campaign(tmp_path)


def test_two_processes_at_once_are_refused(folder: Path) -> None:
    with atomic.locked(folder / ".lock-0", wait=False), pytest.raises(StoreError, match="Another process is running"):
        campaign(folder)
    campaign(folder)


def test_a_loader_that_raises_leaves_nothing(tmp_path: Path) -> None:
    def loader() -> Iterator[tuple[Tensor, Tensor]]:
        yield labelled()
        raise OSError("disk")

    model, folder = net(), tmp_path / "campaign"
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(DataError, match="OSError: disk"):
        campaign(folder, model=model, data=loader())
    assert not folder.exists()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_chunks_of_a_model_that_changed_are_not_kept(tmp_path: Path) -> None:
    class Worn(nn.Linear):
        runs = 0

        def forward(self, x: Tensor) -> Tensor:
            self.runs += 1
            return super().forward(x) * (1 if self.runs < 30 else 2)

    model = nn.Sequential(nn.Flatten(), Worn(48, 4)).eval()
    images = labelled()[0]
    data = (images, model(images).argmax(dim=1))
    with pytest.raises(InjectionError, match="changed the model"):
        campaign(tmp_path / "c", model=model, data=data)
    kept = sorted(path.name for path in (tmp_path / "c/trials").iterdir())
    model[1].runs = -(10**6)
    campaign(tmp_path / "c", model=model, data=data)
    campaign(tmp_path / "again", model=model, data=data)
    assert 1 <= len(kept) < 12
    assert files(tmp_path / "c") == files(tmp_path / "again")


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_any_number_of_shards_is_the_whole(world_size: int, tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "campaign"
    for rank in reversed(range(world_size)):
        part = campaign(folder, shard=rh.Shard(rank=rank, world_size=world_size))
    if world_size > 1:
        assert "shard 0 of" in repr(part)
        assert not (folder / "result.parquet").exists()
        with pytest.raises(ResultError, match="not the whole campaign"):
            part.save(tmp_path / "r")
        with pytest.warns(DamagedFileWarning, match=r"has no result\.parquet. The trials were read from the chunks"):
            assert len(rh.CampaignResult.load(folder).trials) == 180
    merged = rh.merge_campaign(folder)
    assert len(merged.trials) == 180
    assert files(folder) == files(whole)


def test_shards_without_a_common_disk(tmp_path: Path, whole: Path) -> None:
    folders = [tmp_path / name for name in "ab"]
    for rank, folder in enumerate(folders):
        campaign(folder, shard=rh.Shard(rank=rank, world_size=2))
    with pytest.raises(ResultError, match=r"6 of 12 chunks are missing: 1, 3, 5, 7, 9, 11"):
        rh.merge_campaign(folders[0])
    rh.merge_campaign(*folders)
    assert (folders[0] / "result.parquet").read_bytes() == (whole / "result.parquet").read_bytes()
    campaign(tmp_path / "other", seed=3)
    with pytest.raises(ResultError, match=r"different campaigns.*seed is 0 there and 3 now"):
        rh.merge_campaign(folders[0], tmp_path / "other")


def test_more_processes_than_chunks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="12 chunks for 13 processes"):
        campaign(tmp_path / "c", shard=rh.Shard(rank=0, world_size=13))
    with pytest.raises(ArgumentError, match="pass output=folder"):
        campaign(None, shard=rh.Shard(rank=0, world_size=2))
    with pytest.raises(ArgumentError, match="multiple of batch_size, 4; found 6"):
        campaign(None, chunk_size=6)


def test_shards_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert rh.Shard.from_environment() == rh.Shard()
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(
        ArgumentError, match=r"must both be whole numbers, or both unset; found RANK=1, WORLD_SIZE=None"
    ):
        rh.Shard.from_environment()
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert rh.Shard.from_environment() == rh.Shard(rank=1, world_size=3)
    for size in ("1", "-2", "two"):
        monkeypatch.setenv("WORLD_SIZE", size)
        with pytest.raises(ArgumentError, match=r"rank must be|WORLD_SIZE"):
            rh.Shard.from_environment()


@pytest.mark.parametrize(
    "read",
    [
        pytest.param(lambda path: __import__("pandas").read_parquet(path), id="pandas"),
        pytest.param(lambda path: __import__("pyarrow.parquet").parquet.read_table(path).to_pandas(), id="pyarrow"),
    ],
)
def test_other_tools_open_it(whole: Path, read: Callable) -> None:
    trials = rh.CampaignResult.load(whole).trials
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas' own
        one, many = read(whole / "result.parquet"), read(whole / "trials")
    assert list(one.layer.unique()) == ["conv", "fc"]
    assert (one.outcome == "sdc").sum() == (trials.outcome == 2).sum()
    assert set(one.outcome) <= {"masked", "tolerable", "sdc", "due"}
    many = many.sort_values(["site", "trial"], ignore_index=True)
    for name, column in trials.columns.items():
        if name != "outcome":
            np.testing.assert_array_equal(one[name].to_numpy(), column)
            np.testing.assert_array_equal(many[name].to_numpy(), column)


def test_files_of_several_row_groups(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyarrow.parquet import read_metadata

    result = rh.CampaignResult.load(whole)
    monkeypatch.setattr("resilient_heads.campaign.trials.parquet._ROW_GROUP", 16)
    path = result.save(tmp_path / "r")
    assert read_metadata(path / "result.parquet").num_row_groups == 12
    for name, column in rh.CampaignResult.load(path).trials.columns.items():
        assert column.tobytes() == result.trials.columns[name].tobytes(), name


def test_without_pyarrow_the_install_line_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    result = campaign(None)
    for fails in (lambda: result.save(tmp_path / "r"), lambda: campaign(tmp_path / "c")):
        with pytest.raises(MissingExtraError, match=r'pip install "resilient-heads\[results\]"'):
            fails()
