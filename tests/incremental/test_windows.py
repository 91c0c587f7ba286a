"""Windows of feature maps, receptive fields, and faults that are followed on windows."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers.marked_pass import MarkedPass, use_integers_
from resilient_heads.incremental.equivalence import window_checks
from resilient_heads.incremental.equivalence.checked_runner import checked_runner
from resilient_heads.incremental.equivalence.random_values import random_like, rounds_needed
from resilient_heads.incremental.equivalence.window_checks import check_windows, choose_counts, window_positions
from resilient_heads.incremental.recording.recorded_pass import locate_images
from resilient_heads.incremental.recording.recorder import Recorder
from resilient_heads.incremental.recording.tape import GoldenContent
from resilient_heads.incremental.recording.words import same_bits
from resilient_heads.incremental.slice_runner import SliceRunner
from resilient_heads.incremental.windows.crops import crop, inside, paste_
from resilient_heads.incremental.windows.plan import WindowStep, plan_windows
from resilient_heads.incremental.windows.receptive_field import ReceptiveField
from resilient_heads.incremental.windows.window import Window, copy_overlap_, crop_window, faulty_pixels, run_on_windows
from resilient_heads.incremental.windows.window_runner import WindowRunner

pytestmark = pytest.mark.engine

COUNTS = (2, 4, 6, 8)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("stride", [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("images", [[3, 1, 5, 0], [0, 2, 5, 3], [3, 1, 4, 0]])  # lines leave the memory in two of them
def test_a_crop_holds_the_pixels_of_the_map(
    memory_format: torch.memory_format, stride: tuple[int, int], images: list[int]
) -> None:
    maps = torch.arange(6 * 3 * 9 * 8.0).view(6, 3, 9, 8).contiguous(memory_format=memory_format)
    origin = np.array([[-2, 3], [0, 0], [7, 6], [4, 5]])
    cut, within = crop(maps, np.array(images), origin, (4, 3), stride), inside((9, 8), origin, (4, 3), stride)
    assert within is not None
    for row, image in enumerate(images):
        for y in range(4):
            for x in range(3):
                at = int(origin[row, 0]) + y * stride[0], int(origin[row, 1]) + x * stride[1]
                assert bool(within[row, 0, y, x]) == (0 <= at[0] < 9 and 0 <= at[1] < 8)
                if within[row, 0, y, x]:
                    assert torch.equal(cut[row, :, y, x], maps[image, :, at[0], at[1]])


def test_a_pasted_window_can_be_cropped() -> None:
    maps = torch.zeros(4, 2, 6, 7)
    images, origin = np.array([3, 1]), np.array([[0, 4], [4, 1]])
    paste_(maps, images, torch.ones(2, 2, 2, 3), origin)
    assert torch.equal(crop(maps, images, origin, (2, 3)), torch.ones(2, 2, 2, 3))
    assert maps.sum() == 24


@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (3, 1)])
@pytest.mark.parametrize("starts", [[[1, 1], [1, 1]], [[0, 2], [3, 0]], [[-1, 1], [1, -2]], [[5, 6], [3, 4]]])
def test_parts_of_a_map_take_overlapping_pixels_of_a_window(stride: tuple[int, int], starts: list[list[int]]) -> None:
    maps, rows = torch.arange(2 * 3 * 16 * 16.0).view(2, 3, 16, 16), np.arange(2)
    places = np.array([[4, 5], [2, 3]])
    window = Window(crop(-maps, rows, places, (7, 6)), places)
    start, size = np.array(starts), (4, 3)
    painted = maps.clone()
    paste_(painted, rows, window.values, places)
    begin = start * stride
    part, expected = (crop(source, rows, begin, size, stride) for source in (maps, painted))
    within = inside((16, 16), begin, size, stride)
    copy_overlap_(part, window, start, stride)
    known = torch.ones(2, 1, 4, 3, dtype=torch.bool) if within is None else torch.from_numpy(within)
    assert torch.equal(part * known, expected * known)
    covered = crop_window(window, start, size, stride)
    assert (covered is not None) == bool((expected * known < 0).all())
    assert covered is None or torch.equal(covered, expected)


def test_faulty_pixels_are_found_unless_a_map_has_several() -> None:
    golden = torch.randn(5, 3, 4, 6)
    faulty = golden.clone()
    faulty[2, 1, 3, 5] += 1
    faulty[4, ::2, 0, 3] += 1  # two channels of one pixel
    assert faulty_pixels(faulty, golden).tolist() == [[0, 0], [0, 0], [3, 5], [0, 0], [0, 3]]  # type: ignore[union-attr]
    faulty[2, 0, 0, 0] += 1
    assert faulty_pixels(faulty, golden) is None


@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
def test_the_window_holds_every_output_that_a_change_can_reach(kernel: int, stride: int, dilation: int) -> None:
    extent = (kernel - 1) * dilation + 1
    field = ReceptiveField((extent, extent), (stride, stride), (1, 1), 0.0)
    conv = nn.Conv2d(1, 1, kernel, stride, 1, dilation, bias=False)
    nn.init.ones_(conv.weight)
    for y in range(12):
        changed = torch.zeros(1, 1, 12, 12)
        changed[0, 0, y : y + 2, 5] = 1
        rows = conv(changed).abs().sum((0, 1, 3)).nonzero().flatten()
        first = int(field.first_output(np.array([[y, 5]]))[0, 0])
        size = field.outputs_reached((2, 1))[0]
        assert all(first <= row < first + size for row in rows.tolist())


class Residual(nn.Module):
    """A stem, a block with a shortcut that skips every second pixel, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.down, self.same = nn.Conv2d(8, 8, 3, 2, 1, bias=False), nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.fc = nn.Linear(8, 4)

    def forward(self, recorder: Recorder | None, images: Tensor) -> Tensor:
        """Classify; marks the stem's result."""
        x = self.stem(images)
        if recorder is not None:
            recorder.mark("source", x)
        x = torch.relu_(self.norm(x))
        y = self.same(torch.relu(self.down(x)))
        y += nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, 0))
        return self.fc(torch.relu(y).mean((2, 3)))


