"""Models inside DataParallel, DDP, FSDP and tensor parallelism: measured rightly, or refused with the way out."""

import gc
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, multiprocessing, nn

import resilient_heads as rh
from helpers.heads import random_embeddings
from helpers.small_net import IMAGES, LABELS, SmallNet, small_campaign
from resilient_heads.errors import FaultError, ModelError

needs_gloo = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="this PyTorch has no gloo"
)


def ddp(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


def fsdp(model: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    fully_shard(model.conv2)
    return fully_shard(model)


def old_fsdp(model: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(model, device_id=torch.device("cpu"))


def tensor_parallel(model: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    return parallelize_module(model, mesh, {"fc": ColwiseParallel(output_layouts=None)})


def inner_ddp(model: nn.Module) -> nn.Module:
    model.conv2 = ddp(model.conv2)
    return model


REFUSED: dict[str, tuple[Callable[[nn.Module], nn.Module], str]] = {
    "DDP": (ddp, r"wrapped in DistributedDataParallel, .* other processes; pass model\.module\."),
    "DDP of a part": (inner_ddp, r"'conv2' is wrapped in Distributed.*; put its \.module in its place\."),
    "FSDP2": (fsdp, r"sharded by FSDP.* get_model_state_dict with full_state_dict=True"),
    "FSDP1": (old_fsdp, r"sharded by FSDP.* get_model_state_dict with full_state_dict=True"),
    "tensor parallel": (tensor_parallel, r"'fc\.weight' is a DTensor.*Load full_tensor\(\) of each weight"),
}


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch about processes without GPUs
        distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
        yield
        gc.collect()
        distributed.destroy_process_group()


@needs_gloo
@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.usefixtures("one_process")
def test_campaigns_name_the_wrapper_and_the_way_out(kind: str) -> None:
    wrap, words = REFUSED[kind]
    model = wrap(SmallNet())
    for measure in (small_campaign, lambda model: rh.run_exhaustive(model, (IMAGES, LABELS), layers=["fc"])):
        with pytest.raises(ModelError, match=words):
            measure(model)


@needs_gloo
@pytest.mark.usefixtures("one_process")
def test_the_inner_model_of_ddp_is_the_model() -> None:
    plain, inner = SmallNet(), ddp(SmallNet()).module
    first, second = (small_campaign(model).trials.columns for model in (plain, inner))
    for name, column in first.items():
        assert column.tobytes() == second[name].tobytes(), name


@needs_gloo
@pytest.mark.parametrize("kind", ["DDP", "FSDP2", "FSDP1"])
@pytest.mark.usefixtures("one_process")
def test_a_fault_in_an_output_acts_inside_a_wrapper(kind: str) -> None:
    model, plain = REFUSED[kind][0](SmallNet()), SmallNet()
    layer = next(name for name, module in model.named_modules() if name.endswith("conv1"))
    golden = model(IMAGES)
    with rh.inject(model, rh.BitFlip(layer=layer, neuron=(0, 3, 3), bit=31)):
        faulty = model(IMAGES)
    with rh.inject(plain, rh.BitFlip(layer="conv1", neuron=(0, 3, 3), bit=31)):
        expected = plain(IMAGES)
    assert torch.equal(faulty, expected)
    assert not torch.equal(faulty, golden)
    assert torch.equal(model(IMAGES), golden)


@needs_gloo
@pytest.mark.usefixtures("one_process")
def test_a_fault_in_a_weight_acts_inside_ddp_and_is_refused_where_it_could_be_lost() -> None:
    model, fault = ddp(SmallNet()), rh.WeightBitFlip(layer="module.fc", index=(0, 0), bit=30)
    golden = model(IMAGES)
    with rh.inject(model, fault):
        assert not torch.equal(model(IMAGES), golden)
    assert torch.equal(model(IMAGES), golden)
    mean = rh.WeightBitFlip(layer="module.bn", parameter="running_mean", index=(0,), bit=30)
    with pytest.raises(FaultError, match=r"copies the buffer 'module.bn.running_mean'.* Inject into model\.module"):
        rh.inject(model, mean).__enter__()
    for shard, layer in ((fsdp, "conv2"), (old_fsdp, "_fsdp_wrapped_module.conv2")):
        with pytest.raises(FaultError, match="sharded by FSDP, which replaces its parameters"):
            rh.inject(shard(SmallNet()), rh.WeightBitFlip(layer=layer, index=(0, 0, 0, 0), bit=3)).__enter__()


@pytest.mark.parametrize("engine", ["full", "incremental"])
def test_data_parallel_on_one_device_is_the_model(engine: str) -> None:
    """Names of layers decide the draws, so the plain model has a part called module, too."""

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = SmallNet()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.module(x)

    expected = small_campaign(Named().eval(), engine="full").trials.columns
    found = small_campaign(nn.DataParallel(SmallNet()).eval(), engine=engine).trials.columns
    for name, column in expected.items():
        assert column.tobytes() == found[name].tobytes(), name


def test_data_parallel_on_several_devices_is_refused() -> None:
    model = nn.DataParallel(SmallNet())
    model.device_ids = [0, 1]
    with pytest.raises(ModelError, match=r"wrapped in DataParallel, .* several GPUs; pass model\.module\."):
        small_campaign(model)
    outer = nn.Sequential(model)
    with pytest.raises(ModelError, match=r"'0' is wrapped in DataParallel.*put its \.module in its place"):
        small_campaign(outer)


def test_wrap_and_fuse_reach_into_data_parallel() -> None:
    embeddings = random_embeddings(classes=5)
    inner, outer = SmallNet(), nn.DataParallel(SmallNet())
    for model in (inner, outer):
        torch.manual_seed(0)
        rh.wrap_model(model, embeddings=embeddings)
        rh.fuse(model)
    assert torch.equal(outer(IMAGES), inner(IMAGES))


def test_a_model_without_values_is_named() -> None:
    with pytest.raises(ModelError, match=r"'conv1\.weight' is on the meta device and has no values; load the weights"):
        small_campaign(SmallNet().to("meta"))


def _in_a_process(rank: int, folder: str) -> None:
    """Check in one of two processes that wrappers are refused, and run this process's shard of a campaign."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    for kind, (wrap, words) in REFUSED.items():
        with pytest.raises(ModelError, match=words):
            small_campaign(wrap(SmallNet()))
        assert kind
    model = ddp(SmallNet())
    golden = model(IMAGES)
    # Each process injects into its own copy; the other one computes without a fault.
    if rank == 0:
        with rh.inject(model, rh.WeightBitFlip(layer="module.fc", index=(0, 0), bit=30)):
            assert not torch.equal(model(IMAGES), golden)
    else:
        assert torch.equal(model(IMAGES), golden)
    assert torch.equal(model(IMAGES), golden)
    small_campaign(
        model.module, output=Path(folder) / "campaign", shard=rh.Shard(rank=rank, world_size=2), chunk_size=8
    )
    distributed.barrier()
    distributed.destroy_process_group()


@needs_gloo
@pytest.mark.slow
def test_two_processes_share_a_campaign_on_the_inner_model(tmp_path: Path) -> None:
    context: Any = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_in_a_process, args=(rank, str(tmp_path))) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
        if process.exitcode is None:
            process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    merged = rh.merge_campaign(tmp_path / "campaign").trials.columns
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = small_campaign(SmallNet()).trials.columns
    finally:
        torch.set_num_threads(threads)
    for name, column in alone.items():
        assert column.tobytes() == merged[name].tobytes(), name
