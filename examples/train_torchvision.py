"""Train a text-guided classifier with torchvision's reference recipe, on scikit-learn's digits.

The script follows ``references/classification/train.py`` of pytorch/vision: SGD with Nesterov momentum, warm-up and
cosine schedule, label smoothing, weight decay by kind of parameter, an exponential moving average of the weights, and
a checkpoint after each epoch, from which it resumes. Two lines are added for the head: ``wrap_model`` and ``SPARED``.

    python examples/train_torchvision.py --checkpoint run.pth    # half a minute; run it again to resume
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

import resilient_heads as rh
from resilient_heads.demo import digits

SPARED = ("bias", "logit_scale")  # the reference calls them custom_keys_for_weight_decay


@dataclass
class Run:
    """The content of a checkpoint."""

    model: nn.Module
    average: AveragedModel
    optimizer: SGD
    schedule: SequentialLR
    epoch: int = 0

    def save(self, path: Path) -> None:
        """Write the reference's checkpoint."""
        state = {
            "model": self.model.state_dict(),
            "model_ema": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.schedule.state_dict(),
            "epoch": self.epoch,
        }
        torch.save(state, path)

    def resume(self, path: Path) -> None:
        """Go on where a checkpoint was written; one of another model is refused before a weight changes."""
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["model_ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["lr_scheduler"])
        self.epoch = state["epoch"]


def weight_decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Exclude normalisation, biases and the head's scale from weight decay, as ``set_weight_decay`` does."""
    spared: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for module in model.modules():
        normalises = isinstance(module, nn.modules.batchnorm._BatchNorm | nn.LayerNorm | nn.GroupNorm)
        for name, parameter in module.named_parameters(recurse=False):
            (spared if normalises or name in SPARED else others).append(parameter)
    return [{"params": others, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]


def build(name: str, *, epochs: int, seed: int = 0) -> Run:
    """Wrap the model first, then build the optimizer and the average that hold its parameters."""
    torch.manual_seed(seed)
    model = rh.wrap_model(torchvision.models.get_model(name, num_classes=10), embeddings="digits")
    averaging = get_ema_multi_avg_fn(0.9)  # type: ignore[no-untyped-call]
    average = AveragedModel(model, multi_avg_fn=averaging, use_buffers=True)
    optimizer = SGD(weight_decay_groups(model, 2e-5), lr=0.05, momentum=0.9, nesterov=True)
    stages = [LinearLR(optimizer, 0.1, total_iters=1), CosineAnnealingLR(optimizer, max(1, epochs - 1))]
    return Run(model, average, optimizer, SequentialLR(optimizer, stages, milestones=[1]))


def train(run: Run, data: TensorDataset, *, epochs: int, batch: int = 64, checkpoint: Path | None = None) -> None:
    """Train until ``epochs`` epochs are done; the batches of an epoch depend on its number only."""
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    while run.epoch < epochs:
        order = torch.Generator().manual_seed(run.epoch)
        run.model.train()
        for images, labels in DataLoader(data, batch, shuffle=True, generator=order, drop_last=True):
            loss: Tensor = criterion(run.model(images), labels)
            run.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            run.optimizer.step()
            run.average.update_parameters(run.model)
        run.schedule.step()
        run.epoch += 1
        if checkpoint is not None:
            run.save(checkpoint)


def accuracy(model: nn.Module, data: TensorDataset) -> float:
    """Return the fraction of correct decisions."""
    images, labels = data.tensors
    with torch.inference_mode():
        return float((model.eval()(images).argmax(dim=1) == labels).float().mean())


def main(arguments: Sequence[str] | None = None) -> None:
    """Train; resume if there is a checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="shufflenet_v2_x0_5", help="any classifier of torchvision that takes 32x32")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--images", type=int, default=1347, help="how many of the training images to use")
    parser.add_argument("--checkpoint", type=Path, help="file to write, and to resume from if it exists")
    args = parser.parse_args(arguments)
    train_set, test_set = digits(seed=0)
    run = build(args.model, epochs=args.epochs)
    if args.checkpoint and args.checkpoint.exists():
        run.resume(args.checkpoint)
        print(f"resuming after epoch {run.epoch}")
    few = TensorDataset(*(tensor[: args.images] for tensor in train_set.tensors))
    train(run, few, epochs=args.epochs, checkpoint=args.checkpoint)
    print(f"accuracy {accuracy(run.model, test_set):.1%}, of the average {accuracy(run.average, test_set):.1%}")


if __name__ == "__main__":
    main()