def integer_residual() -> Residual:
    """A network of which every sum is exact in any order, on every CPU."""
    model = Residual().eval()
    use_integers_(model)
    model.norm.eps = 0.0
    return model


def logits_after(model: Residual, x: Tensor) -> Tensor:
    """Return the logits of a full pass from the marked tensor on."""
    stem, model.stem = model.stem, nn.Identity()  # type: ignore[assignment]
    logits = model(None, x.clone(memory_format=torch.preserve_format))
    model.stem = stem
    return logits


def inject_and_rerun(
    recorded: MarkedPass, runner: SliceRunner, golden: GoldenContent, index: tuple[Tensor, ...], values: Tensor
) -> tuple[Tensor, Tensor]:
    """Inject values into a copy of the marked tensor; return it, and the logits of the rerun."""
    tensor, memory = recorded.copy_source(golden)
    tensor[index] = values
    faulty = tensor.clone(memory_format=torch.preserve_format)
    return faulty, runner.run(recorded.forward_slice, golden, recorded.logits, memory)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_reruns_on_windows_equal_full_passes_at_every_pixel(memory_format: torch.memory_format) -> None:
    model = integer_residual().to(memory_format=memory_format)  # type: ignore[call-overload]
    images = torch.randn(8, 3, 16, 16).round().contiguous(memory_format=memory_format)
    recorded = MarkedPass.of(model, images)
    full = locate_images(model, recorded.tape, images)
    plan = plan_windows(recorded.forward_slice, full)  # unchecked: integers are exact on windows of every CPU
    assert plan is not None
    assert sum(step.field is not None for step in plan.steps) >= 2
    windows = WindowRunner(full, COUNTS, {recorded.forward_slice.source: plan})
    runner = SliceRunner(full, windows=windows)
    golden = recorded.golden(runner.golden_inputs(recorded.forward_slice))
    for row, column in itertools.product(range(16), repeat=2):
        index = torch.arange(8), torch.tensor(2), torch.tensor(row), torch.tensor(column)
        faulty, logits = inject_and_rerun(recorded, runner, golden, index, torch.tensor(40.0))
        assert torch.equal(logits, logits_after(model, faulty)), (row, column)
        assert not torch.equal(logits, recorded.logits), (row, column)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("corner", [0, 17, 31])
def test_reruns_on_checked_windows_equal_full_passes(corner: int, memory_format: torch.memory_format) -> None:
    model = Residual().eval().to(memory_format=memory_format)  # type: ignore[call-overload]
    images = torch.randn(8, 3, 32, 32).contiguous(memory_format=memory_format)
    recorded = MarkedPass.of(model, images)
    full = locate_images(model, recorded.tape, images)
    runner = checked_runner(model, full, [recorded.forward_slice], images, batches=20)
    index = torch.arange(1, 6), torch.tensor(2), torch.tensor(corner), torch.tensor(31 - corner)
    golden = recorded.golden(runner.golden_inputs(recorded.forward_slice))
    values = torch.tensor([1e3, -5.0, 1e-42, torch.inf, 3.0])
    faulty, logits = inject_and_rerun(recorded, runner, golden, index, values)
    assert same_bits(logits, logits_after(model, faulty))
    assert not same_bits(logits, recorded.logits)


