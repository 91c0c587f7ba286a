"""Emulated number formats against independent references: torch's dtypes, ml_dtypes, numpy, exact fractions."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from resilient_heads.errors import ArgumentError, FaultError
from resilient_heads.injection.formats.base import NumberFormat
from resilient_heads.injection.formats.floating import FloatingPoint
from resilient_heads.injection.formats.integer import AffineInteger, FixedPoint
from resilient_heads.injection.formats.shared import AdaptivFloat, BlockFloat

ml_dtypes = pytest.importorskip("ml_dtypes")
PROPERTY = settings(max_examples=60, deadline=None, derandomize=True, database=None)

IEEE_HALF = FloatingPoint(exponent_bits=5, mantissa_bits=10)
REFERENCES = {
    IEEE_HALF: (np.float16, torch.float16),
    FloatingPoint(exponent_bits=8, mantissa_bits=7): (ml_dtypes.bfloat16, torch.bfloat16),
    FloatingPoint(exponent_bits=5, mantissa_bits=2): (ml_dtypes.float8_e5m2, torch.float8_e5m2),
    FloatingPoint(exponent_bits=4, mantissa_bits=3, specials="fn"): (ml_dtypes.float8_e4m3fn, torch.float8_e4m3fn),
    FloatingPoint(exponent_bits=4, mantissa_bits=3): (ml_dtypes.float8_e4m3, None),
    FloatingPoint(exponent_bits=3, mantissa_bits=4): (ml_dtypes.float8_e3m4, None),
    FloatingPoint(exponent_bits=4, mantissa_bits=3, specials="fnuz"): (
        ml_dtypes.float8_e4m3fnuz,
        torch.float8_e4m3fnuz,
    ),
    FloatingPoint(exponent_bits=5, mantissa_bits=2, specials="fnuz"): (
        ml_dtypes.float8_e5m2fnuz,
        torch.float8_e5m2fnuz,
    ),
    FloatingPoint(exponent_bits=2, mantissa_bits=3, specials="none"): (ml_dtypes.float6_e2m3fn, None),
    FloatingPoint(exponent_bits=3, mantissa_bits=2, specials="none"): (ml_dtypes.float6_e3m2fn, None),
    FloatingPoint(exponent_bits=2, mantissa_bits=1, specials="none"): (ml_dtypes.float4_e2m1fn, None),
}


def name(form: object) -> str:
    return str(form).split("(")[1].rstrip(")")


def every_word(form: NumberFormat) -> Tensor:
    return torch.arange(1 << form.word_bits)


def reference_values(form: FloatingPoint) -> np.ndarray:
    """Return the value of every word, as the reference says."""
    kind = np.uint16 if form.word_bits == 16 else np.uint8
    with np.errstate(invalid="ignore"):  # signalling NaNs
        return np.arange(1 << form.word_bits).astype(kind).view(REFERENCES[form][0]).astype(np.float64)


def same(found: np.ndarray, expected: np.ndarray) -> None:
    """Compare values, with the signs of zeros."""
    np.testing.assert_array_equal(found, expected)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(found[numbers]), np.signbit(expected[numbers]))


@pytest.mark.parametrize("form", REFERENCES, ids=name)
def test_every_word_has_the_references_value(form: FloatingPoint) -> None:
    same(form.decode(every_word(form)).numpy(), reference_values(form))


@pytest.mark.parametrize("form", REFERENCES, ids=name)
def test_every_word_comes_back(form: FloatingPoint) -> None:
    words = every_word(form)
    values = form.decode(words)
    back = form.encode(values)
    numbers = ~values.isnan()
    assert torch.equal(back[numbers], words[numbers])
    assert form.decode(back[~numbers]).isnan().all()


@pytest.mark.parametrize("form", REFERENCES, ids=name)
def test_every_single_flip_has_the_references_value(form: FloatingPoint) -> None:
    values = form.decode(every_word(form))
    table = reference_values(form)
    numbers = ~values.isnan().numpy()
    for bit in range(form.word_bits):
        flipped = form.decode(form.encode(values) ^ (1 << bit)).numpy()
        expected = table[np.arange(1 << form.word_bits) ^ (1 << bit)]
        same(flipped[numbers], expected[numbers])


def probes(form: FloatingPoint) -> np.ndarray:
    """Return values on, between, and a float32 step beside the format's, of both signs, and specials."""
    table = np.unique(reference_values(form))
    table = table[np.isfinite(table)]
    middles = (table[1:] + table[:-1]) / 2
    around = np.concatenate([table, middles]).astype(np.float32)
    near = [np.nextafter(around, np.float32(end)) for end in (np.inf, -np.inf)]
    largest = np.float32(table.max())
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 3e38, -3e38, 1e-44])
    beyond = np.float64(largest) * np.array([1.03, 1.07, 2.0])
    with np.errstate(over="ignore"):
        return np.concatenate([around, *near, special.astype(np.float32), beyond.astype(np.float32)])


