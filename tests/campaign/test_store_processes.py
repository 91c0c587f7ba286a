"""Real processes: killed at any moment, and several at once."""

import contextlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

import resilient_heads as rh
from helpers.small_campaign import arguments, campaign, files, in_a_process
from resilient_heads import cli

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that start quickly")


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Processes that need not import torch anew."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["helpers.small_campaign", "resilient_heads.campaign.run.runner", "pyarrow.parquet"])
    return context


@pytest.fixture(scope="module")
def whole(processes: ForkServerContext, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted process; do not write to it."""
    folder = tmp_path_factory.mktemp("whole") / "campaign"
    process = processes.Process(target=in_a_process, args=(arguments(folder), {}))
    process.start()
    process.join()
    assert process.exitcode == 0
    return folder


def run(processes: ForkServerContext, folder: Path, environment: dict[str, str]) -> multiprocessing.process.BaseProcess:
    process = processes.Process(target=in_a_process, args=(arguments(folder), environment))
    process.start()
    return process


def finished(folder: Path) -> int:
    """How many chunks are there."""
    return len(list(folder.glob("trials/chunk-*")))


def require_only_whole_files(folder: Path, whole: Path) -> None:
    """Every file under its final name equals the file of an uninterrupted process."""
    there = {name: content for name, content in files(folder).items() if not Path(name).name.startswith(".")}
    assert there == {name: content for name, content in files(whole).items() if name in there}


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_in_the_same_bytes(
    processes: ForkServerContext, whole: Path, tmp_path: Path
) -> None:
    """Kill it again and again, soon after it has written one more chunk, or before it could."""
    folder, moments, kills = tmp_path / "campaign", random.Random(7), 0
    for attempt in range(6):
        process, before = run(processes, folder, {"NET_SLEEP_MS": "2"}), finished(folder)
        while process.is_alive() and finished(folder) == before and attempt != 2:
            time.sleep(0.001)
        time.sleep(moments.random() * 0.05)
        process.kill()
        process.join()
        kills += process.exitcode == -9
        require_only_whole_files(folder, whole)
    assert kills >= 4
    process = run(processes, folder, {})
    process.join()
    assert process.exitcode == 0
    assert files(folder) == files(whole)


@pytest.mark.slow
def test_killed_while_it_writes_it_ends_in_the_same_bytes(
    processes: ForkServerContext, whole: Path, tmp_path: Path
) -> None:
    """Each file is synced, then its folder: the record, the golden run, chunks; killed at each of these moments."""
    folder = tmp_path / "campaign"
    for number in (1, 2, 1, 2, 3, 4, 5):
        process = run(processes, folder, {"KILL_AT_SYNC": str(number)})
        process.join()
        assert process.exitcode == -9
        require_only_whole_files(folder, whole)
    process = run(processes, folder, {"KILL_AT_SYNC": str(2 * (12 - finished(folder)) + 1)})
    process.join()
    assert process.exitcode == -9
    assert finished(folder) == 12
    assert not (folder / "result.parquet").exists()
    process = run(processes, folder, {})
    process.join()
    assert process.exitcode == 0
    assert files(folder) == files(whole)


@pytest.mark.slow
def test_rank_and_world_size_as_a_launcher_sets_them(whole: Path, tmp_path: Path) -> None:
    """Three interpreters at once, as torchrun starts them, then the merge."""
    folder = tmp_path / "campaign"
    command = [sys.executable, "-m", "resilient_heads", *arguments(folder)]
    with contextlib.ExitStack() as stack:
        started = []
        for rank in range(3):
            environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": "3", "OMP_NUM_THREADS": "1"}
            process = subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            started.append(stack.enter_context(process))
        for rank, process in enumerate(started):
            out, err = process.communicate()
            assert process.returncode == 0, err
            assert f"Shard {rank} of 3 is done: {(64, 64, 52)[rank]} trials" in out
            assert f"resilient-heads merge {folder}" in out
    assert cli.main(["merge", str(folder)]) == 0
    assert files(folder) == files(whole)


@pytest.mark.slow
def test_two_ranks_one_of_them_killed(
    processes: ForkServerContext, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "campaign"
    shards = [{"RANK": str(rank), "WORLD_SIZE": "2", "NET_SLEEP_MS": "2"} for rank in range(2)]
    first, second = (processes.Process(target=in_a_process, args=(arguments(folder), shard)) for shard in shards)
    first.start()
    second.start()
    while second.is_alive() and not (folder / "trials/chunk-000003.parquet").exists():
        time.sleep(0.001)
    second.kill()
    first.join()
    second.join()
    assert (first.exitcode, second.exitcode) == (0, -9)
    assert cli.main(["merge", str(folder)]) == 1
    assert "chunks are missing: " in capsys.readouterr().err
    again = processes.Process(target=in_a_process, args=(arguments(folder), shards[1]))
    again.start()
    again.join()
    assert again.exitcode == 0
    assert cli.main(["merge", str(folder)]) == 0
    assert files(folder) == files(whole)


def test_the_same_shard_twice_at_once_is_refused(processes: ForkServerContext, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "campaign"
    process = processes.Process(target=in_a_process, args=(arguments(folder), {"NET_SLEEP_MS": "50"}))
    process.start()
    while process.is_alive() and not (folder / "trials/chunk-000000.parquet").exists():
        time.sleep(0.001)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)  # else it may be done before the second one gets so far
    with pytest.raises(rh.errors.ResilientHeadsError, match="Another process is running shard 0"):
        campaign(folder)
    process.kill()
    process.join()
    again = run(processes, folder, {})
    again.join()
    assert again.exitcode == 0
    assert files(folder) == files(whole)
