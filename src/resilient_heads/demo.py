"""The main job from end to end: train a plain and a text-guided classifier, strike both, compare.

It needs no account and no download: torchvision's ResNet-18 learns scikit-learn's handwritten digits at 32x32, once
with its own last layer and once with a text-guided head, from the same weights, in the same order, for the same epochs.
The functions are written to be read and copied.
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
from resilient_heads.campaign.result.results import CampaignResult
from resilient_heads.errors import ArgumentError
from resilient_heads.evaluation import usable_device
from resilient_heads.extras import require
from resilient_heads.files import write_atomic
from resilient_heads.heads.cost import count_flops, count_parameters
from resilient_heads.report.tables import notes

EPOCHS = 5
BATCH = 64
NAMES = ("baseline", "text-guided")


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What the demo may be told.

    Attributes:
        seed: Of weights, batches and trials.
        output: Folder to write into.
        injections: Trials at each site and protocol.
        protocols: Names of the protocols.
        device: Where to train and strike.
        epochs: Passes over the training images.
    """

    seed: int = 0
    output: Path = Path("demo-output")
    injections: int = 512
    protocols: tuple[str, ...] = ("goldeneye", "raw")
    device: str = "cpu"
    epochs: int = EPOCHS


def digits(seed: int) -> tuple[TensorDataset, TensorDataset]:
    """Return 1,347 training and 450 test images of handwritten digits, 3x32x32, and their labels."""
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
    """Return a ResNet-18 and its text-guided twin, which share every weight but those of the head."""
    models = require("torchvision.models", extra="demo", purpose="the demo")
    torch.manual_seed(seed)
    baseline = models.resnet18(num_classes=10)
    text_guided = rh.wrap_model(copy.deepcopy(baseline), embeddings="digits")
    return baseline, text_guided


def train(model: nn.Module, data: TensorDataset, *, seed: int, epochs: int, device: str, label: str) -> None:
    """Train with AdamW and a one-cycle schedule; equal seeds give equal batches."""
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(data, batch_size=BATCH, shuffle=True, generator=generator, drop_last=True)
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
    """Return optimizer groups: matrices and kernels decay; biases, normalisation and a head's scale do not."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def strike(
    model: nn.Module, protocol: str, train_set: TensorDataset, test_set: TensorDataset, options: DemoOptions
) -> CampaignResult:
    """Run one campaign; the range detector learns its ranges from the training images."""
    return rh.run_campaign(
        model,
        DataLoader(test_set, batch_size=BATCH),
        protocol=protocol,
        trials_per_site=options.injections,
        seed=options.seed,
        batch_size=128,
        calibration=DataLoader(train_set, batch_size=BATCH),
    )


def run_demo(options: DemoOptions) -> str:
    """Do everything and write results, table and plot into ``options.output``.

    Returns:
        The table and what its words mean, as they stand in ``table.md``.

    Raises:
        ArgumentError: The device cannot be used, or the folder cannot be made.
        MissingExtraError: The extra ``demo`` is not installed.
    """
    usable_device(options.device)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"{options.output} cannot be made a folder ({error}); pass another --output.") from error
    train_set, test_set = digits(options.seed)
    models = dict(zip(NAMES, build(options.seed), strict=True))
    for name, model in models.items():
        train(model, train_set, seed=options.seed, epochs=options.epochs, device=options.device, label=name)

    comparisons, results = [], {}
    for protocol in options.protocols:
        both = {name: strike(model, protocol, train_set, test_set, options) for name, model in models.items()}
        for name, result in both.items():
            result.save(options.output / f"{name}-{protocol}.parquet")
        comparisons.append(rh.compare(both["baseline"], both["text-guided"]))
        results[protocol] = both

    one_image = test_set.tensors[0][:1].to(options.device)
    table = rh.report.comparison_table(
        comparisons,
        names=NAMES,
        parameters=_pair(models, count_parameters),
        flops=_pair(models, lambda model: count_flops(model, one_image)),
    )
    text = _page(options, table, results)
    write_atomic(options.output / "table.md", text.encode())
    write_atomic(options.output / "layers.png", _picture(results))
    return f"{table}\n{notes()}"


def _pair(models: dict[str, nn.Module], measure: Callable[[nn.Module], int]) -> tuple[int, int]:
    """Measure both models."""
    first, second = (measure(models[name]) for name in NAMES)
    return first, second


def _page(options: DemoOptions, table: str, results: dict[str, dict[str, CampaignResult]]) -> str:
    """Return the table with its protocol, what the words mean, and every layer."""
    any_result = next(iter(results[options.protocols[0]].values()))
    parts = [
        "# ResNet-18 on digits: its own last layer against a text-guided head\n",
        f"{options.epochs} epochs, seed {options.seed}, {options.injections:,} injections at each site and protocol, "
        f"{len(any_result.golden.labels)} test images, 99 % intervals, {any_result.config.environment}.\n",
        table,
        notes(),
    ]
    for protocol, both in results.items():
        for name, result in both.items():
            parts += [f"## {protocol}: {name}\n", rh.report.layer_table(result)]
    return "\n".join(parts)


def _picture(results: dict[str, dict[str, CampaignResult]]) -> bytes:
    """Return a PNG: a column for each protocol, all layers."""
    figure_module = require("matplotlib.figure", extra="demo", purpose="the demo's plot")
    figure = figure_module.Figure(figsize=(7.5 * len(results), 8), layout="constrained")
    grid = figure.subplots(2, len(results), squeeze=False, sharex="col")
    for column, both in enumerate(results.values()):
        clamped = both[NAMES[0]].config.protocol.range_detector is not None
        for row, metric in enumerate(("delta_loss", "sdc") if clamped else ("sdc", "due")):
            rh.report.plot_layers(both, metric=metric, ax=grid[row, column])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
