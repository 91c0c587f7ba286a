"""Checks of arguments: what they accept, what they refuse, and in which words."""

import numpy as np
import pytest
import torch

from resilient_heads.checks import (
    instance_of,
    one_of,
    real_number,
    seed_number,
    strings,
    true_or_false,
    whole_number,
)
from resilient_heads.errors import ArgumentError, FaultError


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), torch.tensor(3)])
def test_a_whole_number_of_any_library_becomes_an_int(value: object) -> None:
    number = whole_number("trials", value, least=3, most=3)
    assert (type(number), number) == (int, 3)


@pytest.mark.parametrize("value", [True, np.True_, 3.0, "3", None, [3]])
def test_what_is_no_whole_number_is_refused(value: object) -> None:
    with pytest.raises(ArgumentError, match=r"^trials must be a whole number, found .+\.$"):
        whole_number("trials", value)


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ({"least": 1}, "of at least 1"),
        ({"most": -1}, "of at most -1"),
        ({"least": 1, "most": 52}, "from 1 to 52"),
        ({"least": 1, "most": 2**64 - 1}, r"from 1 to 2\*\*64 - 1"),
    ],
)
def test_a_whole_number_out_of_bounds_is_refused_with_its_bounds(bounds: dict[str, int], words: str) -> None:
    with pytest.raises(FaultError, match=f"^bit must be a whole number {words}, found 0.$"):
        whole_number("bit", 0, **bounds, error=FaultError)


@pytest.mark.parametrize("seed", [-1, 2**64, 0.5])
def test_a_seed_is_a_word_of_64_bits(seed: object) -> None:
    assert seed_number(2**64 - 1) == 2**64 - 1
    with pytest.raises(ArgumentError, match=r"seed must be a whole number from 0 to 2\*\*64 - 1"):
        seed_number(seed)


@pytest.mark.parametrize("value", [0.25, np.float32(0.25)])
def test_a_real_number_becomes_a_float(value: object) -> None:
    number = real_number("level", value, above=0, below=1)
    assert (type(number), number) == (float, 0.25)
    assert real_number("population", float("inf"), least=1) == float("inf")


@pytest.mark.parametrize("value", [0, 1, -2, float("nan"), True, "0.5", None, 1j])
def test_a_real_number_out_of_bounds_is_refused_with_its_bounds(value: object) -> None:
    with pytest.raises(ArgumentError, match=r"^level must be a number above 0 and below 1, found "):
        real_number("level", value, above=0, below=1)


@pytest.mark.parametrize("value", ["Clamp", True, 1, ["clamp"], np.zeros(2)])
def test_a_choice_that_does_not_exist_is_refused_with_all_choices(value: object) -> None:
    assert one_of("detector", None, ("clamp", "zero", None)) is None
    with pytest.raises(ArgumentError, match=r'^detector must be "clamp", "zero" or None, found '):
        one_of("detector", value, ("clamp", "zero", None))


def test_one_is_not_true() -> None:
    assert true_or_false("relative", False) is False
    with pytest.raises(ArgumentError, match=r"^relative must be True or False, found 1\.$"):
        true_or_false("relative", 1)


def test_an_object_of_another_class_is_refused_with_an_example() -> None:
    assert instance_of("step", 1, int) == 1
    with pytest.raises(ArgumentError, match=r'^step must be an Exception, such as Exception\("x"\); found 3\.$'):
        instance_of("step", 3, Exception, example='Exception("x")')


@pytest.mark.parametrize("value", ["fc", b"fc", [], [1], None, {"fc"}])
def test_what_is_no_sequence_of_strings_is_refused(value: object) -> None:
    assert strings("layers", ["fc"], example='["fc"]') == ("fc",)
    assert strings("layers", (), example='["fc"]', may_be_empty=True) == ()
    with pytest.raises(ArgumentError, match=r'^layers must be a sequence of strings, such as \["fc"\]; found '):
        strings("layers", value, example='["fc"]')


def test_a_long_value_is_cut_in_the_message() -> None:
    with pytest.raises(ArgumentError) as caught:
        whole_number("trials", "x" * 1000)
    assert len(str(caught.value)) < 130
