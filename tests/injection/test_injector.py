import struct
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from resilient_heads.errors import FaultError, InjectionError
from resilient_heads.incremental.recording.words import words
from resilient_heads.injection.apply.inject import inject
from resilient_heads.injection.faults import fault_model as models
from resilient_heads.injection.faults.fault import BitFlip, WeightBitFlip
from resilient_heads.injection.formats.bits import apply_masks, flip_bits


def state_words(model: nn.Module) -> dict[str, Tensor]:
    return {name: words(p.detach()).clone() for name, p in model.named_parameters()}


def assert_untouched(model: nn.Module, before: dict[str, Tensor]) -> None:
    for name, p in model.named_parameters():
        assert torch.equal(words(p.detach()), before[name]), name
    for name, module in model.named_modules():
        assert len(module._forward_hooks) == 0, name


def same_words(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(words(a), words(b))


def changed(a: Tensor, b: Tensor) -> list[tuple[int, ...]]:
    """Return where the words of two tensors differ."""
    return [tuple(place) for place in (words(a) != words(b)).nonzero().tolist()]


def record(model: nn.Module, layer: str) -> list[Tensor]:
    """Record what a layer hands to the next one; must be called after the injection has set its hook."""
    seen: list[Tensor] = []
    model.get_submodule(layer).register_forward_hook(lambda _m, _i, output: seen.append(output.detach().clone()))
    return seen


def mlp(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).to(dtype).eval()


def convnet() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 5)).eval()


FLIP = BitFlip(layer="2", neuron=(1,), bit=30)
WEIGHT = WeightBitFlip(layer="4", index=(2, 3), bit=30)


@pytest.mark.parametrize("bit", range(32))
@torch.inference_mode()
def test_one_neuron_of_one_sample(bit: int) -> None:
    model, x = mlp(), torch.randn(3, 5)
    golden = model[:3](x)
    with inject(model, BitFlip(layer="2", neuron=(1,), bit=bit, batch_index=2)):
        found = model(x)
    (raw,) = struct.unpack("<I", struct.pack("<f", golden[2, 1].item()))
    golden[2, 1] = torch.tensor(struct.unpack("<f", struct.pack("<I", raw ^ (1 << bit))))[0]
    assert same_words(found, model[3:](golden))
    assert same_words(found[:2], model(x)[:2])


@torch.inference_mode()
def test_no_sample_means_every_row() -> None:
    model, x = mlp(), torch.randn(4, 5)
    golden = model[:3](x)
    with inject(model, FLIP):
        found = model(x)
    golden[:, 1] = flip_bits(golden[:, 1].clone(), 30)
    assert same_words(found, model[3:](golden))


@torch.inference_mode()
def test_several_faults_in_one_layer_act_together() -> None:
    model, x = mlp(), torch.randn(3, 5)
    golden = model[:3](x)
    faults = [
        BitFlip(layer="2", neuron=(1,), bit=30, batch_index=0),
        BitFlip(layer="2", neuron=(1,), bit=31, batch_index=0),
        BitFlip(layer="2", neuron=(1,), bit=30, batch_index=1),
        BitFlip(layer="2", neuron=(3,), bit=2),
    ]
    with inject(model, (fault for fault in faults)):
        found = model(x)
    for row, column, bit in [(0, 1, 30), (0, 1, 31), (1, 1, 30), (0, 3, 2), (1, 3, 2), (2, 3, 2)]:
        words(golden)[row, column] ^= torch.iinfo(torch.int32).min if bit == 31 else 1 << bit
    assert same_words(found, model[3:](golden))


@torch.inference_mode()
def test_weights_and_outputs_together() -> None:
    model, x = mlp(), torch.randn(3, 5)
    before = state_words(model)
    expected = mlp()
    expected[4].weight[2, 3] = flip_bits(expected[4].weight[2, 3], 30)
    expected[2].bias[0] = flip_bits(expected[2].bias[0], 22)
    middle = expected[:3](x)
    middle[:, 1] = flip_bits(middle[:, 1].clone(), 30)
    with inject(model, [WEIGHT, FLIP, WeightBitFlip(layer="2", index=(0,), bit=22, parameter="bias")]):
        assert same_words(model(x), expected[3:](middle))
    assert_untouched(model, before)
    assert same_words(model(x), mlp()(x))


