import torch

from resilient_heads.campaign.trials.outcomes import Outcome, judge

INF, NAN = float("inf"), float("nan")


def test_each_outcome_by_hand() -> None:
    golden = torch.tensor([[3.0, 1.0, -0.0]]).repeat(7, 1)
    faulty = torch.tensor(
        [
            [3.0, 1.0, -0.0],
            [3.0, 1.0, 0.0],
            [3.0, 2.9, -0.0],
            [3.0, 3.1, -0.0],
            [INF, 1.0, -0.0],
            [3.0, NAN, -0.0],
            [3.4e38, -3.4e38, -0.0],
        ]
    )
    judged = judge(golden, faulty, torch.zeros(7, dtype=torch.long))
    expected = [
        Outcome.MASKED,
        Outcome.TOLERABLE,
        Outcome.TOLERABLE,
        Outcome.SDC,
        Outcome.DUE,
        Outcome.DUE,
        Outcome.TOLERABLE,
    ]
    assert judged.outcome.tolist() == expected
    assert judged.rank.tolist()[:4] == [0, 0, 0, 1]
    assert judged.delta_loss[0] == 0
    assert judged.delta_loss[4:6].isnan().all()


def test_confidence_change_is_relative_to_the_golden_class() -> None:
    golden = torch.log(torch.tensor([[0.8, 0.1, 0.1]]))
    faulty = torch.log(torch.tensor([[0.6, 0.2, 0.2]]))
    judged = judge(golden, faulty, torch.tensor([1]))
    torch.testing.assert_close(judged.confidence_change, torch.tensor([-0.25], dtype=torch.float64))
