"""The injection core: what it writes, what it verifies, and the bugs that it must catch on every path that uses it."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import resilient_heads as rh
from helpers.injected import run_with_trials, single_flips
from resilient_heads.errors import FaultError, InjectionError
from resilient_heads.incremental.recording.words import words
from resilient_heads.injection.apply import core
from resilient_heads.injection.apply.core import FaultyTensor
from resilient_heads.injection.faults import fault_model
from resilient_heads.injection.faults.fault_model import FaultModel
from resilient_heads.injection.faults.ranges import clamp_to_range
from resilient_heads.injection.formats.bits import apply_masks, flip_bits

NAN, INF = math.nan, math.inf


def same_words(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(words(a), words(b))


def convnet(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(2)
    layers = (nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 3), nn.Flatten(), nn.Linear(32, 5))
    return nn.Sequential(*layers).to(dtype).eval()


def drawn(rows: int, neurons: int, bits: int) -> tuple[list[int], list[int]]:
    generator = torch.Generator().manual_seed(7)
    return (
        torch.randint(0, neurons, (rows,), generator=generator).tolist(),
        torch.randint(0, bits, (rows,), generator=generator).tolist(),
    )


# --- what it writes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("layer", ["0", "2", "4"])
@torch.inference_mode()
def test_each_image_gets_a_flip_in_its_own_neuron_and_bit(layer: str, dtype: torch.dtype) -> None:
    model, x = convnet(dtype), torch.randn(16, 3, 6, 6, dtype=dtype)
    depth = int(layer) + 1
    golden = model[:depth](x)
    neurons, bits = drawn(16, golden[0].numel(), torch.finfo(dtype).bits)
    injection, found = run_with_trials(model, x, layer, single_flips(neurons, bits))
    index = (torch.arange(16), *(torch.from_numpy(i) for i in np.unravel_index(neurons, tuple(golden.shape[1:]))))
    assert same_words(injection.before, golden[index])
    assert injection.where is not None
    assert all(torch.equal(one, other) for one, other in zip(injection.where, index, strict=True))
    for row in range(16):
        assert same_words(injection.after[row], flip_bits(injection.before[row], bits[row]))
    golden[index] = injection.after
    assert same_words(found, model[depth:](golden))


@torch.inference_mode()
def test_a_batch_of_trials_is_one_fault_for_each_row() -> None:
    model, x = convnet(), torch.randn(8, 3, 6, 6)
    neurons, bits = drawn(8, 4 * 6 * 6, 32)
    _, found = run_with_trials(model, x, "0", single_flips(neurons, bits))
    faults = [
        rh.BitFlip(layer="0", neuron=(n // 36, n // 6 % 6, n % 6), bit=bit, batch_index=row)
        for row, (n, bit) in enumerate(zip(neurons, bits, strict=True))
    ]
    with rh.inject(model, faults):
        assert same_words(found, model(x))


def test_a_channels_last_output_keeps_its_format_and_its_other_values() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Identity()).to(memory_format=torch.channels_last)
    x = torch.randn(5, 3, 6, 6).to(memory_format=torch.channels_last)
    golden = model(x)
    neurons, bits = drawn(5, 4 * 4 * 4, 32)
    _, found = run_with_trials(model, x, "0", single_flips(neurons, bits))
    assert not golden.is_contiguous()
    assert found.stride() == golden.stride()
    different = (words(found.detach()) != words(golden.detach())).flatten(1)
    assert different.sum() == 5
    assert different.int().argmax(dim=1).tolist() == neurons


@torch.inference_mode()
def test_an_in_place_activation_does_not_reach_what_was_recorded() -> None:
    model, x = convnet(), torch.randn(6, 3, 6, 6)
    golden = model[0](x)
    neurons, _ = drawn(6, golden[0].numel(), 32)
    injection, _ = run_with_trials(model, x, "0", single_flips(neurons, [31] * 6))
    assert same_words(injection.before, golden.flatten(1)[torch.arange(6), torch.tensor(neurons)])
    assert same_words(injection.after, -injection.before)


@torch.inference_mode()
def test_under_autocast_the_word_is_the_one_that_is_there() -> None:
    model, x = convnet(), torch.randn(4, 3, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        golden = model(x)
        injection, found = run_with_trials(model, x, "4", single_flips([0, 1, 2, 3], [15, 14, 0, 7]))
        assert injection.before.dtype == found.dtype == torch.bfloat16
        assert (words(found) ^ words(golden)).tolist() == [
            [-(2**15), 0, 0, 0, 0],
            [0, 2**14, 0, 0, 0],
            [0, 0, 1, 0, 0],
            [0, 0, 0, 2**7, 0],
        ]
        with pytest.raises(FaultError, match="Bit 16 does not exist"):
            run_with_trials(model, x, "4", single_flips([0, 0, 0, 0], [0, 1, 2, 16]))


class Emit(nn.Module):
    """Returns fixed values, so that flips can be worked by hand."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = values

    def forward(self, x: Tensor) -> Tensor:
        return self.values.clone()


