"""Windows of maps, how far changes spread, and faults that are followed on windows, on maps small enough to reckon."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from resilient_heads.incremental.equivalence.random_values import random_like, rounds_needed
from resilient_heads.incremental.equivalence.window_checks import check_windows, choose_counts, window_positions
from resilient_heads.incremental.recording.forward_slice import ForwardSlice, slice_after
from resilient_heads.incremental.recording.recorded_pass import locate_images
from resilient_heads.incremental.recording.recorder import Recorder, record
from resilient_heads.incremental.recording.tape import copy_memory
from resilient_heads.incremental.slice_runner import SliceRunner
from resilient_heads.incremental.windows.crops import crop, inside, paste_
from resilient_heads.incremental.windows.plan import WindowPlan, WindowStep, plan_windows
from resilient_heads.incremental.windows.receptive_field import ReceptiveField
from resilient_heads.incremental.windows.window import Window, copy_overlap_, crop_window, faulty_pixels
from resilient_heads.incremental.windows.window_runner import WindowRunner

pytestmark = pytest.mark.engine


@pytest.fixture(autouse=True)
def _no_grad() -> object:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("stride", [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("images", [[3, 1, 5, 0], [0, 2, 5, 3], [3, 1, 4, 0]])  # lines leave the memory in two of them
def test_a_crop_holds_the_pixels_at_its_place(
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


COUNTS = (2, 4, 6, 8)


def test_what_is_pasted_is_cropped_again() -> None:
    maps = torch.zeros(4, 2, 6, 7)
    images, origin = np.array([3, 1]), np.array([[0, 4], [4, 1]])
    paste_(maps, images, torch.ones(2, 2, 2, 3), origin)
    assert torch.equal(crop(maps, images, origin, (2, 3)), torch.ones(2, 2, 2, 3))
    assert maps.sum() == 24


@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (3, 1)])
@pytest.mark.parametrize("starts", [[[1, 1], [1, 1]], [[0, 2], [3, 0]], [[-1, 1], [1, -2]], [[5, 6], [3, 4]]])
def test_parts_take_from_windows_what_both_hold(stride: tuple[int, int], starts: list[list[int]]) -> None:
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


def test_faulty_pixels() -> None:
    golden = torch.randn(5, 3, 4, 6)
    struck = golden.clone()
    struck[2, 1, 3, 5] += 1
    struck[4, ::2, 0, 3] += 1  # two channels of one pixel
    assert faulty_pixels(struck, golden).tolist() == [[0, 0], [0, 0], [3, 5], [0, 0], [0, 3]]  # type: ignore[union-attr]
    struck[2, 0, 0, 0] += 1
    assert faulty_pixels(struck, golden) is None


@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
def test_every_output_that_a_change_reaches_lies_in_the_window(kernel: int, stride: int, dilation: int) -> None:
    spread = (kernel - 1) * dilation + 1
    reach = ReceptiveField((spread, spread), (stride, stride), (1, 1), 0.0)
    conv = nn.Conv2d(1, 1, kernel, stride, 1, dilation, bias=False)
    nn.init.ones_(conv.weight)
    for y in range(12):
        changed = torch.zeros(1, 1, 12, 12)
        changed[0, 0, y : y + 2, 5] = 1
        rows = conv(changed).abs().sum((0, 1, 3)).nonzero().flatten()
        first = int(reach.first_output(np.array([[y, 5]]))[0, 0])
        size = reach.outputs_reached((2, 1))[0]
        assert all(first <= row < first + size for row in rows.tolist())


class Residual(nn.Module):
    """A stem, a block with a shortcut that skips every second pixel, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.down, self.same = nn.Conv2d(8, 8, 3, 2, 1, bias=False), nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.fc = nn.Linear(8, 4)

    def forward(self, recorder: Recorder | None, images: Tensor) -> Tensor:
        """Classify; the stem's result is pointed out."""
        x = self.stem(images)
        if recorder is not None:
            recorder.mark("here", x)
        x = torch.relu_(self.norm(x))
        y = self.same(torch.relu(self.down(x)))
        y += nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, 0))
        return self.fc(torch.relu(y).mean((2, 3)))


def followed(
    model: Residual, images: Tensor
) -> tuple[SliceRunner, ForwardSlice, WindowPlan, dict[tuple[int, int], Tensor], Tensor]:
    """Record a pass, plan its windows and try them."""
    recorder, _ = record(model, images)
    whole = locate_images(model, recorder.tape, images)
    piece = slice_after(recorder.tape, recorder.tape.marks["here"][0])
    hoped = plan_windows(piece, whole)
    assert hoped is not None
    counts, able = choose_counts(check_windows(model, whole, images, hoped.steps, COUNTS), COUNTS)
    plan = plan_windows(piece, whole, able)
    assert plan is not None
    player = SliceRunner(whole, lambda size: None, (), WindowRunner(whole, counts, {piece.source: plan}))
    kept, logits = record(model, images, player.golden_inputs(piece) | {piece.source.view.content})
    return player, piece, plan, kept.kept, logits


