"""Run the trials of a plan, chunk by chunk: the plain way, one full pass of the model for each batch and site."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from resilient_heads.campaign.data import LabelledImages
from resilient_heads.campaign.design import Plan
from resilient_heads.campaign.golden import logits_of
from resilient_heads.campaign.outcomes import judge
from resilient_heads.campaign.trials import COLUMNS, Trials
from resilient_heads.errors import InjectionError
from resilient_heads.evaluation import device_of
from resilient_heads.injection.injector import inject_batch
from resilient_heads.injection.sampling import draw_images


class Execution:
    """Runs trials; it may be asked for any numbers in any order and gives the same rows each time.

    Use it within :func:`~resilient_heads.evaluation.evaluating`.

    Args:
        model: The model.
        data: All images.
        eligible: ``(I,)``, which images may be struck.
        plan: What to strike.
        batch_size: Trials run at once.
    """

    def __init__(
        self, model: nn.Module, data: LabelledImages, eligible: NDArray[np.bool_], plan: Plan, *, batch_size: int
    ) -> None:
        self._model = model
        self._data = data
        self._eligible = eligible
        self._plan = plan
        self._batch_size = batch_size
        self._first: tuple[Tensor, Tensor] | None = None

    def run(self, start: int, stop: int, *, advance: Callable[[int], object] = lambda trials: None) -> Trials:
        """Run trials ``start`` to ``stop`` of every site that has them.

        Args:
            start: First number.
            stop: One behind the last number.
            advance: Called with a number of trials whenever so many are done.

        Raises:
            InjectionError: The model is not deterministic, lets a fault of one image reach another, or a flip did not
                take place.
        """
        parts = []
        for first in range(start, stop, self._batch_size):
            numbers = np.arange(first, min(first + self._batch_size, stop))
            for group in range(self._plan.image_groups):
                parts += self._run_group(group, numbers, advance)
        return Trials.gather(parts)

    def _run_group(self, group: int, numbers: NDArray[np.int64], advance: Callable[[int], object]) -> list[Trials]:
        """Run trials of these numbers at the sites of one group, which strike the same images."""
        rows = range(group, len(self._plan.sites), self._plan.image_groups)
        numbers = numbers[numbers < max(self._plan.counts[row] for row in rows)]
        if not len(numbers):
            return []
        drawn = draw_images(self._plan.seed, self._plan.image_numbers(group, numbers), self._eligible)
        chosen = torch.from_numpy(drawn)
        device = device_of(self._model)
        inputs, targets = self._data.images[chosen].to(device), self._data.labels[chosen].to(device)
        golden = logits_of(self._model, inputs)
        if self._first is None:
            self._check(inputs, golden)
        parts = []
        for row in rows:
            own = numbers[numbers < self._plan.counts[row]]
            if len(own):
                parts.append(self._strike(row, own, drawn, inputs, targets, golden))
                advance(len(own))
        return parts

    def close(self) -> None:
        """Check that the model still gives the golden logits of the first batch.

        Raises:
            InjectionError: It does not.
        """
        if self._first is not None:
            inputs, golden = self._first
            _require_same(golden, logits_of(self._model, inputs), "The campaign changed the model's golden logits")

    def _check(self, inputs: Tensor, golden: Tensor) -> None:
        """Check on the first batch that the model repeats itself and keeps images apart."""
        again = logits_of(self._model, inputs)
        _require_same(golden, again, "The model gives different logits on the same images")
        _require_separate_images(self._model, self._plan, inputs, golden)
        self._first = (inputs, golden)

    def _strike(
        self,
        row: int,
        numbers: NDArray[np.int64],
        drawn: NDArray[np.int64],
        inputs: Tensor,
        targets: Tensor,
        golden: Tensor,
    ) -> Trials:
        """Run one batch of trials at one site and write down what came of each."""
        struck, rows = self._plan.sites[row], len(numbers)
        draws = self._plan.draw(row, numbers)
        neurons, bits = torch.from_numpy(draws.neurons), torch.from_numpy(draws.bits)
        with inject_batch(self._model, struck.site.name, neurons, bits, limit=struck.limit) as strike:
            faulty = logits_of(self._model, inputs[:rows])
        judgement = judge(golden[:rows], faulty, targets[:rows])
        columns: dict[str, Tensor | NDArray[np.generic]] = {
            "site": np.full(rows, row),
            "trial": numbers,
            "image": drawn[:rows],
            "neuron": draws.neurons,
            "bit": draws.bits,
            "before": strike.before.double(),
            "after": strike.after.double(),
            "outcome": judgement.outcome,
            "delta_loss": judgement.delta_loss,
            "predicted": judgement.predicted,
            "rank": judgement.rank,
            "confidence_change": judgement.confidence_change,
        }
        plain = {
            name: column.cpu().numpy() if isinstance(column, Tensor) else column for name, column in columns.items()
        }
        return Trials(**{name: plain[name].astype(kind) for name, kind in COLUMNS.items()})


def _require_separate_images(model: nn.Module, plan: Plan, inputs: Tensor, golden: Tensor) -> None:
    """Raise InjectionError unless a fault in one image of a batch leaves the other images' logits alone."""
    if len(inputs) == 1:
        return
    modules = dict(model.named_modules(remove_duplicate=False))
    for own in plan.sites:

        def disturb(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
            changed = output.clone(memory_format=torch.preserve_format)
            changed[0] = 1 - 2 * changed[0]
            return changed

        handle = modules[own.site.name].register_forward_hook(disturb)
        try:
            others = logits_of(model, inputs)[1:]
        finally:
            handle.remove()
        if not torch.equal(others, golden[1:]):
            raise InjectionError(
                f"A fault of one image at {own.site.name!r} reaches other images of its batch, as through statistics "
                "taken over the batch, so a trial would not be one flip. Pass batch_size=1."
            )


def _require_same(golden: Tensor, again: Tensor, what: str) -> None:
    """Raise InjectionError unless two runs gave the same bits."""
    if not torch.equal(golden, again):
        raise InjectionError(
            f"{what}, so 'masked' could not mean bit-identical. Remove what is random or stateful in evaluation "
            "mode, or call torch.use_deterministic_algorithms(True)."
        )