@pytest.mark.parametrize("form", REFERENCES, ids=name)
def test_rounding_is_the_references(form: FloatingPoint) -> None:
    values = probes(form)
    reference = REFERENCES[form][0]
    if form.specials == "none":
        values = values[np.isfinite(values)]
    with np.errstate(over="ignore", invalid="ignore"):
        expected = values.astype(reference).astype(np.float64)
    same(form.decode(form.encode(torch.from_numpy(values).double())).numpy(), expected)


@pytest.mark.parametrize("form", [form for form in REFERENCES if REFERENCES[form][1]], ids=name)
def test_rounding_is_torchs(form: FloatingPoint) -> None:
    values = torch.from_numpy(probes(form))
    if (
        form.word_bits == 8
    ):  # torch's conversion saturates, or not, by version beyond the range: ml_dtypes decides above
        values = values[values.abs() <= float(np.nanmax(reference_values(form)[np.isfinite(reference_values(form))]))]
    expected = values.to(REFERENCES[form][1]).double().numpy()
    same(form.decode(form.encode(values.double())).numpy(), expected)


def test_a_single_is_a_single() -> None:
    raw = np.random.default_rng(3).integers(0, 2**32, size=200_000, dtype=np.uint32)
    raw[:1000] &= 0x807FFFFF  # subnormals
    with np.errstate(invalid="ignore"):  # signalling NaNs
        values = raw.view(np.float32).astype(np.float64)
    form = FloatingPoint(exponent_bits=8, mantissa_bits=23)
    words = form.encode(torch.from_numpy(values)).numpy()
    numbers = ~np.isnan(values)
    np.testing.assert_array_equal(words[numbers], raw[numbers])
    same(form.decode(torch.from_numpy(raw.astype(np.int64))).numpy()[numbers], values[numbers])


def test_a_double_is_a_double() -> None:
    raw = np.random.default_rng(4).integers(0, 2**64, size=50_000, dtype=np.uint64)
    raw[:1000] &= np.uint64(0x800FFFFFFFFFFFFF)
    values = raw.view(np.float64)
    form = FloatingPoint(exponent_bits=11, mantissa_bits=52)
    numbers = ~np.isnan(values)
    words = form.encode(torch.from_numpy(values)).numpy().view(np.uint64)
    np.testing.assert_array_equal(words[numbers], raw[numbers])
    same(form.decode(torch.from_numpy(raw.view(np.int64))).numpy()[numbers], values[numbers])


def test_saturation_instead_of_infinity() -> None:
    values = torch.tensor([1e9, -1e9, math.inf, math.nan], dtype=torch.float64)
    for specials, largest in (("ieee", 240.0), ("fn", 448.0), ("fnuz", 240.0), ("none", 480.0)):
        form = FloatingPoint(exponent_bits=4, mantissa_bits=3, specials=specials, saturate=True)  # type: ignore[arg-type]
        found = form.decode(form.encode(values)).tolist()
        assert found[:3] == [largest, -largest, largest]
        assert math.isnan(found[3]) if specials != "none" else found[3] == 0.0


def nearest(value: Fraction, candidates: list[Fraction]) -> set[Fraction]:
    """Return the nearest candidates, one or two."""
    distance = min(abs(value - candidate) for candidate in candidates)
    return {candidate for candidate in candidates if abs(value - candidate) == distance}


