"""Run the trials of a plan, batch by batch."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from resilient_heads.campaign.design.plan import InjectionPlan
from resilient_heads.campaign.golden.data import LabelledImages
from resilient_heads.campaign.golden.golden_run import logits_of
from resilient_heads.campaign.result.config import Engine
from resilient_heads.campaign.result.protocol import Protocol
from resilient_heads.campaign.run.batch_isolation import disturbed_pass, require_separate
from resilient_heads.campaign.run.incremental_engine import GoldenPass, IncrementalEngine
from resilient_heads.campaign.trials.columns import COLUMNS, Trials
from resilient_heads.campaign.trials.outcomes import judge
from resilient_heads.errors import InjectionError
from resilient_heads.evaluation import device_of
from resilient_heads.incremental.recording.words import same_bits
from resilient_heads.injection.apply.hits import Hit, first, hit_
from resilient_heads.injection.faults.draws import Draws
from resilient_heads.injection.sites.hooks import watch_sites
from resilient_heads.injection.sites.site import Site

_WITNESSES = 4
"""Sites whose first batch is also run in full, as a check of everything that is only done for whole batches."""


class _DistrustedError(Exception):
    """A rerun gave other bits than a full pass, and no site is rerun from now on."""


class Execution:
    """Runs trials; it may be asked for any numbers in any order and gives the same rows each time.

    Trial i strikes the same image at every site of an image group, so one golden pass of a batch serves all of them.
    Use it within :func:`~resilient_heads.evaluation.evaluating`.

    Args:
        model: The model.
        data: All images.
        image_weights: ``(I,)``, how often each image is drawn; see :meth:`InjectionPlan.image_weights`.
        plan: What to strike.
        protocol: What becomes of struck values.
        batch_size: Trials run at once.
        engine: How.
        memory_limit: Bytes of golden content; None takes half of what is free.
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
        self._engine = engine
        numbers = np.arange(self._batch_size)
        self._first, _, _ = self._batch(0, numbers)
        sites = [struck.site for struck in plan.sites]
        self._golden = logits_of(model, self._first)
        again = logits_of(model, self._first)
        _require_same(self._golden, again, "The model gives different logits on the same images")
        self._reruns: IncrementalEngine | None = None
        if engine == "incremental":
            batches = max(plan.counts) // self._batch_size
            self._reruns = IncrementalEngine(model, sites, self._first, memory_limit=memory_limit, batches=batches)
            self._reruns.check_sites()
        else:
            few = self._first[:2]
            golden = logits_of(model, few)
            for site in sites:
                for image in range(len(few)):
                    _, disturbed = disturbed_pass(model, site, few, image, extreme=image > 0)
                    require_separate(site, golden, disturbed, image)
        rows = {struck.site.name: row for row, struck in enumerate(plan.sites)}
        self._groups = [
            [rows[name] for name in group]
            for images in range(plan.image_groups)
            for group in self._grouped([site.name for site in sites[images :: plan.image_groups]])
        ]
        self._witnesses = {len(sites) * part // _WITNESSES for part in range(_WITNESSES)}

    def _grouped(self, names: list[str]) -> list[list[str]]:
        """Share sites out among golden passes."""
        return [names] if self._reruns is None else self._reruns.group_sites(names)

    def run(self, start: int, stop: int, *, advance: Callable[[int], object] = lambda trials: None) -> Trials:
        """Run trials ``start`` to ``stop`` of every site that has them.

        Args:
            start: First number.
            stop: One behind the last number.
            advance: Called with a number of trials whenever so many are done.

        Raises:
            InjectionError: A flip did not take place.
        """
        done = told = 0

        def tell(trials: int) -> None:
            nonlocal done, told
            done += trials
            if done > told:
                advance(done - told)
                told = done

        try:
            return self._run(start, stop, tell)
        except _DistrustedError:  # in the first batch, before anything was handed out
            done = 0
            return self._run(start, stop, tell)

    def _run(self, start: int, stop: int, advance: Callable[[int], object]) -> Trials:
        """Run trials ``start`` to ``stop``."""
        parts: list[Trials] = []
        for begin in range(start, stop, self._batch_size):
            # Always a whole batch: kernels may give other bits for another size.
            numbers = np.arange(begin, begin + self._batch_size)
            for rows in self._groups:
                last = {row: min(stop, self._plan.counts[row]) for row in rows}
                if begin >= max(last.values()):
                    continue
                inputs, targets, drawn = self._batch(rows[0], numbers)
                golden = self._golden_pass(inputs, [self._plan.sites[row].site.name for row in rows])
                for row in rows:
                    if begin < last[row]:
                        struck = self._strike(row, numbers, drawn, inputs, targets, golden)
                        parts.append(struck.where(struck.trial < last[row]))
                        advance(len(parts[-1]))
                del golden  # so that no two of them are held at once
        return Trials.gather(parts)

    def close(self) -> None:
        """Check that the model still gives the golden logits of the first batch.

        Raises:
            InjectionError: It does not.
        """
        again = logits_of(self._model, self._first)
        _require_same(self._golden, again, "The campaign changed the model's golden logits")

    def _batch(self, row: int, numbers: NDArray[np.int64]) -> tuple[Tensor, Tensor, NDArray[np.int64]]:
        """Return images and labels of some trials at a site, and which images they are."""
        drawn = self._plan.images(row, numbers, self._image_weights)
        chosen, device = torch.from_numpy(drawn), device_of(self._model)
        return self._data.images[chosen].to(device), self._data.labels[chosen].to(device), drawn

    def _golden_pass(self, inputs: Tensor, names: list[str]) -> GoldenPass:
        """Run a batch fault-free."""
        if self._reruns is None:
            return GoldenPass(logits_of(self._model, inputs), {})
        return self._reruns.golden_pass(inputs, names)

    def _rerun(self, site: Site, golden: GoldenPass, hit: Callable[[Tensor], Hit]) -> tuple[Hit, Tensor] | None:
        """Strike a golden tensor and run what comes after it; None where that cannot be done."""
        found = None if self._reruns is None else self._reruns.copy_site_tensor(site.name, golden)
        if self._reruns is None or found is None:
            return None
        struck = hit(found[0])
        faulty = self._reruns.run_from_site(site.name, golden, found[1], struck.where)
        return None if faulty is None else (struck, faulty)

    def _full(self, site: Site, inputs: Tensor, hit: Callable[[Tensor], Hit]) -> tuple[Hit, Tensor]:
        """Strike a site while the whole model runs."""
        seen: list[Hit] = []

        def strike(_name: str, tensor: Tensor) -> Tensor:
            changed = tensor.clone(memory_format=torch.preserve_format)
            seen.append(hit(changed))
            return changed

        with watch_sites(self._model, [site], strike):
            faulty = logits_of(self._model, inputs)
        if len(seen) != 1:
            raise InjectionError(f"No fault struck {site.name!r}: it came by {len(seen)} times in a pass.")
        return seen[0], faulty

    def _distrust(self) -> None:
        """Take full passes from now on: a rerun of a whole batch gave other bits."""
        assert self._reruns is not None
        names = [struck.site.name for struck in self._plan.sites]
        self._reruns.block(names, "a rerun of a whole batch differs from a full pass")
        raise _DistrustedError

    def _strike(
        self,
        row: int,
        numbers: NDArray[np.int64],
        drawn: NDArray[np.int64],
        inputs: Tensor,
        targets: Tensor,
        golden: GoldenPass,
    ) -> Trials:
        """Run one batch of trials at one site and write down what came of each."""
        site, limit = self._plan.sites[row].site, self._plan.sites[row].range_limit
        own = np.minimum(numbers, self._plan.counts[row] - 1)
        draws, weights = Draws.none(), np.empty(0)

        def hit(tensor: Tensor) -> Hit:
            nonlocal draws, weights
            draws, weights = self._plan.draw_with_weights(row, own, tensor, detector=self._detector)
            return hit_(tensor, site, draws, model=self._plan.fault, range_limit=limit, detector=self._detector)

        found = self._rerun(site, golden, hit)
        if found is not None and row in self._witnesses:
            self._witnesses.discard(row)
            full = self._full(site, inputs, hit)
            if not same_bits(found[1], full[1]):
                self._distrust()
        struck, faulty = self._full(site, inputs, hit) if found is None else found
        judgement = judge(golden.logits, faulty, targets)
        columns: dict[str, Tensor | NDArray[np.generic]] = {
            "site": np.full(len(numbers), row),
            "trial": numbers,
            "image": drawn,
            "neuron": first(draws.neurons),
            "bit": first(draws.bits),
            "before": struck.before.double(),
            "after": struck.after.double(),
            "outcome": judgement.outcome,
            "delta_loss": judgement.delta_loss,
            "predicted": judgement.predicted,
            "rank": judgement.rank,
            "confidence_change": judgement.confidence_change,
            "weight": weights * self._plan.sampling_weights(drawn, self._image_weights),
        }
        plain = {
            name: column.cpu().numpy() if isinstance(column, Tensor) else column for name, column in columns.items()
        }
        return Trials(**{name: plain[name].astype(kind) for name, kind in COLUMNS.items()})


def _require_same(golden: Tensor, again: Tensor, what: str) -> None:
    """Raise InjectionError unless two runs gave the same bits."""
    if not torch.equal(golden, again):
        raise InjectionError(
            f"{what}, so 'masked' could not mean bit-identical. Remove what is random or stateful in evaluation "
            "mode, or call torch.use_deterministic_algorithms(True)."
        )
