"""Check which operations give the same bits on windows as on whole maps."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resilient_heads.incremental.equivalence.random_values import rounds_needed, run_on_random_values, values_needed
from resilient_heads.incremental.recording.observer import observe_pass
from resilient_heads.incremental.recording.operators import ELEMENTWISE
from resilient_heads.incremental.recording.recorded_pass import RecordedPass
from resilient_heads.incremental.recording.recorder import RunModel
from resilient_heads.incremental.recording.tape import Step, View, as_list, copy_memory
from resilient_heads.incremental.recording.words import words
from resilient_heads.incremental.windows.crops import IntArray, crop
from resilient_heads.incremental.windows.plan import WindowStep
from resilient_heads.incremental.windows.window import crop_input, run_on_windows
from resilient_heads.phases import phase

_NEARLY_ALL = 0.9
"""A number of windows that fewer operations allow would end the windows of the others too early."""
_MOST_ROUNDS_OF_POSITIONS = 8
"""Bounds the number of windows in one check, as a multiple of those that cover all rows, columns and corners."""


def check_windows(
    run: RunModel, full: RecordedPass, images: Tensor, steps: Collection[WindowStep], counts: Sequence[int]
) -> dict[WindowStep, frozenset[int]]:
    """Run operations on windows in every row and every column of their maps, and compare the bits.

    ``counts`` are the numbers of windows that may run at once, ascending; the last is the size of the batch.

    Returns:
        For each operation, the numbers of windows at which every bit was the same.
    """
    check = _WindowCheck(full, steps, counts)
    with phase(
        "checking that windows of feature maps give the same bits", total=len(steps), unit="operation"
    ) as advance:

        def observe(number: int, *operation: Any) -> Any:
            result = check.observe(number, *operation)
            advance(sum(step.number == number for step in steps))
            return result

        repeated = observe_pass(run, full.tape, images, observe)
    return check.exact if repeated else dict.fromkeys(steps, frozenset())


def choose_counts(
    exact: Mapping[WindowStep, frozenset[int]], counts: Sequence[int]
) -> tuple[tuple[int, ...], frozenset[WindowStep]]:
    """Choose the numbers of windows that nearly all operations allow, and the operations that allow all of these.

    The last of ``counts``, the size of the batch, is always chosen. For ``exact`` see :func:`check_windows`.
    """
    allowed = [passed for passed in exact.values() if counts[-1] in passed]
    needed = _NEARLY_ALL * len(allowed)
    chosen = tuple(c for c in counts if c == counts[-1] or sum(c in passed for passed in allowed) >= needed)
    return chosen, frozenset(step for step, passed in exact.items() if passed >= set(chosen))


class _WindowCheck:
    """Repeats operations of a pass on windows.

    Attributes:
        exact: For each operation, the numbers of windows at which every bit was the same.
    """

    def __init__(self, full: RecordedPass, steps: Collection[WindowStep], counts: Sequence[int]) -> None:
        self.exact: dict[WindowStep, frozenset[int]] = dict.fromkeys(steps, frozenset())
        self._full = full
        self._counts = counts
        self._by_number: dict[int, list[WindowStep]] = {}
        for step in steps:
            self._by_number.setdefault(step.number, []).append(step)

    def observe(self, number: int, step: Step, tensors: dict[View, Tensor], run: Callable[[], Any]) -> Any:
        """Run an operation on whole maps and on windows."""
        if number not in self._by_number:
            return run()
        # The inputs are copied before the operation writes to them.
        inputs = {view: copy_memory(t) if view.buffer in step.writes else t for view, t in tensors.items()}
        result = run()
        whole = as_list(result)[0]
        rounds: dict[WindowStep, int] = {}
        positions: dict[WindowStep, IntArray] = {}
        for window_step in self._by_number[number]:
            elements = whole.shape[1] * window_step.size[0] * window_step.size[1]
            everywhere = window_positions(window_step, self._full.batch_size, values_needed(whole.dtype) // elements)
            needed = rounds_needed(step.operator, elements * len(everywhere), whole.dtype)
            # One window shows for an elementwise operator that the shapes agree; its bits are the same everywhere.
            checked = everywhere[:1] if step.operator in ELEMENTWISE else everywhere
            if needed is not None and self._agrees(window_step, inputs, whole, self._counts[-1], checked):
                self.exact[window_step] = frozenset(self._counts)
                rounds[window_step], positions[window_step] = needed, everywhere
        for seed in range(max(rounds.values(), default=0)):
            generator = torch.Generator().manual_seed(seed)
            random, results = run_on_random_values(step, inputs, self._full, generator)
            whole = results[self._by_number[number][0].result]
            for window_step in (checked for checked, needed in rounds.items() if seed < needed):
                exact = self._exact_counts(window_step, random, whole, positions[window_step])
                self.exact[window_step] = exact
        return result

    def _exact_counts(
        self, window_step: WindowStep, inputs: dict[View, Tensor], whole: Tensor, positions: IntArray
    ) -> frozenset[int]:
        """Return the numbers of windows, of those that passed so far, that give the bits of the whole maps."""
        exact, most = self.exact[window_step], self._counts[-1]
        if most not in exact or not self._agrees(window_step, inputs, whole, most, positions):
            return frozenset()
        fewer = exact - {most}
        return exact - {count for count in fewer if not self._agrees(window_step, inputs, whole, count, positions)}

    def _agrees(
        self, window_step: WindowStep, inputs: dict[View, Tensor], whole: Tensor, count: int, positions: IntArray
    ) -> bool:
        """Return whether windows give the bits of the whole maps, ``count`` windows at once."""
        step = self._full.tape.steps[window_step.number]
        groups = -(-len(positions) // count)
        for group in positions[np.arange(groups * count) % len(positions)].reshape(groups, count, 3):
            images, origin = group[:, 0], group[:, 1:]
            try:
                cropped = {view: self._crop(window_step, view, inputs[view], images, origin) for view in step.views}
                result = run_on_windows(step, window_step, cropped.__getitem__)
            except (IndexError, RuntimeError):
                return False
            expected = crop(whole, images, origin, window_step.size)
            if result.shape != expected.shape or not torch.equal(words(result), words(expected)):
                return False
        return True

    def _crop(self, window_step: WindowStep, view: View, tensor: Tensor, images: IntArray, origin: IntArray) -> Tensor:
        """Return what result windows at ``origin`` read of an argument."""
        if self._full.layouts.get(view.buffer) is None:
            return tensor
        return crop_input(window_step, tensor, images, origin)[0]


def window_positions(step: WindowStep, batch_size: int, wanted: int) -> IntArray:
    """Return image, row and column, ``(n, 3)``, of windows that cover all rows, columns and corners of their map.

    The windows take the images in turn. Random positions are added until there are as many as ``wanted``, up to a few
    times those that cover the map.
    """
    rows, columns = (
        np.append(np.arange(0, whole - window + 1, window), whole - window)
        for window, whole in zip(step.size, step.map_size, strict=True)
    )
    along = np.arange(max(len(rows), len(columns)))
    diagonal = np.stack([rows[along % len(rows)], columns[along % len(columns)]], axis=1)
    corners = np.array([[row, column] for row in rows[[0, -1]] for column in columns[[0, -1]]])
    covering = len(diagonal) + len(corners)
    extra = max(min(wanted, _MOST_ROUNDS_OF_POSITIONS * covering) - covering, 0)
    anywhere = np.random.default_rng(0).integers(0, (rows[-1] + 1, columns[-1] + 1), (extra, 2))
    origins = np.concatenate([diagonal, corners, anywhere])
    return np.column_stack([np.arange(len(origins)) % batch_size, origins])
