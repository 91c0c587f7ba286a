"""A campaign says what it is doing, from its first moment."""

import io
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.small_campaign import campaign
from resilient_heads.campaign.run import progress
from resilient_heads.campaign.run.progress import Progress
from resilient_heads.phases import phase

PHASES = [
    "reading the images",
    "golden run: 12 images",
    "finding the sites",
    "recording a forward pass",
    "checking that a rerun gives the same bits as a full pass: 2 sites",
    "checking reruns of whole batches",
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Elapsed:
    """A timer whose time is over as soon as it starts."""

    def __init__(self, _seconds: float, write: Callable[[str], None], arguments: list[str]) -> None:
        self.run = lambda: write(*arguments)

    def start(self) -> None:
        self.run()

    def cancel(self) -> None:
        pass


@pytest.fixture
def slow_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every phase takes long enough for a line in a log."""
    monkeypatch.setattr(progress.threading, "Timer", Elapsed)


@pytest.mark.usefixtures("slow_phases")
def test_a_log_names_each_phase(capsys: pytest.CaptureFixture[str]) -> None:
    campaign(None, progress=True)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert [line for line in lines if line in PHASES] == PHASES
    assert lines[-1] == "injecting: 180 trials"
    assert out == ""
    assert all(character.isprintable() for line in lines for character in line)


@pytest.mark.usefixtures("slow_phases")
def test_a_log_gets_a_line_every_half_minute(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.show_phases(True), phase("injecting", total=100, unit="trial", done=20) as advance:
        for _ in range(6):
            advance(10)
    assert capsys.readouterr().err.splitlines() == [
        "injecting: 100 trials, 20 of them finished before",
        "injecting: 50 of 100 trials (50 %), 1.0 trials/s, 0:00:50 left",
        "injecting: 80 of 100 trials (80 %), 1.0 trials/s, 0:00:20 left",
    ]


def test_a_log_names_only_phases_that_last(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_BRIEF", 0.3)
    with progress.show_phases(True):
        with phase("over in a moment", total=1, unit="image"):
            pass
        with phase("it hangs"):
            time.sleep(0.6)
    assert capsys.readouterr().err == "it hangs\n"


@pytest.mark.usefixtures("slow_phases")
def test_a_resumed_campaign_says_how_much_is_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    campaign(tmp_path / "c")
    (tmp_path / "c/trials/chunk-000011.parquet").unlink()
    (tmp_path / "c/result.parquet").unlink()
    campaign(tmp_path / "c", progress=True)
    assert "injecting: 180 trials, 176 of them finished before\nwriting the result\n" in capsys.readouterr().err


def test_a_terminal_and_a_notebook_show_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    campaign(None, progress=True)
    shown = screen.getvalue()
    for name in ("golden run:   0%", "finding the sites [00:00]", "injecting:   0%"):
        assert name in shown
    assert shown.endswith("\r")
    notebook = io.StringIO()
    monkeypatch.setattr(sys, "stderr", notebook)
    monkeypatch.setattr(progress, "_in_notebook", lambda: True)
    campaign(None, progress=True)
    assert "\rinjecting:   0%" in notebook.getvalue()


@pytest.mark.parametrize("choice", [False, lambda done, total: None])
def test_a_quiet_campaign_writes_nothing(choice: Progress, capsys: pytest.CaptureFixture[str]) -> None:
    campaign(None, progress=choice)
    assert capsys.readouterr() == ("", "")


def test_without_standard_error_nothing_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    campaign(None, progress=True)


def test_a_function_sees_trials_only() -> None:
    seen: list[tuple[int, int]] = []
    campaign(None, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (180, 180)
    assert all(total == 180 for _, total in seen)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
