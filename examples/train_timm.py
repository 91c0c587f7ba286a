"""timm's recipe with a text-guided head, on scikit-learn's digits.

timm's own optimizer factory (weight decay by kind of parameter, learning rate by depth), scheduler, average of weights
(``ModelEmaV3``), checkpoints and resume, as in its ``train.py``. One line knows of the head: the one that wraps.

    pip install -e ".[timm,demo]"
    python examples/train_timm.py --output timm-output    # half a minute; stopped, the same line goes on
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import load_checkpoint, resume_checkpoint
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import resilient_heads as rh
from resilient_heads.demo import digits


@dataclass
class Run:
    """What timm's ``train.py`` keeps in local variables."""

    model: nn.Module
    average: Any
    optimizer: torch.optim.Optimizer
    schedule: Any
    epoch: int = 0


def build(name: str, *, epochs: int, seed: int = 0) -> Run:
    """Build and wrap the model first, then everything that holds its parameters."""
    torch.manual_seed(seed)
    size = {"img_size": 32} if "vit" in name else {}
    model = rh.wrap_model(timm.create_model(name, num_classes=10, **size), embeddings="digits")
    optimizer = create_optimizer_v2(model, opt="adamw", lr=2e-3, weight_decay=0.05, layer_decay=0.75)
    schedule, _ = create_scheduler_v2(optimizer, sched="cosine", num_epochs=epochs, warmup_epochs=1, warmup_lr=1e-4)
    return Run(model, ModelEmaV3(model, decay=0.9), optimizer, schedule)


def resume(run: Run, checkpoint: Path) -> None:
    """Go on where a checkpoint was written; one of another model is refused before a weight changes."""
    run.epoch = resume_checkpoint(run.model, str(checkpoint), run.optimizer)
    load_checkpoint(run.average.module, str(checkpoint), use_ema=True)
    run.schedule.step(run.epoch)


def train(run: Run, data: TensorDataset, *, epochs: int, batch: int = 64, output: Path | None = None) -> None:
    """Train until so many epochs are done; an epoch's batches depend on its number alone."""
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    saver: Any = None
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        saver = CheckpointSaver(run.model, run.optimizer, model_ema=run.average, checkpoint_dir=str(output))
    while run.epoch < epochs:
        order = torch.Generator().manual_seed(run.epoch)
        run.model.train()
        for images, labels in DataLoader(data, batch, shuffle=True, generator=order, drop_last=True):
            loss: Tensor = criterion(run.model(images), labels)
            run.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            run.optimizer.step()
            run.average.update(run.model)
        if saver is not None:
            saver.save_checkpoint(run.epoch)
        run.epoch += 1
        run.schedule.step(run.epoch)


def accuracy(model: nn.Module, data: TensorDataset) -> float:
    """Return the share of correct decisions."""
    images, labels = data.tensors
    with torch.inference_mode():
        return float((model.eval()(images).argmax(dim=1) == labels).float().mean())


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and go on where a checkpoint is found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="test_vit", help="a classifier of timm that takes 32x32")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--images", type=int, default=1347, help="how many of the training images to use")
    parser.add_argument("--output", type=Path, help="folder for checkpoints, and to go on from where it holds one")
    args = parser.parse_args(arguments)
    train_set, test_set = digits(seed=0)
    run = build(args.model, epochs=args.epochs)
    if args.output and (args.output / "last.pth.tar").exists():
        resume(run, args.output / "last.pth.tar")
        print(f"going on after epoch {run.epoch}")
    few = TensorDataset(*(tensor[: args.images] for tensor in train_set.tensors))
    train(run, few, epochs=args.epochs, output=args.output)
    print(f"accuracy {accuracy(run.model, test_set):.1%}, of the average {accuracy(run.average, test_set):.1%}")


if __name__ == "__main__":
    main()