def test_every_forward_pass_in_the_block_is_struck() -> None:
    model, x = mlp(), torch.randn(3, 5)
    golden = model(x)
    with inject(model, FLIP):
        first, second = model(x), model(x)
    assert changed(first, golden)
    assert same_words(first, second)
    assert same_words(model(x), golden)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_formats(dtype: torch.dtype) -> None:
    model, x = mlp(dtype), torch.randn(3, 5, dtype=dtype)
    golden = model(x)
    top = torch.finfo(dtype).bits - 2
    for bit in (0, top, top + 1):
        with inject(model, BitFlip(layer="4", neuron=(2,), bit=bit, batch_index=1)):
            found = model(x)
        assert found.dtype == dtype
        assert changed(found, golden) == [(1, 2)]
        assert same_words(found[1, 2], flip_bits(golden[1, 2].detach(), bit))
        with inject(model, WeightBitFlip(layer="4", index=(0,), bit=bit, parameter="bias")):
            pass
    with pytest.raises(FaultError, match=rf"Bit {top + 2} does not exist"), inject(model, faults_of_bit(top + 2)):
        model(x)


def faults_of_bit(bit: int) -> BitFlip:
    return BitFlip(layer="4", neuron=(0,), bit=bit)


def test_autocast_decides_which_word_is_struck() -> None:
    model, x = mlp(), torch.randn(3, 5)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        golden = model(x)
        with inject(model, BitFlip(layer="4", neuron=(0,), bit=14, batch_index=1)):
            found = model(x)
        assert found.dtype == torch.bfloat16
        assert changed(found, golden) == [(1, 0)]
        assert same_words(found[1, 0], flip_bits(golden[1, 0], 14))
        error = pytest.raises(FaultError, match=r"Bit 20 does not exist in torch\.bfloat16")
        with error, inject(model, faults_of_bit(20)):
            model(x)
    assert len(model[4]._forward_hooks) == 0


def test_a_channels_last_output_keeps_its_format_and_its_other_values() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Identity()).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 6, 6).to(memory_format=torch.channels_last)
    golden = model(x)
    assert not golden.is_contiguous()
    with inject(model, BitFlip(layer="0", neuron=(3, 1, 2), bit=30, batch_index=1)):
        seen = record(model, "0")
        found = model(x)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert found.stride() == seen[0].stride() == golden.stride()
    assert changed(found, golden) == [(1, 3, 1, 2)]


