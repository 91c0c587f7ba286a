"""Measure the trials per second of a campaign.

Compare with other fault injection tools and with plain forward passes of the model, in one process:

    pip install -e ".[demo]" && pip install --no-deps pytorchfi==0.6.0 mrfi==2.1.0 pyyaml scipy
    python benchmarks/campaign.py resnet18 resnet50 vit_b_16
    python benchmarks/campaign.py resnet20 --weights resnet20.th

Compare with another source tree of this library, in processes that take turns:

    python benchmarks/campaign.py resnet20 --against PATH/src --batches 4

Every tool injects into all Conv2d and Linear outputs equally often, in its fastest batched use: one neuron of each
image of a batch. A rate counts everything that a tool does: golden passes, recording, outcomes, hooks. The other tools
run the same full pass for every layer, so one batch at each of a few layers gives their rate. Ours is the rate of a
whole campaign; the longer it is, the less the recording at its start counts. Imports are not counted. Compare the
ratios: the rates themselves depend on the machine.
"""

import argparse
import copy
import importlib.util
import itertools
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from resnet20 import ResNet20
from torch import Tensor, nn

import resilient_heads as rh

SIZES = {"resnet20": (32, 128, 128), "resnet18": (224, 32, 64), "resnet50": (224, 32, 32), "vit_b_16": (224, 32, 16)}
"""Model to (pixels, batch size, batches of trials at each layer)."""


class Clock:
    """The trials of one tool, and the seconds that they took."""

    def __init__(self, device: torch.device) -> None:
        self.trials, self.seconds = 0, 0.0
        self._device = device
        self._start = 0.0

    def start(self) -> None:
        """Start or continue."""
        self._start = self._now()

    def stop(self) -> None:
        """Pause."""
        self.seconds += self._now() - self._start

    @property
    def per_second(self) -> float:
        """Trials per second."""
        return self.trials / self.seconds

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


Pass = Callable[[], None]
"""One pass of a tool over the batch, with a fault in each image."""


def build(name: str, weights: Path | None) -> nn.Module:
    """Return a model in evaluation mode; random if no weights are given."""
    torch.manual_seed(0)
    if name == "resnet20":
        model: nn.Module = ResNet20()
    else:
        import torchvision

        model = torchvision.models.get_model(name, weights=None)
        for layer in model.modules():
            if isinstance(layer, nn.Linear) and not layer.weight.any():  # the head of a new ViT
                nn.init.normal_(layer.weight, std=0.02)
    if weights is not None:
        state = torch.load(weights, weights_only=True, map_location="cpu")
        state = state.get("state_dict", state)
        model.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    return model.eval()


def pytorchfi(model: nn.Module, images: Tensor, layers: int) -> Pass:
    """Return a pass of PyTorchFI in batched use: a value in one neuron of each image, all in one layer."""
    from pytorchfi import core  # type: ignore[import-not-found, unused-ignore]

    injector = core.fault_injection(
        model,
        len(images),
        input_shape=list(images.shape[1:]),
        layer_types=[nn.Conv2d, nn.Linear],
        use_cuda=images.is_cuda,
    )
    found = injector.get_total_layers()
    if found != layers:
        print(f"    PyTorchFI reaches {found} of {layers} layers; its rate is that of the layers it reaches")
    generator, turn = torch.Generator().manual_seed(0), itertools.cycle(range(found))

    def draw(size: int) -> list[int]:
        return torch.randint(size, (len(images),), generator=generator).tolist()

    def run() -> None:
        layer = next(turn)
        shape = [int(size) for size in injector.get_layer_shape(layer)]
        dimensions = [draw(size) for size in shape[1:]]
        dimensions += [[None] * len(images)] * (3 - len(dimensions))  # type: ignore[list-item]
        faulty = injector.declare_neuron_fi(
            batch=list(range(len(images))),
            layer_num=[layer] * len(images),
            dim1=dimensions[0],
            dim2=dimensions[1],
            dim3=dimensions[2],
            value=[0.5] * len(images),
        )
        faulty(images)

    return run


def mrfi(model: nn.Module, images: Tensor, layers: int) -> Pass:
    """Return a pass of MRFI in batched use: a random bit of one random neuron of each image, all in one layer."""
    from mrfi import MRFI, EasyConfig  # type: ignore[import-not-found, unused-ignore]

    config = EasyConfig.load_string(
        """
faultinject:
  - type: activation_out
    enabled: False
    selector:
      method: RandomPositionByNumber
      n: 1
      per_instance: True
    error_mode:
      method: FloatRandomBitFlip
      floattype: float32
    module_type: [Conv2d, Linear]
"""
    )
    faulty = MRFI(copy.deepcopy(model), config)  # MRFI leaves attributes behind that cannot be copied
    switches = faulty.get_activation_configs(is_out=True)
    if len(switches) != layers:
        print(f"    MRFI reaches {len(switches)} of {layers} layers; its rate is that of the layers it reaches")
    turn = itertools.cycle(range(len(switches)))

    def run() -> None:
        layer = next(turn)
        switches[layer].enabled = True
        faulty(images)
        switches[layer].enabled = False

    return run


