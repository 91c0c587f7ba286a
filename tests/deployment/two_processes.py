"""The script that test_distributed.py runs in two gloo processes; the first one writes its findings as JSON."""

import copy
import importlib.util
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy

import resilient_heads as rh
from resilient_heads.errors import ModelError

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_distributed.py"


def load_example() -> Any:
    spec = importlib.util.spec_from_file_location("train_distributed", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def whole(tensor: torch.Tensor) -> torch.Tensor:
    full = getattr(tensor, "full_tensor", None)
    return tensor if full is None else full()


def furthest(expected: list[torch.Tensor], found: list[torch.Tensor]) -> float:
    """Return the largest difference as a fraction of the largest value, over all tensors."""
    assert len(expected) == len(found)
    differences = [
        (own - whole(other).detach()).abs().max() / own.abs().max() for own, other in zip(expected, found, strict=True)
    ]
    return float(torch.stack(differences).max())


def refusal(call: Callable[[], object]) -> str:
    try:
        call()
    except ModelError as error:
        return str(error)
    return "nothing was refused"


def plain(model: nn.Sequential) -> nn.Sequential:
    return rh.unwrap_model(copy.deepcopy(model))


def look(script: Any, *, normalize: bool) -> dict[str, Any]:
    """Compare two processes with one."""
    torch.manual_seed(5)
    images, labels = torch.randn(8, 3, 32, 32), torch.randint(10, (8,))
    half = torch.arange(8).chunk(2)[distributed.get_rank()]
    seen: dict[str, Any] = {}
    single = script.build(normalize=normalize)
    cross_entropy(single(images), labels).backward()
    expected = [parameter.grad for parameter in single.parameters()]
    for name, shard in (("ddp", False), ("fsdp", True)):
        model = script.distribute(script.build(normalize=normalize), shard=shard)
        cross_entropy(model(images[half]), labels[half]).backward()
        seen[f"{name} gradients"] = furthest(expected, [parameter.grad for parameter in model.parameters()])
        seen[f"{name} fuse"] = refusal(lambda model=model: rh.fuse(model))
        seen[f"{name} unwrap"] = refusal(lambda model=model: rh.unwrap_model(model))
        outer = script.distribute(plain(single), shard=shard)
        seen[f"{name} wrap"] = refusal(lambda outer=outer: rh.wrap_model(outer, embeddings="digits"))
        seen[f"{name} state"] = sorted(script.full_state(model))
    seen["own state"] = sorted(single.state_dict())

    # A state dict from the first process alone reaches every shard, and comes back.
    with torch.no_grad():
        for parameter in single.parameters():
            parameter.add_(1)
    given = single.state_dict() if distributed.get_rank() == 0 else {}
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, given, options=options)
    back = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    seen["round trip"] = furthest(list(single.state_dict().values()), [back[name] for name in single.state_dict()])
    before = [parameter.to_local().clone() for parameter in model.parameters()]
    state = plain(single).state_dict()
    seen["plain checkpoint"] = refusal(
        lambda: set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True))
    )
    after = [parameter.to_local() for parameter in model.parameters()]
    seen["unchanged"] = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))

    # Sharded before it has values, as large models are: the head starts at its text in every shard.
    with torch.device("meta"):
        late = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 10))
    rh.wrap_model(late, embeddings="digits", normalize=normalize)
    for layer in late:
        fully_shard(layer)
    late = fully_shard(late).to_empty(device="cpu")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="DTensor random operators")
        for layer in late:
            layer.reset_parameters()
    fresh = rh.wrap_model(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 10)), embeddings="digits", normalize=normalize)
    names = [name for name in ("projection.weight", "logit_scale") if name in dict(fresh[1].named_parameters())]
    seen["late start"] = furthest(
        [fresh[1].get_parameter(name) for name in names], [late[1].get_parameter(name) for name in names]
    )
    return seen


if __name__ == "__main__":
    distributed.init_process_group("gloo")
    torch.set_grad_enabled(True)
    seen = {kind: look(load_example(), normalize=kind == "cosine") for kind in ("cosine", "linear")}
    if distributed.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(seen))
    distributed.barrier()
    distributed.destroy_process_group()
