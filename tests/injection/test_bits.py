import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from resilient_heads.errors import FaultError
from resilient_heads.incremental.recording.words import words
from resilient_heads.injection.formats.bits import bit_masks, flip_bits

PROPERTY = settings(max_examples=40, deadline=None, derandomize=True, database=None)

BITS = {torch.float16: 16, torch.bfloat16: 16, torch.float32: 32, torch.float64: 64}
SIGNED = {16: np.int16, 32: np.int32, 64: np.int64}
UNSIGNED = {16: np.uint16, 32: np.uint32, 64: np.uint64}

# Zero, smallest and largest subnormal, smallest normal, one, largest finite, infinity, first and last signalling NaN,
# first quiet NaN, NaN of all ones.
SPECIAL = {
    torch.float16: [0, 1, 0x3FF, 0x400, 0x3C00, 0x7BFF, 0x7C00, 0x7C01, 0x7DFF, 0x7E00, 0x7FFF],
    torch.bfloat16: [0, 1, 0x7F, 0x80, 0x3F80, 0x7F7F, 0x7F80, 0x7F81, 0x7FBF, 0x7FC0, 0x7FFF],
    torch.float32: [
        0,
        1,
        0x7FFFFF,
        0x800000,
        0x3F800000,
        0x7F7FFFFF,
        0x7F800000,
        0x7F800001,
        0x7FBFFFFF,
        0x7FC00000,
        0x7FFFFFFF,
    ],
    torch.float64: [
        0,
        1,
        (1 << 52) - 1,
        1 << 52,
        0x3FF << 52,
        (0x7FF << 52) - 1,
        0x7FF << 52,
        (0x7FF << 52) + 1,
        (0x7FF << 52) + (1 << 51) - 1,
        (0x7FF << 52) + (1 << 51),
        (1 << 63) - 1,
    ],
}


def special_words(dtype: torch.dtype) -> list[int]:
    """Return the special words with either sign."""
    return [word | sign for word in SPECIAL[dtype] for sign in (0, 1 << (BITS[dtype] - 1))]


def from_words(raw: NDArray[np.generic], dtype: torch.dtype) -> Tensor:
    """Make a floating tensor of unsigned words, without any arithmetic."""
    return torch.from_numpy(raw.view(SIGNED[BITS[dtype]]).copy()).view(dtype)


def to_words(x: Tensor) -> NDArray[np.generic]:
    """Return the unsigned words of a floating tensor."""
    bits = BITS[x.dtype]
    word = {16: torch.int16, 32: torch.int32, 64: torch.int64}[bits]
    return x.view(word).numpy().view(UNSIGNED[bits])


