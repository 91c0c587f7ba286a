"""The sweep over three libraries: a few models by default, all of them with ``-m sweep``."""

import dataclasses
from pathlib import Path

import pytest
from torch import nn

import sweep


@pytest.mark.slow
def test_a_row_reports_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def models() -> object:
        yield "straight", "good", lambda: nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 10))
        yield "straight", "behind", lambda: nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 10), nn.ReLU())
        yield "odd", "none", lambda: nn.Sequential(nn.ReLU())
        yield "odd", "unbuilt", lambda: nn.Linear("six", 8)

    monkeypatch.setattr(sweep, "LIBRARIES", {"mine": models})
    monkeypatch.setattr(sweep.metadata, "version", lambda name: "1.0")
    assert sweep.main(["--markdown", str(tmp_path / "models.md")]) == 0
    said = capsys.readouterr().out
    assert "| good | wrapped | 1 | 8 | 10 | ok | ok | ok | straight |" in said
    assert "| behind | wrapped | 1 | 8 | 10 | ok | ok | ok | straight | A ReLU follows the classifier '1'" in said
    assert "| none | refused: Sequential has no parameters" in said
    assert "| unbuilt | not built: TypeError" in said
    assert "mine: 4 models, 2 wrapped, 0 of them with several heads, 2 output shapes checked, 1 refused, 1 not" in said
    page = (tmp_path / "models.md").read_text().splitlines()
    assert [line.split(" | ")[:3] for line in page if line.startswith("| ")][1:] == [
        ["| odd", "2", "none"],
        ["| straight", "2", "`1`"],
    ]
    assert any("python -m tests.sweep --markdown docs/models.md" in line for line in page)
    with pytest.raises(SystemExit):
        sweep.main(["yours"])
    monkeypatch.setattr(sweep, "check", lambda name, model: sweep.Row(name, "wrapped", shape="WRONG"))
    assert sweep.main([]) == 1


@pytest.mark.sweep
@pytest.mark.parametrize("library", sweep.LIBRARIES)
def test_every_model_of_the_sweep_is_right(library: str) -> None:
    if library != "torchvision":
        pytest.importorskip(library)
    rows = list(sweep.sweep(library))
    assert len(rows) >= 40
    wrong = [row for row in rows if "WRONG" in dataclasses.astuple(row) or row.outcome.startswith("FAILED")]
    assert wrong == []
    assert sum(row.outcome == "wrapped" for row in rows) >= 0.8 * len(rows)
