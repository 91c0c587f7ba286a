"""Train a text-guided classifier with Lightning, on scikit-learn's digits.

pip install -e ".[recipes,demo]"
python examples/train_lightning.py --output lightning-output    # half a minute; run it again to resume
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
import torchvision
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import resilient_heads as rh
from resilient_heads.demo import digits


class Classifier(lightning.LightningModule):  # type: ignore[misc]
    """The constructor wraps the model, so that ``load_from_checkpoint`` builds the wrapped model again."""

    def __init__(self, name: str = "shufflenet_v2_x0_5", rate: float = 2e-3, weight_decay: float = 0.01) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = rh.wrap_model(torchvision.models.get_model(name, num_classes=10), embeddings="digits")

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.model(images)
        return logits

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        """Return the loss."""
        return nn.functional.cross_entropy(self(batch[0]), batch[1], label_smoothing=0.1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Exclude biases, normalisation and the head's scale from weight decay; they have one dimension."""
        decaying = [parameter for parameter in self.parameters() if parameter.ndim > 1]
        spared = [parameter for parameter in self.parameters() if parameter.ndim <= 1]
        groups: list[dict[str, Any]] = [
            {"params": decaying, "weight_decay": self.hparams.weight_decay},
            {"params": spared, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.hparams.rate)


def train(module: Classifier, data: TensorDataset, *, epochs: int, output: Path) -> Path:
    """Train until ``epochs`` epochs are done, resume if there is a checkpoint, and return the last one's path."""
    saving = ModelCheckpoint(dirpath=output, save_last=True)
    runner = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", callbacks=[saving], logger=False, enable_model_summary=False
    )
    loader = DataLoader(data, 64, shuffle=True, drop_last=True)
    last = output / "last.ckpt"
    runner.fit(module, loader, ckpt_path=str(last) if last.exists() else None)
    return last


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, load the checkpoint and test it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--images", type=int, default=1347, help="how many of the training images to use")
    parser.add_argument("--output", type=Path, default=Path("lightning-output"))
    args = parser.parse_args(arguments)
    lightning.seed_everything(0)
    train_set, test_set = digits(seed=0)
    few = TensorDataset(*(tensor[: args.images] for tensor in train_set.tensors))
    last = train(Classifier(), few, epochs=args.epochs, output=args.output)
    trained = Classifier.load_from_checkpoint(last).eval()
    images, labels = test_set.tensors
    with torch.inference_mode():
        print(f"accuracy {float((trained(images).argmax(dim=1) == labels).float().mean()):.1%}")


if __name__ == "__main__":
    main()
