"""Run the trials of a plan, batch by batch."""

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from resilient_heads.campaign.design.plan import InjectionPlan
from resilient_heads.campaign.golden.data import LabelledImages
from resilient_heads.campaign.golden.golden_run import logits_of
from resilient_heads.campaign.result.config import Engine
from resilient_heads.campaign.result.protocol import Protocol
from resilient_heads.campaign.run.batch_isolation import check_isolation
from resilient_heads.campaign.run.incremental_engine import GoldenPass, IncrementalEngine
from resilient_heads.campaign.run.injected_pass import FaultyBatch, TrialWriter, run_trials
from resilient_heads.campaign.trials.columns import COLUMNS, Trials
from resilient_heads.campaign.trials.outcomes import judge
from resilient_heads.errors import ForwardError, InjectionError, ModelError
from resilient_heads.evaluation import device_of
from resilient_heads.incremental.recording.words import same_bits
from resilient_heads.injection.apply.core import SiteInjection
from resilient_heads.injection.sites.site import Site
from resilient_heads.phases import phase

logger = logging.getLogger(__name__)

_CHECKED_SITES = 4
"""Sites at which a whole batch also runs in full, which checks what the engine does for whole batches only."""


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """The images of N trials at a site.

    Attributes:
        trials: ``(N,)``, numbers of the trials.
        images: ``(N,)``, indices of the images.
        inputs: ``(N, ...)``, the images, on the model's device.
        labels: ``(N,)``, their classes.
    """

    trials: NDArray[np.int64]
    images: NDArray[np.int64]
    inputs: Tensor
    labels: Tensor


