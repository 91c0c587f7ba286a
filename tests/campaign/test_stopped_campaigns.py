"""A campaign that is stopped keeps what it did, and resumed it gives the bytes of one that was never stopped."""

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import resilient_heads as rh
from helpers.interrupts import interrupt_lines
from helpers.small_campaign import arguments, campaign, files, labelled, net
from resilient_heads.campaign.result.store import CampaignFolder
from resilient_heads.campaign.run import chunks
from resilient_heads.errors import ResultError

ONE_CHUNK = {"chunk_size": 92}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted campaign with a single chunk; do not write to it."""
    folder = tmp_path_factory.mktemp("whole") / "campaign"
    campaign(folder, **ONE_CHUNK)
    return folder


def stop_after(trials: int, error: BaseException) -> Callable[[int, int], None]:
    def progress(done: int, _total: int) -> None:
        if done >= trials:
            raise error

    return progress


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), RuntimeError("mine")])
def test_a_stopped_chunk_keeps_its_trials(whole: Path, tmp_path: Path, error: BaseException) -> None:
    folder = tmp_path / "c"
    with pytest.raises(type(error)):
        campaign(folder, progress=stop_after(52, error), **ONE_CHUNK)
    kept = CampaignFolder.open(folder).read(0)
    assert len(kept) == 52
    with pytest.raises(ResultError, match=r"chunk-000000\.parquet holds 52 of 180 trials"):
        rh.CampaignResult.load(folder)
    seen: list[int] = []
    campaign(folder, progress=lambda done, total: seen.append(done), **ONE_CHUNK)
    assert seen[0] == 56  # 4 trials in a batch
    assert files(folder) == files(whole)


def test_a_campaign_stopped_again_and_again_gives_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    """It is stopped after each batch, and each process runs one more."""
    folder, stops = tmp_path / "c", 0
    while stops < 100:
        try:
            campaign(folder, progress=stop_after(4 * stops + 4, KeyboardInterrupt()), **ONE_CHUNK)
        except KeyboardInterrupt:
            stops += 1
        else:
            break
        if (folder / "result.parquet").exists():
            break
        stops += 6
    campaign(folder, **ONE_CHUNK)
    assert stops > 5
    assert files(folder) == files(whole)


def test_a_growing_chunk_is_written_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after ``kill -9``: what was written last is there."""
    written: list[int] = []
    write = CampaignFolder.write

    def watched(self: CampaignFolder, chunk: int, trials: rh.campaign.Trials) -> None:
        write(self, chunk, trials)
        written.append(len(self.read(chunk)))

    monkeypatch.setattr(CampaignFolder, "write", watched)
    campaign(tmp_path / "rarely", **ONE_CHUNK)
    assert written == [180]
    monkeypatch.setattr(chunks, "_SECONDS", 0.0)
    monkeypatch.setattr(chunks, "_TIMES", 0)
    written.clear()
    campaign(tmp_path / "often", **ONE_CHUNK)
    assert written == [*sorted({*written[:-1]}), 180]
    assert len(written) > 40
    assert files(tmp_path / "often") == files(tmp_path / "rarely")