@pytest.mark.parametrize("sign", ["twos_complement", "magnitude"])
@pytest.mark.parametrize(("integer", "fraction"), [(3, 3), (0, 7), (7, 0), (4, 11), (1, 1)])
def test_fixed_point_words(integer: int, fraction: int, sign: str) -> None:
    form = FixedPoint(integer_bits=integer, fraction_bits=fraction, sign=sign)  # type: ignore[arg-type]
    words = every_word(form)
    half = 1 << (form.word_bits - 1)
    for word, value in zip(words.tolist(), form.decode(words).tolist(), strict=True):
        if sign == "twos_complement":
            expected = Fraction(word - 2 * half if word >= half else word, 2**fraction)
        else:
            expected = Fraction(word % half, 2**fraction) * (-1 if word >= half else 1)
        assert Fraction(value) == expected
        assert math.copysign(1, value) == (-1 if word >= half else 1) or sign == "twos_complement"
    assert torch.equal(form.encode(form.decode(words)), words)
    for bit in range(form.word_bits):
        flipped = form.decode(words ^ (1 << bit))
        assert torch.equal(form.encode(flipped) ^ (1 << bit), words)


def test_fixed_point_by_hand() -> None:
    form = FixedPoint(integer_bits=2, fraction_bits=2)  # steps of 0.25 from -4 to 3.75
    values = [0.3, 0.125, 0.375, -0.125, 3.9, 100.0, -100.0, math.inf, -math.inf, math.nan]
    found = form.decode(form.encode(torch.tensor(values, dtype=torch.float64))).tolist()
    assert found == [0.25, 0.0, 0.5, 0.0, 3.75, 3.75, -4.0, 3.75, -4.0, 0.0]
    # 1.0 is 00100; its sign bit in two's complement is worth -4, in sign and magnitude it negates.
    assert form.decode(form.encode(torch.tensor([1.0]).double()) ^ 16).item() == -3.0
    magnitude = FixedPoint(integer_bits=2, fraction_bits=2, sign="magnitude")
    assert magnitude.decode(magnitude.encode(torch.tensor([1.0]).double()) ^ 16).item() == -1.0


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("zero_point", [0, 7, 100])
def test_affine_integers_against_torch(zero_point: int, signed: bool) -> None:
    scale = 0.25  # a power of two: torch multiplies by the rounded inverse
    form = AffineInteger(scale=scale, zero_point=zero_point, signed=signed)
    values = torch.linspace(-60, 60, 4801)
    low, high = (-128, 127) if signed else (0, 255)
    expected = torch.fake_quantize_per_tensor_affine(values, scale, zero_point, low, high)
    shared = form.fit(values.double()[None]).expand(1, len(values))[0]
    words = form.encode(values.double(), shared)
    assert torch.equal(form.decode(words, shared).float(), expected)
    every = every_word(form)
    kind = np.int8 if signed else np.uint8
    integers = every.numpy().astype(np.uint8).view(kind).astype(np.int64)
    same_scale = shared[:1].expand(256)
    assert form.decode(every, same_scale).tolist() == ((integers - zero_point) * scale).tolist()
    assert torch.equal(form.encode(form.decode(every, same_scale), same_scale), every)


def test_affine_integers_per_channel_against_torch() -> None:
    scales = torch.tensor([0.5, 0.125, 2.0])
    values = torch.randn(3, 5) * 20
    expected = torch.fake_quantize_per_channel_affine(values, scales, torch.zeros(3, dtype=torch.int32), 0, -128, 127)
    for channel, laid in (("first", values), ("last", values.T)):
        form = AffineInteger(scale=tuple(scales.tolist()), channel=channel)  # type: ignore[arg-type]
        flat = laid.reshape(1, -1).double()
        shared = form.fit(flat)[:, form.group_of(torch.arange(15), 15)]
        found = form.decode(form.encode(flat, shared), shared).reshape(laid.shape).float()
        assert torch.equal(found if channel == "first" else found.T, expected)


def test_a_scale_from_the_data() -> None:
    form = AffineInteger()
    shared = form.fit(torch.tensor([[1.0, -254.0, math.nan, math.inf], [0.0, 0.0, 0.0, 0.0]]).double())
    assert shared.to(torch.int32).view(torch.float32).tolist() == [[2.0], [1.0]]