class Execution:
    """Runs the trials of a plan. A trial gives the same row at any time and in any order.

    Trial i uses the same image at every site of an image group, so one golden pass of a batch serves all of them.
    Use it within :func:`~resilient_heads.evaluation.evaluating`.

    Args:
        model: The model.
        data: All images.
        image_weights: ``(I,)``, how often each image is drawn; see :meth:`InjectionPlan.image_weights`.
        plan: The trials.
        protocol: Names the range detector.
        batch_size: Trials in a batch.
        engine: Which part of the model runs for a batch of trials.
        memory_limit: Bytes that golden content may take; None takes half of the free memory.

    Raises:
        InjectionError: Two golden passes differ, or a fault in one image reaches another.
    """

    def __init__(
        self,
        model: nn.Module,
        data: LabelledImages,
        image_weights: NDArray[np.int64],
        plan: InjectionPlan,
        *,
        protocol: Protocol,
        batch_size: int,
        engine: Engine = "incremental",
        memory_limit: int | None = None,
    ) -> None:
        self._model = model
        self._data = data
        self._image_weights = image_weights
        self._plan = plan
        self._batch_size = min(batch_size, max(plan.counts))
        self._detector = protocol.range_detector or "clamp"
        self._first_inputs = self._batch(0, np.arange(self._batch_size)).inputs
        self._golden = self._first_logits(batch_size)
        self._require_golden("The model gives different logits on the same images")
        self._crashing: set[str] = set()
        sites = [place.site for place in plan.sites]
        self._engine = self._incremental_engine(sites, memory_limit) if engine == "incremental" else None
        if self._engine is None:
            self._check_isolation()
        self._check_whole_batches()
        self._groups = self._group_rows(range(len(plan.sites)))

    def run(self, start: int, stop: int, *, known: Trials | None = None) -> Iterator[Trials]:
        """Run trials ``start`` to ``stop - 1`` of every site that has them; yield those of one batch at one site.

        Args:
            start: Number of the first trial.
            stop: One more than the number of the last trial.
            known: Trials of whole batches that are not run again.

        Raises:
            InjectionError: A fault was not injected exactly as drawn.
        """
        done = set() if known is None else set(zip(known.site.tolist(), known.trial.tolist(), strict=True))
        ends = [min(stop, count) for count in self._plan.counts]
        for begin in range(start, stop, self._batch_size):
            # The batch is always whole: kernels may give other bits for another batch size.
            numbers = np.arange(begin, begin + self._batch_size)
            for group in self._groups:
                rows = [row for row in group if begin < ends[row] and (row, begin) not in done]
                if not rows:
                    continue
                batch = self._batch(rows[0], numbers)
                golden = self._golden_pass(batch.inputs, [self._plan.sites[row].site.name for row in rows])
                for row in rows:
                    trials = self._run_batch(row, batch, golden)
                    yield trials.where(trials.trial < ends[row])
                del golden  # Otherwise two golden passes would be in memory at once.

    def close(self) -> None:
        """Check that the model still gives the golden logits of the first batch.

        Raises:
            InjectionError: The logits differ.
        """
        self._require_golden("The campaign changed the model's golden logits")

    def _run_batch(self, row: int, batch: _Batch, golden: GoldenPass) -> Trials:
        """Run one batch of trials at one site, and return their rows."""
        site = self._plan.sites[row].site
        write = TrialWriter(self._plan, row, batch.trials, self._detector)
        result = None if self._engine is None else self._engine.incremental_pass(site.name, golden, write)
        if result is None:
            faulty = run_trials(self._model, site, batch.inputs, write, golden.logits)
            self._warn_about(faulty, site.name)
        else:
            faulty = FaultyBatch(*result, errors={})
        injection = faulty.injection
        judgement = judge(golden.logits, faulty.logits, batch.labels)
        judgement.predicted[list(faulty.errors)] = -1
        columns: dict[str, Tensor | NDArray[np.generic]] = {
            "site": np.full(len(batch.trials), row),
            "trial": batch.trials,
            "image": batch.images,
            "neuron": injection.neurons,
            "bit": injection.bits,
            "before": injection.before.double(),
            "after": injection.after.double(),
            "outcome": judgement.outcome,
            "delta_loss": judgement.delta_loss,
            "predicted": judgement.predicted,
            "rank": judgement.rank,
            "confidence_change": judgement.confidence_change,
            "weight": write.weights * self._plan.sampling_weights(batch.images, self._image_weights),
        }
        arrays = {name: value.cpu().numpy() if isinstance(value, Tensor) else value for name, value in columns.items()}
        return Trials(**{name: arrays[name].astype(kind) for name, kind in COLUMNS.items()})

    def _batch(self, row: int, numbers: NDArray[np.int64]) -> _Batch:
        """Return the images of some trials at the site ``row``."""
        images = self._plan.images(row, numbers, self._image_weights)
        chosen, device = torch.from_numpy(images), device_of(self._model)
        return _Batch(numbers, images, self._data.images[chosen].to(device), self._data.labels[chosen].to(device))

    def _first_logits(self, batch_size: int) -> Tensor:
        """Return the golden logits of the first batch; if the model refuses a batch below ``batch_size``, say why."""
        try:
            return logits_of(self._model, self._first_inputs)
        except ForwardError as error:
            if self._batch_size == batch_size:
                raise
            raise ModelError(
                f"The campaign has {self._batch_size} trials for each site, so its batches hold {self._batch_size} "
                f"images instead of {batch_size}, and the model refuses them. Pass trials_per_site={batch_size} or "
                f"more. The error: {error}"
            ) from error

    def _incremental_engine(self, sites: Sequence[Site], memory_limit: int | None) -> IncrementalEngine | None:
        """Return the engine, checked; None if the model refuses the batches of other sizes that it needs."""
        batches = max(self._plan.counts) // self._batch_size
        try:
            engine = IncrementalEngine(
                self._model, sites, self._first_inputs, memory_limit=memory_limit, batches=batches
            )
            engine.check_sites()
        except ForwardError as error:
            logger.warning("Every batch takes a full pass, because the model refuses batches of other sizes: %s", error)
            return None
        return engine

    def _golden_pass(self, inputs: Tensor, names: list[str]) -> GoldenPass:
        """Run a batch without faults, and keep what reruns of these sites need."""
        if self._engine is None:
            return GoldenPass(logits_of(self._model, inputs), {})
        return self._engine.golden_pass(inputs, names)

    def _group_rows(self, rows: Collection[int]) -> list[list[int]]:
        """Return groups of sites, by their rows in the plan; each group shares its golden passes."""
        by_name = {self._plan.sites[row].site.name: row for row in rows}
        groups: list[list[str]] = []
        for images in range(self._plan.image_groups):
            names = [name for name, row in by_name.items() if row % self._plan.image_groups == images]
            groups += [names] if self._engine is None else self._engine.group_sites(names)
        return [[by_name[name] for name in group] for group in groups if group]

    def _check_isolation(self) -> None:
        """Check at every site that a fault in one image reaches no other image."""
        images = self._first_inputs[:2]
        try:
            golden = logits_of(self._model, images)
        except ForwardError:  # The model accepts only batches of other sizes.
            images, golden = self._first_inputs, self._golden
        name = "checking that a fault in one image reaches no other"
        with phase(name, total=len(self._plan.sites), unit="site") as advance:
            for place in self._plan.sites:
                check_isolation(self._model, place.site, images, golden)
                advance(1)

    def _warn_about(self, faulty: FaultyBatch[SiteInjection], name: str) -> None:
        """Log the first error that the model raises for faults at a site."""
        if faulty.errors and name not in self._crashing:
            self._crashing.add(name)
            logger.warning(
                "The model raises errors for faults at %r; such trials count as DUE and take more passes. First: %s",
                name,
                next(iter(faulty.errors.values())),
            )

    def _check_whole_batches(self) -> None:
        """Compare reruns with full passes at a few sites; if one differs, take full passes at all sites."""
        if self._engine is not None:
            names = [place.site.name for place in self._plan.sites]
            rows = sorted({len(names) * part // _CHECKED_SITES for part in range(_CHECKED_SITES)})
            with phase("checking reruns of whole batches"):
                agree = all(self._agree_with_full_passes(self._engine, group) for group in self._group_rows(rows))
            if not agree:
                self._engine.block(names, "a rerun of a whole batch differs from a full pass")

    def _agree_with_full_passes(self, engine: IncrementalEngine, rows: Sequence[int]) -> bool:
        """Return whether the first batch of trials at sites of a group gives the same logits in reruns as in passes."""
        batch = self._batch(rows[0], np.arange(self._batch_size))
        golden = self._golden_pass(batch.inputs, [self._plan.sites[row].site.name for row in rows])
        for row in rows:
            site, write = self._plan.sites[row].site, TrialWriter(self._plan, row, batch.trials, self._detector)
            result = engine.incremental_pass(site.name, golden, write)
            if result is not None:
                full = run_trials(self._model, site, batch.inputs, write, golden.logits)
                if not same_bits(result[1], full.logits):
                    return False
        return True

    def _require_golden(self, what: str) -> None:
        """Raise InjectionError unless the first batch gives its golden logits, bit by bit."""
        if not torch.equal(self._golden, logits_of(self._model, self._first_inputs)):
            raise InjectionError(
                f"{what}, so 'masked' could not mean bit-identical. Remove what is random or stateful in evaluation "
                "mode, or call torch.use_deterministic_algorithms(True)."
            )