def test_the_range_detector_by_hand() -> None:
    # 0.75 -> 2.55e38, 1.5 -> NaN, 1.0 -> inf, -1.0 -> -inf, -1.25 -> NaN, -0.5 -> -1.7e38, 2.0 -> 0.0, 1.0 -> -1.0,
    # 4.0 (beyond the range already) -> 4.0 + one ulp, 0.0 -> -0.0
    values = torch.tensor([0.75, 1.5, 1.0, -1.0, -1.25, -0.5, 2.0, 1.0, 4.0, 0.0])[:, None]
    bits = [30, 30, 30, 30, 30, 30, 30, 31, 0, 31]
    model = nn.Sequential(Emit(torch.cat([values, torch.full_like(values, 9.0)], dim=1)))
    injection, found = run_with_trials(model, values, "0", single_flips([0] * 10, bits), range_limit=2.0)
    expected = [2.0, 2.0, 2.0, -2.0, 2.0, -2.0, 0.0, -1.0, 2.0, -0.0]
    assert found[:, 0].tolist() == expected
    assert [math.copysign(1, value) for value in found[:, 0].tolist()] == [math.copysign(1, e) for e in expected]
    # The detector looks at the faulty neuron only: 9.0 lies beyond the range and stays.
    assert found[:, 1].tolist() == [9.0] * 10
    # The record holds the flip itself, before the detector.
    assert injection.before.tolist() == values[:, 0].tolist()
    assert injection.after[0].item() == 0.75 * 2.0**128
    assert injection.after.isnan().tolist() == [False, True, False, False, True] + [False] * 5
    assert injection.after.isinf().tolist() == [False, False, True, True] + [False] * 6
    _, raw = run_with_trials(model, values, "0", single_flips([0] * 10, bits))
    assert same_words(raw[:, 0], flip_bits(values[:, 0], torch.tensor(bits)))


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


@pytest.mark.parametrize("raw", [0x7F800001, 0x7FBFFFFF, -0x7FFFFF, 0x7FC01234])
def test_a_signalling_nan_in_the_output_keeps_its_payload(raw: int) -> None:
    values = torch.tensor([[raw, 0x3F800000]], dtype=torch.int32).view(torch.float32)
    injection, found = run_with_trials(nn.Sequential(Emit(values)), values, "0", single_flips([0], [2]))
    assert words(injection.before).item() == raw
    assert words(injection.after).item() == raw ^ 4
    assert words(found).tolist() == [[raw ^ 4, 0x3F800000]]


def test_a_write_that_went_wrong_is_noticed() -> None:
    values = torch.randn(2, 4)
    faulty = values.clone()
    target = FaultyTensor(faulty, values, "the tensor")
    target.inject(single_flips([0, 1], [3, 30]), FaultModel(), lambda tensor: tensor)
    faulty[1, 3] += 1
    with pytest.raises(InjectionError, match="3 elements changed; expected 2, exactly as drawn"):
        target.verify()


@pytest.mark.parametrize(
    ("neurons", "bits", "message"),
    [
        ([0, 4], [3, 4], "has the elements 0 to 3 in each image; found the element 4"),
        ([0, 1], [3, 32], "Bit 32 does not exist"),
        ([0, 1, 2], [3, 4, 5], "Expected draws for 2 images of .0., found draws for 3"),
    ],
)
def test_a_fault_that_does_not_exist_is_refused(neurons: list[int], bits: list[int], message: str) -> None:
    with pytest.raises(FaultError, match=message):
        run_with_trials(nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4), "0", single_flips(neurons, bits))


# --- bugs that it must catch ----------------------------------------------------------------------------------------


