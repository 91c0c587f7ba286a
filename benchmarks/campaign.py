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
import itertools
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from resnet20 import ResNet20
from torch import Tensor, nn

import resilient_heads as rh

SIZES = {"resnet20": (32, 128, 128), "resnet18": (224, 32, 64), "resnet50": (224, 32, 32), "vit_b_16": (224, 32, 16)}
"""Model to (pixels, batch, batches of trials a layer)."""


class Clock:
    """Trials of one tool and the seconds that they took."""

    def __init__(self, device: torch.device) -> None:
        self.trials, self.seconds = 0, 0.0
        self._device = device
        self._start = 0.0

    def start(self) -> None:
        """Begin, or go on."""
        self._start = self._now()

    def stop(self) -> None:
        """Pause."""
        self.seconds += self._now() - self._start

    @property
    def per_second(self) -> float:
        """Trials a second."""
        return self.trials / self.seconds

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


Pass = Callable[[], None]
"""One pass of a tool over the batch, with a fault in each image."""


def build(name: str, weights: Path | None) -> nn.Module:
    """Return a model in evaluation mode; without weights it is initialised at random."""
    torch.manual_seed(0)
    if name == "resnet20":
        model: nn.Module = ResNet20()
    else:
        import torchvision

        model = torchvision.models.get_model(name, weights=None)
        for layer in model.modules():
            if isinstance(layer, nn.Linear) and not layer.weight.any():  # as ViT's head starts, with equal logits
                nn.init.normal_(layer.weight, std=0.02)
    if weights is not None:
        state = torch.load(weights, weights_only=True, map_location="cpu")
        state = state.get("state_dict", state)
        model.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    return model.eval()


def pytorchfi(model: nn.Module, images: Tensor, layers: int) -> Pass:
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
    if found != layers:
        print(f"    PyTorchFI reaches {found} of {layers} layers; its rate is that of the layers it reaches")
    generator, turn = torch.Generator().manual_seed(0), itertools.cycle(range(found))

    def draw(size: int) -> list[int]:
        return torch.randint(size, (len(images),), generator=generator).tolist()

    def run() -> None:
        layer = next(turn)
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

    return run


def mrfi(model: nn.Module, images: Tensor, layers: int) -> Pass:
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
    faulty = MRFI(copy.deepcopy(model), config)  # it leaves attributes behind that cannot be copied
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


def race(model: nn.Module, images: Tensor, batches: int, often: int) -> tuple[dict[str, Clock], rh.CampaignResult]:
    """Run a campaign, and let every other tool make a pass whenever it has done some batches of trials.

    Args:
        model: Where to strike.
        images: One batch.
        batches: Of trials for each layer.
        often: How many passes each of the others makes.
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
    own = clocks["resilient_heads"]
    for run in others.values():
        run()  # what is only set up once counts for nobody
    made = 0

    def between(done: int, total: int) -> None:
        nonlocal made
        if done * often < made * total:
            return
        own.stop()
        made += 1
        for name, run in others.items():
            clocks[name].start()
            run()
            clocks[name].stop()
            clocks[name].trials += len(images)
        own.start()

    own.start()
    result = rh.run_campaign(
        model,
        (images, labels),
        protocol="raw",
        trials_per_site=batches * len(images),
        batch_size=len(images),
        progress=between,
    )
    own.stop()
    own.trials = len(result.trials)
    return clocks, result


def main() -> None:
    """Print a table for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", choices=SIZES, metavar="MODEL", help=", ".join(SIZES))
    parser.add_argument("--weights", type=Path, help="a state dict for the model")
    parser.add_argument("--batches", type=int, help="batches of trials a layer in our campaign; else as in SIZES")
    parser.add_argument("--passes", type=int, default=42, help="passes of every other tool, in between")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore")
    device = torch.device(args.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{args.threads} threads"
    with torch.no_grad():
        small = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).to(device)
        race(small, torch.eye(4, device=device).reshape(4, 1, 2, 2), 1, 0)  # imports
        for name in args.models:
            pixels, batch, batches = SIZES[name]
            model = build(name, args.weights).to(device)
            images = torch.randn(batch, 3, pixels, pixels, generator=torch.Generator().manual_seed(1)).to(device)
            clocks, result = race(model, images, args.batches or batches, args.passes)
            masked = float((result.trials.outcome == 0).mean())
            trials = f"{len(result.trials):,} trials at {len(result.sites)} sites, {masked:.0%} masked"
            print(f"{name}, {pixels} pixels, batch {batch}, {where}: {trials}")
            own = clocks["resilient_heads"].per_second
            for tool, clock in clocks.items():
                rate = f"{clock.per_second:9.1f} trials/s"
                print(
                    f"    {tool:16} {rate}   resilient_heads is {own / clock.per_second:.2f} times as fast", flush=True
                )


if __name__ == "__main__":
    main()
