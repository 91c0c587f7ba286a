"""Data sets drawn at random: each ends in exactly the right images and labels, or in the right error of the library."""

import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import resilient_heads as rh
from helpers.odd_data_sets import Case, draw_case
from resilient_heads.cli import main

pytest.importorskip("torchvision")
CASES = int(os.environ.get("FUZZ_CASES", "1000"))


def run(case: Case, monkeypatch: pytest.MonkeyPatch) -> tuple[int, Any]:
    """Run the command; return its exit code and the images that it handed to the campaign."""
    usual, seen = rh.run_campaign, []

    def campaign(model: object, data: object, **options: object) -> object:
        seen.append(data)
        return usual(model, data, **options)  # type: ignore[arg-type]

    words = ["campaign", "--model", f"{case.folder / 'net.py'}:net", "--data", str(case.data), "--protocol", "raw"]
    words += ["--trials-per-site", "2", "--batch-size", "4", "--quiet", "--output", str(case.folder / "out")]
    words += ["--mean", "0", "0", "0", "--std", "1", "1", "1", *case.options]
    with monkeypatch.context() as patch:
        patch.setattr(rh, "run_campaign", campaign)
        code = main(words)
    return code, seen[0] if seen else None


def check(case: Case, code: int, data: Any, error: str) -> str:
    """Return the kind of a right end; fail at any other one."""
    if case.refusals:
        assert code == 1, f"{case.names}: expected a refusal: {case.refusals}"
        matching = [pattern for pattern in case.refusals if re.search(pattern, error)]
        assert matching, f"{case.names}: {error}"
        assert error.startswith("resilient-heads: ")
        assert error.count("\n") == 1
        return f"refused: {matching[0]}"
    assert code == 0, f"{case.names}: {error}"
    images, labels = data
    folders = sorted(case.labels, key=lambda path: (Path(path).relative_to(case.data).parts[0], Path(path)))
    assert labels.tolist() == [case.labels[path] for path in folders], case.names
    expected = np.stack([case.pixels[path] for path in folders]).transpose(0, 3, 1, 2).astype(np.float32) / 255
    np.testing.assert_array_equal(images.numpy(), expected, err_msg=str(case.names))
    return "right images and labels"


def fuzz(
    seeds: range, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Counter[str]:
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    tally: Counter[str] = Counter()
    wrong = []
    for seed in seeds:
        case = draw_case(seed, folder / str(seed))
        capsys.readouterr()
        code, data = run(case, monkeypatch)
        try:
            tally[check(case, code, data, _last_line(capsys.readouterr().err))] += 1
        except AssertionError as error:
            wrong.append(f"seed {seed}, {case.names}, options {case.options}: {error}")
    assert not wrong, "\n".join(wrong)
    return tally


def _last_line(text: str) -> str:
    """Return the line of the error, without warnings before it."""
    lines = [line for line in text.splitlines(keepends=True) if not line.startswith("resilient-heads: warning")]
    return lines[-1] if lines else ""


def test_fifty_odd_data_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tally = fuzz(range(50), tmp_path, monkeypatch, capsys)
    assert tally["right images and labels"] >= 10
    assert len(tally) >= 10


@pytest.mark.slow
def test_many_odd_data_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tally = fuzz(range(50, 50 + CASES), tmp_path, monkeypatch, capsys)
    with capsys.disabled():
        print("\n".join(f"{count:5d}  {kind}" for kind, count in tally.most_common()))  # noqa: T201
    assert sum(tally.values()) == CASES
