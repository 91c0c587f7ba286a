"""Trials a second of a campaign, against other injection tools and the plain forward pass, in one process.

    pip install -e ".[demo]" && pip install --no-deps pytorchfi==0.6.0 mrfi==2.1.0 pyyaml scipy
    python benchmarks/campaign.py resnet18 resnet50 vit_b_16
    python benchmarks/campaign.py resnet20 --weights resnet20.th

Every tool strikes all Conv2d and Linear outputs equally often, each image of a batch in its own neuron, in its best
batched use. A rate counts everything: golden passes, recording, judging, hooks. Peers run the same full pass whichever
layer they strike, so a batch at each of a few layers gives their rate; ours is that of a whole campaign, in which the
recording at its start counts less the longer it is. What is only imported once counts for nobody. Ratios are the
figure, seconds are this machine's.
"""

import argparse
import copy
import importlib.util
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from resnet20 import ResNet20
from torch import Tensor, nn

import resilient_heads as rh

SIZES = {"resnet20": (32, 128, 64), "resnet18": (224, 32, 64), "resnet50": (224, 32, 32), "vit_b_16": (224, 32, 16)}
"""Model to (pixels, batch, batches of trials a layer)."""


@dataclass(frozen=True)
class Rate:
    """Trials and the seconds that they took."""

    trials: int
    seconds: float

    @property
    def per_second(self) -> float:
        """Trials a second."""
        return self.trials / self.seconds


def build(name: str, weights: Path | None) -> nn.Module:
    """Return a model in evaluation mode; without weights it is initialised at random."""
    torch.manual_seed(0)
    if name == "resnet20":
        model: nn.Module = ResNet20()
    else:
        import torchvision

        model = torchvision.models.get_model(name, weights=None)
    if weights is not None:
        state = torch.load(weights, weights_only=True, map_location="cpu")
        state = state.get("state_dict", state)
        model.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    return model.eval()


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that ``run`` takes."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def spread(layers: int, strike: int) -> list[int]:
    """Return some of the layers, evenly."""
    return sorted({layer * layers // strike for layer in range(min(strike, layers))})


def plain(model: nn.Module, images: Tensor, passes: int) -> Rate:
    """A forward pass counts as many trials as it has images: what a tool without any overhead could do."""

    def run() -> None:
        for _ in range(passes):
            model(images)

    return Rate(len(images) * passes, timed(run, images.device))


def ours(model: nn.Module, images: Tensor, labels: Tensor, batches: int) -> tuple[Rate, rh.CampaignResult]:
    """A whole campaign."""
    results = []

    def run() -> None:
        results.append(
            rh.run_campaign(
                model,
                (images, labels),
                protocol="raw",
                injections_per_layer=batches * len(images),
                batch_size=len(images),
                progress=False,
            )
        )

    seconds = timed(run, images.device)
    return Rate(len(results[0].trials), seconds), results[0]


def pytorchfi(model: nn.Module, images: Tensor, layers: int, strike: int) -> Rate:
    """PyTorchFI's batched use: a declared value in one neuron of each image, all in one layer."""
    from pytorchfi import core  # type: ignore[import-not-found, unused-ignore]

    injector = core.fault_injection(
        model,
        len(images),
        input_shape=list(images.shape[1:]),
        layer_types=[nn.Conv2d, nn.Linear],
        use_cuda=images.is_cuda,
    )
    found = injector.get_total_layers()
    generator = torch.Generator().manual_seed(0)

    def draw(size: int) -> list[int]:
        return torch.randint(size, (len(images),), generator=generator).tolist()

    def run() -> None:
        for layer in spread(found, strike):
            shape = [int(size) for size in injector.get_layer_shape(layer)]
            own = [draw(size) for size in shape[1:]]
            own += [[None] * len(images)] * (3 - len(own))  # type: ignore[list-item]
            faulty = injector.declare_neuron_fi(
                batch=list(range(len(images))),
                layer_num=[layer] * len(images),
                dim1=own[0],
                dim2=own[1],
                dim3=own[2],
                value=[0.5] * len(images),
            )
            faulty(images)

    seconds = timed(run, images.device)
    if found != layers:
        print(f"    PyTorchFI reaches {found} of {layers} layers; its rate is that of the layers it reaches")
    return Rate(len(spread(found, strike)) * len(images), seconds)


def mrfi(model: nn.Module, images: Tensor, layers: int, strike: int) -> Rate:
    """MRFI's batched use: a random bit of one random output neuron of each image."""
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
    model = copy.deepcopy(model)  # it leaves attributes behind that cannot be copied
    faulty = MRFI(model, config)
    switches = faulty.get_activation_configs(is_out=True)
    found = len(switches)

    def run() -> None:
        for layer in spread(found, strike):
            switches[layer].enabled = True
            faulty(images)
            switches[layer].enabled = False

    seconds = timed(run, images.device)
    if found != layers:
        print(f"    MRFI reaches {found} of {layers} layers; its rate is that of the layers it reaches")
    return Rate(len(spread(found, strike)) * len(images), seconds)


def main() -> None:
    """Print a table for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", choices=SIZES, metavar="MODEL", help=", ".join(SIZES))
    parser.add_argument("--weights", type=Path, help="a state dict for the model")
    parser.add_argument("--batches", type=int, help="batches of trials a layer in our campaign; else as in SIZES")
    parser.add_argument("--peer-layers", type=int, default=10, help="layers that peers strike, a batch each")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore")
    device = torch.device(args.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{args.threads} threads"
    small = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    ours(small, torch.eye(4), small(torch.eye(4)).argmax(dim=1), 1)  # imports
    for name in args.models:
        pixels, batch, batches = SIZES[name]
        model = build(name, args.weights).to(device)
        images = torch.randn(batch, 3, pixels, pixels, generator=torch.Generator().manual_seed(1)).to(device)
        with torch.no_grad():
            labels = model(images).argmax(dim=1)
            model(images)
            layers = len(rh.find_sites(model, images[:3]).reached)

            def others(model: nn.Module = model, images: Tensor = images, layers: int = layers) -> dict[str, Rate]:
                rates = {"plain forward": plain(model, images, 3)}
                if importlib.util.find_spec("pytorchfi") is not None:
                    rates["PyTorchFI 0.6.0"] = pytorchfi(model, images, layers, args.peer_layers)
                if importlib.util.find_spec("mrfi") is not None:
                    rates["MRFI 2.1.0"] = mrfi(model, images, layers, args.peer_layers)
                return rates

            rates = others()
            own, result = ours(model, images, labels, args.batches or batches)
            masked = float((result.trials.outcome == 0).mean())
            trials = f"{own.trials:,} trials at {len(result.sites)} sites, {masked:.0%} masked"
            print(f"{name}, {pixels} pixels, batch {batch}, {where}: {trials}")
            # Before and after, as a machine that others use too is not equally fast all the time.
            for tool, rate in others().items():
                rates[tool] = Rate(rate.trials + rates[tool].trials, rate.seconds + rates[tool].seconds)
            rates["resilient_heads"] = own
        for tool, rate in rates.items():
            ratio = rates["resilient_heads"].per_second / rate.per_second
            print(f"    {tool:16} {rate.per_second:9.1f} trials/s   resilient_heads is {ratio:.2f} times as fast")


if __name__ == "__main__":
    main()
