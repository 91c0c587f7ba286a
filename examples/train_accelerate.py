"""Train a text-guided classifier in your own loop with accelerate, on scikit-learn's digits.

pip install -e ".[recipes,demo]"
python examples/train_accelerate.py --output accelerate-output    # half a minute; run it again to resume
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import resilient_heads as rh
from resilient_heads.demo import digits


class Run:
    """A wrapped model, its optimizer and the number of epochs done; accelerate saves and restores them.

    Args:
        seed: Seed of the weights.
        name: A model of torchvision.
    """

    def __init__(self, seed: int = 0, name: str = "shufflenet_v2_x0_5") -> None:
        torch.manual_seed(seed)
        model = rh.wrap_model(torchvision.models.get_model(name, num_classes=10), embeddings="digits")
        groups: list[dict[str, Any]] = [
            {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.01},
            {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},  # the head's scale too
        ]
        self.epoch = 0
        self.accelerator: Any = Accelerator(cpu=True)
        self.model: nn.Module
        self.optimizer: torch.optim.Optimizer
        self.model, self.optimizer = self.accelerator.prepare(model, torch.optim.AdamW(groups, lr=2e-3))
        self.accelerator.register_for_checkpointing(self)

    def state_dict(self) -> dict[str, int]:
        """Return what accelerate saves besides the model and the optimizer."""
        return {"epoch": self.epoch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Undo :meth:`state_dict`."""
        self.epoch = state["epoch"]

    def train(self, data: TensorDataset, *, epochs: int, output: Path, batch: int = 64) -> None:
        """Train until ``epochs`` epochs are done; resume from the checkpoint in ``output`` if there is one."""
        if output.is_dir():
            self.accelerator.load_state(str(output))
        for epoch in range(self.epoch, epochs):
            order = torch.Generator().manual_seed(epoch)  # the batches of an epoch depend on its number only
            loader = self.accelerator.prepare(DataLoader(data, batch, shuffle=True, generator=order, drop_last=True))
            self.model.train()
            for images, labels in loader:
                loss = nn.functional.cross_entropy(self.model(images), labels, label_smoothing=0.1)
                self.optimizer.zero_grad()
                self.accelerator.backward(loss)
                self.optimizer.step()
            self.epoch = epoch + 1
            self.accelerator.save_state(str(output))


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, take the model out of accelerate, fuse and test it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--images", type=int, default=1347, help="how many of the training images to use")
    parser.add_argument("--output", type=Path, default=Path("accelerate-output"))
    args = parser.parse_args(arguments)
    train_set, test_set = digits(seed=0)
    run = Run()
    run.train(
        TensorDataset(*(tensor[: args.images] for tensor in train_set.tensors)), epochs=args.epochs, output=args.output
    )
    trained = rh.fuse(run.accelerator.unwrap_model(run.model)).eval()
    images, labels = test_set.tensors
    with torch.inference_mode():
        print(f"accuracy {float((trained(images).argmax(dim=1) == labels).float().mean()):.1%}")


if __name__ == "__main__":
    main()
