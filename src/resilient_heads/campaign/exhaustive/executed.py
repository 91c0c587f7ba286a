"""The execution of every single flip in some tensors, for some images."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from resilient_heads.campaign.exhaustive.closed_form import UNDECIDED, logits_outcomes, score_outcomes
from resilient_heads.campaign.golden.golden_run import logits_of
from resilient_heads.campaign.run.incremental_engine import GoldenPass, IncrementalEngine
from resilient_heads.campaign.trials.outcomes import Outcome, classify
from resilient_heads.errors import InjectionError
from resilient_heads.incremental.recording.words import same_bits
from resilient_heads.injection.formats.bits import flip_bits, words
from resilient_heads.injection.sites.hooks import watch_sites
from resilient_heads.injection.sites.site import Site

_AT_ONCE = 64
"""Images whose faults are worked out together; bounds the memory."""


class Exhaustion:
    """Strikes some images' tensors with everything.

    A batch holds each of some images as often as a group has bits, and every bit of the group strikes one copy.
    """

    def __init__(
        self, model: nn.Module, sites: Sequence[Site], images: Tensor, rows: Mapping[str, Tensor], batch_size: int
    ) -> None:
        self._model = model
        self._sites = sites
        self._images = images
        self._group = min(site.word_bits for site in sites)
        self._copies = min(len(images), max(1, batch_size // self._group))
        probe = IncrementalEngine(model, sites, images[:2])
        self._logits = [site for site in sites if probe.gives_logits(site.name)]
        self._linear = {
            site: rows[site.name]
            for site in sites
            if site.name in rows and len(site.shape) == 1 and site.dtype == torch.float32 and site not in self._logits
        }
        self._executed = [site for site in sites if site not in self._logits and site not in self._linear]

    @cached_property
    def _reruns(self) -> IncrementalEngine:
        """What executes faults; made when the first one is executed."""
        sites = [site for site in self._sites if site not in self._logits]
        batches = sum(site.neurons * site.word_bits // self._group for site in sites)
        reruns = IncrementalEngine(self._model, sites, self._batch(0)[0], batches=batches)
        reruns.check_sites()
        return reruns

    def run(self, *, progress: bool) -> dict[str, Tensor]:
        """Return the counts of every site, by its name: ``(bits * 4,)`` int64, by bit and outcome."""
        counts = {site.name: torch.zeros(site.word_bits * len(Outcome), dtype=torch.int64) for site in self._sites}
        total = len(self._images) * sum(site.neurons * site.word_bits for site in self._sites)
        with tqdm(total=total, unit="fault", disable=not progress, desc="injecting", leave=False) as bar:
            for images in torch.split(self._images, _AT_ONCE):
                for site in self._logits:
                    outcomes = logits_outcomes(logits_of(self._model, images))
                    _count(counts[site.name], outcomes, None)
                    bar.update(outcomes.numel())
                for site, rows in self._linear.items():
                    outcomes = self._work_out(site, rows, images, bar.update)
                    _count(counts[site.name], outcomes, None)
            for start in range(0, len(self._images) if self._executed else 0, self._copies):
                inputs, count = self._batch(start)
                for names in self._reruns.group_sites([site.name for site in self._executed]):
                    golden = self._reruns.golden_pass(inputs, names)
                    for site in self._executed:
                        if site.name in names:
                            self._strike(site, inputs, golden, count, counts[site.name], bar.update)
        return counts

    def _batch(self, start: int) -> tuple[Tensor, int]:
        """Return a batch, one image after the other for each bit of the group, and how many images count."""
        own = self._images[start : start + self._copies]
        whole = torch.cat([own, own[-1:].expand(self._copies - len(own), *own.shape[1:])])
        return whole.repeat_interleave(self._group, dim=0), len(own)

    def _work_out(self, site: Site, rows: Tensor, images: Tensor, advance: Callable[[int], Any]) -> Tensor:
        """Work out what becomes of every fault of a site, and execute those of which that cannot be said."""
        seen: list[Tensor] = []
        with watch_sites(self._model, [site], lambda _name, tensor: seen.append(tensor.clone())):
            logits_of(self._model, images)
        outcomes = score_outcomes(seen[0], rows)
        left = (outcomes == UNDECIDED).nonzero()
        advance(outcomes.numel() - len(left))
        size = self._copies * self._group
        for first in range(0, len(left), size):
            part = left[first : first + size]
            image, neuron, bit = torch.cat([part, part[-1:].expand(size - len(part), 3)]).unbind(1)
            batch = images[image]
            golden = self._reruns.golden_pass(batch, [site.name])
            where = site.index(torch.arange(size, device=batch.device), neuron, size)
            faulty = self._execute(site, batch, golden, where, bit, check=first == 0)
            outcome = classify(golden.logits, faulty)[: len(part)].clamp_min(Outcome.TOLERABLE)
            outcomes[part[:, 0], part[:, 1], part[:, 2]] = outcome
            advance(len(part))
        return outcomes

    def _strike(
        self, site: Site, inputs: Tensor, golden: GoldenPass, count: int, counts: Tensor, advance: Callable[[int], Any]
    ) -> None:
        """Strike every neuron of a site, and add to its counts."""
        rows = torch.arange(len(inputs), device=inputs.device)
        valid = count * self._group
        for first in range(0, site.word_bits, self._group):
            bits = first + rows % self._group
            for neuron in range(site.neurons):
                where = site.index(rows, torch.full_like(rows, neuron), len(inputs))
                check = neuron == 0 and first == 0
                faulty = self._execute(site, inputs, golden, where, bits, check=check)
                _count(counts, classify(golden.logits, faulty)[:valid], bits[:valid])
                advance(valid)

    def _execute(
        self,
        site: Site,
        inputs: Tensor,
        golden: GoldenPass,
        where: tuple[Tensor, ...],
        bits: Tensor,
        *,
        check: bool,
    ) -> Tensor:
        """Flip one bit in each row and return the logits; with ``check``, a rerun is held against a full pass."""
        found = self._reruns.copy_site_tensor(site.name, golden)
        again: Tensor | None = None
        if found is not None:
            _flip(found[0], where, bits)
            again = self._reruns.run_from_site(site.name, golden, found[1], where)
        if again is not None and not check:
            return again
        full = self._full(site, inputs, where, bits)
        if again is not None and not same_bits(again, full):
            self._reruns.block([site.name], "a rerun of a whole batch differs from a full pass")
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


def _count(counts: Tensor, outcomes: Tensor, bits: Tensor | None) -> None:
    """Add outcomes to counts by bit; without ``bits`` the last dimension goes through all of them."""
    if bits is None:
        bits = torch.arange(outcomes.shape[-1], device=outcomes.device)
    keys = (bits * len(Outcome) + outcomes.long()).flatten().cpu()
    counts += torch.bincount(keys, minlength=len(counts))


def _flip(tensor: Tensor, where: tuple[Tensor, ...], bits: Tensor) -> None:
    """Flip one bit in each row, in place, and prove that it was one."""
    before = tensor[where]
    flipped = flip_bits(before, bits)
    tensor[where] = flipped
    if not torch.equal(words(tensor[where]), words(flipped)) or torch.equal(words(flipped), words(before)):
        raise InjectionError("A flip did not take effect.")
