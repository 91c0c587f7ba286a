import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from resilient_heads.errors import FaultError, InjectionError
from resilient_heads.injection.apply.inject import clamp_to_range, inject, inject_batch
from resilient_heads.injection.faults import fault_model as models
from resilient_heads.injection.faults.fault import BitFlip
from resilient_heads.injection.formats.bits import apply_masks, flip_bits, words

NAN, INF = math.nan, math.inf


def same_words(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(words(a), words(b))


def convnet(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(2)
    layers = (nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 3), nn.Flatten(), nn.Linear(32, 5))
    return nn.Sequential(*layers).to(dtype).eval()


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def strike_with(
    model: nn.Module,
    x: Tensor,
    layer: str,
    neurons: list[int],
    bits: list[int],
    *,
    limit: float | None = None,
    runs: int = 1,
) -> None:
    with inject_batch(model, layer, torch.tensor(neurons), torch.tensor(bits), range_limit=limit):
        for _ in range(runs):
            model(x)


def draws(rows: int, neurons: int, bits: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return (
        torch.randint(0, neurons, (rows,), generator=generator),
        torch.randint(0, bits, (rows,), generator=generator),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("layer", ["0", "2", "4"])
@torch.inference_mode()
def test_each_row_is_struck_in_its_own_neuron_and_bit(layer: str, dtype: torch.dtype) -> None:
    model, x = convnet(dtype), torch.randn(16, 3, 6, 6, dtype=dtype)
    depth = int(layer) + 1
    golden = model[:depth](x)
    neurons, bits = draws(16, golden[0].numel(), torch.finfo(dtype).bits)
    with inject_batch(model, layer, neurons, bits) as strike:
        found = model(x)
    places = np.unravel_index(neurons.numpy(), tuple(golden.shape[1:]))
    index = (torch.arange(16), *(torch.from_numpy(place) for place in places))
    assert same_words(strike.before, golden[index])
    for row in range(16):
        assert same_words(strike.after[row], flip_bits(strike.before[row], int(bits[row])))
    golden[index] = strike.after
    assert same_words(found, model[depth:](golden))
    assert hooks(model) == 0


@torch.inference_mode()
def test_the_same_as_one_fault_for_each_row() -> None:
    model, x = convnet(), torch.randn(8, 3, 6, 6)
    neurons, bits = draws(8, 4 * 6 * 6, 32)
    with inject_batch(model, "0", neurons, bits):
        found = model(x)
    faults = [
        BitFlip(layer="0", neuron=(n // 36, n // 6 % 6, n % 6), bit=bit, batch_index=row)
        for row, (n, bit) in enumerate(zip(neurons.tolist(), bits.tolist(), strict=True))
    ]
    with inject(model, faults):
        assert same_words(found, model(x))


def test_a_channels_last_output_keeps_its_format_and_its_other_values() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Identity()).to(memory_format=torch.channels_last)
    x = torch.randn(5, 3, 6, 6).to(memory_format=torch.channels_last)
    golden = model(x)
    neurons, bits = draws(5, 4 * 4 * 4, 32)
    with inject_batch(model, "0", neurons, bits):
        found = model(x)
    assert not golden.is_contiguous()
    assert found.stride() == golden.stride()
    different = (words(found.detach()) != words(golden.detach())).flatten(1)
    assert different.sum() == 5
    assert different.int().argmax(dim=1).tolist() == neurons.tolist()


@torch.inference_mode()
def test_an_in_place_activation_does_not_reach_what_was_recorded() -> None:
    model, x = convnet(), torch.randn(6, 3, 6, 6)
    golden = model[0](x)
    neurons, _ = draws(6, golden[0].numel(), 32)
    with inject_batch(model, "0", neurons, torch.full((6,), 31)) as strike:
        model(x)
    assert same_words(strike.before, golden.flatten(1)[torch.arange(6), neurons])
    assert same_words(strike.after, -strike.before)


@torch.inference_mode()
def test_autocast() -> None:
    model, x = convnet(), torch.randn(4, 3, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        golden = model(x)
        with inject_batch(model, "4", torch.tensor([0, 1, 2, 3]), torch.tensor([15, 14, 0, 7])) as strike:
            found = model(x)
        assert strike.before.dtype == found.dtype == torch.bfloat16
        assert (words(found) ^ words(golden)).tolist() == [
            [-(2**15), 0, 0, 0, 0],
            [0, 2**14, 0, 0, 0],
            [0, 0, 1, 0, 0],
            [0, 0, 0, 2**7, 0],
        ]
        with pytest.raises(FaultError, match="Bit 16 does not exist"):
            strike_with(model, x, "4", [0, 0, 0, 0], [0, 1, 2, 16])
    assert hooks(model) == 0


class Emit(nn.Module):
    """Returns fixed values, so that the flips can be worked by hand."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = values

    def forward(self, x: Tensor) -> Tensor:
        return self.values.clone()


def test_the_range_detector_by_hand() -> None:
    # 0.75 -> 2.55e38, 1.5 -> NaN, 1.0 -> inf, -1.0 -> -inf, -1.25 -> NaN, -0.5 -> -1.7e38, 2.0 -> 0.0, 1.0 -> -1.0,
    # 4.0 (beyond the range already) -> 4.0 + one ulp, 0.0 -> -0.0
    values = torch.tensor([0.75, 1.5, 1.0, -1.0, -1.25, -0.5, 2.0, 1.0, 4.0, 0.0])[:, None]
    bits = torch.tensor([30, 30, 30, 30, 30, 30, 30, 31, 0, 31])
    model = nn.Sequential(Emit(torch.cat([values, torch.full_like(values, 9.0)], dim=1)))
    with inject_batch(model, "0", torch.zeros(10, dtype=torch.long), bits, range_limit=2.0) as strike:
        found = model(values)
    expected = [2.0, 2.0, 2.0, -2.0, 2.0, -2.0, 0.0, -1.0, 2.0, -0.0]
    assert found[:, 0].tolist() == expected
    assert [math.copysign(1, value) for value in found[:, 0].tolist()] == [math.copysign(1, e) for e in expected]
    # Only the struck neuron is looked at: 9.0 lies beyond the range and stays.
    assert found[:, 1].tolist() == [9.0] * 10
    # The strike shows the flip itself, before the detector.
    assert strike.before.tolist() == values[:, 0].tolist()
    assert strike.after[0].item() == 0.75 * 2.0**128
    assert strike.after.isnan().tolist() == [False, True, False, False, True] + [False] * 5
    assert strike.after.isinf().tolist() == [False, False, True, True] + [False] * 6
    with inject_batch(model, "0", torch.zeros(10, dtype=torch.long), bits):
        assert same_words(model(values)[:, 0], flip_bits(values[:, 0], bits))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_clamp_to_range_by_hand(dtype: torch.dtype) -> None:
    values = torch.tensor([NAN, -NAN, INF, -INF, 2.5, -2.5, 2.0, -2.0, 1.5, -1.5, 0.0, -0.0], dtype=dtype)
    kept = values.clone()
    expected = [2.0, 2.0, 2.0, -2.0, 2.0, -2.0, 2.0, -2.0, 1.5, -1.5, 0.0, -0.0]
    found = clamp_to_range(values, 2.0)
    assert found.dtype == dtype
    assert found.tolist() == expected
    assert torch.signbit(found).tolist() == [math.copysign(1, value) < 0 for value in expected]
    assert same_words(values, kept)


def test_values_in_range_keep_every_bit() -> None:
    raw = torch.tensor([0, 1, 0x7FFFFF, 0x800000, 0x3F800000, -(2**31), -(2**31) + 1], dtype=torch.int32)
    values = raw.view(torch.float32)
    assert same_words(clamp_to_range(values, 1.0), values)


def two_bits(held: Tensor, keep: Tensor, flip: Tensor) -> Tensor:
    return apply_masks(held, keep, flip ^ 8)


def one_row_spared(held: Tensor, keep: Tensor, flip: Tensor) -> Tensor:
    flipped = apply_masks(held, keep, flip)
    flipped[-1] = held[-1]
    return flipped


def nothing_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every write into a tensor go to a copy that nobody reads."""
    monkeypatch.setattr(Tensor, "__setitem__", lambda self, index, value: self.clone())


def too_much_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a write into a few elements change one more."""
    original = Tensor.__setitem__

    def write(self: Tensor, index: object, value: object) -> None:
        original(self, index, value)
        if isinstance(index, tuple) and self.ndim == 4:
            original(words(self), (0, 0, 0, 0), words(self)[0, 0, 0, 0] ^ 1)

    monkeypatch.setattr(Tensor, "__setitem__", write)


PLANTED: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "identity": lambda patch: patch.setattr(models, "apply_masks", lambda held, keep, flip: held.clone()),
    "two bits": lambda patch: patch.setattr(models, "apply_masks", two_bits),
    "one row spared": lambda patch: patch.setattr(models, "apply_masks", one_row_spared),
    "stale copy": nothing_written,
    "one element more": too_much_written,
}


@pytest.mark.parametrize("planted", PLANTED)
@pytest.mark.parametrize("limit", [None, 2.0])
def test_a_planted_injector_bug_is_caught(planted: str, limit: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = convnet(), torch.randn(4, 3, 6, 6)
    neurons, bits = [5, 10, 20, 143], [30, 1, 31, 22]
    with monkeypatch.context() as patch, torch.inference_mode():
        PLANTED[planted](patch)
        with pytest.raises(InjectionError, match=r"changed \d+ elements where 4 faults were due"):
            strike_with(model, x, "0", neurons, bits, range_limit=limit)
    assert hooks(model) == 0
    strike_with(model, x, "0", neurons, bits, range_limit=limit)


class Calls(nn.Module):
    """Calls its layer a given number of times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.times = times

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = self.layer(x)
        return x


@pytest.mark.parametrize(
    ("times", "message"),
    [(0, "No fault struck 'layer': the layer did not run"), (2, "'layer' ran 2 times"), (3, "'layer' ran 3 times")],
)
def test_a_layer_must_run_exactly_once(times: int, message: str) -> None:
    model = Calls(times)
    with pytest.raises(InjectionError, match=message):
        strike_with(model, torch.randn(2, 4), "layer", [0, 1], [3, 4])
    assert hooks(model) == 0


def test_a_model_must_run_exactly_once() -> None:
    model, x = Calls(1), torch.randn(2, 4)
    with pytest.raises(InjectionError, match="ran 2 times"):
        strike_with(model, x, "layer", [0, 1], [3, 4], runs=2)
    with pytest.raises(InjectionError, match="did not run"):
        strike_with(model, x, "layer", [0, 1], [3, 4], runs=0)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_batch_of_another_size(rows: int) -> None:
    model = Calls(1)
    with pytest.raises(InjectionError, match=rf"shape \({rows}, 4\) for 2 faults; expected one row for each"):
        strike_with(model, torch.randn(rows, 4), "layer", [0, 1], [3, 4])
    assert hooks(model) == 0


def test_an_output_without_neurons() -> None:
    model = nn.Sequential(Emit(torch.ones(2)))
    with pytest.raises(InjectionError, match=r"shape \(2,\) for 2 faults"):
        strike_with(model, torch.ones(2), "0", [0, 0], [3, 4])


@pytest.mark.parametrize(
    ("layer", "neurons", "bits", "message"),
    [
        ("nope", [0, 1], [3, 4], "has no layer named 'nope'; its layers are: layer"),
        ("", [0, 1], [3, 4], "has no layer named ''"),
        ("layer", [0, 4], [3, 4], "'layer' has 4 neurons; found the index 4"),
        ("layer", [-1, 1], [3, 4], "'layer' has neurons from 0 on; found the index -1"),
        ("layer", [0, 1], [3, 32], "Bit 32 does not exist"),
        ("layer", [0, 1], [-1, 4], "Bit -1 does not exist"),
    ],
)
def test_a_fault_that_does_not_exist(layer: str, neurons: list[int], bits: list[int], message: str) -> None:
    model = Calls(1)
    with pytest.raises(FaultError, match=message):
        strike_with(model, torch.randn(2, 4), layer, neurons, bits)
    assert hooks(model) == 0


def test_the_hook_is_gone_when_the_body_raises() -> None:
    model = Calls(1)
    with pytest.raises(KeyError), inject_batch(model, "layer", torch.tensor([0, 1]), torch.tensor([3, 4])):
        raise KeyError
    assert hooks(model) == 0


def test_a_strike_is_empty_until_the_model_has_run() -> None:
    model = Calls(1)
    with inject_batch(model, "layer", torch.tensor([0, 1]), torch.tensor([3, 4])) as strike:
        assert strike.before.numel() == strike.after.numel() == 0
        model(torch.randn(2, 4))
        assert strike.before.shape == strike.after.shape == (2,)


@pytest.mark.parametrize("raw", [0x7F800001, 0x7FBFFFFF, -0x7FFFFF, 0x7FC01234])
def test_a_signalling_nan_in_the_output_keeps_its_payload(raw: int) -> None:
    values = torch.tensor([[raw, 0x3F800000]], dtype=torch.int32).view(torch.float32)
    model = nn.Sequential(Emit(values))
    with inject_batch(model, "0", torch.tensor([0]), torch.tensor([2])) as strike:
        found = model(values)
    assert words(strike.before).item() == raw
    assert words(strike.after).item() == raw ^ 4
    assert words(found).tolist() == [[raw ^ 4, 0x3F800000]]
