"""The sweep over three libraries: a handful of models always, all of them with ``-m sweep``."""

import dataclasses

import pytest
import sweep
from torch import nn


def test_a_row_tells_what_is_wrong(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def models() -> object:
        yield "straight", "good", lambda: nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 10))
        yield "straight", "behind", lambda: nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 10), nn.ReLU())
        yield "odd", "none", lambda: nn.Sequential(nn.ReLU())
        yield "odd", "unbuilt", lambda: nn.Linear("six", 8)

    monkeypatch.setattr(sweep, "LIBRARIES", {"mine": models})
    assert sweep.main([]) == 0
    said = capsys.readouterr().out
    assert "| good | wrapped | 1 | 8 | 10 | ok | ok | ok |" in said
    assert "| none | refused: Sequential has no parameters" in said
    assert "| unbuilt | not built: TypeError" in said
    assert "mine: 3 models, 1 wrapped, 0 of them with several heads, 1 output shapes checked, 1 refused, 1 not" in said
    monkeypatch.setattr(sweep, "check", lambda name, model: sweep.Row(name, "wrapped", shape="WRONG"))
    assert sweep.main([]) == 1


@pytest.mark.sweep
@pytest.mark.parametrize("library", sweep.LIBRARIES)
def test_every_model(library: str) -> None:
    if library != "torchvision":
        pytest.importorskip(library)
    rows = list(sweep.sweep(library))
    assert len(rows) >= 40
    wrong = [row for row in rows if "WRONG" in dataclasses.astuple(row) or row.outcome.startswith("FAILED")]
    assert wrong == []
    assert sum(row.outcome == "wrapped" for row in rows) >= 0.8 * len(rows)