def compare_tools(
    model: nn.Module, images: Tensor, batches: int, passes: int
) -> tuple[dict[str, Clock], rh.CampaignResult]:
    """Run a campaign, and passes of every other tool in between, as the speed of a machine varies over time.

    Args:
        model: The model.
        images: One batch.
        batches: Batches of trials at each layer.
        passes: Passes of each other tool.
    """
    device = images.device
    labels = model(images).argmax(dim=1)
    layers = len(rh.find_sites(model, images[:3]).reached)
    others: dict[str, Pass] = {"plain forward": lambda: model(images)}
    if importlib.util.find_spec("pytorchfi") is not None:
        others["PyTorchFI 0.6.0"] = pytorchfi(model, images, layers)
    if importlib.util.find_spec("mrfi") is not None:
        others["MRFI 2.1.0"] = mrfi(model, images, layers)
    clocks = {name: Clock(device) for name in (*others, "resilient_heads")}
    our_clock = clocks["resilient_heads"]
    for run in others.values():
        run()  # setup is not counted
    passes_done = 0

    def run_others(done: int, total: int) -> None:
        nonlocal passes_done
        if done * passes < passes_done * total:
            return
        our_clock.stop()
        passes_done += 1
        for name, run in others.items():
            clocks[name].start()
            run()
            clocks[name].stop()
            clocks[name].trials += len(images)
        our_clock.start()

    our_clock.start()
    result = run_campaign(model, images, labels, batches, progress=run_others)
    our_clock.stop()
    our_clock.trials = len(result.trials)
    return clocks, result


def run_campaign(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    batches: int,
    *,
    trials_argument: str = "trials_per_site",
    progress: bool | Callable[[int, int], object] = False,
) -> rh.CampaignResult:
    """Run a campaign of so many batches of trials at each site."""
    choices: dict[str, Any] = {trials_argument: batches * len(images), "progress": progress}
    return rh.run_campaign(model, (images, labels), protocol="raw", batch_size=len(images), **choices)


def rate(model: nn.Module, images: Tensor, batches: int, trials_argument: str) -> float:
    """Return the trials per second of a campaign."""
    labels = model(images).argmax(dim=1)
    clock = Clock(images.device)
    clock.start()
    result = run_campaign(model, images, labels, batches, trials_argument=trials_argument)
    clock.stop()
    clock.trials = len(result.trials)
    return clock.per_second


def compare_trees(name: str, args: argparse.Namespace) -> None:
    """Run campaigns of this tree and of another one in turn, and print the median ratio of their rates."""
    here = Path(rh.__file__).parents[1]
    options = [name, "--threads", str(args.threads), "--device", args.device, "--rate-only"]
    options += ["--weights", str(args.weights)] if args.weights else []
    options += ["--batches", str(args.batches)] if args.batches else []
    trees = {"this": (here, "trials_per_site"), "other": (args.against, args.against_argument)}
    ratios = []
    for turn in range(args.rounds):
        rates = {}
        for tree in ("this", "other") if turn % 2 else ("other", "this"):
            source, argument = trees[tree]
            command = [sys.executable, __file__, *options, "--trials-argument", argument]
            environment = {**os.environ, "PYTHONPATH": str(source)}
            run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            rates[tree] = float(run.stdout)
        ratios.append(rates["this"] / rates["other"])
        print(
            f"{name}: this tree {rates['this']:.1f} trials/s, {args.against} {rates['other']:.1f} trials/s, "
            f"ratio {ratios[-1]:.3f}",
            flush=True,
        )
    print(f"{name}: median ratio of {len(ratios)} rounds {statistics.median(ratios):.3f}")


def main() -> None:
    """Print the rates for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", choices=SIZES, metavar="MODEL", help=", ".join(SIZES))
    parser.add_argument("--weights", type=Path, help="a state dict for the model")
    parser.add_argument("--batches", type=int, help="batches of trials at each layer; default: a number for each model")
    parser.add_argument("--passes", type=int, default=42, help="passes of every other tool during the campaign")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    parser.add_argument("--device", default="cpu", help="a PyTorch device, such as cuda")
    parser.add_argument("--against", type=Path, metavar="PATH/src", help="another source tree of this library")
    parser.add_argument(
        "--against-argument",
        default="trials_per_site",
        metavar="NAME",
        help="the argument of run_campaign in the other tree that takes the number of trials at each site",
    )
    parser.add_argument("--rounds", type=int, default=5, help="campaigns of each tree with --against")
    parser.add_argument("--rate-only", action="store_true", help="print only the trials per second of this library")
    parser.add_argument("--trials-argument", default="trials_per_site", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore")
    if args.against is not None:
        for name in args.models:
            compare_trees(name, args)
        return
    device = torch.device(args.device)
    with torch.no_grad():
        small = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).to(device)
        rate(small, torch.eye(4, device=device).reshape(4, 1, 2, 2), 1, args.trials_argument)  # imports
        for name in args.models:
            pixels, batch_size, batches = SIZES[name]
            model = build(name, args.weights).to(device)
            images = torch.randn(batch_size, 3, pixels, pixels, generator=torch.Generator().manual_seed(1)).to(device)
            if args.rate_only:
                print(rate(model, images, args.batches or batches, args.trials_argument))
            else:
                print_tools(name, *compare_tools(model, images, args.batches or batches, args.passes))


def print_tools(name: str, clocks: dict[str, Clock], result: rh.CampaignResult) -> None:
    """Print the rate of every tool, and how many times as fast this library is."""
    pixels, batch_size, _ = SIZES[name]
    masked = float((result.trials.outcome == 0).mean())
    print(f"{name}, {pixels} pixels, batch size {batch_size}, {torch.get_num_threads()} threads")
    print(f"    {len(result.trials):,} trials at {len(result.sites)} sites, {masked:.0%} masked")
    ours = clocks["resilient_heads"].per_second
    for tool, clock in clocks.items():
        ratio = ours / clock.per_second
        print(
            f"    {tool:16} {clock.per_second:9.1f} trials/s   resilient_heads is {ratio:.2f} times as fast", flush=True
        )


if __name__ == "__main__":
    main()