def of_words(raw: list[int], dtype: torch.dtype) -> Tensor:
    return from_words(np.array(raw, dtype=UNSIGNED[BITS[dtype]]), dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_bit_of_every_half_precision_word(dtype: torch.dtype) -> None:
    every = np.arange(2**16, dtype=np.uint16)[:, None]
    flipped = flip_bits(from_words(every, dtype), torch.arange(16))
    expected = every ^ (np.uint16(1) << np.arange(16, dtype=np.uint16))
    assert flipped.shape == (2**16, 16)
    assert flipped.dtype == dtype
    np.testing.assert_array_equal(to_words(flipped), expected)
    # The same as values: numpy's own half precision, and float32 for bfloat16.
    with np.errstate(invalid="ignore"):
        if dtype == torch.float16:
            values = expected.view(np.float16).astype(np.float64)
        else:
            values = (expected.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    np.testing.assert_array_equal(flipped.double().numpy(), values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bit", range(16))
def test_one_position_for_every_half_precision_word(dtype: torch.dtype, bit: int) -> None:
    every = np.arange(2**16, dtype=np.uint16)
    np.testing.assert_array_equal(to_words(flip_bits(from_words(every, dtype), bit)), every ^ np.uint16(1 << bit))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_million_random_words(dtype: torch.dtype) -> None:
    width = BITS[dtype]
    unsigned = UNSIGNED[width]
    rng = np.random.default_rng(20240607)
    raw = rng.integers(0, np.iinfo(unsigned).max, size=1_000_000, dtype=unsigned, endpoint=True)
    # Random words rarely land on the borders of a format: every 16th gets an all-ones or all-zeros exponent.
    exponent = unsigned(((1 << {32: 8, 64: 11}[width]) - 1) << {32: 23, 64: 52}[width])
    raw[::16] |= exponent
    raw[8::16] &= ~exponent
    x = from_words(raw, dtype)
    quiet = unsigned(1 << ({32: 23, 64: 52}[width] - 1))
    assert ((raw & exponent == exponent) & (raw & quiet == 0)).sum() > 1000, "no signalling NaN among the words"
    assert (raw & exponent == 0).sum() > 1000, "no subnormal among the words"
    bits = rng.integers(0, width, size=raw.size)
    flipped = flip_bits(x, torch.from_numpy(bits))
    np.testing.assert_array_equal(to_words(flipped), raw ^ (unsigned(1) << bits.astype(unsigned)))
    np.testing.assert_array_equal(to_words(x), raw, err_msg="the input was changed")


@pytest.mark.parametrize("dtype", SPECIAL, ids=str)
def test_every_bit_of_the_special_words(dtype: torch.dtype) -> None:
    raw = special_words(dtype)
    flipped = to_words(flip_bits(of_words(raw, dtype)[:, None], torch.arange(BITS[dtype])))
    for row, word in zip(flipped, raw, strict=True):
        assert [int(found) for found in row] == [word ^ (1 << bit) for bit in range(BITS[dtype])]


def by_struct(value: float, bit: int, code: str) -> float:
    word = {"e": "H", "f": "I", "d": "Q"}[code]
    (raw,) = struct.unpack(f"<{word}", struct.pack(f"<{code}", value))
    (flipped,) = struct.unpack(f"<{code}", struct.pack(f"<{word}", raw ^ (1 << bit)))
    return float(flipped)


CODES = {torch.float16: "e", torch.float32: "f", torch.float64: "d"}

# By hand: setting the top exponent bit multiplies a normal value below 1 by 2**128 in float32 (2**1024 in float64,
# 2**16 in float16); in [1, 2) the exponent becomes all ones, which is infinite or NaN.
GOLDEN = [
    (torch.float32, 0.75, 30, 2.5521177519070385e38),
    (torch.float32, 0.75, 30, 0.75 * 2.0**128),
    (torch.float32, 1.0, 31, -1.0),
    (torch.float32, -0.0, 31, 0.0),
    (torch.float32, 1.0, 30, float("inf")),
    (torch.float32, 2.0, 30, 0.0),
    (torch.float32, 3.0, 30, 2.0**-127),
    (torch.float32, 1.0, 23, 0.5),
    (torch.float32, 0.5, 23, 1.0),
    (torch.float32, 1.0, 22, 1.5),
    (torch.float32, 1.0, 0, 1.0 + 2.0**-23),
    (torch.float32, 0.0, 0, 2.0**-149),
    (torch.float32, 2.0**-149, 0, 0.0),
    (torch.float32, 0.0, 30, 2.0),
    (torch.float32, float("inf"), 23, 2.0**127),
    (torch.float32, float("inf"), 30, 1.0),
    (torch.float32, float("-inf"), 31, float("inf")),
    (torch.float64, 1.0, 63, -1.0),
    (torch.float64, 0.75, 62, 0.75 * 2.0**1000 * 2.0**24),
    (torch.float64, 2.0, 62, 0.0),
    (torch.float64, 1.0, 52, 0.5),
    (torch.float64, 0.0, 0, 5e-324),
    (torch.float64, 1.0, 0, 1.0 + 2.0**-52),
    (torch.float16, 1.0, 15, -1.0),
    (torch.float16, 0.75, 14, 0.75 * 2.0**16),
    (torch.float16, 2.0, 14, 0.0),
    (torch.float16, 0.0, 0, 2.0**-24),
    (torch.float16, 1.0, 0, 1.0 + 2.0**-10),
    (torch.bfloat16, 0.75, 14, 0.75 * 2.0**128),
    (torch.bfloat16, 1.0, 15, -1.0),
    (torch.bfloat16, 2.0, 14, 0.0),
    (torch.bfloat16, 1.0, 7, 0.5),
    (torch.bfloat16, 0.0, 0, 2.0**-133),
    (torch.bfloat16, 1.0, 0, 1.0 + 2.0**-7),
]


@pytest.mark.parametrize(("dtype", "value", "bit", "expected"), GOLDEN)
def test_values_worked_by_hand(dtype: torch.dtype, value: float, bit: int, expected: float) -> None:
    flipped = flip_bits(torch.tensor([value], dtype=dtype), bit)
    assert flipped.item() == expected
    assert np.signbit(flipped.item()) == np.signbit(expected)
    if dtype in CODES:
        assert flipped.item() == by_struct(value, bit, CODES[dtype])


def test_one_with_the_top_exponent_bit_and_a_mantissa_is_nan() -> None:
    flipped = flip_bits(torch.tensor([1.5, -1.25]), 30)
    assert flipped.isnan().all()
    assert [hex(word) for word in to_words(flipped).tolist()] == ["0x7fc00000", "0xffa00000"]


@st.composite
def word_and_bit(draw: st.DrawFn) -> tuple[torch.dtype, list[int], int]:
    dtype = draw(st.sampled_from(list(BITS)))
    width = BITS[dtype]
    word = st.one_of(st.integers(0, 2**width - 1), st.sampled_from(special_words(dtype)))
    return dtype, draw(st.lists(word, min_size=1, max_size=8)), draw(st.integers(0, width - 1))


@PROPERTY
@given(word_and_bit())
def test_two_flips_cancel_and_one_flip_changes_one_bit(case: tuple[torch.dtype, list[int], int]) -> None:
    dtype, raw, bit = case
    x = of_words(raw, dtype)
    once = flip_bits(x, bit)
    assert [bin(int(a) ^ b).count("1") for a, b in zip(to_words(once), raw, strict=True)] == [1] * len(raw)
    assert [int(word) for word in to_words(flip_bits(once, bit))] == raw
    assert [int(word) for word in to_words(x)] == raw


LAYOUTS = ["contiguous", "transposed", "strided", "channels_last", "expanded", "reversed_by_index"]


def laid_out(layout: str, dtype: torch.dtype) -> Tensor:
    raw = np.random.default_rng(5).integers(0, 2 ** BITS[dtype], size=(3, 4, 5, 6), dtype=np.uint64)
    x = from_words(raw.astype(UNSIGNED[BITS[dtype]]), dtype)
    match layout:
        case "transposed":
            return x.transpose(1, 3)
        case "strided":
            return x[:, ::2, 1:, ::3]
        case "channels_last":
            return x.to(memory_format=torch.channels_last)
        case "expanded":
            return x[:, :, :1].expand(3, 4, 5, 6)
        case "reversed_by_index":
            return x[[2, 1, 0]]
        case _:
            return x


@pytest.mark.parametrize("dtype", BITS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_gives_what_a_contiguous_copy_gives(layout: str, dtype: torch.dtype) -> None:
    x = laid_out(layout, dtype)
    kept = to_words(x.contiguous()).copy()
    bits = torch.randint(0, BITS[dtype], x.shape, generator=torch.Generator().manual_seed(1))
    expected = kept ^ (np.ones_like(kept) << bits.numpy().astype(kept.dtype))
    np.testing.assert_array_equal(to_words(flip_bits(x, bits).contiguous()), expected)
    np.testing.assert_array_equal(to_words(flip_bits(x, 3).contiguous()), kept ^ kept.dtype.type(8))
    np.testing.assert_array_equal(to_words(x.contiguous()), kept)


def test_channels_last_stays_channels_last() -> None:
    x = laid_out("channels_last", torch.float32)
    assert flip_bits(x, 7).stride() == x.stride()
    assert flip_bits(x, torch.full(x.shape, 7)).stride() == x.stride()


@pytest.mark.parametrize("dtype", BITS, ids=str)
def test_words_share_memory_shape_and_strides(dtype: torch.dtype) -> None:
    x = laid_out("strided", dtype)
    view = words(x)
    assert (view.data_ptr(), view.shape, view.stride()) == (x.data_ptr(), x.shape, x.stride())
    assert not view.dtype.is_floating_point
    view[0, 0, 0, 0] = 0
    assert x[0, 0, 0, 0].item() == 0


def test_scalars_and_empty_tensors() -> None:
    scalar = flip_bits(torch.tensor(0.75), 30)
    assert scalar.shape == ()
    assert scalar.item() == 0.75 * 2.0**128
    assert flip_bits(torch.empty(0, 3), 5).shape == (0, 3)
    assert flip_bits(torch.empty(0, 3), torch.empty(0, 3, dtype=torch.long)).shape == (0, 3)


def test_positions_broadcast_against_the_values() -> None:
    x = torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.25, 0.75]])
    by_column = flip_bits(x, torch.tensor([31, 30, 0]))
    by_row = flip_bits(x, torch.tensor([[31], [22]]))
    for row in range(2):
        for column in range(3):
            value = x[row, column].item()
            assert by_column[row, column].item() == by_struct(value, (31, 30, 0)[column], "f")
            assert by_row[row, column].item() == by_struct(value, (31, 22)[row], "f")


@pytest.mark.parametrize("integers", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("dtype", BITS, ids=str)
def test_masks_hold_one_bit_whatever_integers_name_it(dtype: torch.dtype, integers: torch.dtype) -> None:
    width = BITS[dtype]
    masks = bit_masks(torch.arange(width, dtype=integers), dtype)
    assert masks.dtype == words(torch.empty(0, dtype=dtype)).dtype
    assert [int(mask) for mask in masks.numpy().view(UNSIGNED[width])] == [1 << bit for bit in range(width)]


@pytest.mark.parametrize("dtype", BITS, ids=str)
def test_a_bit_that_the_format_lacks(dtype: torch.dtype) -> None:
    x, width = torch.zeros(3, dtype=dtype), BITS[dtype]
    for bad in (-1, width, torch.tensor([0, width, 1]), torch.tensor([0, -1, 1])):
        with pytest.raises(FaultError, match="does not exist"):
            flip_bits(x, bad)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64, torch.bool], ids=str)
def test_integers_have_no_float_bits(dtype: torch.dtype) -> None:
    x = torch.zeros(3, dtype=dtype)
    for attempt in (lambda: flip_bits(x, 1), lambda: bit_masks(torch.tensor(1), dtype)):
        with pytest.raises(FaultError, match="Cannot flip bits"):
            attempt()


def test_a_tensor_that_requires_grad_is_left_alone() -> None:
    x = torch.tensor([0.75, 2.0], requires_grad=True)
    flipped = flip_bits(x, 30)
    assert flipped.tolist() == [0.75 * 2.0**128, 0.0]
    assert x.tolist() == [0.75, 2.0]
    assert not flipped.requires_grad
