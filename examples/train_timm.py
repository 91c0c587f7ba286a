"""Train a text-guided classifier with timm's recipe, on scikit-learn's digits.

The script uses timm's optimizer factory (weight decay by kind of parameter, learning rate by depth), scheduler,
average of weights (``ModelEmaV3``), checkpoints and resume, as timm's ``train.py`` does. Only the line with
``wrap_model`` is added for the head.

    pip install -e ".[timm,demo]"
    python examples/train_timm.py --output timm-output    # half a minute; run it again to resume
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
    """The objects that timm's ``train.py`` keeps in local variables."""

    model: nn.Module
    average: Any
    optimizer: torch.optim.Optimizer
    schedule: Any
    epoch: int = 0


def build(name: str, *, epochs: int, seed: int = 0) -> Run:
    """Wrap the model first, then build the optimizer and the average that hold its parameters."""
    torch.manual_seed(seed)
    size = {"img_size": 32} if "vit" in name else {}
    model = rh.wrap_model(timm.create_model(name, num_classes=10, **size), embeddings="digits")
    optimizer = create_optimizer_v2(model, opt="adamw", lr=2e-3, weight_decay=0.05, layer_decay=0.75)
    schedule, _ = create_scheduler_v2(optimizer, sched="cosine", num_epochs=epochs, warmup_epochs=1, warmup_lr=1e-4)
    return Run(model, ModelEmaV3(model, decay=0.9), optimizer, schedule)


def resume(run: Run, checkpoint: Path) -> None:
    """Resume from a checkpoint; a checkpoint of another model is an error before a weight changes."""
    run.epoch = resume_checkpoint(run.model, str(checkpoint), run.optimizer)
    load_checkpoint(run.average.module, str(checkpoint), use_ema=True)
    run.schedule.step(run.epoch)


def train(run: Run, data: TensorDataset, *, epochs: int, batch: int = 64, output: Path | None = None) -> None:
    """Train until ``epochs`` epochs are done; the batches of an epoch depend on its number only."""
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
    """Return the fraction of correct decisions."""
    images, labels = data.tensors
    with torch.inference_mode():
        return float((model.eval()(images).argmax(dim=1) == labels).float().mean())


def main(arguments: Sequence[str] | None = None) -> None:
    """Train; resume if there is a checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="test_vit", help="a classifier of timm that takes 32x32")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--images", type=int, default=1347, help="how many of the training images to use")
    parser.add_argument("--output", type=Path, help="folder to write checkpoints to, and to resume from")
    args = parser.parse_args(arguments)
    train_set, test_set = digits(seed=0)
    run = build(args.model, epochs=args.epochs)
    if args.output and (args.output / "last.pth.tar").exists():
        resume(run, args.output / "last.pth.tar")
        print(f"resuming after epoch {run.epoch}")
    few = TensorDataset(*(tensor[: args.images] for tensor in train_set.tensors))
    train(run, few, epochs=args.epochs, output=args.output)
    print(f"accuracy {accuracy(run.model, test_set):.1%}, of the average {accuracy(run.average, test_set):.1%}")


if __name__ == "__main__":
    main()