def test_a_strided_output_keeps_its_other_values() -> None:
    class Transpose(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.transpose(1, 2)

    class Expand(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :1].expand(2, 4, 3)

    x = torch.randn(2, 4, 3)
    for module, neuron in ((Transpose(), (2, 3)), (Expand(), (3, 2))):
        model = nn.Sequential(module, nn.Identity())
        golden = model(x).clone()
        with inject(model, BitFlip(layer="0", neuron=neuron, bit=12, batch_index=1)):
            found = model(x)
        assert changed(found, golden) == [(1, *neuron)]


def test_an_in_place_activation_after_the_site() -> None:
    model, x = convnet(), torch.randn(2, 3, 6, 6)
    middle = model[0](x).detach()
    golden = model(x)
    fault = BitFlip(layer="0", neuron=(1, 2, 3), bit=31, batch_index=0)
    with inject(model, fault):
        found = model(x)
    middle[0, 1, 2, 3] *= -1
    assert same_words(found, model[1:](middle))
    assert same_words(model(x), golden)


def test_an_in_place_module_can_be_the_site() -> None:
    model, x = convnet(), torch.randn(2, 3, 6, 6)
    golden = model[:2](x).detach()
    with inject(model, BitFlip(layer="1", neuron=(0, 0, 0), bit=31, batch_index=1)):
        found = model[:2](x)
    assert changed(found, golden) == [(1, 0, 0, 0)]


def test_the_input_of_the_model_is_left_alone() -> None:
    class Same(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    model, x = nn.Sequential(Same(), nn.Identity()), torch.randn(2, 3)
    kept = x.clone()
    with inject(model, BitFlip(layer="0", neuron=(1,), bit=3)):
        found = model(x)
    assert same_words(x, kept)
    assert changed(found, kept) == [(0, 1), (1, 1)]


def test_gradients_pass_through_the_struck_layer() -> None:
    model, x = mlp(), torch.randn(3, 5)
    with inject(model, BitFlip(layer="2", neuron=(1,), bit=20)):
        model(x).sum().backward()
    assert model[0].weight.grad is not None
    assert model[0].weight.grad.isfinite().all()


HALF_FLIP = BitFlip(layer="2", neuron=(1,), bit=14)


def with_odd_weights(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """A model whose last weights hold NaNs of all kinds, infinities, subnormals and negative zero."""
    model = mlp(dtype)
    held = words(model[4].weight.data).view(-1)
    infinity = int(words(torch.tensor(float("inf"), dtype=dtype)))
    lowest = torch.iinfo(held.dtype).min
    raw = [0, 1, 2, infinity - 1, infinity, infinity + 1, infinity + 2]
    raw += [lowest, lowest + 1, lowest + infinity, lowest + infinity + 1, -1]
    held[:] = torch.tensor(raw).to(held.dtype)
    assert model[4].weight.isnan().sum() == 4
    return model


class BodyError(RuntimeError):
    """Raised by a test's own body."""


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("run", "raises", "expected"),
    [(True, False, None), (False, False, InjectionError), (True, True, BodyError), (False, True, BodyError)],
    ids=["runs", "does not run", "raises after the run", "raises before the run"],
)
def test_everything_is_restored(run: bool, raises: bool, expected: type[Exception] | None, dtype: torch.dtype) -> None:
    model, x = with_odd_weights(dtype), torch.randn(3, 5, dtype=dtype)
    before = state_words(model)
    sign = torch.finfo(dtype).bits - 1
    faults = [WeightBitFlip(layer="4", index=divmod(i, 4), bit=bit) for i in range(12) for bit in (0, 9, sign)]
    during = {}
    with pytest.raises(expected) if expected else nullcontext(), inject(model, [*faults, HALF_FLIP]):
        during = state_words(model)
        if run:
            model(x)
        if raises:
            raise BodyError
    assert (during["4.weight"] != before["4.weight"]).all()
    assert_untouched(model, before)


def test_a_weight_struck_in_several_bits_holds_them_all() -> None:
    model = mlp()
    before = state_words(model)
    with inject(model, [WeightBitFlip(layer="0", index=(1, 1), bit=bit) for bit in (0, 5, 31)]):
        difference = words(model[0].weight.data) ^ before["0.weight"]
        assert difference[1, 1].item() == (1 | 1 << 5 | 1 << 31) - 2**32
        assert difference.count_nonzero() == 1
    assert_untouched(model, before)


def test_a_channels_last_weight_is_struck_in_place() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3)).to(memory_format=torch.channels_last)
    before, pointer = state_words(model), model[0].weight.data_ptr()
    with inject(model, WeightBitFlip(layer="0", index=(3, 2, 1, 0), bit=31)):
        assert model[0].weight.data_ptr() == pointer
        assert (words(model[0].weight.data) != before["0.weight"]).nonzero().tolist() == [[3, 2, 1, 0]]
    assert_untouched(model, before)


def identity(held: Tensor, keep: Tensor, flip: Tensor) -> Tensor:
    return held.clone()


def two_bits(held: Tensor, keep: Tensor, flip: Tensor) -> Tensor:
    return apply_masks(held, keep, flip ^ 8)


def wrong_bit(held: Tensor, keep: Tensor, flip: Tensor) -> Tensor:
    return apply_masks(held, keep, torch.full_like(flip, 16))


