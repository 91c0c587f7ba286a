"""Every single flip in every tensor of a head: no sampling, so no sampling error."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from resilient_heads.campaign.exhaustive.executed import Exhaustion
from resilient_heads.campaign.golden.data import Data, collect
from resilient_heads.campaign.golden.golden_run import run_golden
from resilient_heads.campaign.trials.outcomes import Outcome
from resilient_heads.errors import ArgumentError, FaultError
from resilient_heads.evaluation import device_of, evaluating
from resilient_heads.injection.sites.find import find_sites
from resilient_heads.injection.sites.hooks import open_attention
from resilient_heads.injection.sites.site import Site


@dataclass(frozen=True, slots=True, eq=False)
class TensorCounts:
    """What became of every fault in one tensor.

    Attributes:
        site: The tensor.
        outcomes: ``(bits, 4)`` int64, faults by bit (0 is the lowest of the mantissa) and :class:`Outcome`.
    """

    site: Site
    outcomes: Tensor

    @property
    def faults(self) -> int:
        """How many faults there are: images times neurons times bits."""
        return int(self.outcomes.sum())

    def count(self, outcome: Outcome) -> int:
        """How many faults ended so."""
        return int(self.outcomes[:, outcome].sum())

    def rate(self, outcome: Outcome) -> float:
        """Share of the faults that ended so; exact, not estimated."""
        return self.count(outcome) / self.faults


@dataclass(frozen=True, slots=True, eq=False)
class ExhaustiveResult:
    """Every fault there is, executed.

    Attributes:
        tensors: Counts of each tensor, in the order of execution.
        images: How many images were struck: those that the fault-free model classifies correctly.
        skipped: Tensors that no fault can be put into, and why.
    """

    tensors: tuple[TensorCounts, ...]
    images: int
    uninjectable: dict[str, str]

    @property
    def faults(self) -> int:
        """Faults in all tensors."""
        return sum(tensor.faults for tensor in self.tensors)

    def count(self, outcome: Outcome) -> int:
        """How many faults ended so, in all tensors."""
        return sum(tensor.count(outcome) for tensor in self.tensors)

    def __getitem__(self, name: str) -> TensorCounts:
        for tensor in self.tensors:
            if tensor.site.name == name:
                return tensor
        names = ", ".join(repr(tensor.site.name) for tensor in self.tensors)
        raise FaultError(f"No tensor {name!r} was struck; those that were: {names}.")

    def __str__(self) -> str:
        width = max(len(tensor.site.name) for tensor in self.tensors)
        lines = [f"{self.faults:,} faults in {len(self.tensors)} tensors, {self.images} images"]
        for tensor in self.tensors:
            counts = "  ".join(f"{outcome.name} {tensor.count(outcome):>11,}" for outcome in Outcome)
            lines.append(f"{tensor.site.name:<{width}}  {counts}")
        return "\n".join(lines)


def run_exhaustive(
    model: nn.Module,
    data: Data,
    *,
    layers: Sequence[str] | None = None,
    closed_form: bool = False,
    batch_size: int = 2048,
    progress: bool = True,
) -> ExhaustiveResult:
    """Flip every bit of every neuron of some tensors, one at a time, for every image, and count the outcomes.

    The protocol is ``raw``: a flipped value goes on as it is. Each fault is executed, by the engine of
    :func:`run_campaign`, but those in the logits themselves, whose outcome needs no run.

    Args:
        model: A classifier, or a head by itself.
        data: Batches of images and labels, or one pair of tensors; for a head, features ``(N, F)`` and labels. Images
            that the fault-free model misclassifies are left out.
        layers: Names of tensors, or patterns of names; None takes every tensor of the classifier. A head's own are
            named ``"head.latent"`` and so on, and its output ``"head"``.
        closed_form: Also work out faults in those tensors of an unprotected head of which its scores are a linear
            function, and execute only what rounding or overflow could decide: for 1,000 classes many times faster.
            SDC and DUE are the same; MASKED faults of these tensors are counted as TOLERABLE.
        batch_size: Faults executed at once.
        progress: Show a bar.

    Raises:
        ArgumentError: A wrong argument.
        DataError: Images or labels that cannot be used.
        FaultError: A name that matches nothing.
        InjectionError: No image is classified correctly; a fault reaches other images of its batch.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"Expected a torch.nn.Module, found {type(model).__name__}.")
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise ArgumentError(f"batch_size must be a whole number of at least 1, found {batch_size!r}.")
    if not isinstance(closed_form, bool):
        raise ArgumentError(f"closed_form must be True or False, found {closed_form!r}.")
    layers = None if layers is None else _names(layers)
    if getattr(model, "fault_sites", ()) or isinstance(model, nn.Linear | nn.Conv2d):
        model = nn.Sequential(OrderedDict(head=model))  # so that its own output has a name
    images = collect(data)
    with evaluating(model), open_attention():
        golden = run_golden(model, images, batch_size=batch_size, min_top2diff=0.0)
        sample = images.images[:3].to(device_of(model))
        site_map = find_sites(model, sample, modules=() if layers is None else _present(model, layers))
        sites = site_map.last if layers is None else site_map.matching(layers)
        struck = images.images[torch.from_numpy(golden.eligible)].to(device_of(model))
        rows = _score_rows(model) if closed_form else {}
        counts = Exhaustion(model, sites, struck, rows, batch_size).run(progress=progress)
    tensors = tuple(TensorCounts(site, counts[site.name].reshape(site.word_bits, -1)) for site in sites)
    return ExhaustiveResult(tensors, len(struck), site_map.uninjectable)


def _score_rows(model: nn.Module) -> dict[str, Tensor]:
    """Return what heads declare: by the name of a tensor, the rows whose products with it order the classes."""
    found = {}
    for name, module in model.named_modules():
        for child, rows in getattr(module, "score_rows", {}).items():
            found[f"{name}.{child}" if name else child] = rows
    return found


def _names(layers: object) -> tuple[str, ...]:
    """Return ``layers=`` as names, or raise ArgumentError."""
    names = tuple(layers) if isinstance(layers, Iterable) and not isinstance(layers, str) else ()
    if not names or not all(isinstance(name, str) for name in names):
        raise ArgumentError(f'layers must be a non-empty sequence of names, such as ["head.latent"]; found {layers!r}.')
    return names


def _present(model: nn.Module, layers: Sequence[str]) -> list[str]:
    """Return the names among the patterns that are modules, which may have to be made sites."""
    every = dict(model.named_modules())
    return [name for name in layers if name in every]
