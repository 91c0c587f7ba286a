"""Every flip there is, against a loop that makes them one by one."""

from collections import Counter, OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import resilient_heads as rh
from resilient_heads.campaign.exhaustive.closed_form import UNDECIDED, score_outcomes
from resilient_heads.campaign.exhaustive.exhaustive import TensorCounts
from resilient_heads.campaign.trials.outcomes import Outcome, classify, judge
from resilient_heads.injection.formats.bits import flip_bits


def one_by_one(model: nn.Module, layer: str, x: Tensor) -> dict[tuple[int, Outcome], int]:
    """Count outcomes by bit with a forward hook, a pass for each fault, all images alike.

    Masked faults count as tolerable ones: whether the last bits change depends on the size of the batch.
    """
    counts: Counter[tuple[int, Outcome]] = Counter()
    module = model.get_submodule(layer)
    with torch.no_grad():
        golden = model(x)
        seen: list[Tensor] = []
        with module.register_forward_hook(lambda _m, _i, out: seen.append(out)):
            model(x)
        for neuron in range(seen[0][0].numel()):
            for bit in range(seen[0].element_size() * 8):

                def flip(_m: nn.Module, _i: object, out: Tensor, neuron: int = neuron, bit: int = bit) -> Tensor:
                    flat = out.flatten(1).clone()
                    flat[:, neuron] = flip_bits(flat[:, neuron], bit)
                    return flat.reshape(out.shape)

                with module.register_forward_hook(flip):
                    faulty = model(x)
                for outcome in judge(golden, faulty, golden.argmax(1)).outcome.tolist():
                    counts[bit, max(Outcome(outcome), Outcome.TOLERABLE)] += 1
    return dict(counts)


