"""Checkpoints as tools write them: envelopes, prefixes, averages, other things beside the weights."""

import argparse
import random
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

State = dict[str, Any]

PREFIXES = ("module", "_orig_mod", "model", "net", "ema_model", "student", "backbone", "_fsdp_wrapped_module")
ENVELOPES: dict[str, Callable[[State], Any]] = {
    "bare": lambda state: state,
    "training script": lambda state: {"model": state, "epoch": 3, "best_acc": 0.5},
    "torchvision": lambda state: {
        "model": state,
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "lr_scheduler": {"last_epoch": 3},
        "args": argparse.Namespace(lr=0.1, output=Path("runs")),
    },
    "timm": lambda state: {"epoch": 3, "arch": "resnet18", "state_dict": state, "args": argparse.Namespace(lr=0.1)},
    "lightning": lambda state: {
        "state_dict": OrderedDict(state),
        "hyper_parameters": {"folder": PurePosixPath("runs"), "options": argparse.Namespace(lr=0.1)},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5)}},
        "pytorch-lightning_version": "2.5.0",
    },
    "nested": lambda state: {"app": {"model": state}, "step": torch.tensor(3)},
}


class Residual(nn.Module):
    """A convolution with batch normalisation, a submodule that is called "module", and two tied layers."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.bn = nn.BatchNorm2d(6)
        self.module = nn.Linear(6, 6)
        self.tied = nn.Linear(6, 6)
        self.tied.weight = self.module.weight
        self.fc = nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x)).relu().mean(dim=(2, 3))
        return self.fc(self.tied(self.module(x)))


def prefixed(state: State, prefix: str) -> State:
    """Put a prefix before every name."""
    return {f"{prefix}{name}": value for name, value in state.items()}


def once(state: State) -> State:
    """Store the tied tensor once, as safetensors does."""
    return {name: value for name, value in state.items() if name != "tied.weight"}


def without_counters(state: State) -> State:
    """Leave out num_batches_tracked, as PyTorch before 1.0 did."""
    return {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}


def write(content: Any, path: Path, *, legacy: bool = False) -> None:
    """Write a checkpoint in the format that its suffix names."""
    if path.suffix == ".safetensors":
        save_file({name: value.clone() for name, value in content.items()}, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)


def drawn(seed: int, folder: Path) -> tuple[Path, State, bool]:
    """Write a checkpoint with hazards that a seed draws.

    Returns:
        The file; the weights that it holds; whether they are a whole checkpoint of a :class:`Residual`, without a
        second set of weights beside them.
    """
    draw = random.Random(seed)
    torch.manual_seed(seed)
    model = Residual()
    right: State = {name: torch.randn_like(value) if value.is_floating_point() else value + seed
                    for name, value in model.state_dict().items()}  # fmt: skip
    right["tied.weight"] = right["module.weight"]
    state, whole = dict(right), True
    if draw.random() < 0.3:
        state = once(state)
    if draw.random() < 0.3:
        state = without_counters(state)
        right["bn.num_batches_tracked"] = model.bn.num_batches_tracked
    if draw.random() < 0.2:
        state = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
        right = {name: value.half().float() if value.is_floating_point() else value for name, value in right.items()}
    for hazard, chance in (("missing", 0.1), ("unexpected", 0.1), ("shape", 0.1), ("integers", 0.05), ("untied", 0.1)):
        if draw.random() < chance and (hazard != "untied" or "tied.weight" in state):
            whole = False
            name = draw.choice(["conv.weight", "bn.bias", "fc.weight"])
            if hazard == "missing":
                state.pop(name, None)
            elif hazard == "unexpected":
                state["extra.weight"] = torch.ones(2)
            elif hazard == "shape":
                state[name] = torch.ones(5)
            elif hazard == "integers":
                state[name] = torch.ones(right[name].shape, dtype=torch.int64)
            else:
                state["tied.weight"] = state["tied.weight"] + 1
    if draw.random() < 0.15:
        state = {name.replace("conv.", "conv._orig_mod."): value for name, value in state.items()}
    prefix = "".join(f"{draw.choice(PREFIXES)}." for _ in range(draw.choice([0, 0, 1, 1, 2, 3])))
    state = prefixed(state, prefix)
    if prefix and draw.random() < 0.3:
        state |= {"n_averaged": torch.tensor(3), "criterion.weight": torch.ones(7)}
    suffix = draw.choice([".pt", ".ckpt", ".safetensors", ".bin"])
    path = folder / f"{seed}{suffix}"
    if suffix == ".safetensors":
        write(state, path)
    else:
        content = ENVELOPES[draw.choice(list(ENVELOPES))](state)
        if draw.random() < 0.2:
            content = {**content, "state_dict_ema": prefixed({n: v + 1 for n, v in right.items()}, "module.")}
            whole = False
        write(content, path)
    damage = draw.random()
    if damage < 0.1:
        path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])
        whole = False
    elif damage < 0.2 and suffix != ".safetensors":  # that format has no checksum
        content = bytearray(path.read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        whole = False
    return path, right, whole
