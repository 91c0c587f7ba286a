"""Measure what a text-guided head costs, as ratios to the stock model in one run: time, parameters, FLOPs.

    pip install -e ".[vision]"
    python benchmarks/cost.py                                  # four models, unfused and fused: about ten minutes
    python benchmarks/cost.py --models resnet18 --repeats 5    # quicker

Random weights, 1,000 classes, random text of E dimensions, one thread. Each repetition times the stock model and its
variants in turn, in an order that rotates, and gives one ratio per variant, in CPU seconds of this process. The table
shows the median ratio and the quartiles. Its first line compares the stock model with a second stock model, which shows
the noise. The head alone is compared with its stock layer, and with a plain Linear of as many FLOPs.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
import torchvision
from torch import Tensor, nn

import resilient_heads as rh

MODELS = ("resnet18", "resnet50", "vit_b_16", "mobilenet_v3_large")
CLASSES = 1000
Change = Callable[[nn.Module, rh.ClassEmbeddings], nn.Module]


def _wrapped(model: nn.Module, text: rh.ClassEmbeddings, *, normalize: bool, fused: bool) -> nn.Module:
    """Return the model with one of the library's heads."""
    rh.wrap_model(model, embeddings=text, normalize=normalize)
    return rh.fuse(model) if fused else model


# Each variant by name: how to make it from a stock model. Add a line for a further variant.
VARIANTS: dict[str, Change] = {
    "stock, again": lambda model, text: model,
    "cosine": lambda model, text: _wrapped(model, text, normalize=True, fused=False),
    "cosine, fused": lambda model, text: _wrapped(model, text, normalize=True, fused=True),
    "linear": lambda model, text: _wrapped(model, text, normalize=False, fused=False),
    "linear, fused": lambda model, text: _wrapped(model, text, normalize=False, fused=True),
    "cosine + bounds": lambda model, text: rh.protect_(_wrapped(model, text, normalize=True, fused=False), bounds=True),
    "cosine + checksum": lambda model, text: rh.protect_(
        _wrapped(model, text, normalize=True, fused=False), checksum=True
    ),
    "cosine + median": lambda model, text: rh.protect_(_wrapped(model, text, normalize=True, fused=False), median=True),
}


def forward(model: nn.Module, images: Tensor) -> None:
    """Run one inference pass."""
    with torch.inference_mode():
        model(images)


def training_step(model: nn.Module, images: Tensor) -> None:
    """Run one forward and backward pass, and one step of SGD."""
    labels = torch.zeros(len(images), dtype=torch.int64)
    nn.functional.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=1e-6)
                parameter.grad = None


def seconds(work: Callable[[], None], times: int = 1) -> float:
    """Return CPU seconds per call, over several calls."""
    began = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - began) / times


def ratios(base: Callable[[], None], others: dict[str, Callable[[], None]], repeats: int) -> dict[str, str]:
    """Return the median ratio to the base and its quartiles, by name."""
    works = {"": base, **others}
    for work in works.values():
        work()  # allocations of the first pass
    times = max(1, round(0.05 / max(seconds(base), 1e-6)))  # at least some 50 ms a measurement
    found: dict[str, list[float]] = {name: [] for name in others}
    names = list(works)
    for repeat in range(repeats):
        turned = names[repeat % len(names) :] + names[: repeat % len(names)]
        taken = {name: seconds(works[name], times) for name in turned}
        for name in others:
            found[name].append(taken[name] / taken[""])
    return {name: _quartiles(values) for name, values in found.items()}


def _quartiles(values: list[float]) -> str:
    """Return the median and, in brackets, the quartiles."""
    if len(values) < 2:
        return f"{values[0]:.3f}"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def head_of(model: nn.Module, place: str) -> nn.Module:
    """Return the module in the place of the classifier."""
    return model.get_submodule(place)


def compare(name: str, text: rh.ClassEmbeddings, batch: int, repeats: int) -> None:
    """Print one model's table."""
    stock = torchvision.models.get_model(name).eval()
    place = rh.heads.find_classifiers(stock)[0].name
    layer = head_of(stock, place)
    assert isinstance(layer, nn.Linear)
    models = {variant: change(copy.deepcopy(stock), text).eval() for variant, change in VARIANTS.items()}
    image, features = torch.randn(1, 3, 224, 224), torch.randn(batch, layer.in_features)
    images = torch.randn(batch, 3, 224, 224)
    plain_head = rh.heads.count_flops(layer, features[:1])
    heads = {variant: head_of(model, place) for variant, model in models.items()}
    # A plain Linear of the same features and as many FLOPs: what a head's products alone would take.
    equals = {
        variant: nn.Linear(layer.in_features, round(rh.heads.count_flops(head, features[:1]) / 2 / layer.in_features))
        for variant, head in heads.items()
    }

    def over(work: Callable[[nn.Module, Tensor], None], module: nn.Module, data: Tensor) -> Callable[[], None]:
        return lambda: work(module, data)

    passes = ratios(over(forward, stock, images), {v: over(forward, m, images) for v, m in models.items()}, repeats)
    for model in (stock, *models.values()):
        model.train()
    steps = ratios(
        over(training_step, stock, images), {v: over(training_step, m, images) for v, m in models.items()}, repeats
    )
    for model in (stock, *models.values()):
        model.eval()  # where protection acts
    alone = ratios(over(forward, layer, features), {v: over(forward, h, features) for v, h in heads.items()}, repeats)
    equal = {
        v: ratios(over(forward, equals[v], features), {v: over(forward, h, features)}, repeats)[v]
        for v, h in heads.items()
    }
    whole = rh.heads.count_flops(stock, image)
    base = rh.heads.count_parameters(stock)
    print(
        f"\n{name}: F = {layer.in_features}, {base:,} parameters, {whole / 1e9:.2f} GFLOP, head {plain_head / 1e6:.2f}"
    )
    print("\n| | parameters | FLOPs | forward | training step | head ÷ stock layer | head ÷ Linear of its FLOPs |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for variant, model in models.items():
        size = f"{rh.heads.count_parameters(model) / base:.4f} ({rh.heads.count_parameters(model) - base:+,})"
        flops = f"{rh.heads.count_flops(model, image) / whole:.5f}"
        cells = (size, flops, passes[variant], steps[variant], alone[variant], equal[variant])
        print(f"| {variant} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print one table per model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, help="classifiers of torchvision that end in a Linear")
    parser.add_argument("--embed", type=int, default=512, help="E, dimensions of the text")
    parser.add_argument("--batch", type=int, default=8, help="images a pass")
    parser.add_argument("--repeats", type=int, default=15, help="measurements of each ratio")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    text = rh.ClassEmbeddings(torch.randn(CLASSES, args.embed), tuple(f"class {row}" for row in range(CLASSES)))
    print(
        f"torch {torch.__version__}, E = {args.embed}, batch {args.batch}, {args.repeats} repeats; median (quartiles)"
    )
    for name in args.models:
        compare(name, text, args.batch, args.repeats)


if __name__ == "__main__":
    main()
