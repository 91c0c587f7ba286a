"""Errors of a model's own code: every call of the library gives one of its own errors, with the model's inside."""

from collections.abc import Callable
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor, nn

import resilient_heads as rh
from helpers.small_net import IMAGES, LABELS, SmallNet, small_campaign
from resilient_heads.errors import ForwardError, InjectionError, ModelError
from resilient_heads.heads.cost import count_flops

CALLS: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "campaign": (small_campaign, "the golden run"),
    "exhaustive": (lambda model: rh.run_exhaustive(model, (IMAGES, LABELS), progress=False), "the golden run"),
    "find_sites": (lambda model: rh.find_sites(model, IMAGES), "the search for fault sites"),
    "count_flops": (lambda model: count_flops(model, IMAGES), "the count of operations"),
}


class OwnError(BaseException):
    """Not an Exception, as KeyboardInterrupt is none."""


def raising(error: BaseException) -> SmallNet:
    def fail(_logits: Tensor) -> NoReturn:
        raise error

    return SmallNet(end=fail)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "error",
    [AssertionError("no"), KeyError("k"), AttributeError("a"), ZeroDivisionError("z"), StopIteration(), OSError("o")],
    ids=lambda error: type(error).__name__,
)
def test_an_error_of_the_model_names_the_batch_and_the_step(call: str, error: Exception) -> None:
    run, step = CALLS[call]
    with pytest.raises(ForwardError) as caught:
        run(raising(error))
    message = str(caught.value)
    assert caught.value.__cause__ is error
    assert f", 3, 12, 12), torch.float32, cpu, in {step}: {type(error).__name__}" in message
    assert message.startswith("SmallNet cannot run on a batch of shape (")


def test_an_error_without_a_message_shows_its_code() -> None:
    def check(logits: Tensor) -> Tensor:
        if logits.shape[1] != 7:
            raise AssertionError
        return logits

    with pytest.raises(ForwardError, match=r"AssertionError: at `raise AssertionError`, line \d+ of test_forward_err"):
        small_campaign(SmallNet(end=check))


@pytest.mark.parametrize("call", CALLS)
def test_a_lack_of_memory_asks_for_a_smaller_batch(call: str) -> None:
    for error in (torch.OutOfMemoryError("CUDA out of memory"), MemoryError()):
        with pytest.raises(ModelError, match=r"memory does not suffice .* \(\d+, 3, 12, 12\).*smaller batch_size"):
            CALLS[call][0](raising(error))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), OwnError()], ids=lambda e: type(e).__name__)
def test_an_interrupt_passes_through(call: str, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        CALLS[call][0](raising(error))
    assert caught.value is error


def test_inject_leaves_the_models_own_error_to_the_caller() -> None:
    model = raising(KeyError("mine"))
    with pytest.raises(KeyError, match="mine"), rh.inject(model, rh.BitFlip(layer="fc", neuron=(0,), bit=3)):
        model(IMAGES)


def test_the_classifier_search_names_why_the_model_refuses_the_example() -> None:
    def refuse(_logits: Tensor) -> NoReturn:
        raise KeyError("pixel_mask")

    with pytest.raises(ModelError, match=r"\(16, 3, 12, 12\) on the meta device; .*Reason: KeyError: 'pixel_mask'"):
        rh.wrap_model(SmallNet(end=refuse), embeddings="cifar10", new_classes=True, example_input=IMAGES)


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (lambda logits: (logits, logits), r"\(8, classes\) for this batch; it gives a tuple of 2 values"),
        (lambda logits: {"out": logits}, "gives a dict with the keys 'out'"),
        (lambda logits: None, "gives a NoneType"),
        (lambda logits: logits[:, 0], r"gives a tensor of shape \(8,\)"),
        (lambda logits: logits[:, None], r"gives a tensor of shape \(8, 1, 5\)"),
        (lambda logits: logits[:1], r"gives a tensor of shape \(1, 5\)"),
        (lambda logits: torch.cat([logits, logits]), r"gives a tensor of shape \(16, 5\)"),
        (lambda logits: logits.argmax(dim=1, keepdim=True), "gives torch.int64; expected logits"),
    ],
)
def test_an_output_that_is_no_logits_is_described(end: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        small_campaign(SmallNet(end=end))


@pytest.mark.parametrize("engine", ["incremental", "full"])
def test_a_model_that_draws_random_numbers_is_refused(engine: str) -> None:
    model = SmallNet(end=lambda logits: nn.functional.dropout(logits, 0.5, training=True))
    with pytest.raises(InjectionError, match="gives different logits on the same images"):
        small_campaign(model, engine=engine)