def test_a_slow_write_is_rarely_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing and checking take at most a fiftieth of the time."""
    now = 0.0
    starts: list[float] = []
    write = CampaignFolder.write

    def tick() -> float:
        nonlocal now
        now += 1.0
        return now

    def slow(self: CampaignFolder, chunk: int, trials: rh.campaign.Trials) -> None:
        nonlocal now
        starts.append(now)
        now += 3.0
        write(self, chunk, trials)

    monkeypatch.setattr(chunks.time, "monotonic", tick)
    monkeypatch.setattr(CampaignFolder, "write", slow)
    campaign(tmp_path / "c", trials_per_site=600, chunk_size=600)
    assert len(starts) >= 2
    assert all(later - earlier > 150 for earlier, later in itertools.pairwise(starts[:-1]))


def test_chunks_of_several_processes_are_completed(tmp_path: Path) -> None:
    campaign(tmp_path / "whole", chunk_size=32)
    folder = tmp_path / "c"
    for rank, trials in ((0, 20), (1, 36)):
        shard = rh.Shard(rank=rank, world_size=2)
        with pytest.raises(KeyboardInterrupt):
            campaign(folder, chunk_size=32, shard=shard, progress=stop_after(trials, KeyboardInterrupt()))
    with pytest.raises(ResultError, match=r"3 of 3 chunks are missing: 0 to 2; .*holds 20 of 64.*holds 36 of 64"):
        rh.merge_campaign(folder)
    for rank in (1, 0):
        campaign(folder, chunk_size=32, shard=rh.Shard(rank=rank, world_size=2))
    rh.merge_campaign(folder)
    assert files(folder) == files(tmp_path / "whole")


def test_a_folder_exists_while_the_golden_run_is_made(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "c"
    model, seen = net(), []
    model.register_forward_pre_hook(lambda *_: seen.append(folder.is_dir()))
    campaign(folder, model=model)
    assert all(seen)


def test_every_stop_leaves_model_and_folder_usable(tmp_path: Path, whole: Path) -> None:
    """Interrupt a few lines of a campaign; the slow test interrupts more."""
    assert interrupted(tmp_path, engine="incremental", stride=300) >= 2
    assert interrupted(tmp_path, engine="full", stride=150) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["full", "incremental"])
def test_an_interrupt_at_lines_all_over(tmp_path: Path, engine: str) -> None:
    assert interrupted(tmp_path, engine=engine, stride=25) > 40


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    # These tests write thousands of folders, and none of them cuts the power.
    monkeypatch.setattr(os, "fsync", lambda _file: None)


def interrupted(tmp_path: Path, *, engine: str, stride: int) -> int:
    """Interrupt different lines of a campaign, and compare model, flags, draws and the resumed folder."""
    settings: dict = {"trials_per_site": 12, "engine": engine, "model": net(), "data": labelled()}
    model, number = settings["model"].train(), 0
    campaign(tmp_path / f"whole-{engine}", **settings)
    expected = files(tmp_path / f"whole-{engine}")

    def state() -> object:
        return (
            [tensor.numpy().tobytes() for tensor in model.state_dict().values()],
            [(module.training, *map(len, (module._forward_hooks, module._forward_pre_hooks))) for module in parts],
            torch.get_rng_state().tolist(),
            (torch.is_grad_enabled(), torch.is_autocast_cache_enabled(), torch.are_deterministic_algorithms_enabled()),
            signal.getsignal(signal.SIGTERM),
            rh.phases._display.get(),  # type: ignore[attr-defined]
        )

    parts = list(model.modules())
    before = state()

    def run() -> None:
        nonlocal number
        number += 1
        campaign(tmp_path / f"{engine}-{number}", **settings)

    def check() -> None:
        assert state() == before
        folder = tmp_path / f"{engine}-{number}"
        campaign(folder, **settings)
        assert files(folder) == expected

    return interrupt_lines(run, check, distinct=True, stride=stride)


@pytest.mark.parametrize("number", [signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)])
def test_a_request_to_end_is_granted_after_the_trials_are_written(
    tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal comes twice: the second one does not keep the campaign from writing."""
    sent: list[tuple[int, int]] = []
    handler, write = signal.getsignal(number), CampaignFolder.write

    def interrupted_write(self: CampaignFolder, chunk: int, trials: rh.campaign.Trials) -> None:
        signal.raise_signal(number)
        write(self, chunk, trials)

    monkeypatch.setattr(CampaignFolder, "write", interrupted_write)
    monkeypatch.setattr("resilient_heads.campaign.run.termination.os.kill", lambda *call: sent.append(call))
    with pytest.raises(BaseException, match=r"^$") as ended:
        campaign(tmp_path / "c", progress=lambda done, _: done >= 40 and signal.raise_signal(number), **ONE_CHUNK)
    assert ended.type.__name__ == "_Terminated"
    assert sent == [(os.getpid(), number)]
    assert signal.getsignal(number) == handler
    assert len(CampaignFolder.open(tmp_path / "c").read(0)) == 40
    assert not list((tmp_path / "c").glob(".lock*"))


def test_handlers_of_the_process_are_left_alone(tmp_path: Path) -> None:
    mine: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: mine.append(number))
    try:
        campaign(tmp_path / "c", progress=lambda done, _: done == 40 and signal.raise_signal(signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert mine == [signal.SIGTERM]
    assert (tmp_path / "c/result.parquet").exists()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs the signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_after_it_has_written(tmp_path: Path, number: signal.Signals) -> None:
    folder, words = tmp_path / "c", [*arguments(tmp_path / "c"), "--chunk-size", "92"]
    with started(words) as process:
        wait_for_trials(process)
        process.send_signal(number)
        _, errors = process.communicate()
    assert process.returncode == (130 if number == signal.SIGINT else -number), errors
    assert 0 < len(CampaignFolder.open(folder).read(0)) < 180
    assert not list(folder.glob(".lock*"))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs the signals of POSIX")
def test_stopped_by_any_signal_at_any_time(tmp_path: Path) -> None:
    folder, words, draw = tmp_path / "c", [*arguments(tmp_path / "c"), "--chunk-size", "92"], random.Random(3)
    kept = 0
    for number in [signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGHUP] * 3:
        with started(words) as process:
            wait_for_trials(process)
            time.sleep(draw.random() * 0.1)
            process.send_signal(number)
            process.communicate()
        if process.returncode == 0:
            break
        now = len(CampaignFolder.open(folder).read(0)) if (folder / "trials/chunk-000000.parquet").exists() else 0
        assert now >= kept
        kept = now
    assert kept > 0
    with started(words) as process:
        process.communicate()
    assert process.returncode == 0
    whole = tmp_path / "whole"
    with started([*arguments(whole), "--chunk-size", "92"]) as process:
        process.communicate()
    assert files(folder) == files(whole)


def started(words: list[str]) -> "subprocess.Popen[str]":
    """Start a command with a slow model, which shows its phases, brief ones too."""
    script = (
        "import sys; from resilient_heads import cli; from resilient_heads.campaign.run import progress; "
        "progress._BRIEF = 0.0; sys.exit(cli.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, *(word for word in words if word != "--quiet")]
    environment = {**os.environ, "NET_SLEEP_MS": "20", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, bufsize=1
    )


def wait_for_trials(process: "subprocess.Popen[str]") -> None:
    """Wait until a process has begun to inject, and has run a few batches."""
    assert process.stderr is not None
    while "injecting" not in (line := process.stderr.readline()):
        assert line, "the process ended before its first trial"
    time.sleep(0.3)
