"""Golden passes that keep what reruns need, and reruns of what comes after a struck site."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from resilient_heads.campaign.golden.golden_run import logits_of
from resilient_heads.campaign.run.batch_isolation import disturbed_pass, require_separate
from resilient_heads.incremental.equivalence.batch_sizes import smaller_batches
from resilient_heads.incremental.equivalence.window_checks import settle, try_windows
from resilient_heads.incremental.player import Player
from resilient_heads.incremental.recording.batches import Batch, whole_batch
from resilient_heads.incremental.recording.recorder import Recorder, copy_memory, record
from resilient_heads.incremental.recording.slices import Slice, slice_after
from resilient_heads.incremental.recording.tape import ControlFlowError, Moment, Tape
from resilient_heads.incremental.recording.words import same_bits
from resilient_heads.incremental.windows.follow import Follower
from resilient_heads.incremental.windows.receptive_field import plan_windows
from resilient_heads.injection.sites.hooks import watch_sites
from resilient_heads.injection.sites.site import Site

logger = logging.getLogger(__name__)

_LEAST_BATCH = 4
_CHECKED_IMAGES = 2
_SIXTEENTHS: tuple[tuple[int, Sequence[int], Sequence[int]], ...] = (
    (128, range(1, 16), range(2, 16, 2)),
    (16, range(2, 16, 2), (4, 8, 12)),
    (0, (2, 4, 8, 12), (4, 8, 12)),
)
"""From how many batches on it pays to try which parts of a batch, to which its rows, and its windows, may shrink."""


@dataclass(frozen=True, slots=True, eq=False)
class GoldenPass:
    """A fault-free pass over one batch.

    Attributes:
        logits: ``(N, C)``.
        content: What reruns read; empty where the pass took another way than the first one.
    """

    logits: Tensor
    content: Mapping[Moment, Tensor]


class IncrementalEngine:
    """Runs the part of a model again that comes after a site, for batches of one size.

    Args:
        model: The model, within :func:`~resilient_heads.evaluation.evaluating`.
        sites: Where faults will strike.
        images: A batch as it will come; its pass is recorded.
        memory_limit: Bytes that golden content may take.
        batches: How many batches will come; for many it pays to try more sizes to which a batch may shrink.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Sequence[Site],
        images: Tensor,
        *,
        memory_limit: int | None = None,
        batches: int = 1,
    ) -> None:
        self._model = model
        self._sites = {site.name: site for site in sites}
        self.blocked: dict[str, str] = {}
        self._slices: dict[str, Slice] = {}
        self._smaller: dict[int, Batch] | None = None
        self._images = images
        self._told = False
        record(self._run, images)  # what a model sets up for a new batch size is set up now
        recorder, _ = record(self._run, images)
        self._tape = recorder.tape
        for site in sites:
            try:
                self._slices[site.name] = _slice(self._tape, site)
            except ControlFlowError as error:
                self.blocked[site.name] = str(error)
        whole = whole_batch(self._run, self._tape, images) if len(images) >= _LEAST_BATCH else None
        parts, window_parts = next((rows, windows) for least, rows, windows in _SIXTEENTHS if batches >= least)
        self._sizes = _sizes(len(images), parts) if whole is not None else ()
        self._whole = Batch(len(images), self._tape, {}) if whole is None else whole
        counts = (*_sizes(len(images), window_parts), len(images))
        self._player = Player(self._whole, self._fewer, self._sizes, self._follower(counts))
        self._limit = _free_memory(images.device) // 2 if memory_limit is None else memory_limit
        for name in list(self._slices):
            if self._bytes(self._needs(name)) > self._limit:
                own, limit = (_readable(size) for size in (self._bytes(self._needs(name)), self._limit))
                self.block(name, f"it needs {own} of golden content, more than memory_limit, {limit}")

    def block(self, name: str, reason: str) -> None:
        """Leave a site to full passes from now on."""
        self._slices.pop(name, None)
        self.blocked[name] = reason

    def group_sites(self, names: Sequence[str]) -> list[list[str]]:
        """Share sites out among golden passes, each of which keeps no more than the memory limit."""
        groups: list[list[str]] = [[]]
        kept: set[Moment] = set()
        for name in names:
            own = self._needs(name) if name in self._slices else frozenset()
            if groups[-1] and self._bytes(kept | own) > self._limit:
                groups.append([])
                kept = set()
            groups[-1].append(name)
            kept |= own
        return groups

    def golden_pass(self, images: Tensor, group: Sequence[str]) -> GoldenPass:
        """Run a batch fault-free, and keep what reruns of some sites need."""
        keep = frozenset().union(*(self._needs(name) for name in group if name in self._slices))
        recorder, logits = record(self._run, images, keep)
        same = recorder.tape.steps == self._tape.steps and keep <= recorder.kept.keys()
        if not same and not self._told:
            logger.warning("Batches of which the model makes other operations than of the first take full passes.")
            self._told = True
        return GoldenPass(logits, recorder.kept if same else {})

    def copy_site_tensor(self, name: str, golden: GoldenPass) -> tuple[Tensor, Tensor] | None:
        """Return a fault-free site's tensor on memory of its own, and that memory; None if it must be run in full."""
        view = self._slices[name].source.view if name in self._slices else None
        if view is None or view.moment not in golden.content:
            return None
        root = copy_memory(golden.content[view.moment])
        return view.on(root), root

    def gives_logits(self, name: str) -> bool:
        """Whether a site's tensor is the logits themselves, or nothing but a copy is made of it."""
        piece, logits = self._slices.get(name), self._tape.logits
        if piece is None or logits is None or not piece.reaches_logits or piece.source.view.size != logits.size:
            return False
        return all(self._tape.steps[step].func is torch.ops.aten.clone.default for step in piece.steps)

    def rerun(self, name: str, golden: GoldenPass, struck: Tensor, where: tuple[Tensor, ...] | None = None) -> Tensor:
        """Return the logits of the whole batch, ``(N, C)``, given the memory of a site's tensor with faults in it.

        Args:
            name: Of the site.
            golden: Of the batch.
            struck: What :meth:`copy_site_tensor` gave.
            where: Index of the one element of each image that was struck, in their order; None where there are several.
        """
        played = self._player.play(self._slices[name], golden.content, struck, where)
        logits = golden.logits.clone()
        logits[played.images] = played.logits
        return logits

    def check_sites(self) -> None:
        """Disturb one of two images at every site, and compare reruns with full passes; block sites that differ.

        Each image is disturbed once, one of them to the extreme.

        Raises:
            InjectionError: What happens to one image reaches another.
        """
        images = self._images[:_CHECKED_IMAGES].clone(memory_format=torch.preserve_format)
        record(self._run, images)
        recorder, logits = record(self._run, images)
        tape = recorder.tape
        slices = {name: slice_ for name in self._slices if (slice_ := self._slice_of(tape, name)) is not None}
        player = Player(Batch(len(images), tape, {}), lambda size: None, ())
        keep = frozenset().union(*(s.needs | {s.source.view.moment} for s in slices.values()))
        recorder, _ = record(self._run, images, keep)
        if recorder.tape.steps != tape.steps:
            slices = {}
        for site in self._sites.values():
            for image in range(len(images)):
                disturbed, full = disturbed_pass(self._model, site, images, image, extreme=image == len(images) - 1)
                require_separate(site, logits, full, image)
                if site.name not in self._slices:
                    continue
                if site.name not in slices:
                    self.block(site.name, "the model does other operations for another batch")
                elif not _equal(_again(player, slices[site.name], recorder.kept, disturbed, logits), full):
                    self.block(site.name, "a rerun differs from a full pass")

    def _slice_of(self, tape: Tape, name: str) -> Slice | None:
        """Return a site's slice of another pass, or None if that one does other operations."""
        if [step.func for step in tape.steps] != [step.func for step in self._tape.steps]:
            return None
        try:
            return _slice(tape, self._sites[name])
        except ControlFlowError:
            return None

    def _run(self, recorder: Recorder | None, images: Tensor) -> Tensor:
        """Run the model, and tell a recorder of the sites' tensors."""
        cached = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)  # every pass shall do the same operations
        try:
            if recorder is None:
                return logits_of(self._model, images)
            with watch_sites(self._model, list(self._sites.values()), recorder.mark):
                return logits_of(self._model, images)
        finally:
            torch.set_autocast_cache_enabled(cached)

    def _fewer(self, size: int) -> Batch | None:
        """Return the pass over fewer images; all of them are recorded at the first call."""
        if self._smaller is None:
            self._smaller = smaller_batches(self._run, self._whole, self._images, self._sizes)
        return self._smaller.get(size)

    def _follower(self, counts: tuple[int, ...]) -> Follower | None:
        """Return what runs the beginnings of slices on windows, so many at once; None if nothing can be run so."""
        hoped = [plan_windows(piece, self._whole) for piece in self._slices.values()]
        wanted = {local for plan in hoped if plan is not None for local in plan.locals}
        if not wanted:
            return None
        counts, able = settle(try_windows(self._run, self._whole, self._images, wanted, counts), counts)
        plans = {piece.source: plan_windows(piece, self._whole, able) for piece in self._slices.values()}
        return Follower(self._whole, counts, {source: plan for source, plan in plans.items() if plan is not None})

    def _needs(self, name: str) -> frozenset[Moment]:
        """Return the golden content for one site."""
        piece = self._slices[name]
        return self._player.needs(piece) | {piece.source.view.moment}

    def _bytes(self, moments: set[Moment] | frozenset[Moment]) -> int:
        """Return the memory of golden content that the model does not hold anyway."""
        roots = [self._tape.roots[buffer] for buffer, _ in moments if buffer not in self._tape.external]
        return sum(torch.Size(root.size).numel() * root.dtype.itemsize for root in roots)