def plant_no_write(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(core, "write_values", lambda tensor, index, values: None)


def plant_write_into_a_copy(patch: pytest.MonkeyPatch) -> None:
    original = FaultyTensor.inject

    def inject(self: FaultyTensor, draws: Any, model: Any, images_first: Any, **options: Any) -> Any:
        return original(self, draws, model, lambda tensor: images_first(tensor).clone(), **options)

    patch.setattr(FaultyTensor, "inject", inject)


def plant_a_changed_neighbour(patch: pytest.MonkeyPatch) -> None:
    original = core.write_values

    def write(tensor: Tensor, index: tuple[Tensor, ...], values: Tensor) -> None:
        original(tensor, index, values)
        place = tuple(int(one[0]) for one in index[:-1])
        neighbour = (int(index[-1][0]) + 1) % tensor.shape[-1]
        words(tensor)[(*place, neighbour)] ^= 1

    patch.setattr(core, "write_values", write)


def plant_a_spared_image(patch: pytest.MonkeyPatch) -> None:
    original = core.write_values
    patch.setattr(
        core, "write_values", lambda tensor, index, values: original(tensor, tuple(i[1:] for i in index), values[1:])
    )


def plant_a_second_bit(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fault_model, "apply_masks", lambda held, keep, flip: apply_masks(held, keep, flip ^ 8))


def plant_no_flip(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fault_model, "apply_masks", lambda held, keep, flip: held.clone())


def plant_shared_memory(patch: pytest.MonkeyPatch) -> None:
    """Let the faulty tensor be its own golden tensor, so that a comparison of the two could not see anything."""
    original = FaultyTensor.__init__
    patch.setattr(FaultyTensor, "__init__", lambda self, faulty, golden, name: original(self, faulty, faulty, name))


PLANTED: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    name.removeprefix("plant_").replace("_", " "): plant for name, plant in globals().items() if name[:6] == "plant_"
}
FLIP = rh.Fault(layer="conv1", effect=rh.faults.Flip(bits=(21,)))
Run = Callable[[contextlib.AbstractContextManager[object]], object]


def runs(model: nn.Module, data: tuple[Tensor, Tensor]) -> dict[str, Run]:
    """Return every path that injects faults; each enters the planted bug after its golden runs."""
    x, options = data[0], {"protocol": "raw", "trials_per_site": 16, "batch_size": 8, "progress": False}
    stored = rh.Fault(layer="conv1", tensor=rh.faults.StoredTensor(), elements=rh.faults.RandomElements(count=3))
    result = rh.run_campaign(model, data, **options)

    def injected(fault: rh.Fault, planted: contextlib.AbstractContextManager[object]) -> object:
        with planted, rh.inject(model, fault), torch.no_grad():
            return model(x)

    def with_bug(run: Callable[[], object]) -> Run:
        def start(planted: contextlib.AbstractContextManager[object]) -> object:
            with planted:
                return run()

        return start

    return {
        "inject, output": lambda planted: injected(FLIP, planted),
        "inject, stored": lambda planted: injected(stored, planted),
        "campaign, incremental": with_bug(lambda: rh.run_campaign(model, data, engine="incremental", **options)),
        "campaign, full": with_bug(lambda: rh.run_campaign(model, data, engine="full", **options)),
        "exhaustive": with_bug(lambda: rh.run_exhaustive(model, data, layers=["conv2"], batch_size=64, progress=False)),
        "replay": with_bug(lambda: rh.replay(result, model, data, site="conv2", trial=3)),
    }


PATHS = ["inject, output", "inject, stored", "campaign, incremental", "campaign, full", "exhaustive", "replay"]


@pytest.mark.parametrize("bug", PLANTED)
@pytest.mark.parametrize("path", PATHS)
def test_a_planted_bug_is_caught_on_every_path(
    bug: str, path: str, small_net: nn.Module, labelled: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    small_net.eval()
    run = runs(small_net, labelled)[path]
    before = {name: words(tensor).clone() for name, tensor in small_net.state_dict().items()}

    @contextlib.contextmanager
    def planted() -> Iterator[None]:
        with monkeypatch.context() as patch:
            PLANTED[bug](patch)
            yield

    with pytest.raises(InjectionError, match=r"went wrong|other bits than those drawn"):
        run(planted())
    if path == "inject, stored" and bug != "shared memory":
        assert all(torch.equal(words(tensor), before[name]) for name, tensor in small_net.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in small_net.modules())
