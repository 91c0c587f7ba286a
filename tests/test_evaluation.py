"""Running a model without changing it."""

import threading
from collections.abc import Callable

import pytest
import torch
from torch import nn

import resilient_heads as rh
from helpers.interrupts import interrupt_lines
from resilient_heads.errors import ArgumentError, InjectionError
from resilient_heads.evaluation import device_of, evaluating, in_use, usable_device


def test_each_module_gets_its_mode_back_when_the_block_raises() -> None:
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(3))
    model[1].eval()
    with evaluating(model):
        assert not model[0].training
        assert not torch.is_grad_enabled()
    with pytest.raises(RuntimeError, match="running_mean"), evaluating(model):
        model(torch.zeros(2, 5))
    assert (model[0].training, model[1].training) == (True, False)
    assert torch.is_grad_enabled()


def test_a_model_without_parameters_is_on_the_cpu() -> None:
    assert device_of(nn.ReLU()) == torch.device("cpu")


def test_cuda_is_the_device_of_the_launchers_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "77")
    assert usable_device("cpu") == torch.device("cpu")
    with pytest.raises(ArgumentError, match="'cuda:77' cannot be used"):
        usable_device("cuda")


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", "cpu:cpu", 3.5])
def test_a_device_that_this_machine_lacks_is_refused(device: str) -> None:
    with pytest.raises(ArgumentError, match="cannot be used, try 'cpu' or 'cuda'"):
        usable_device(device)


def in_thread(work: Callable[[], object]) -> BaseException | None:
    """Run something in another thread, and return what it raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised[0] if raised else None


def injecting(model: nn.Module) -> None:
    with rh.inject(model, rh.WeightBitFlip(layer="fc", index=(0, 0), bit=3)):
        pass


def campaign(model: nn.Module) -> None:
    images = torch.linspace(-1, 1, 12 * 3 * 6 * 6).reshape(12, 3, 6, 6)
    labels = torch.zeros(12, dtype=torch.long)
    rh.run_campaign(model, (images, labels), protocol="raw", trials_per_site=8, batch_size=4, progress=False)


def sites(model: nn.Module) -> None:
    rh.find_sites(model, torch.zeros(2, 3, 6, 6))


def rounding(model: nn.Module) -> None:
    with rh.emulate(model, rh.formats.FixedPoint(integer_bits=4, fraction_bits=4)):
        model(torch.zeros(2, 3, 6, 6))


USES = {"inject": injecting, "campaign": campaign, "find_sites": sites, "emulate": rounding}


@pytest.mark.parametrize("second", USES)
@pytest.mark.parametrize("first", ["inject", "measurement"])
def test_a_model_is_used_by_one_thread_at_a_time(small_net: nn.Module, first: str, second: str) -> None:
    block = rh.inject(small_net, rh.Fault(layer="conv1")) if first == "inject" else evaluating(small_net)
    with block:
        small_net(torch.zeros(2, 3, 6, 6))
        modes = [module.training for module in small_net.modules()]
        error = in_thread(lambda: USES[second](small_net))
        assert isinstance(error, InjectionError)
        purpose = "an inject block" if first == "inject" else "a measurement, such as a campaign,"
        assert f"The model is in use by {purpose} in the thread 'MainThread'" in str(error)
        assert modes == [module.training for module in small_net.modules()]
    assert small_net.training
    assert in_thread(lambda: injecting(small_net)) is None


def test_parts_of_a_model_and_copies_in_threads(small_net: nn.Module) -> None:
    with in_use(nn.Sequential(small_net), "a test"):
        assert isinstance(in_thread(lambda: injecting(small_net)), InjectionError)
        assert in_thread(lambda: injecting(type(small_net)())) is None
        injecting(small_net)  # The same thread may nest blocks.
    assert in_thread(lambda: injecting(small_net)) is None


def test_two_threads_that_start_together_get_one_result_and_one_error(small_net: nn.Module) -> None:
    start, errors = threading.Barrier(2), list[BaseException | None]()

    def work() -> None:
        start.wait()
        try:
            campaign(small_net)
            errors.append(None)
        except InjectionError as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 2
    assert all(error is None or "The model is in use by" in str(error) for error in errors)
    assert None in errors
    assert small_net.training


def test_an_interrupt_at_any_line_restores_modes_and_gradients() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Linear(3, 3))
    model[1].eval()

    def run() -> None:
        with evaluating(model):
            model(torch.zeros(1, 3))

    def check() -> None:
        assert [module.training for module in model.modules()] == [True, True, False]
        assert torch.is_grad_enabled()
        assert in_thread(lambda: evaluating(model).__enter__()) is None

    assert interrupt_lines(run, check) > 40
