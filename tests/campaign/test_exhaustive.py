"""All faults of a small head, against one fault at a time."""

import pytest
import torch
from torch import nn

from resilient_heads.campaign.exhaustive import exhaustive
from resilient_heads.campaign.outcomes import Outcome, judge
from resilient_heads.errors import ModelError
from resilient_heads.heads.text_guided import TextGuidedHead
from resilient_heads.injection.faults import BitFlip
from resilient_heads.injection.injector import inject


@pytest.mark.parametrize("chunk", [37, 8192])
def test_agrees_with_one_injection_at_a_time(chunk: int) -> None:
    torch.manual_seed(0)
    head, x, y = TextGuidedHead(4, (3, 5)).eval(), torch.randn(2, 4), torch.tensor([0, 2])
    found = exhaustive(head, x, y, sites=("latent", "unit", "projection"), chunk=chunk)
    for counts, neurons in zip(found, (5, 5, 3), strict=True):
        expected = torch.zeros(32, 4, dtype=torch.int64)
        for image in range(2):
            row = x[image : image + 1]
            for neuron in range(neurons):
                for bit in range(32):
                    with torch.no_grad(), inject(head, BitFlip(layer=counts.site, neuron=(neuron,), bit=bit)):
                        faulty = head(row)
                    golden = head(row).detach()
                    expected[bit, judge(golden, faulty, y[image : image + 1]).outcome.long()] += 1
        assert counts.faults == 2 * neurons * 32
        for outcome in (Outcome.SDC, Outcome.DUE):  # masked may differ: the batch size decides the last bit
            assert torch.equal(counts.outcomes[:, outcome], expected[:, outcome])


def test_refuses_what_it_cannot_strike() -> None:
    head = nn.Linear(2, 2).eval()
    with pytest.raises(ModelError, match="No module 'absent'"):
        exhaustive(head, torch.ones(1, 2), torch.zeros(1, dtype=torch.long), sites=("absent",))
    with pytest.raises(ModelError, match=r"head\.eval"):
        exhaustive(head.train(), torch.ones(1, 2), torch.zeros(1, dtype=torch.long), sites=("",))
