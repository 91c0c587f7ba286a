import dataclasses

import numpy as np
import pytest
import torch

from resilient_heads.errors import ArgumentError
from resilient_heads.injection.faults.fault import BitFlip, WeightBitFlip


def test_faults_are_frozen_values() -> None:
    flip = BitFlip(layer="fc", neuron=(3,), bit=30)
    assert flip == BitFlip(layer="fc", neuron=(3,), bit=30, batch_index=None)
    assert len({flip, BitFlip(layer="fc", neuron=(3,), bit=30), BitFlip(layer="fc", neuron=(3,), bit=29)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        flip.bit = 3  # type: ignore[misc]


def test_a_weight_fault_strikes_the_weight_unless_told_otherwise() -> None:
    assert WeightBitFlip(layer="fc", index=(0, 1), bit=2).parameter == "weight"
    assert WeightBitFlip(layer="fc", index=(0,), bit=2) != WeightBitFlip(
        layer="fc", index=(0,), bit=2, parameter="bias"
    )


def test_fields_are_given_by_name() -> None:
    with pytest.raises(TypeError):
        BitFlip("fc", (3,), 30)  # type: ignore[misc]
    with pytest.raises(TypeError):
        WeightBitFlip("fc", (3, 1), 30)  # type: ignore[misc]


def test_numbers_of_other_libraries_become_plain_ints() -> None:
    flip = BitFlip(layer="fc", neuron=[np.int64(3), torch.tensor(2)], bit=np.uint8(30), batch_index=np.int32(1))  # type: ignore[arg-type]
    assert flip == BitFlip(layer="fc", neuron=(3, 2), bit=30, batch_index=1)
    assert [type(value) for value in (*flip.neuron, flip.bit, flip.batch_index)] == [int] * 4
    assert BitFlip(layer="fc", neuron=torch.tensor([1, 2]), bit=0).neuron == (1, 2)  # type: ignore[arg-type]
    weight = WeightBitFlip(layer="fc", index=np.array([1, 2]), bit=np.int64(5))  # type: ignore[arg-type]
    assert weight == WeightBitFlip(layer="fc", index=(1, 2), bit=5)
    assert hash(weight) == hash(WeightBitFlip(layer="fc", index=(1, 2), bit=5))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"neuron": 3}, r"neuron must be a tuple of whole numbers, such as \(3,\), found 3"),
        ({"neuron": "31"}, "neuron must be a tuple of whole numbers"),
        ({"neuron": (1.0,)}, r"neuron must be a whole number, found 1\.0"),
        ({"neuron": (None,)}, "neuron must be a whole number"),
        ({"bit": 3.0}, r"bit must be a whole number, found 3\.0"),
        ({"bit": "3"}, 'bit must be a whole number, found "3"'),
        ({"batch_index": 0.5}, r"batch_index must be a whole number, found 0\.5"),
    ],
)
def test_a_number_that_is_not_whole(wrong: dict[str, object], message: str) -> None:
    fields = {"layer": "fc", "neuron": (3,), "bit": 30, **wrong}
    with pytest.raises(ArgumentError, match=message):
        BitFlip(**fields)  # type: ignore[arg-type]
    if "batch_index" not in wrong:
        weight = {"layer": "fc", "bit": fields["bit"], "index": fields["neuron"]}
        with pytest.raises(ArgumentError, match=message.replace("neuron", "index")):
            WeightBitFlip(**weight)  # type: ignore[arg-type]
