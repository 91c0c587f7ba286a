"""Golden passes that keep what reruns need, and reruns of what comes after a struck site."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from resilient_heads.campaign.golden import logits_of
from resilient_heads.errors import InjectionError
from resilient_heads.injection.sites import Site, watch_sites
from resilient_heads.rerun.batches import Batch, smaller_batches, whole_batch
from resilient_heads.rerun.player import Player
from resilient_heads.rerun.recorder import Recorder, copy_memory, record
from resilient_heads.rerun.slices import ControlFlowError, Slice, slice_after
from resilient_heads.rerun.tape import Moment, Tape

_LEAST_BATCH = 4
_CHECKED_IMAGES = 2
_MANY_BATCHES = 64


@dataclass(frozen=True, slots=True, eq=False)
class Golden:
    """A fault-free pass over one batch.

    Attributes:
        logits: ``(N, C)``.
        content: What reruns read; empty where the pass took another way than the first one.
    """

    logits: Tensor
    content: Mapping[Moment, Tensor]


class Reruns:
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
        recorder, self.logits = record(self._run, images)
        self._tape = recorder.tape
        for site in sites:
            try:
                self._slices[site.name] = _slice(self._tape, site)
            except ControlFlowError as error:
                self.blocked[site.name] = str(error)
        whole = whole_batch(self._run, self._tape, images) if len(images) >= _LEAST_BATCH else None
        parts = (1, 2, 3, 4, 5, 6, 7) if batches >= _MANY_BATCHES else (1, 2, 4, 6)
        eighths = {len(images) * part // 8 for part in parts} - {0}
        self._sizes = tuple(sorted(eighths)) if whole is not None else ()
        self._whole = Batch(len(images), self._tape, {}) if whole is None else whole
        self._player = Player(self._whole, self._fewer, self._sizes)
        self._limit = _free_memory(images.device) // 2 if memory_limit is None else memory_limit

    def groups(self, names: Sequence[str]) -> list[list[str]]:
        """Share sites out among golden passes, each of which keeps no more than the memory limit.

        Raises:
            InjectionError: What a single site needs is more.
        """
        groups: list[list[str]] = [[]]
        kept: set[Moment] = set()
        for name in names:
            own = self._needs(name) if name in self._slices else frozenset()
            if self._bytes(own) > self._limit:
                raise InjectionError(
                    f"Reruns after {name!r} need {self._bytes(own) / 1e6:.1f} MB for a batch of {len(self._images)}, "
                    f"more than the {self._limit / 1e6:.1f} MB of memory_limit; pass a smaller batch_size or a higher "
                    "memory_limit."
                )
            if groups[-1] and self._bytes(kept | own) > self._limit:
                groups.append([])
                kept = set()
            groups[-1].append(name)
            kept |= own
        return groups

    def golden(self, images: Tensor, group: Sequence[str]) -> Golden:
        """Run a batch fault-free, and keep what reruns of some sites need."""
        keep = frozenset().union(*(self._needs(name) for name in group if name in self._slices))
        recorder, logits = record(self._run, images, keep)
        same = recorder.tape.steps == self._tape.steps and keep <= recorder.kept.keys()
        return Golden(logits, recorder.kept if same else {})

    def tensor(self, name: str, golden: Golden) -> tuple[Tensor, Tensor] | None:
        """Return a fault-free site's tensor on memory of its own, and that memory; None if it must be run in full."""
        view = self._slices[name].source.view if name in self._slices else None
        if view is None or view.moment not in golden.content:
            return None
        root = copy_memory(golden.content[view.moment])
        return view.on(root), root

    def rerun(self, name: str, golden: Golden, struck: Tensor) -> Tensor:
        """Return the logits of the whole batch, ``(N, C)``, given the memory of a site's tensor with faults in it."""
        played = self._player.play(self._slices[name], golden.content, struck)
        logits = golden.logits.clone()
        logits[played.images] = played.logits
        return logits

    def check(self) -> None:
        """Disturb one of a few images at every site, and compare reruns with full passes; block sites that differ.

        Raises:
            InjectionError: What happens to one image reaches another.
        """
        images = self._images[:_CHECKED_IMAGES].clone(memory_format=torch.preserve_format)
        recorder, logits = record(self._run, images)
        tape = recorder.tape
        slices: dict[str, Slice] = {}
        if len(tape.steps) == len(self._tape.steps):
            slices = {name: _slice(tape, self._sites[name]) for name in self._slices}
        player = Player(Batch(len(images), tape, {}), lambda size: None, ())
        keep = frozenset().union(*(s.needs | {s.source.view.moment} for s in slices.values()))
        recorder, _ = record(self._run, images, keep)
        for site in self._sites.values():
            disturbed: list[Tensor] = []

            def disturb(_name: str, tensor: Tensor, site: Site = site, disturbed: list[Tensor] = disturbed) -> Tensor:
                changed = tensor.clone(memory_format=torch.preserve_format)
                own = site.rows.of_image(changed, 0)
                own.copy_(1 - 2 * own)
                disturbed.append(changed.clone(memory_format=torch.preserve_format))
                return changed

            with watch_sites(self._model, [site], disturb):
                full = logits_of(self._model, images)
            if not torch.equal(full[1:], logits[1:]):
                raise InjectionError(
                    f"A fault of one image at {site.name!r} reaches other images of its batch, as through statistics "
                    "taken over the batch, so a trial would not be one flip. Pass batch_size=1."
                )
            if site.name not in slices:
                self._slices.pop(site.name, None)
                self.blocked.setdefault(site.name, "the model does other operations for a smaller batch")
                continue
            view = slices[site.name].source.view
            root = copy_memory(recorder.kept[view.moment])
            view.on(root).copy_(disturbed[0])
            again = logits.clone()
            played = player.play(slices[site.name], recorder.kept, root)
            again[played.images] = played.logits
            if not torch.equal(again, full) and not _both_nan(again, full):
                del self._slices[site.name]
                self.blocked[site.name] = "a rerun differs from a full pass"

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

    def _needs(self, name: str) -> frozenset[Moment]:
        """Return the golden content for one site."""
        piece = self._slices[name]
        return self._player.needs(piece) | {piece.source.view.moment}

    def _bytes(self, moments: set[Moment] | frozenset[Moment]) -> int:
        """Return the memory of golden content that the model does not hold anyway."""
        roots = [self._tape.roots[buffer] for buffer, _ in moments if buffer not in self._tape.external]
        return sum(torch.Size(root.size).numel() * root.dtype.itemsize for root in roots)


def _slice(tape: Tape, site: Site) -> Slice:
    """Return what comes after a site in a pass."""
    marks = tape.marks.get(site.name, [])
    if len(marks) != 1:
        raise ControlFlowError(f"it came by {len(marks)} times")
    return slice_after(tape, marks[0])


def _both_nan(first: Tensor, second: Tensor) -> bool:
    """Whether two results agree where they are numbers, and are no numbers in the same places."""
    return torch.equal(first.isnan(), second.isnan()) and torch.equal(first.nan_to_num(), second.nan_to_num())


def _free_memory(device: torch.device) -> int:
    """Return the bytes that are free on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 4 * 2**30
