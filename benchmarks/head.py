"""Measure how many faults of a head are counted per second: in closed form, executed, and by a loop with a hook.

``python benchmarks/head.py`` builds a text-guided head of 1,000 classes and random features. It counts every flip of
every element of the head's tensors for every image. In the last column, a forward hook flips one bit in each row of a
batch, the head runs, and the logits are compared.
"""

import argparse
import time

import torch
from torch import Tensor, nn

import resilient_heads as rh
from resilient_heads.campaign.trials.outcomes import judge
from resilient_heads.injection.formats.bits import flip_bits


def rate(head: nn.Module, data: tuple[Tensor, Tensor], site: str, *, closed_form: bool) -> tuple[float, int, int]:
    """Return faults per second, and the numbers of SDCs and DUEs."""
    start = time.perf_counter()
    result = rh.run_exhaustive(head, data, layers=[site], closed_form=closed_form, progress=False)
    seconds = time.perf_counter() - start
    return result.faults / seconds, result.count(rh.Outcome.SDC), result.count(rh.Outcome.DUE)


@torch.no_grad()
def hook_rate(head: nn.Module, x: Tensor, site: str, batches: int, batch: int = 2048) -> float:
    """Return faults per second of a loop with a hook, over some batches."""
    model = nn.Sequential(head)
    module = model.get_submodule(site.replace("head", "0", 1))
    rows = torch.arange(batch)
    start = time.perf_counter()
    for number in range(batches):
        inputs = x[(rows + number) % len(x)]
        golden = model(inputs)

        def flip(_m: nn.Module, _i: object, output: Tensor) -> Tensor:
            faulty = output.clone()
            neuron = rows % output.shape[1]
            faulty[rows, neuron] = flip_bits(faulty[rows, neuron], rows % 32)
            return faulty

        with module.register_forward_hook(flip):
            faulty = model(inputs)
        judge(golden, faulty, golden.argmax(1))
    return batches * batch / (time.perf_counter() - start)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--executed", type=int, default=2, help="images whose faults are also executed")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    head = rh.TextGuidedHead(options.features, (options.classes, options.dim)).eval()
    x = torch.randn(options.images, options.features).relu()
    labels = head(x).argmax(1)
    few = (x[: options.executed], labels[: options.executed])
    print(f"{options.classes} classes, F = {options.features}, E = {options.dim}, {options.threads} threads")
    print("| tensor | faults | closed form, faults/s | executed, faults/s | loop with a hook, faults/s |")
    print("|---|---:|---:|---:|---:|")
    for site in ("head", "head.latent", "head.unit"):
        closed, sdc, due = rate(head, (x, labels), site, closed_form=True)
        executed, *counts = rate(head, few, site, closed_form=False)
        _, *again = rate(head, few, site, closed_form=True)
        if counts != again:
            raise SystemExit(f"{site}: execution counts {counts}, the closed form {again}")
        hooked = hook_rate(head, x, site, 8)
        faults = options.images * (options.classes if site == "head" else options.dim) * 32
        print(f"| {site} | {faults:,} ({sdc:,} SDC, {due:,} DUE) | {closed:,.0f} | {executed:,.0f} | {hooked:,.0f} |")


if __name__ == "__main__":
    main()
