"""Train a text-guided classifier in two processes, with DDP or FSDP2, on scikit-learn's digits.

    torchrun --standalone --nproc-per-node 2 examples/train_distributed.py --output weights.safetensors
    torchrun --standalone --nproc-per-node 2 examples/train_distributed.py --output weights.safetensors --shard

Wrap first, then distribute. Both commands write an ordinary state dict of the wrapped model. One process loads it
without DDP or FSDP, and can fuse, export or unwrap the model there.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard

import resilient_heads as rh
from resilient_heads.demo import digits


def build(seed: int = 0, *, normalize: bool = True) -> nn.Sequential:
    """Return a small wrapped classifier, the same in every process."""
    torch.manual_seed(seed)
    body = [nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.GELU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.GELU()]
    net = nn.Sequential(*body, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10))
    return rh.wrap_model(net, embeddings="digits", normalize=normalize)


def distribute(model: nn.Sequential, *, shard: bool) -> nn.Module:
    """Return the part of this process: a replica, or a shard of each layer's weights."""
    if not shard:
        return nn.parallel.DistributedDataParallel(model)
    for layer in model:
        if next(layer.parameters(), None) is not None:
            fully_shard(layer)
    fully_shard(model)
    return model


def train(model: nn.Module, images: Tensor, labels: Tensor, *, steps: int, batch: int = 64) -> None:
    """Train; the processes split each batch among them."""
    rank, world = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    order = torch.Generator().manual_seed(0)
    for _ in range(steps):
        mine = torch.randperm(len(labels), generator=order)[:batch].chunk(world)[rank]
        loss = nn.functional.cross_entropy(model(images[mine]), labels[mine])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def full_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the full state dict of the wrapped model in the first process, and an empty one in the others."""
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    state = get_model_state_dict(inner, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train in the processes that torchrun starts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--shard", action="store_true", help="FSDP2 instead of DDP")
    parser.add_argument("--linear", action="store_true", help="a linear head instead of a cosine head")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(arguments)
    if "RANK" not in os.environ:
        parser.error("start it with torchrun, as its help shows")
    distributed.init_process_group("gloo")
    train_set, test_set = digits(seed=0)
    model = distribute(build(normalize=not args.linear), shard=args.shard)
    train(model, *train_set.tensors, steps=args.steps)
    state = full_state(model)
    if distributed.get_rank() == 0:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, args.output)
        single = build(normalize=not args.linear)
        single.load_state_dict(state)
        images, labels = test_set.tensors
        with torch.inference_mode():
            print(f"accuracy {float((single(images).argmax(dim=1) == labels).float().mean()):.1%}")
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