def counted(tensor: TensorCounts) -> dict[tuple[int, Outcome], int]:
    """Return the counts in the same form."""
    counts = tensor.outcomes.clone()
    counts[:, Outcome.TOLERABLE] += counts[:, Outcome.MASKED]
    return {
        (bit, outcome): int(counts[bit, outcome])
        for bit in range(len(counts))
        for outcome in (Outcome.TOLERABLE, Outcome.SDC, Outcome.DUE)
        if counts[bit, outcome]
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("batch_size", [1, 50, 4096])
def test_a_heads_tensors(dtype: torch.dtype, batch_size: int) -> None:
    head = rh.TextGuidedHead(6, (4, 5)).to(dtype).eval()
    x = torch.randn(3, 6).to(dtype)
    model = nn.Sequential(head)
    result = rh.run_exhaustive(head, (x, model(x).argmax(1)), batch_size=batch_size, progress=False)
    assert [tensor.site.name for tensor in result.tensors] == ["head.latent", "head.unit", "head.projection", "head"]
    assert result.faults == 3 * (5 + 5 + 4 + 4) * torch.finfo(dtype).bits
    for name, layer in (("head.latent", "0.latent"), ("head.projection", "0.projection"), ("head", "0")):
        assert counted(result[name]) == one_by_one(model, layer, x)
    assert result.count(Outcome.SDC) > 0


def test_a_named_layer_of_a_network(small_net: nn.Module, images: Tensor) -> None:
    small_net.eval()
    images = images[:2, :, :3, :3]
    labels = small_net(images).argmax(1)
    result = rh.run_exhaustive(small_net, (images, labels), layers=["conv2", "fc"], batch_size=256, progress=False)
    assert result["conv2"].faults == 2 * 6 * 3 * 3 * 32
    assert result["fc"].faults == 2 * 5 * 32
    assert counted(result["fc"]) == one_by_one(small_net, "fc", images)
    sample = one_by_one(nn.Sequential(small_net), "0.conv2", images)
    assert counted(result["conv2"]) == sample


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("sizes", [(12, 7, 5), (40, 30, 100)])
def test_the_closed_form_is_what_execution_gives(normalize: bool, sizes: tuple[int, int, int]) -> None:
    features, dim, classes = sizes
    head = rh.TextGuidedHead(features, (classes, dim), normalize=normalize).eval()
    x = torch.randn(24, features) * 10 ** torch.linspace(-3, 3, 24)[:, None]
    data = (x, head(x).argmax(1))
    executed = rh.run_exhaustive(head, data, progress=False)
    worked_out = rh.run_exhaustive(head, data, closed_form=True, progress=False)
    assert [tensor.site.name for tensor in executed.tensors] == [tensor.site.name for tensor in worked_out.tensors]
    for tensor in executed.tensors:
        assert counted(tensor) == counted(worked_out[tensor.site.name])
    assert worked_out["head.latent"].count(Outcome.MASKED) == 0


TAILS: dict[str, Callable[[Tensor], Tensor]] = {
    "masked": lambda logits: logits.index_fill(1, torch.tensor([0]), -1e4),
    "reordered": lambda logits: logits.flip(1),
    "negated": lambda logits: -logits,
    "cut": lambda logits: logits[:, :3],
    "rounded": lambda logits: logits.round(),
}


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("name", TAILS)
def test_the_closed_form_of_a_model_that_changes_the_heads_output(name: str, normalize: bool) -> None:
    class Tail(nn.Module):
        def forward(self, logits: Tensor) -> Tensor:
            return TAILS[name](logits)

    head = rh.TextGuidedHead(12, (7, 5), normalize=normalize).eval()
    model, x = nn.Sequential(OrderedDict(head=head, tail=Tail())), torch.randn(12, 12)
    data, layers = (x, model(x).argmax(1)), ["head.latent"]
    executed = rh.run_exhaustive(model, data, layers=layers, progress=False)
    worked_out = rh.run_exhaustive(model, data, layers=layers, closed_form=True, progress=False)
    for outcome in (Outcome.SDC, Outcome.DUE):
        assert worked_out.count(outcome) == executed.count(outcome)


def test_the_closed_form_decides_nearly_everything_and_nothing_near_a_tie() -> None:
    rows, values = torch.randn(100, 64), torch.randn(20, 64)
    outcomes = score_outcomes(values, rows)
    assert float((outcomes == UNDECIDED).double().mean()) < 0.06
    twins = torch.cat([rows, rows[:1].expand(3, -1)])
    values = rows[:1] * 3
    assert bool((score_outcomes(values, twins)[:, :, :20] != Outcome.TOLERABLE).all())


def test_the_closed_form_decides_nothing_that_narrower_inputs_change() -> None:
    """Products of float32 may round their inputs to bfloat16, if that is asked for: such scores must agree, too."""
    rows, values = torch.randn(50, 4), torch.randn(200, 4)
    bits = torch.arange(32)
    flipped = values[:, None, None, :].repeat(1, 4, 32, 1)
    for neuron in range(4):
        flipped[:, neuron, :, neuron] = flip_bits(values[:, neuron, None].repeat(1, 32), bits)

    def changes(dtype: torch.dtype) -> Tensor:
        narrow = rows.to(dtype).double()
        return (flipped.to(dtype).double() @ narrow.T).argmax(-1) != (values.to(dtype).double() @ narrow.T).argmax(-1)[
            :, None, None
        ]

    wrong = {}
    before = torch.get_float32_matmul_precision()
    for precision in ("highest", "medium"):
        torch.set_float32_matmul_precision(precision)
        try:
            outcomes = score_outcomes(values, rows)
        finally:
            torch.set_float32_matmul_precision(before)
        found = changes(torch.bfloat16)
        wrong[precision] = int((((outcomes == Outcome.SDC) & ~found) | ((outcomes == Outcome.TOLERABLE) & found)).sum())
        assert float((outcomes == UNDECIDED).double().mean()) < 0.5
    assert wrong["medium"] == 0 < wrong["highest"]


def test_names_of_layers_may_come_from_anywhere() -> None:
    head = rh.TextGuidedHead(3, (3, 2)).eval()
    x = torch.randn(4, 3)
    data = (x, head(x).argmax(1))
    named = rh.run_exhaustive(head, data, layers=(name for name in ["head.unit"]), progress=False)  # type: ignore[arg-type]
    assert [tensor.site.name for tensor in named.tensors] == ["head.unit"]


def test_only_images_that_the_model_gets_right_are_struck() -> None:
    head = nn.Linear(4, 3).eval()
    x = torch.randn(6, 4)
    labels = head(x).argmax(1)
    labels[2:] = (labels[2:] + 1) % 3
    result = rh.run_exhaustive(head, (x, labels), progress=False)
    assert result.images == 2
    assert result.faults == 2 * 3 * 32
    assert counted(result["head"]) == one_by_one(nn.Sequential(head), "0", x[:2])
    assert "192 faults in 1 tensors, 2 images" in str(result)
    assert result["head"].rate(Outcome.SDC) == result["head"].count(Outcome.SDC) / 192


def test_outcomes_alone_are_those_of_judge() -> None:
    golden = torch.randn(2000, 5)
    faulty = golden.clone()
    rows = torch.arange(2000)
    faulty[rows, rows % 5] = flip_bits(faulty[rows, rows % 5], rows // 5 % 32)
    faulty[::7] = golden[::7]
    faulty[1::50, 0] = faulty[1::50, 1]
    assert torch.equal(classify(golden, faulty), judge(golden, faulty, golden.argmax(1)).outcome)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ["nowhere"]}, "No fault site is named 'nowhere'"),
        ({"layers": "fc"}, "layers must be a sequence of strings"),
        ({"layers": []}, "layers must be a sequence of strings"),
        ({"layers": [3]}, "layers must be a sequence of strings"),
        ({"layers": 3}, "layers must be a sequence of strings"),
        ({"closed_form": "no"}, "closed_form must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"model": "model"}, "model must be a Module"),
        ({"progress": "bar"}, "progress must be"),
    ],
)
def test_a_wrong_argument_is_refused(
    options: dict[str, object], message: str, small_net: nn.Module, images: Tensor
) -> None:
    small_net.eval()
    given: dict = {"model": small_net, "data": (images, small_net(images).argmax(1)), "progress": False, **options}
    with pytest.raises((rh.errors.ArgumentError, rh.errors.FaultError), match=message):
        rh.run_exhaustive(given.pop("model"), given.pop("data"), **given)


def test_a_model_that_classifies_nothing_correctly_is_refused(small_net: nn.Module, images: Tensor) -> None:
    small_net.eval()
    wrong = (small_net(images).argmax(1) + 1) % 5
    with pytest.raises(rh.errors.InjectionError, match="classifies none"):
        rh.run_exhaustive(small_net, (images, wrong), progress=False)


def test_a_result_names_its_tensors(small_net: nn.Module, images: Tensor) -> None:
    small_net.eval()
    data = (images[:2], small_net(images[:2]).argmax(1))
    with pytest.raises(rh.errors.FaultError, match="The result has no tensor 'x'; its tensors are: 'fc'"):
        rh.run_exhaustive(small_net, data, layers=["fc"], progress=False)["x"]
