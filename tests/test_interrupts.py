"""The helper that interrupts each line finds what an interrupt leaves behind."""

import pytest
import torch
from torch import nn

from helpers.interrupts import interrupt_lines
from resilient_heads.evaluation import device_of


def test_each_executed_line_is_interrupted_once() -> None:
    model, ended = nn.Linear(2, 2), []

    def run() -> None:
        device_of(model)
        ended.append("whole")

    assert interrupt_lines(run, lambda: ended.append("checked")) == 5
    assert ended == ["whole", *["checked"] * 6]


def test_a_check_that_fails_names_the_line() -> None:
    runs = []

    def check() -> None:
        runs.append("checked")
        assert len(runs) < 3

    with pytest.raises(AssertionError) as found:
        interrupt_lines(lambda: device_of(nn.ReLU()), check)
    assert any("evaluation.py" in note and "in device_of" in note for note in found.value.__notes__)


def test_a_swallowed_interrupt_is_noticed() -> None:
    def swallow() -> torch.device | None:
        try:
            return device_of(nn.ReLU())
        except KeyboardInterrupt:
            return None

    with pytest.raises(AssertionError, match="was swallowed"):
        interrupt_lines(swallow, lambda: None)