def block_reference(row: np.ndarray, form: BlockFloat) -> list[Fraction]:
    """Return a block's values by exact arithmetic: the exponent of the largest, then the nearest multiple."""
    largest = max(abs(Fraction(float(value))) for value in row)
    field = 0
    if largest:
        exponent = math.frexp(float(largest))[1] - 1
        field = min(max(exponent + form.bias, 0), 2**form.exponent_bits - 1)
    step = Fraction(2) ** (field - form.bias - (form.mantissa_bits - 1))
    top = 2**form.mantissa_bits - 1
    return [max(-top, min(top, round(Fraction(float(value)) / step))) * step for value in row]


@PROPERTY
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=13),
    st.integers(2, 9),
    st.integers(1, 12),
    st.sampled_from([None, 1, 4, 5]),
)
def test_block_float_against_exact_arithmetic(
    values: list[float], exponent: int, mantissa: int, block: int | None
) -> None:
    form = BlockFloat(exponent_bits=exponent, mantissa_bits=mantissa, block_size=block)
    flat = torch.tensor([values], dtype=torch.float64)
    shared = form.fit(flat)[:, form.group_of(torch.arange(len(values)), len(values))]
    words = form.encode(flat, shared)
    found = form.decode(words, shared)[0].tolist()
    size = block or len(values)
    expected = [x for i in range(0, len(values), size) for x in block_reference(np.array(values[i : i + size]), form)]
    assert [Fraction(value) for value in found] == expected
    assert torch.equal(form.encode(torch.tensor([found]).double(), shared), words)


def test_every_word_of_a_block() -> None:
    form = BlockFloat(exponent_bits=5, mantissa_bits=7)
    words = every_word(form)
    for field in range(32):
        shared = torch.full_like(words, field)
        step = 2.0 ** (field - 15 - 6)
        expected = np.concatenate([np.arange(128), -np.arange(128.0)]) * step
        expected[128] = -0.0
        same(form.decode(words, shared).numpy(), expected)
        assert torch.equal(form.encode(form.decode(words, shared), shared), words)


def test_a_flipped_shared_exponent_scales_its_block() -> None:
    form = BlockFloat(exponent_bits=4, mantissa_bits=5, block_size=2)
    rows = torch.tensor([[1.0, -0.5, 4.0, 3.0, 0.25]]).double()
    assert form.groups(5) == 3
    assert form.fit(rows).tolist() == [[7, 9, 5]]  # exponents 0, 2, -2, biased by 7
    assert form.members(torch.tensor([0, 2]), 5).tolist() == [[0, 1], [4, -1]]
    shared = form.fit(rows)[:, form.group_of(torch.arange(5), 5)]
    words = form.encode(rows, shared)
    assert form.decode(words, shared ^ 2)[0].tolist() == [0.25, -0.125, 16.0, 12.0, 1.0]  # 7->5, 9->11, 5->7


def adaptiv_values(bias: int, form: AdaptivFloat) -> list[Fraction]:
    """Return the values without sign, in the order of their words, after Tambe et al."""
    e, m = form.exponent_bits, form.mantissa_bits
    all_values = [
        Fraction(2) ** (field + bias) * (1 + Fraction(mantissa, 2**m))
        for field in range(2**e)
        for mantissa in range(2**m)
    ]
    return [Fraction(0), *all_values[1:]]


@pytest.mark.parametrize(("exponent", "mantissa"), [(3, 4), (2, 2), (4, 3), (1, 5)])
@pytest.mark.parametrize("bias", [-9, -3, 0, 5])
def test_every_word_of_adaptivfloat(exponent: int, mantissa: int, bias: int) -> None:
    form = AdaptivFloat(exponent_bits=exponent, mantissa_bits=mantissa)
    words = every_word(form)
    shared = torch.full_like(words, bias % 256)
    table = adaptiv_values(bias, form)
    found = form.decode(words, shared)
    assert [Fraction(value) for value in found.tolist()] == [*table, *(-value for value in table)]
    assert torch.equal(form.encode(found, shared), words)


