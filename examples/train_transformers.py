"""Train a transformers image classifier with a text-guided head and the Trainer, on scikit-learn's digits.

    pip install -e ".[hf,recipes,demo]"
    python examples/train_transformers.py --output trainer-output    # half a minute; run it again to resume

``TextGuidedConvNext.from_pretrained`` loads the trained model from a folder that the Trainer wrote. From a stock
model's folder it loads the backbone, with a head that starts at the text embeddings. The stock class loads the
backbone from a wrapped model's folder and starts a new classifier, as its loading report says.

transformers 5 renames tensors of some models when it saves them (ViT, DeiT, Swin, BEiT, DINOv2; not ConvNeXt or
ResNet). For these, the Trainer's resume leaves the renamed tensors random and only warns, with and without a head:
https://github.com/huggingface/transformers/issues/43701. ``from_pretrained`` loads them from the same folder.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset
from transformers import ConvNextConfig, ConvNextForImageClassification, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

import resilient_heads as rh
from resilient_heads.demo import digits

TINY = {"num_stages": 2, "hidden_sizes": [32, 64], "depths": [2, 2]}


class Named(Dataset[dict[str, Tensor]]):
    """Images and labels under the names that transformers' models expect."""

    def __init__(self, data: TensorDataset, count: int | None = None) -> None:
        self.images, self.labels = (tensor[:count] for tensor in data.tensors)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, at: int) -> dict[str, Tensor]:
        return {"pixel_values": self.images[at], "labels": self.labels[at]}


class HeadTrainer(Trainer):  # type: ignore[misc]
    """A Trainer that excludes the head's scale from weight decay, as the stock Trainer excludes biases."""

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return the names of the parameters that decay."""
        return [name for name in super().get_decay_parameter_names(model) if not name.endswith("logit_scale")]


class TextGuidedConvNext(ConvNextForImageClassification):  # type: ignore[misc]
    """A ConvNeXt whose constructor wraps it; its labels are the embeddings' class names."""

    def __init__(self, config: ConvNextConfig) -> None:
        super().__init__(config)
        rh.wrap_model(self, embeddings="digits")

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise a module that the checkpoint lacks; the last line starts a missing head at the text."""
        super()._init_weights(module)
        if isinstance(module, rh.TextGuidedHead):
            module.reset_parameters()


def build(seed: int = 0) -> TextGuidedConvNext:
    """Return a small ConvNeXt with a text-guided head."""
    torch.manual_seed(seed)
    return TextGuidedConvNext(ConvNextConfig(image_size=32, num_labels=10, **TINY))


def trainer(model: nn.Module, data: Dataset[dict[str, Tensor]], *, epochs: int, output: Path) -> HeadTrainer:
    """Return a Trainer that writes a checkpoint after each epoch."""
    arguments = TrainingArguments(
        output_dir=str(output),
        num_train_epochs=epochs,
        per_device_train_batch_size=64,
        learning_rate=2e-3,
        weight_decay=0.05,
        label_smoothing_factor=0.1,
        save_strategy="epoch",
        report_to="none",
        use_cpu=True,
        seed=0,
    )
    return HeadTrainer(model, arguments, train_dataset=data)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train; resume if there is a checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--images", type=int, default=1347, help="how many of the training images to use")
    parser.add_argument("--output", type=Path, default=Path("trainer-output"))
    args = parser.parse_args(arguments)
    train_set, test_set = digits(seed=0)
    running = trainer(build(), Named(train_set, args.images), epochs=args.epochs, output=args.output)
    last = get_last_checkpoint(str(args.output)) if args.output.is_dir() else None
    running.train(resume_from_checkpoint=last)
    running.save_model(str(args.output / "final"))
    trained = TextGuidedConvNext.from_pretrained(args.output / "final").eval()
    images, labels = test_set.tensors
    with torch.inference_mode():
        decisions = trained(pixel_values=images).logits.argmax(dim=1)
    print(f"accuracy {float((decisions == labels).float().mean()):.1%}")


if __name__ == "__main__":
    main()
