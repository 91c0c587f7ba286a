"""Models that are distributed, sharded, traced or exported already: an error names the right order."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import distributed, nn

import resilient_heads as rh
from resilient_heads.errors import ModelError

Make = Callable[..., nn.Sequential]
ACTIONS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "wrap": lambda model: rh.wrap_model(model, embeddings="digits"),
    "unwrap": rh.unwrap_model,
    "fuse": rh.fuse,
}


@pytest.fixture
def one_process() -> Iterator[None]:
    if not (distributed.is_available() and distributed.is_gloo_available()):
        pytest.skip("this PyTorch has no gloo")
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def model_for(action: str, make: Make, make_plain: Make) -> nn.Sequential:
    return make_plain() if action == "wrap" else make("cosine")


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("within", [False, True])
def test_a_model_in_ddp_is_refused(action: str, within: bool, make: Make, make_plain: Make) -> None:
    model: nn.Module = nn.parallel.DistributedDataParallel(model_for(action, make, make_plain))
    model = nn.ModuleDict({"net": model}) if within else model
    modules = dict(model.named_modules())
    with pytest.raises(ModelError, match=rf"DistributedDataParallel, .*{action} the inner model \(\.module\)"):
        ACTIONS[action](model)
    assert dict(model.named_modules()) == modules


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("action", ACTIONS)
def test_a_model_in_fsdp_is_refused(action: str, make: Make, make_plain: Make) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = model_for(action, make, make_plain)
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(ModelError, match=f"sharded by FSDP; {action} it first, then shard it"):
        ACTIONS[action](model)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("within", [False, True])
def test_a_torchscript_model_is_refused(action: str, within: bool, make: Make, make_plain: Make) -> None:
    model = torch.jit.trace(model_for(action, make, make_plain).eval(), torch.randn(2, 3, 8, 8))
    with pytest.raises(ModelError, match=f"TorchScript or contains some; {action} it first, then trace it"):
        ACTIONS[action](nn.Sequential(model, nn.Linear(10, 10)) if within else model)


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("flat", [False, True])
def test_an_exported_model_is_refused(action: str, flat: bool, make: Make, make_plain: Make) -> None:
    program = torch.export.export(model_for(action, make, make_plain).eval(), (torch.randn(2, 3, 8, 8),))
    model = program.module() if flat else torch.export.unflatten(program)
    with pytest.raises(ModelError, match=f"{action} the original model, then export it"):
        ACTIONS[action](model)


@pytest.mark.filterwarnings("ignore")
def test_a_transformers_model_without_labels_is_refused() -> None:
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    for kind in ("ViT", "DeiT"):
        config = getattr(transformers, f"{kind}Config")(image_size=32, patch_size=16, num_labels=0, **small)
        model = getattr(transformers, f"{kind}ForImageClassification")(config)
        with pytest.raises(ModelError, match="built with num_labels=0 and has no classifier; build it with the number"):
            rh.wrap_model(model, embeddings="digits")