def nothing_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every write into a tensor go to a copy that nobody reads."""
    monkeypatch.setattr(Tensor, "__setitem__", lambda self, index, value: self.clone())


PLANTED: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "identity": lambda patch: patch.setattr(models, "apply_masks", identity),
    "two bits": lambda patch: patch.setattr(models, "apply_masks", two_bits),
    "wrong bit": lambda patch: patch.setattr(models, "apply_masks", wrong_bit),
    "stale copy": nothing_written,
}


@pytest.mark.parametrize("planted", PLANTED)
@pytest.mark.parametrize("fault", [FLIP, BitFlip(layer="0", neuron=(0,), bit=0, batch_index=1), WEIGHT], ids=repr)
def test_a_planted_injector_bug_is_caught(
    planted: str, fault: BitFlip | WeightBitFlip, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = mlp(), torch.randn(3, 5)
    before = state_words(model)
    with monkeypatch.context() as patch:
        PLANTED[planted](patch)
        with pytest.raises(InjectionError, match=r"went wrong|other bits than those drawn"), inject(model, fault):
            model(x)
    assert_untouched(model, before)


def test_a_flip_beside_the_asked_one_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Tensor.__setitem__

    def one_more(self: Tensor, index: object, value: Tensor) -> None:
        original(self, index, value)
        if self.is_floating_point():
            original(words(self), (-1, -1), words(self)[-1, -1] ^ 1)

    model, x = mlp(), torch.randn(3, 5)
    monkeypatch.setattr(Tensor, "__setitem__", one_more)
    with pytest.raises(InjectionError, match="went wrong: 4 elements changed; expected 3"), inject(model, FLIP):
        model(x)
    assert len(model[2]._forward_hooks) == 0


@pytest.mark.parametrize("fault", [FLIP, WEIGHT], ids=repr)
def test_a_second_bit_is_caught_among_several_faults(
    fault: BitFlip | WeightBitFlip, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = mlp(), torch.randn(3, 5)
    before = state_words(model)
    faults = [replace(fault, bit=bit) for bit in (30, 31, 0)]
    with inject(model, faults):
        model(x)
    monkeypatch.setattr(models, "apply_masks", two_bits)
    with pytest.raises(InjectionError), inject(model, faults):
        model(x)
    assert_untouched(model, before)


def test_a_bug_that_spares_the_first_flips_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_odd_weights()
    before = state_words(model)
    calls = []

    def breaks_later(held: Tensor, keep: Tensor, flip: Tensor) -> Tensor:
        calls.append(flip)
        return apply_masks(held, keep, flip) if len(calls) < 3 else identity(held, keep, flip)

    monkeypatch.setattr(models, "apply_masks", breaks_later)
    faults = [WeightBitFlip(layer="4", index=(0, i), bit=30) for i in range(4)]
    with pytest.raises(InjectionError), inject(model, faults):
        pytest.fail("the body must not run")
    assert len(calls) >= 3
    assert_untouched(model, before)


def test_a_layer_that_never_runs() -> None:
    model, x = mlp(), torch.randn(3, 5)
    before = state_words(model)
    last = BitFlip(layer="4", neuron=(0,), bit=3)
    with (
        pytest.raises(InjectionError, match="No fault was injected into '4': the layer did not run"),
        inject(model, [FLIP, last]),
    ):
        model[:3](x)
    with pytest.raises(InjectionError, match="No fault was injected into '2'"), inject(model, [WEIGHT, FLIP]):
        pass
    assert_untouched(model, before)


def test_a_compiled_model_that_ignores_hooks_is_noticed() -> None:
    model, x = mlp(), torch.randn(3, 5)
    failure = None
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        compiled = torch.compile(model, backend="eager")
        golden = found = compiled(x)
        try:
            with inject(model, FLIP):
                found = compiled(x)
        except InjectionError as error:
            failure = str(error)
        finally:
            torch.compiler.reset()
    assert len(model[2]._forward_hooks) == 0
    if failure is None:
        assert changed(found, golden), "the fault did not strike, and nobody noticed"
        pytest.skip("this torch runs hooks that were set after the compilation")
    assert "was compiled before the block" in failure
    assert same_words(found, golden)


BAD = {
    "has no layer named 'nope'; its layers are: 0, 1, 2, 3, 4": BitFlip(layer="nope", neuron=(0,), bit=1),
    "has no layer named ''": BitFlip(layer="", neuron=(0,), bit=1),
    "has no layer named '5'": WeightBitFlip(layer="5", index=(0, 0), bit=1),
    r"the output of '2' has no element \(4,\); its shape is \(4,\)": BitFlip(layer="2", neuron=(4,), bit=1),
    r"the output of '2' has no element \(-1,\)": BitFlip(layer="2", neuron=(-1,), bit=1),
    r"the output of '2' has no element \(\)": BitFlip(layer="2", neuron=(), bit=1),
    r"the output of '2' has no element \(0, 0\)": BitFlip(layer="2", neuron=(0, 0), bit=1),
    "Bit 32 does not exist": BitFlip(layer="2", neuron=(0,), bit=32),
    "Bit -1 does not exist": BitFlip(layer="2", neuron=(0,), bit=-1),
    "batch_index 3 does not exist in a batch of 3": BitFlip(layer="2", neuron=(0,), bit=1, batch_index=3),
    "batch_index -1 does not exist": BitFlip(layer="2", neuron=(0,), bit=1, batch_index=-1),
    "'1' has no parameter 'weight'; it has: none": WeightBitFlip(layer="1", index=(0,), bit=1),
    "'2' has no parameter 'wieght'; it has: weight, bias": WeightBitFlip(
        layer="2", index=(0, 0), bit=1, parameter="wieght"
    ),
    r"the weight of '2' has no element \(4, 0\); its shape is \(4, 6\)": WeightBitFlip(layer="2", index=(4, 0), bit=1),
    r"the weight of '2' has no element \(0,\)": WeightBitFlip(layer="2", index=(0,), bit=1),
    r"the weight of '2' has no element \(0, -1\)": WeightBitFlip(layer="2", index=(0, -1), bit=1),
    "Bit 33 does not exist": WeightBitFlip(layer="2", index=(0, 0), bit=33),
    "Bit -2 does not exist": WeightBitFlip(layer="2", index=(0, 0), bit=-2),
}


@pytest.mark.parametrize("message", BAD)
def test_a_fault_that_does_not_exist(message: str) -> None:
    model, x = mlp(), torch.randn(3, 5)
    before = state_words(model)
    with pytest.raises(FaultError, match=message), inject(model, [WEIGHT, BAD[message]]):
        model(x)
    assert_untouched(model, before)


@pytest.mark.parametrize("bit", [0, 30, 31])
@pytest.mark.parametrize(
    ("first", "second"),
    [((1,), (1,)), ((None,), (None,)), ((None,), (2,)), ((2,), (None,))],
    ids=["same row", "every row", "every row, then one", "one row, then every"],
)
def test_two_flips_of_one_bit_are_refused(first: tuple[int | None], second: tuple[int | None], bit: int) -> None:
    model = mlp()
    faults = [BitFlip(layer="2", neuron=(1,), bit=bit, batch_index=sample) for (sample,) in (first, second)]
    other = BitFlip(layer="0", neuron=(1,), bit=bit)
    with pytest.raises(FaultError, match="Two faults flip the same bit"), inject(model, [faults[0], other, faults[1]]):
        pytest.fail("the body must not run")
    assert_untouched(model, state_words(model))


def test_flips_that_cancel_under_two_names_are_noticed() -> None:
    shared = nn.Linear(4, 4)
    model, x = nn.Sequential(shared, nn.ReLU(), shared), torch.randn(2, 4)
    before = state_words(model)
    weights = [WeightBitFlip(layer=name, index=(1, 2), bit=30) for name in ("0", "2")]
    with pytest.raises(InjectionError, match="another fault undoes it"), inject(model, weights):
        pytest.fail("the body must not run")
    outputs = [BitFlip(layer=name, neuron=(1,), bit=30) for name in ("0", "2")]
    with pytest.raises(InjectionError, match="another fault undoes it"), inject(model, outputs):
        model(x)
    assert_untouched(model, before)
    tied = mlp()
    tied[4].weight = nn.Parameter(tied[2].weight[:3, :4].detach().clone())
    tied.register_module("copy", nn.Linear(4, 3))
    tied.get_submodule("copy").weight = tied[4].weight
    before = state_words(tied)
    weights = [WeightBitFlip(layer=name, index=(1, 2), bit=30) for name in ("4", "copy")]
    with pytest.raises(InjectionError), inject(tied, weights):
        pytest.fail("the body must not run")
    with inject(tied, [weights[0], WeightBitFlip(layer="copy", index=(1, 2), bit=29)]):
        assert (words(tied[4].weight.data) ^ before["4.weight"])[1, 2].item() == 1 << 30 | 1 << 29
    assert_untouched(tied, before)


def test_two_flips_of_one_weight_bit_are_refused() -> None:
    model = mlp()
    before = state_words(model)
    with pytest.raises(FaultError, match="Two faults flip the same bit"), inject(model, [WEIGHT, FLIP, WEIGHT]):
        pytest.fail("the body must not run")
    assert_untouched(model, before)


@pytest.mark.parametrize(
    "other",
    [
        BitFlip(layer="2", neuron=(1,), bit=29),
        BitFlip(layer="2", neuron=(2,), bit=30),
        BitFlip(layer="4", neuron=(1,), bit=30),
    ],
    ids=repr,
)
def test_faults_that_differ_are_allowed_together(other: BitFlip) -> None:
    model = mlp()
    with inject(model, [FLIP, other]):
        model(torch.randn(2, 5))
    rows = [BitFlip(layer="2", neuron=(1,), bit=30, batch_index=sample) for sample in range(2)]
    with inject(model, rows):
        model(torch.randn(2, 5))


def test_no_fault_or_something_else() -> None:
    model = mlp()
    with pytest.raises(FaultError, match="No fault was given"), inject(model, []):
        pytest.fail("the body must not run")
    with pytest.raises(FaultError, match="Expected a Fault, BitFlip or Weight"), inject(model, ["fc"]):  # type: ignore[list-item]
        pytest.fail("the body must not run")


class Returns(nn.Module):
    def __init__(self, output: object) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor) -> object:
        return self.output


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (("a", 1), "found a tuple without tensors"),
        (None, "found a NoneType without tensors"),
        (torch.ones(2, 3).long(), "torch.int64"),
    ],
)
def test_an_output_that_is_no_floating_tensor(output: object, message: str) -> None:
    model = nn.Sequential(Returns(output))
    with pytest.raises(FaultError, match=message), inject(model, BitFlip(layer="0", neuron=(0,), bit=1)):
        model(torch.ones(2, 3))
    assert len(model[0]._forward_hooks) == 0


def test_hooks_of_the_caller_stay_and_see_the_fault() -> None:
    model, x = mlp(), torch.randn(3, 5)
    handle = model[2].register_forward_hook(lambda _m, _i, output: output * 2)
    golden = model(x)
    with inject(model, BitFlip(layer="2", neuron=(1,), bit=31)):
        found = model(x)
    middle = model[:3](x).detach()
    middle[:, 1] *= -1
    assert same_words(found, model[3:](middle))
    assert len(model[2]._forward_hooks) == 1
    assert same_words(model(x), golden)
    handle.remove()


def test_injections_nest() -> None:
    model, x = mlp(), torch.randn(3, 5)
    golden = model(x)
    with inject(model, BitFlip(layer="4", neuron=(0,), bit=31)):
        with inject(model, BitFlip(layer="4", neuron=(1,), bit=31)):
            both = model(x)
        outer = model(x)
    assert changed(both, golden) == [(row, column) for row in range(3) for column in (0, 1)]
    assert changed(outer, golden) == [(row, 0) for row in range(3)]


def test_a_shared_layer_is_found_under_either_name() -> None:
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": shared, "b": shared})
    for name in "ab":
        golden = shared(torch.ones(2, 4))
        with inject(model, BitFlip(layer=name, neuron=(0,), bit=31)):
            assert changed(shared(torch.ones(2, 4)), golden) == [(0, 0), (1, 0)]
