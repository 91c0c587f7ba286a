import math

import pytest
import torch

from resilient_heads.errors import FaultError
from resilient_heads.injection.formats.dtypes import format_of

# sign, exponent and mantissa widths, from IEEE 754-2019 table 3.5, the definition of bfloat16, and OCP OFP8 1.0.
FIELDS = {
    torch.float16: (1, 5, 10),
    torch.bfloat16: (1, 8, 7),
    torch.float32: (1, 8, 23),
    torch.float64: (1, 11, 52),
    torch.float8_e4m3fn: (1, 4, 3),
    torch.float8_e5m2: (1, 5, 2),
    torch.float8_e4m3fnuz: (1, 4, 3),
    torch.float8_e5m2fnuz: (1, 5, 2),
}
IEEE = [dtype for dtype in FIELDS if "fn" not in str(dtype)]


@pytest.mark.parametrize("dtype", FIELDS, ids=str)
def test_fields_follow_the_standard(dtype: torch.dtype) -> None:
    sign, exponent, mantissa = FIELDS[dtype]
    form = format_of(dtype)
    assert (form.word_bits, form.exponent_bits, form.mantissa_bits) == (sign + exponent + mantissa, exponent, mantissa)
    roles = [form.role(bit) for bit in range(form.word_bits)]
    assert roles == ["mantissa"] * mantissa + ["exponent"] * exponent + ["sign"]


@pytest.mark.parametrize("dtype", IEEE, ids=str)
def test_fields_agree_with_what_torch_says_of_the_dtype(dtype: torch.dtype) -> None:
    form, info = format_of(dtype), torch.finfo(dtype)
    assert form.dtype == dtype
    assert form.word_bits == info.bits == torch.iinfo(form.word).bits
    assert form.mantissa_bits == -math.log2(info.eps)
    assert math.frexp(info.max)[1] == 2 ** (form.exponent_bits - 1)


@pytest.mark.parametrize("dtype", FIELDS, ids=str)
def test_a_bit_outside_of_the_word_is_refused(dtype: torch.dtype) -> None:
    form = format_of(dtype)
    form.check(0)
    form.check(form.word_bits - 1)
    for bit in (-1, form.word_bits, 1000):
        with pytest.raises(
            FaultError, match=rf"Bit {bit} does not exist .*expected 0 .* to {form.word_bits - 1} \(sign\)"
        ):
            form.check(bit)
        with pytest.raises(FaultError):
            form.role(bit)


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.int32, torch.int64, torch.bool, torch.complex64, torch.float8_e8m0fnu], ids=str
)
def test_an_unsupported_dtype_lists_the_supported_ones(dtype: torch.dtype) -> None:
    with pytest.raises(FaultError, match=rf"Cannot flip bits of {dtype}") as caught:
        format_of(dtype)
    for supported in FIELDS:
        assert str(supported) in str(caught.value)
    assert isinstance(caught.value, ValueError)
