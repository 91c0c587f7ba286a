"""Count the SDCs and DUEs of every flip in every tensor of a head, with and without protection, and the costs.

``python benchmarks/protection.py`` uses scikit-learn's digits, whose 64 pixels are the features. ``--shared-data
FOLDER`` uses pooled features of pretrained networks on real images instead, ResNet-20 on CIFAR-10 (10 classes) or,
with ``--classes 200``, SqueezeNet on Tiny-ImageNet, if the files of the tests are in that folder.
"""

import argparse
import importlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import resilient_heads as rh

Features = tuple[Tensor, Tensor]
PROTECTIONS = ("", "bounds", "checksum", "median")


def digits() -> tuple[Features, Features, Tensor]:
    """Return training and test features with labels, and text rows."""
    from sklearn import datasets

    pixels, labels = datasets.load_digits(return_X_y=True)
    x, y = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:1347], order[1347:]
    return (x[train], y[train]), (x[test], y[test]), rh.load_embeddings("digits", offline=True).vectors


def cifar10(folder: Path) -> tuple[Features, Features, Tensor]:
    """Return the pooled features of the pretrained ResNet-20 on CIFAR-10, and CLIP rows of the class names."""
    os.environ["RESILIENT_HEADS_DATA"] = str(folder)
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    shared = importlib.import_module("helpers.shared_data")
    model = shared.pretrained_resnet20()
    model.linear = nn.Identity()
    found = []
    with torch.no_grad():
        for count, split in ((4000, "train25k_jpeg"), (400, "test_jpeg")):
            images, labels = shared.cifar10(count, split=split)
            found.append((torch.cat([model(part) for part in images.split(200)]), labels))
    rows = np.load(folder / "clip_text" / "cifar10_stl10_vitb32_a_cname.npz")
    key = next(name for name in rows.files if "cifar" in name.lower() and rows[name].shape[0] == 10)
    return found[0], found[1], torch.tensor(rows[key]).float()


def tiny_imagenet(folder: Path) -> tuple[Features, Features, Tensor]:
    """Return pooled features of a pretrained SqueezeNet on Tiny-ImageNet, and CLIP rows of its 200 classes."""
    data = np.load(folder / "tiny_imagenet" / "squeezenet_gap512.npz")
    x = {part: torch.tensor(data[f"{part}_x"]).float() for part in ("train", "val")}
    y = {part: torch.tensor(data[f"{part}_y"]).long() for part in ("train", "val")}
    mean, std = x["train"].mean(0), x["train"].std(0) + 1e-6
    text = torch.load(folder / "clip_text" / "gpt3.pth", weights_only=True, map_location="cpu").float()
    rows = text[torch.tensor(data["imagenet_index"]).long()]
    return ((x["train"] - mean) / std, y["train"]), ((x["val"] - mean) / std, y["val"]), rows


def trained(head: nn.Module, train: Features, steps: int) -> nn.Module:
    """Train a head on all features at once."""
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3, weight_decay=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(train[0]), train[1]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return head.eval()


def duration(run: Callable[[], object], repeat: int) -> float:
    """Return the shortest time of a call, in seconds."""
    run()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shared-data", type=Path, default=None, help="folder with features of real images")
    parser.add_argument("--classes", type=int, choices=[10, 200], default=10)
    parser.add_argument(
        "--images", type=int, default=200, help="images to inject faults into, all classified correctly"
    )
    parser.add_argument("--dim", type=int, default=None, help="keep only so many directions of the text rows")
    parser.add_argument("--steps", type=int, default=150, help="of training")
    parser.add_argument("--heads", nargs="+", default=["linear", "text-guided", "fused"], help="which heads")
    parser.add_argument("--batch", type=int, default=32, help="images for the measured times")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--tensors", action="store_true", help="print a line for each tensor, too")
    options = parser.parse_args()
    if options.shared_data is None:
        if options.classes != 10:
            parser.error("--classes 200 needs --shared-data")
        train, test, rows = digits()
    else:
        train, test, rows = (cifar10 if options.classes == 10 else tiny_imagenet)(options.shared_data)
    if options.dim is not None:
        left, sizes, _ = torch.linalg.svd(rows, full_matrices=False)
        rows = left[:, : options.dim] * sizes[: options.dim]
    torch.manual_seed(0)
    text_guided = trained(rh.TextGuidedHead(train[0].shape[1], rows), train, options.steps)
    heads = {
        "linear": trained(nn.Linear(train[0].shape[1], len(rows)), train, options.steps),
        "text-guided": text_guided,
        "text-guided linear": trained(
            rh.TextGuidedHead(train[0].shape[1], rows, normalize=False), train, options.steps
        ),
        "fused": rh.fuse(text_guided),
    }
    from torchvision.models import resnet18

    network, images = resnet18().eval(), torch.randn(options.batch, 3, 224, 224)
    with torch.inference_mode():
        whole = duration(lambda: network(images), 3)
    sizes_of = f"F = {train[0].shape[1]}, E = {rows.shape[1]}"
    print(f"{options.classes} classes, {sizes_of}, {options.dtype}, {options.images} images")
    print("| head | faults | before the logits: SDC | DUE | in the logits: SDC | DUE | FLOPs | time | of ResNet-18 |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    lines: list[str] = []
    for name in options.heads:
        plain: dict[str, float] = {}
        for label in PROTECTIONS:
            model = nn.Sequential(heads[name]).eval().to(getattr(torch, options.dtype))
            if label:
                rh.protect_(model, bounds=label == "bounds", checksum=label == "checksum", median=label == "median")
            x = test[0].to(getattr(torch, options.dtype))
            batch = x[: options.batch]
            with torch.inference_mode():
                right = (model(x).argmax(1) == test[1]).nonzero().flatten()[: options.images]
                seconds = duration(lambda model=model, batch=batch: model(batch), 50)  # type: ignore[misc]
            flops = rh.heads.count_flops(model, batch[:1])
            plain = plain or {"time": seconds, "flops": flops}
            result = rh.run_exhaustive(model, (x[right], test[1][right]))
            last = result["0"] if "0" in [tensor.site.name for tensor in result.tensors] else result.tensors[-1]
            sdc, due = (result.count(kind) - last.count(kind) for kind in (rh.Outcome.SDC, rh.Outcome.DUE))
            print(
                f"| {name}{' + ' if label else ''}{label} | {result.faults:,} | {sdc:,} | {due:,} | "
                f"{last.count(rh.Outcome.SDC):,} | {last.count(rh.Outcome.DUE):,} | {flops / plain['flops']:.2f} | "
                f"{seconds / plain['time']:.1f} | {(seconds - plain['time']) / whole:+.2%} |",
                flush=True,
            )
            lines += [f"\n{name} {label}", str(result)]
            if label:
                rh.unprotect_(model)
    if options.tensors:
        print("\n".join(lines))


if __name__ == "__main__":
    main()