@pytest.mark.parametrize("corner", [0, 17, 31])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_faults_followed_on_windows_are_exact(corner: int, memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    model = Residual().eval().to(memory_format=memory_format)  # type: ignore[call-overload]
    images = torch.randn(8, 3, 32, 32).contiguous(memory_format=memory_format)
    player, piece, plan, golden, logits = followed(model, images)
    assert any(local.field is not None for local in plan.steps)
    root = copy_memory(golden[piece.source.view.content])
    struck = piece.source.view.on(root)
    struck[1:6, 2, corner, 31 - corner] = torch.tensor([1e3, -5.0, 1e-42, torch.inf, 3.0])
    tail = nn.Sequential(nn.Identity())
    model.stem, keep = tail, model.stem
    expected = model(None, struck.clone(memory_format=torch.preserve_format))
    model.stem = keep
    played = player.run(piece, golden, root)
    result = logits.clone()
    result[played.images] = played.logits
    assert torch.equal(result.nan_to_num(7), expected.nan_to_num(7))
    assert not torch.equal(result, logits)


@pytest.mark.parametrize(("corner", "stops"), [(0, True), (15, False), (31, False)])
def test_a_zero_over_the_rim_ends_the_windows(corner: int, stops: bool) -> None:
    torch.manual_seed(0)
    model = Residual().eval()
    model.down.weight[0] = 0  # its zeros may have another sign where padding was left out
    player, piece, plan, golden, _ = followed(model, torch.randn(8, 3, 32, 32))
    assert player._windows is not None
    root = copy_memory(golden[piece.source.view.content])
    piece.source.view.on(root)[:, 2, corner, corner] += 1
    done = player._windows.run(piece, golden, root)
    assert done is not None
    first = next(at for at, local in enumerate(plan.steps) if local.field is not None)
    assert (done.steps_done == first) == stops
    assert (done.steps_done > first) != stops


@pytest.mark.parametrize("tells", [True, False])
def test_an_operation_that_differs_on_windows_ends_the_plan(monkeypatch: pytest.MonkeyPatch, tells: bool) -> None:
    torch.manual_seed(0)
    model, images = Residual().eval(), torch.randn(8, 3, 32, 32)
    if not tells:  # whole numbers, whose sums have the same bits in any order
        images, model.norm.eps = images.mul(3).round(), 0.0
        for weight in model.parameters():
            weight.copy_(weight.mul(9).round())
    recorder, _ = record(model, images)
    whole = locate_images(model, recorder.tape, images)
    piece = slice_after(recorder.tape, recorder.tape.marks["here"][0])
    hoped = plan_windows(piece, whole)
    assert hoped is not None

    def off(*args: object) -> Tensor:
        result = run(*args)  # type: ignore[arg-type]
        return torch.where(result == result.round(), result, result * (1 + 1e-6))

    from resilient_heads.incremental.equivalence import window_checks as local_trial

    run = local_trial.run_on_windows
    monkeypatch.setattr(local_trial, "run_on_windows", off)
    found = check_windows(model, whole, images, hoped.steps, (8,))
    assert not any(found[local] for local in hoped.steps if local.field is not None)
    _, able = choose_counts(found, (8,))
    plan = plan_windows(piece, whole, able)
    assert plan is None or all(local.field is None for local in plan.steps)


@pytest.mark.parametrize("limit", [(4, 4), (4, 6), (9, 7), (7, 30)])
@pytest.mark.parametrize("size", [(1, 1), (3, 3), (3, 1)])
def test_windows_are_tried_everywhere(limit: tuple[int, int], size: tuple[int, int]) -> None:
    places = window_positions(WindowStep(0, size, limit, None, 0), 8, 1000)[:, 1:]
    last = limit[0] - size[0], limit[1] - size[1]
    assert {(0, 0), (0, last[1]), (last[0], 0), last} <= set(map(tuple, places.tolist()))
    for dim in (0, 1):
        assert {start + step for start in places[:, dim].tolist() for step in range(size[dim])} == set(
            range(limit[dim])
        )


def test_random_values_use_all_digits() -> None:
    noise = random_like(torch.empty(100, dtype=torch.float64), torch.Generator().manual_seed(0))
    assert (noise != noise.float()).sum() > 90
    assert random_like(torch.empty(70_000), torch.Generator().manual_seed(0)).unique().numel() > 60_000


def test_short_formats_need_more_values() -> None:
    assert rounds_needed("convolution", 4096, torch.float32) == 1
    assert rounds_needed("convolution", 4096, torch.bfloat16) == 16
    assert rounds_needed("convolution", 10, torch.float32) == 32
    assert rounds_needed("convolution", 10, torch.float16) is None
    assert rounds_needed("relu", 10, torch.float16) == 0


def test_numbers_that_few_operations_take_are_left_out() -> None:
    ops = [WindowStep(number, (3, 3), (9, 9), None, number) for number in range(22)]
    found = {op: frozenset({4, 8} if op.number else {2, 8}) for op in ops[:20]}
    found |= {ops[20]: frozenset({2, 4, 8}), ops[21]: frozenset()}
    assert choose_counts(found, (2, 4, 8)) == ((4, 8), frozenset(ops[1:21]))
    assert choose_counts({ops[0]: frozenset()}, (2, 8)) == ((2, 8), frozenset())
