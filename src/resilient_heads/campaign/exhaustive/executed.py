"""Execute every single bit flip in some tensors, for some images."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from resilient_heads.campaign.exhaustive.closed_form import UNDECIDED, logits_outcomes, score_outcomes
from resilient_heads.campaign.golden.golden_run import logits_of
from resilient_heads.campaign.run.incremental_engine import GoldenPass, IncrementalEngine
from resilient_heads.campaign.run.injected_pass import run_trials
from resilient_heads.campaign.run.progress import Progress, show_progress
from resilient_heads.campaign.trials.outcomes import Outcome, classify
from resilient_heads.incremental.recording.words import same_bits
from resilient_heads.injection.apply.core import SiteInjection, inject_at_site
from resilient_heads.injection.faults.draws import Draws
from resilient_heads.injection.faults.fault_model import FaultModel
from resilient_heads.injection.random.streams import Indices
from resilient_heads.injection.sites.hooks import watch_sites
from resilient_heads.injection.sites.site import Site

_CLOSED_FORM_IMAGES = 64
"""Images whose outcomes are derived together; it bounds the memory."""
_SINGLE_FLIP = FaultModel()


class ExhaustiveExecution:
    """Flips every bit of every neuron of some tensors, one at a time, and counts the outcomes.

    A batch holds several images, and G copies of each: copy i of an image flips bit i of a group of G bits.

    Args:
        model: The model, within :func:`~resilient_heads.evaluation.evaluating`.
        sites: The tensors.
        images: ``(I, ...)``, the images, on the model's device.
        scores: For the closed form: by name of a tensor, the rows whose products with it order the classes in its
            head's output, and the site of that output. Where the output is not the logits, all faults are executed.
        batch_size: Faults that run at once.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Sequence[Site],
        images: Tensor,
        scores: Mapping[str, tuple[Tensor, Site]],
        batch_size: int,
    ) -> None:
        self._model = model
        self._sites = sites
        self._images = images
        self._group = min(site.word_bits for site in sites)
        self._images_per_batch = min(len(images), max(1, batch_size // self._group))
        probed = {site.name: site for site in (*sites, *(output for _, output in scores.values()))}
        probe = IncrementalEngine(model, list(probed.values()), images[:2])
        self._logits = [site for site in sites if probe.gives_logits(site.name)]
        self._linear = {
            site: scores[site.name][0]
            for site in sites
            if site.name in scores
            and probe.gives_logits(scores[site.name][1].name)
            and len(site.shape) == 1
            and site.dtype == torch.float32
            and site not in self._logits
        }
        self._executed = [site for site in sites if site not in self._logits and site not in self._linear]

    @cached_property
    def _engine(self) -> IncrementalEngine:
        """The engine, built when the first fault has to be executed."""
        sites = [site for site in self._sites if site not in self._logits]
        batches = sum(site.neurons * site.word_bits // self._group for site in sites)
        engine = IncrementalEngine(self._model, sites, self._batch(0)[0], batches=batches)
        engine.check_sites()
        return engine

    def run(self, *, progress: Progress) -> dict[str, Tensor]:
        """Return the counts of each site, by its name: ``(word_bits * 4,)`` int64, by bit and outcome."""
        counts = {site.name: torch.zeros(site.word_bits * len(Outcome), dtype=torch.int64) for site in self._sites}
        total = len(self._images) * sum(site.neurons * site.word_bits for site in self._sites)
        with show_progress(progress, total=total, unit="fault") as advance:
            for images in torch.split(self._images, _CLOSED_FORM_IMAGES):
                for site in self._logits:
                    outcomes = logits_outcomes(logits_of(self._model, images))
                    _count(counts[site.name], outcomes, None)
                    advance(outcomes.numel())
                for site, rows in self._linear.items():
                    outcomes = self._derive_outcomes(site, rows, images, advance)
                    _count(counts[site.name], outcomes, None)
            for start in range(0, len(self._images) if self._executed else 0, self._images_per_batch):
                inputs, images_in_batch = self._batch(start)
                for names in self._engine.group_sites([site.name for site in self._executed]):
                    golden = self._engine.golden_pass(inputs, names)
                    for site in self._executed:
                        if site.name in names:
                            self._flip_everything(site, inputs, golden, images_in_batch, counts[site.name], advance)
        return counts

    def _batch(self, start: int) -> tuple[Tensor, int]:
        """Return a whole batch with G copies of each image, and how many different images it holds.

        The last batch repeats its last image to be whole.
        """
        images = self._images[start : start + self._images_per_batch]
        padding = images[-1:].expand(self._images_per_batch - len(images), *images.shape[1:])
        return torch.cat([images, padding]).repeat_interleave(self._group, dim=0), len(images)

    def _derive_outcomes(self, site: Site, rows: Tensor, images: Tensor, advance: Callable[[int], Any]) -> Tensor:
        """Derive the outcomes of all faults at a site, and execute the faults that the closed form leaves open."""
        tensors: list[Tensor] = []
        with watch_sites(self._model, [site], lambda _name, tensor: tensors.append(tensor.clone())):
            logits_of(self._model, images)
        outcomes = score_outcomes(tensors[0], rows)
        undecided = (outcomes == UNDECIDED).nonzero()
        advance(outcomes.numel() - len(undecided))
        size = self._images_per_batch * self._group
        for first in range(0, len(undecided), size):
            part = undecided[first : first + size]
            image, neuron, bit = torch.cat([part, part[-1:].expand(size - len(part), 3)]).unbind(1)
            inputs = images[image]
            golden = self._engine.golden_pass(inputs, [site.name])
            faulty = self._flip(site, inputs, golden, neuron.cpu().numpy(), bit.cpu().numpy(), check=first == 0)
            outcome = classify(golden.logits, faulty)[: len(part)].clamp_min(Outcome.TOLERABLE)
            outcomes[part[:, 0], part[:, 1], part[:, 2]] = outcome
            advance(len(part))
        return outcomes

    def _flip_everything(
        self, site: Site, inputs: Tensor, golden: GoldenPass, images: int, counts: Tensor, advance: Callable[[int], Any]
    ) -> None:
        """Flip every bit of every neuron of a site in each image of a batch, and add the outcomes to its counts."""
        copies = np.arange(len(inputs)) % self._group
        faults = images * self._group
        for first in range(0, site.word_bits, self._group):
            bits = first + copies
            for neuron in range(site.neurons):
                check = neuron == 0 and first == 0
                faulty = self._flip(site, inputs, golden, np.full_like(bits, neuron), bits, check=check)
                _count(counts, classify(golden.logits, faulty)[:faults], torch.from_numpy(bits[:faults]))
                advance(faults)

    def _flip(
        self, site: Site, inputs: Tensor, golden: GoldenPass, neurons: Indices, bits: Indices, *, check: bool
    ) -> Tensor:
        """Flip one bit in each row of a batch, and return the logits; ``check`` compares a rerun with a full pass."""

        def write(faulty: Tensor, clean: Tensor) -> SiteInjection:
            return inject_at_site(faulty, clean, site, Draws.single_flips(neurons, bits), model=_SINGLE_FLIP)

        result = self._engine.incremental_pass(site.name, golden, write)
        if result is not None and not check:
            return result[1]
        full = run_trials(self._model, site, inputs, write, golden.logits).logits
        if result is not None and not same_bits(result[1], full):
            self._engine.block([site.name], "a rerun of a whole batch differs from a full pass")
        return full


def _count(counts: Tensor, outcomes: Tensor, bits: Tensor | None) -> None:
    """Add outcomes to counts by bit, in place; ``bits=None`` takes the last dimension of the outcomes for the bits."""
    if bits is None:
        bits = torch.arange(outcomes.shape[-1], device=outcomes.device)
    keys = (bits.to(outcomes.device) * len(Outcome) + outcomes.long()).flatten().cpu()
    counts += torch.bincount(keys, minlength=len(counts))