@pytest.mark.parametrize(("corner", "stops"), [(0, True), (15, False), (31, False)])
def test_a_zero_next_to_padding_ends_the_windows(corner: int, stops: bool) -> None:
    model = integer_residual()
    model.down.weight[0] = 0  # its zeros may have another sign where kernels skip the padding
    recorded = MarkedPass.of(model, torch.randn(8, 3, 32, 32).round())
    full = locate_images(model, recorded.tape, recorded.images)
    plan = plan_windows(recorded.forward_slice, full)
    assert plan is not None
    golden = recorded.golden(recorded.forward_slice.golden_inputs | plan.golden_inputs)
    tensor, memory = recorded.copy_source(golden)
    tensor[:, 2, corner, corner] = 40.0
    windows = WindowRunner(full, COUNTS, {recorded.forward_slice.source: plan})
    state = windows.run(recorded.forward_slice, golden, memory)
    assert state is not None
    first_convolution = next(at for at, step in enumerate(plan.steps) if step.field is not None)
    assert (state.steps_done == first_convolution) == stops
    assert (state.steps_done > first_convolution) != stops


@pytest.mark.parametrize("integers", [False, True])
def test_an_operator_that_differs_on_windows_ends_the_plan(monkeypatch: pytest.MonkeyPatch, integers: bool) -> None:
    """The sums of integers have the same bits in any order, so only random values show the difference."""
    model = integer_residual() if integers else Residual().eval()
    images = torch.randn(8, 3, 32, 32)
    recorded = MarkedPass.of(model, images.round() if integers else images)
    full = locate_images(model, recorded.tape, recorded.images)
    unchecked = plan_windows(recorded.forward_slice, full)
    assert unchecked is not None

    def rounded_otherwise(*args: Any) -> Tensor:
        result = run_on_windows(*args)
        return torch.where(result == result.round(), result, result * (1 + 1e-6))

    monkeypatch.setattr(window_checks, "run_on_windows", rounded_otherwise)
    exact = check_windows(model, full, recorded.images, unchecked.steps, (8,))
    assert not any(exact[step] for step in unchecked.steps if step.field is not None)
    plan = plan_windows(recorded.forward_slice, full, choose_counts(exact, (8,))[1])
    assert plan is None or all(step.field is None for step in plan.steps)


@pytest.mark.parametrize("limit", [(4, 4), (4, 6), (9, 7), (7, 30)])
@pytest.mark.parametrize("size", [(1, 1), (3, 3), (3, 1)])
def test_check_positions_cover_rows_columns_and_corners(limit: tuple[int, int], size: tuple[int, int]) -> None:
    places = window_positions(WindowStep(0, size, limit, None, 0), 8, 1000)[:, 1:]
    last = limit[0] - size[0], limit[1] - size[1]
    assert {(0, 0), (0, last[1]), (last[0], 0), last} <= set(map(tuple, places.tolist()))
    for dim in (0, 1):
        assert {start + step for start in places[:, dim].tolist() for step in range(size[dim])} == set(
            range(limit[dim])
        )


def test_random_values_use_the_whole_precision() -> None:
    values = random_like(torch.empty(100, dtype=torch.float64), torch.Generator().manual_seed(0))
    assert (values != values.float()).sum() > 90
    assert random_like(torch.empty(70_000), torch.Generator().manual_seed(0)).unique().numel() > 60_000


def test_results_of_few_bits_need_more_random_values() -> None:
    assert rounds_needed("convolution", 4096, torch.float32) == 1
    assert rounds_needed("convolution", 4096, torch.bfloat16) == 16
    assert rounds_needed("convolution", 10, torch.float32) == 32
    assert rounds_needed("convolution", 10, torch.float16) is None
    assert rounds_needed("relu", 10, torch.float16) == 0


def test_a_number_of_windows_that_few_operations_allow_is_left_out() -> None:
    ops = [WindowStep(number, (3, 3), (9, 9), None, number) for number in range(22)]
    found = {op: frozenset({4, 8} if op.number else {2, 8}) for op in ops[:20]}
    found |= {ops[20]: frozenset({2, 4, 8}), ops[21]: frozenset()}
    assert choose_counts(found, (2, 4, 8)) == ((4, 8), frozenset(ops[1:21]))
    assert choose_counts({ops[0]: frozenset()}, (2, 8)) == ((2, 8), frozenset())
