"""Write trials into the tensor of one site, and run the model with them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from resilient_heads.campaign.design.plan import InjectionPlan
from resilient_heads.campaign.golden.golden_run import logits_of
from resilient_heads.errors import ForwardError, InjectionError
from resilient_heads.injection.apply.core import SiteInjection, inject_at_site
from resilient_heads.injection.faults.ranges import RangeDetector
from resilient_heads.injection.random.streams import Indices
from resilient_heads.injection.sites.hooks import watch_sites
from resilient_heads.injection.sites.site import Site
from resilient_heads.statistics.intervals import Floats

T = TypeVar("T")


def injected_pass(
    model: nn.Module, site: Site, images: Tensor, write: Callable[[Tensor, Tensor], T]
) -> tuple[T, Tensor]:
    """Run the whole model on a batch, with faults at one site.

    Args:
        model: The model.
        site: The site.
        images: The batch.
        write: Called with a copy of the site's tensor, into which it writes the faults, and with the tensor itself.

    Returns:
        What ``write`` returned, and the logits ``(N, C)``.

    Raises:
        ForwardError: The model raised an error.
        InjectionError: The site did not run exactly once.
    """
    results: list[T] = []

    def replace(_name: str, golden: Tensor) -> Tensor:
        golden = golden.resolve_neg()
        faulty = golden.clone(memory_format=torch.preserve_format)
        results.append(write(faulty, golden))
        return faulty

    with watch_sites(model, [site], replace):
        logits = logits_of(model, images, during=f"a pass with faults at {site.name!r}")
    if len(results) != 1:
        raise InjectionError(
            f"The site {site.name!r} ran {len(results)} times in one forward pass, so a trial would not be one fault; "
            "expected once."
        )
    return results[0], logits


@dataclass(frozen=True, slots=True, eq=False)
class FaultyBatch(Generic[T]):
    """A batch of trials at one site.

    Attributes:
        injection: What was written.
        logits: ``(N, C)``; NaN for a trial in which the model raised an error.
        errors: By position in the batch, the errors that the model raised.
    """

    injection: T
    logits: Tensor
    errors: dict[int, ForwardError]


def run_trials(
    model: nn.Module, site: Site, images: Tensor, write: Callable[[Tensor, Tensor], T], golden: Tensor
) -> FaultyBatch[T]:
    """Run the whole model on a batch, with one trial in each image, also if the model raises an error for some of them.

    After an error the batch runs again with half of the trials, then with the other half, and so on, until each error
    belongs to a single trial. The other images are then free of faults, so that every pass has the same kernels.

    Args:
        model: The model.
        site: The site.
        images: The batch.
        write: As in :func:`injected_pass`.
        golden: ``(N, C)``, the batch's fault-free logits.

    Raises:
        ForwardError: The model raised an error before it came to the site.
        InjectionError: The site did not run exactly once.
    """
    injections: list[T] = []
    logits = torch.full_like(golden, torch.nan)
    errors: dict[int, ForwardError] = {}

    def run(trials: range) -> None:
        def write_some(faulty: Tensor, clean: Tensor) -> None:
            injections.append(write(faulty, clean))
            for image in range(len(images)):
                if image not in trials:
                    site.layout.of_image(faulty, image).copy_(site.layout.of_image(clean, image))

        written = len(injections)
        try:
            rows = injected_pass(model, site, images, write_some)[1]
        except ForwardError as error:
            if len(injections) == written:
                raise
            if len(trials) == 1:
                errors[trials[0]] = error
                return
            half = len(trials) // 2
            run(trials[:half])
            run(trials[half:])
        else:
            logits[trials.start : trials.stop] = rows[trials.start : trials.stop]

    run(range(len(images)))
    return FaultyBatch(injections[0], logits, errors)


@dataclass(slots=True, eq=False)
class TrialWriter:
    """Writes one trial of a plan into each image of a batch, and verifies the whole tensor.

    Attributes:
        plan: The plan.
        row: Position of the site in the plan.
        trials: ``(N,)``, numbers of the trials. A number beyond the site's last trial repeats that trial.
        detector: The range detector.
        weights: ``(N,)``, the part of the trials' sampling weights that depends on their tensor, after the write.
    """

    plan: InjectionPlan
    row: int
    trials: Indices
    detector: RangeDetector
    weights: Floats = field(default_factory=lambda: np.empty(0))

    def __call__(self, faulty: Tensor, golden: Tensor) -> SiteInjection:
        """Write the trials into ``faulty``, which holds the values of ``golden`` in other memory."""
        place, numbers = self.plan.sites[self.row], np.minimum(self.trials, self.plan.counts[self.row] - 1)
        draws, self.weights = self.plan.draw_with_weights(self.row, numbers, golden, detector=self.detector)
        return inject_at_site(
            faulty,
            golden,
            place.site,
            draws,
            model=self.plan.fault,
            range_limit=place.range_limit,
            detector=self.detector,
        )
