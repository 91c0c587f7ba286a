"""Every single flip in every tensor of a head: no sampling, so no sampling error."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from resilient_heads.campaign.data import Data, collect
from resilient_heads.campaign.golden import logits_of, run_golden
from resilient_heads.campaign.outcomes import Outcome, classify
from resilient_heads.campaign.reruns import Golden, Reruns
from resilient_heads.errors import DataError, FaultError, InjectionError
from resilient_heads.evaluation import device_of, evaluating
from resilient_heads.injection.bits import flip_bits, words
from resilient_heads.injection.sites import Site, find_sites, watch_sites
from resilient_heads.injection.taps import open_attention
from resilient_heads.rerun.tape import ControlFlowError

logger = logging.getLogger(__name__)


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
    skipped: dict[str, str]

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


def exhaustive(
    model: nn.Module,
    data: Data,
    *,
    layers: Sequence[str] | None = None,
    batch_size: int = 2048,
    progress: bool = True,
) -> ExhaustiveResult:
    """Flip every bit of every neuron of some tensors, one at a time, for every image, and count the outcomes.

    The protocol is ``raw``: a flipped value goes on as it is. Each fault is executed, by the engine of
    :func:`run_campaign`.

    Args:
        model: A classifier, or a head by itself.
        data: Batches of images and labels, or one pair of tensors; for a head, features ``(N, F)`` and labels. Images
            that the fault-free model misclassifies are left out.
        layers: Names of tensors, or patterns of names; None takes every tensor of the classifier. A head's own are
            named ``"head.latent"`` and so on, and its output ``"head"``.
        batch_size: Faults executed at once.
        progress: Show a bar.

    Raises:
        DataError: Images or labels that cannot be used.
        FaultError: A name that matches nothing.
        InjectionError: No image is classified correctly; a fault reaches other images of its batch.
    """
    if not isinstance(model, nn.Module):
        raise DataError(f"Expected a torch.nn.Module, found {type(model).__name__}.")
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise DataError(f"batch_size must be a whole number of at least 1, found {batch_size!r}.")
    if isinstance(layers, str) or (layers is not None and not layers):
        raise DataError(f"layers must be a non-empty sequence of names, found {layers!r}.")
    if getattr(model, "fault_sites", ()) or isinstance(model, nn.Linear | nn.Conv2d):
        model = nn.Sequential(OrderedDict(head=model))  # so that its own output has a name
    images = collect(data)
    with evaluating(model), open_attention():
        golden = run_golden(model, images, batch_size=batch_size, min_top2diff=0.0)
        sample = images.images[:3].to(device_of(model))
        site_map = find_sites(model, sample, modules=() if layers is None else _present(model, layers))
        sites = site_map.last if layers is None else site_map.matching(layers)
        struck = images.images[torch.from_numpy(golden.eligible)].to(device_of(model))
        tensors = _Exhaustion(model, sites, struck, batch_size).run(progress=progress)
    return ExhaustiveResult(tensors, len(struck), site_map.skipped)


class _Exhaustion:
    """Strikes some images' tensors with everything.

    A batch holds each of some images as often as a group has bits, and every bit of the group strikes one copy.
    """

    def __init__(self, model: nn.Module, sites: Sequence[Site], images: Tensor, batch_size: int) -> None:
        self._model = model
        self._sites = sites
        self._images = images
        self._group = min(site.bits for site in sites)
        self._copies = min(len(images), max(1, batch_size // self._group))
        batches = sum(site.neurons * site.bits // self._group for site in sites)
        self._reruns = Reruns(model, sites, self._batch(0)[0], batches=batches)
        self._reruns.check()
        for name, reason in self._reruns.blocked.items():
            logger.warning("Each batch of faults at %r takes a full pass of the model: %s.", name, reason)

    def run(self, *, progress: bool) -> tuple[TensorCounts, ...]:
        """Return the counts of every site."""
        counts = {site.name: torch.zeros(site.bits * len(Outcome), dtype=torch.int64) for site in self._sites}
        total = len(self._images) * sum(site.neurons * site.bits for site in self._sites)
        with tqdm(total=total, unit="fault", disable=not progress, desc="injecting", leave=False) as bar:
            for start in range(0, len(self._images), self._copies):
                inputs, count = self._batch(start)
                for names in self._reruns.groups([site.name for site in self._sites]):
                    golden = self._reruns.golden(inputs, names)
                    for site in self._sites:
                        if site.name in names:
                            self._strike(site, inputs, golden, count, counts[site.name], bar.update)
        return tuple(TensorCounts(site, counts[site.name].reshape(site.bits, -1)) for site in self._sites)

    def _batch(self, start: int) -> tuple[Tensor, int]:
        """Return a batch, one image after the other for each bit of the group, and how many images count."""
        own = self._images[start : start + self._copies]
        whole = torch.cat([own, own[-1:].expand(self._copies - len(own), *own.shape[1:])])
        return whole.repeat_interleave(self._group, dim=0), len(own)

    def _strike(
        self, site: Site, inputs: Tensor, golden: Golden, count: int, counts: Tensor, advance: Callable[[int], Any]
    ) -> None:
        """Strike every neuron of a site, and add to its counts."""
        rows = torch.arange(len(inputs), device=inputs.device)
        valid = count * self._group
        for first in range(0, site.bits, self._group):
            bits = first + rows % self._group
            for neuron in range(site.neurons):
                where = site.index(rows, torch.full_like(rows, neuron), len(inputs))
                check = neuron == 0 and first == 0
                faulty = self._execute(site, inputs, golden, where, bits, check=check)
                outcome = classify(golden.logits, faulty)[:valid].long()
                key = (bits[:valid] * len(Outcome) + outcome).cpu()
                counts += torch.bincount(key, minlength=len(counts))
                advance(valid)

    def _execute(
        self,
        site: Site,
        inputs: Tensor,
        golden: Golden,
        where: tuple[Tensor, ...],
        bits: Tensor,
        *,
        check: bool,
    ) -> Tensor:
        """Flip one bit in each row and return the logits; with ``check``, a rerun is held against a full pass."""
        found = self._reruns.tensor(site.name, golden)
        again: Tensor | None = None
        if found is not None:
            _flip(found[0], where, bits)
            try:
                again = self._reruns.rerun(site.name, golden, found[1])
            except (ControlFlowError, RuntimeError) as error:
                self._block(site, f"a rerun failed ({next(iter(str(error).splitlines()), 'no reason given')})")
        if again is not None and not check:
            return again
        full = self._full(site, inputs, where, bits)
        if again is not None and not _same_bits(again, full):
            self._block(site, "a rerun of a whole batch differs from a full pass")
        return full

    def _full(self, site: Site, inputs: Tensor, where: tuple[Tensor, ...], bits: Tensor) -> Tensor:
        """Flip one bit in each row while the whole model runs."""
        seen = 0

        def strike(_name: str, tensor: Tensor) -> Tensor:
            nonlocal seen
            seen += 1
            changed = tensor.clone(memory_format=torch.preserve_format)
            _flip(changed, where, bits)
            return changed

        with watch_sites(self._model, [site], strike):
            logits = logits_of(self._model, inputs)
        if seen != 1:
            raise InjectionError(f"No fault struck {site.name!r}: it came by {seen} times in a pass.")
        return logits

    def _block(self, site: Site, reason: str) -> None:
        """Take full passes for a site from now on."""
        self._reruns.block(site.name, reason)
        logger.warning("Each batch of faults at %r takes a full pass of the model: %s.", site.name, reason)


def _flip(tensor: Tensor, where: tuple[Tensor, ...], bits: Tensor) -> None:
    """Flip one bit in each row, in place, and prove that it was one."""
    before = tensor[where]
    flipped = flip_bits(before, bits)
    tensor[where] = flipped
    if not torch.equal(words(tensor[where]), words(flipped)) or torch.equal(words(flipped), words(before)):
        raise InjectionError("A flip did not take effect.")


def _present(model: nn.Module, layers: Sequence[str]) -> list[str]:
    """Return the names among the patterns that are modules, which may have to be made sites."""
    every = dict(model.named_modules())
    return [name for name in layers if name in every]


def _same_bits(rerun: Tensor, full: Tensor) -> bool:
    """Whether two results have the same bits, whatever kind of NaN they hold."""
    nan = full.isnan()
    return torch.equal(rerun.isnan(), nan) and torch.equal(words(rerun)[~nan], words(full)[~nan])
