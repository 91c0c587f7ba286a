"""A complete comparison: train a classifier with and without a text-guided head, inject faults into both, compare.

The demo needs no account and no download. A ResNet-18 of torchvision learns the handwritten digits of scikit-learn at
32x32 pixels: once with its own last layer and once with a text-guided head, from the same weights, on the same batches,
for the same number of epochs. The functions are short, so that you can copy them.
"""

import copy
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

import resilient_heads as rh
from resilient_heads.errors import ArgumentError
from resilient_heads.evaluation import usable_device
from resilient_heads.extras import require
from resilient_heads.files import write_atomic

__all__ = ["DemoOptions", "build", "digits", "parameter_groups", "run_demo", "train"]

BATCH_SIZE = 64
NAMES = ("baseline", "text-guided")


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """The choices of the demo.

    Attributes:
        seed: Seed of weights, batches and trials.
        output: Folder to write into.
        trials_per_site: Number of trials at each site, for each protocol.
        protocols: Names of the protocols.
        device: Device to train and inject on.
        epochs: Passes over the training images.
    """

    seed: int = 0
    output: Path = Path("demo-output")
    trials_per_site: int = 512
    protocols: tuple[str, ...] = ("goldeneye", "raw")
    device: str = "cpu"
    epochs: int = 5


def digits(seed: int) -> tuple[TensorDataset, TensorDataset]:
    """Return 1,347 training images and 450 test images of digits, ``(N, 3, 32, 32)``, with their labels."""
    datasets = require("sklearn.datasets", extra="demo", purpose="the demo")
    selection = require("sklearn.model_selection", extra="demo", purpose="the demo")
    pixels, labels = datasets.load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    images = nn.functional.interpolate(images, size=(32, 32), mode="bilinear").expand(-1, 3, -1, -1)
    images = (images - 0.3) / 0.35
    train, test = selection.train_test_split(range(len(labels)), test_size=450, stratify=labels, random_state=seed)
    targets = torch.tensor(labels, dtype=torch.int64)
    return TensorDataset(images[train], targets[train]), TensorDataset(images[test], targets[test])


def build(seed: int) -> tuple[nn.Module, nn.Module]:
    """Return a ResNet-18 and a copy with a text-guided head; all other weights are equal."""
    models = require("torchvision.models", extra="demo", purpose="the demo")
    torch.manual_seed(seed)
    baseline = models.resnet18(num_classes=10)
    return baseline, rh.wrap_model(copy.deepcopy(baseline), embeddings="digits")


def train(model: nn.Module, data: TensorDataset, *, seed: int, epochs: int, device: str, label: str) -> None:
    """Train a model in place with AdamW and a one-cycle schedule; equal seeds give equal batches."""
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(data, batch_size=BATCH_SIZE, shuffle=True, generator=generator, drop_last=True)
    model.to(device).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=1e-2), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=epochs * len(loader))
    with tqdm(total=epochs * len(loader), unit="step", desc=f"training {label}", leave=False) as bar:
        for _ in range(epochs):
            for images, labels in loader:
                loss = nn.functional.cross_entropy(model(images.to(device)), labels.to(device))
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                bar.update()
    model.eval()


def parameter_groups(model: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Return optimizer groups: weight decay for matrices and kernels; none for biases, normalisation and scales."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def measure(
    model: nn.Module, protocol: str, train_set: TensorDataset, test_set: TensorDataset, options: DemoOptions
) -> rh.CampaignResult:
    """Run one campaign; the training images give the range detector its ranges."""
    return rh.run_campaign(
        model,
        DataLoader(test_set, batch_size=BATCH_SIZE),
        protocol=protocol,
        trials_per_site=options.trials_per_site,
        seed=options.seed,
        batch_size=128,
        calibration=DataLoader(train_set, batch_size=BATCH_SIZE),
    )


def run_demo(options: DemoOptions) -> str:
    """Train, inject and compare; write results, table and plot into ``options.output``.

    Returns:
        The table and the meaning of its words, as in ``table.md``.

    Raises:
        ArgumentError: The device cannot be used, or the folder cannot be made.
        MissingExtraError: The extra ``demo`` is not installed.
    """
    usable_device(options.device)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"The folder {options.output} cannot be made ({error}); pass another --output.") from error
    train_set, test_set = digits(options.seed)
    models = dict(zip(NAMES, build(options.seed), strict=True))
    for name, model in models.items():
        train(model, train_set, seed=options.seed, epochs=options.epochs, device=options.device, label=name)

    comparisons, results = [], {}
    for protocol in options.protocols:
        pair = {name: measure(model, protocol, train_set, test_set, options) for name, model in models.items()}
        for name, result in pair.items():
            result.save(options.output / f"{name}-{protocol}")
        comparisons.append(rh.compare(*pair.values()))
        results[protocol] = pair

    one_image = test_set.tensors[0][:1].to(options.device)
    table = rh.report.comparison_table(
        comparisons,
        names=NAMES,
        parameters=_for_both(models, rh.heads.count_parameters),
        flops=_for_both(models, lambda model: rh.heads.count_flops(model, one_image)),
    )
    page = _page(options, table, results)
    write_atomic(options.output / "table.md", page.encode())
    write_atomic(options.output / "layers.png", _plot(results))
    return f"{table}\n{rh.report.table_notes()}"


def _for_both(models: dict[str, nn.Module], count: Callable[[nn.Module], int]) -> tuple[int, int]:
    """Return a count for both models."""
    first, second = (count(models[name]) for name in NAMES)
    return first, second


def _page(options: DemoOptions, table: str, results: dict[str, dict[str, rh.CampaignResult]]) -> str:
    """Return the table with the settings, the meaning of its words, and the figures of every site."""
    baseline = results[options.protocols[0]][NAMES[0]]
    parts = [
        "# ResNet-18 on digits: its own last layer against a text-guided head\n",
        f"{options.epochs} epochs, seed {options.seed}, {options.trials_per_site:,} trials at each site for each "
        f"protocol, {len(baseline.golden.labels)} test images, 99 % intervals, {baseline.record.environment}.\n",
        table,
        rh.report.table_notes(),
    ]
    for protocol, pair in results.items():
        for name, result in pair.items():
            parts += [f"## {protocol}: {name}\n", rh.report.layer_table(result)]
    return "\n".join(parts)


def _plot(results: dict[str, dict[str, rh.CampaignResult]]) -> bytes:
    """Return a PNG with a column for each protocol and all sites in each plot."""
    figures = require("matplotlib.figure", extra="demo", purpose="the demo's plot")
    figure = figures.Figure(figsize=(7.5 * len(results), 8), layout="constrained")
    grid = figure.subplots(2, len(results), squeeze=False, sharex="col")
    for column, pair in enumerate(results.values()):
        clamps = pair[NAMES[0]].config.protocol.range_detector is not None
        for row, metric in enumerate(("delta_loss", "sdc") if clamps else ("sdc", "due")):
            rh.report.plot_layers(pair, metric=metric, ax=grid[row, column])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