def _sizes(batch: int, sixteenths: Sequence[int]) -> tuple[int, ...]:
    """Return the numbers of images that are such parts of a batch."""
    return tuple(sorted({batch * part // 16 for part in sixteenths} - {0}))


def _slice(tape: Tape, site: Site) -> Slice:
    """Return what comes after a site in a pass."""
    marks = tape.marks.get(site.name, [])
    if len(marks) != 1:
        raise ControlFlowError(f"it came by {len(marks)} times")
    return slice_after(tape, marks[0])


def _again(
    player: Player, piece: Slice, golden: Mapping[Moment, Tensor], disturbed: Tensor, logits: Tensor
) -> Tensor | None:
    """Return the logits of a rerun after a disturbed tensor, or None if it cannot be run."""
    root = copy_memory(golden[piece.source.view.moment])
    piece.source.view.on(root).copy_(disturbed)
    try:
        played = player.play(piece, golden, root)
    except (ControlFlowError, RuntimeError):
        return None
    again = logits.clone()
    again[played.images] = played.logits
    return again


def _equal(again: Tensor | None, full: Tensor) -> bool:
    """Whether two results have the same bits, whatever kind of NaN they hold."""
    return again is not None and same_bits(again, full)


def _readable(size: int) -> str:
    """Return a number of bytes as people read it."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"


def _free_memory(device: torch.device) -> int:
    """Return the bytes that are free on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 4 * 2**30