@PROPERTY
@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=10), st.integers(1, 4), st.integers(1, 6))
def test_adaptivfloat_takes_the_nearest_value(values: list[float], exponent: int, mantissa: int) -> None:
    form = AdaptivFloat(exponent_bits=exponent, mantissa_bits=mantissa, bias_bits=10)
    flat = torch.tensor([values], dtype=torch.float64)
    word = form.fit(flat)
    bias = int(word) - 1024 if int(word) >= 512 else int(word)
    largest = max(abs(value) for value in values)
    if largest > 2.0**-300:
        assert bias == math.frexp(largest)[1] - 1 - (2**exponent - 1)
    table = adaptiv_values(bias, form)
    shared = word.expand(1, len(values))
    for value, found in zip(values, form.decode(form.encode(flat, shared), shared)[0].tolist(), strict=True):
        assert abs(Fraction(found)) in nearest(abs(Fraction(value)), table)
        assert found == 0 or (found < 0) == (value < 0)


@PROPERTY
@given(st.floats(allow_nan=False, width=32), st.integers(2, 8), st.integers(1, 20))
def test_any_widths_take_the_nearest_value(value: float, exponent: int, mantissa: int) -> None:
    form = FloatingPoint(exponent_bits=exponent, mantissa_bits=mantissa)
    word = form.encode(torch.tensor([value]).double())
    found = form.decode(word).item()
    magnitude = int(word) & ((1 << (form.word_bits - 1)) - 1)
    infinity = ((1 << exponent) - 1) << mantissa
    if magnitude == infinity:
        largest = form.decode(torch.tensor([infinity - 1])).item()
        ulp = largest - form.decode(torch.tensor([infinity - 2])).item()
        assert abs(value) >= largest + ulp / 2
        return
    around = [form.decode(torch.tensor([w])).item() for w in (max(magnitude - 1, 0), magnitude, magnitude + 1)]
    near = nearest(abs(Fraction(value)), [Fraction(x) for x in around if math.isfinite(x)])
    assert abs(Fraction(found)) in near
    if len(near) == 2:
        assert magnitude % 2 == 0
    assert math.copysign(1, found) == math.copysign(1, value)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FloatingPoint(exponent_bits=1, mantissa_bits=3), "exponent_bits must be a whole number from 2 to 11"),
        (lambda: FloatingPoint(exponent_bits=5, mantissa_bits=0), "mantissa_bits must be a whole number from 1 to 52"),
        (lambda: FloatingPoint(exponent_bits=5, mantissa_bits=2, specials="odd"), "specials must be"),  # type: ignore[arg-type]
        (lambda: FloatingPoint(exponent_bits=11, mantissa_bits=2, specials="fn"), "beyond float64"),
        (lambda: FixedPoint(integer_bits=40, fraction_bits=20), r"integer_bits \+ fraction_bits"),
        (lambda: FixedPoint(integer_bits=4, fraction_bits=2, sign="ones"), "sign must be"),  # type: ignore[arg-type]
        (lambda: AffineInteger(scale=0.0), "positive float32"),
        (lambda: AffineInteger(scale=(1.0, math.nan)), "positive float32"),
        (lambda: AffineInteger(scale=()), "positive float32"),
        (lambda: AffineInteger(zero_point=200), "zero_point must be a whole number from -128 to 127"),
        (lambda: AffineInteger(width=64), "width"),
        (lambda: AffineInteger(channel="middle"), "channel must be"),  # type: ignore[arg-type]
        (lambda: AffineInteger(scale=(1.0, 2.0)).fit(torch.ones(1, 5)), "2 scales do not divide 5 values"),
        (lambda: BlockFloat(block_size=0), "block_size"),
        (lambda: BlockFloat().encode(torch.ones(1)), "pass shared="),
        (lambda: AdaptivFloat(exponent_bits=9), "exponent_bits"),
        (lambda: IEEE_HALF.groups(3), "shares nothing"),
        (lambda: IEEE_HALF.fit(torch.ones(1, 3)), "shares nothing"),
        (lambda: IEEE_HALF.group_of(torch.ones(1), 3), "shares nothing"),
    ],
)
def test_formats_that_cannot_be(build: object, message: str) -> None:
    with pytest.raises((ArgumentError, FaultError), match=message):
        build()  # type: ignore[operator]
