"""Golden passes that keep what reruns read, and reruns of what depends on a faulty site."""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from resilient_heads.campaign.golden.golden_run import logits_of
from resilient_heads.campaign.run.batch_isolation import check_isolation
from resilient_heads.evaluation import reason_of
from resilient_heads.incremental.equivalence.checked_runner import checked_runner
from resilient_heads.incremental.recording.forward_slice import ForwardSlice, slice_after
from resilient_heads.incremental.recording.recorded_pass import RecordedPass, locate_images
from resilient_heads.incremental.recording.recorder import Recorder, record
from resilient_heads.incremental.recording.tape import BufferVersion, ControlFlowError, GoldenContent, Tape, copy_memory
from resilient_heads.incremental.recording.words import same_bits
from resilient_heads.incremental.slice_runner import SliceRunner
from resilient_heads.injection.apply.core import SiteInjection
from resilient_heads.injection.sites.hooks import watch_sites
from resilient_heads.injection.sites.site import Site
from resilient_heads.phases import phase

logger = logging.getLogger(__name__)

_LEAST_BATCH = 4
"""Images from which on a batch can shrink: finding where they lie takes three of them."""


@dataclass(frozen=True, slots=True, eq=False)
class GoldenPass:
    """A fault-free pass over one batch.

    Attributes:
        logits: ``(N, C)``.
        content: What reruns read; empty if the model ran other operations than for the first batch.
    """

    logits: Tensor
    content: GoldenContent


class IncrementalEngine:
    """Runs only those operations of a model that depend on a faulty site, for batches of one size.

    Args:
        model: The model, within :func:`~resilient_heads.evaluation.evaluating`.
        sites: Where faults will be injected.
        images: A batch; the engine records the model's pass over it.
        memory_limit: Bytes that golden content may take; by default half of what is free.
        batches: How many batches the engine will run; for more batches it checks more sizes to which they may shrink.

    Attributes:
        blocked: By name, the sites that need full passes of the model, and why.
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
        self.blocked: dict[str, str] = {}
        self._model = model
        self._sites = {site.name: site for site in sites}
        self._slices: dict[str, ForwardSlice] = {}
        self._images = images
        self._warned = False
        self._memory_limit = _free_memory(images.device) // 2 if memory_limit is None else memory_limit
        self._tape = Tape()
        self._runner = SliceRunner(RecordedPass(len(images), self._tape, {}))
        try:
            with phase("recording a forward pass"):
                self._record_batch(images, batches)
        except Exception as error:  # Full passes need no recorder, so they are right for any operator.
            self._exclude_all(_cannot_record(error))

    def _record_batch(self, images: Tensor, batches: int) -> None:
        """Record the pass over a batch, and prepare the reruns of those sites that can be rerun."""
        record(self._run, images)  # models may set up caches for a new batch size
        self._tape = record(self._run, images)[0].tape
        self._slices = self._slices_of(self._tape)
        if not self._slices:
            return
        full = RecordedPass(len(images), self._tape, {})
        if len(images) >= _LEAST_BATCH:
            full = locate_images(self._run, self._tape, images)
        self._runner = checked_runner(self._run, full, self._slices.values(), images, batches)
        for name in list(self._slices):
            size = self._bytes(self._golden_inputs(name))
            if size > self._memory_limit:
                limit = self._memory_limit / 1e6
                self._exclude(name, f"it needs {size / 1e6:.2f} MB of golden content; memory_limit is {limit:.2f} MB")

    def block(self, names: Sequence[str], reason: str) -> None:
        """Take full passes for some sites from now on, and log why."""
        for name in names:
            self._exclude(name, reason)
        where = "every site" if 1 < len(names) == len(self._sites) else ", ".join(map(repr, names))
        logger.warning("Every batch of faults at %s takes a full pass of the model: %s.", where, reason)

    def group_sites(self, names: Sequence[str]) -> list[list[str]]:
        """Distribute sites over golden passes, so that each pass keeps no more than the memory limit."""
        groups: list[list[str]] = [[]]
        kept: frozenset[BufferVersion] = frozenset()
        for name in names:
            inputs = self._golden_inputs(name)
            if groups[-1] and self._bytes(kept | inputs) > self._memory_limit:
                groups.append([])
                kept = frozenset()
            groups[-1].append(name)
            kept |= inputs
        return groups

    def golden_pass(self, images: Tensor, group: Sequence[str]) -> GoldenPass:
        """Run the model on a batch without faults, and keep what reruns of some sites need."""
        keep = frozenset().union(*(self._golden_inputs(name) for name in group))
        if not keep:
            return GoldenPass(self._run(None, images), {})
        try:
            recorder, logits = record(self._run, images, keep)
        except Exception as error:
            self.block(list(self._slices), _cannot_record(error))
            return GoldenPass(self._run(None, images), {})
        same = recorder.tape.steps == self._tape.steps and keep <= recorder.kept.keys()
        if not same and not self._warned:
            logger.warning("The model runs other operations for some batches; every site takes full passes for them.")
            self._warned = True
        return GoldenPass(logits, recorder.kept if same else {})

    def gives_logits(self, name: str) -> bool:
        """Return whether a site's tensor is the logits, or is only copied into them."""
        forward_slice, logits = self._slices.get(name), self._tape.logits
        if forward_slice is None or logits is None or not forward_slice.reaches_logits:
            return False
        steps = [self._tape.steps[number] for number in forward_slice.steps]
        same_size = forward_slice.source.view.size == logits.size
        return same_size and all(step.func is torch.ops.aten.clone.default for step in steps)

    def incremental_pass(
        self, name: str, golden: GoldenPass, write: Callable[[Tensor, Tensor], SiteInjection]
    ) -> tuple[SiteInjection, Tensor] | None:
        """Run what depends on a site, with faults in it.

        Args:
            name: Of the site.
            golden: The pass over the batch.
            write: Called with a copy of the site's tensor, into which it writes the faults, and with the golden tensor.

        Returns:
            What ``write`` returned, and the logits of the batch, ``(N, C)``; None if the site needs a full pass. If the
            rerun fails, the engine blocks the site.
        """
        view = self._slices[name].source.view if name in self._slices else None
        if view is None or view.content not in golden.content:
            return None
        clean = golden.content[view.content]
        memory = copy_memory(clean)
        injection = write(view.on(memory), view.on(clean))
        try:
            logits = self._runner.run(self._slices[name], golden.content, golden.logits, memory, injection.where)
        except Exception as error:  # The full pass that follows raises what is the model's own fault.
            self.block([name], f"a rerun failed ({reason_of(error)})")
            return None
        return injection, logits

    def check_sites(self) -> None:
        """Compare a rerun with a full pass at every site, block the sites that differ, and log all blocked ones.

        Raises:
            InjectionError: A change of one image reaches another.
        """
        images = self._images[:2].clone(memory_format=torch.preserve_format)
        runner, slices = self._runner, dict[str, ForwardSlice]()
        golden = GoldenPass(self._run(None, images), {})
        if self._slices:
            try:
                runner, slices, golden = self._record_pair(images)
            except Exception as error:
                self._exclude_all(_cannot_record(error))
        name = "checking that a rerun gives the same bits as a full pass"
        with phase(name, total=len(self._sites), unit="site") as advance:
            for site in self._sites.values():
                for disturbed, full in check_isolation(self._model, site, images, golden.logits):
                    if site.name not in self._slices:
                        continue
                    if site.name not in slices:
                        self._exclude(site.name, "the model runs other operations for another batch")
                    elif not _agrees_with_full_pass(runner, slices[site.name], golden, disturbed, full):
                        self._exclude(site.name, "a rerun differs from a full pass")
                advance(1)
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.blocked.items():
            by_reason.setdefault(reason, []).append(name)
        for reason, names in by_reason.items():
            self.block(names, reason)

    def _record_pair(self, images: Tensor) -> tuple[SliceRunner, dict[str, ForwardSlice], GoldenPass]:
        """Record a pass over two images; return what reruns its slices, the slices, and the pass."""
        record(self._run, images)
        tape = record(self._run, images)[0].tape
        slices = self._slices_of(tape) if tape.same_operators(self._tape) else {}
        runner = SliceRunner(RecordedPass(len(images), tape, {}))
        keep = frozenset().union(*(runner.golden_inputs(forward_slice) for forward_slice in slices.values()))
        recorder, logits = record(self._run, images, keep)
        return runner, slices if recorder.tape.steps == tape.steps else {}, GoldenPass(logits, recorder.kept)

    def _run(self, recorder: Recorder | None, images: Tensor) -> Tensor:
        """Run the model, and mark the sites' tensors."""
        cached = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)  # so that every pass runs the same casts
        try:
            if recorder is None:
                return logits_of(self._model, images, during="a golden run of the incremental engine")
            with watch_sites(self._model, list(self._sites.values()), recorder.mark):
                return logits_of(self._model, images, during="a golden run of the incremental engine")
        finally:
            torch.set_autocast_cache_enabled(cached)

    def _slices_of(self, tape: Tape) -> dict[str, ForwardSlice]:
        """Return the forward slices of the sites in a pass; exclude the sites that have none."""
        slices = {}
        for name in self._sites:
            if name in self.blocked:
                continue
            marks = tape.marks.get(name, [])
            try:
                if tape.obstacle is not None:
                    raise ControlFlowError(tape.obstacle)
                if len(marks) != 1:
                    raise ControlFlowError(f"it ran {len(marks)} times in one pass; expected once")
                slices[name] = slice_after(tape, marks[0])
            except ControlFlowError as error:
                self._exclude(name, str(error))
        return slices

    def _exclude(self, name: str, reason: str) -> None:
        """Take full passes for a site from now on."""
        self._slices.pop(name, None)
        self.blocked[name] = reason

    def _exclude_all(self, reason: str) -> None:
        """Take full passes for every site from now on."""
        for name in self._sites:
            self._exclude(name, reason)

    def _golden_inputs(self, name: str) -> frozenset[BufferVersion]:
        """Return the golden content that reruns of a site need; none for a blocked site."""
        return self._runner.golden_inputs(self._slices[name]) if name in self._slices else frozenset()

    def _bytes(self, contents: frozenset[BufferVersion]) -> int:
        """Return the memory of golden content, without what the model holds anyway."""
        bases = [self._tape.bases[buffer] for buffer, _ in contents if buffer not in self._tape.external]
        return sum(torch.Size(base.size).numel() * base.dtype.itemsize for base in bases)


def _agrees_with_full_pass(
    runner: SliceRunner, forward_slice: ForwardSlice, golden: GoldenPass, disturbed: Tensor, full: Tensor
) -> bool:
    """Return whether a rerun after a disturbed tensor gives the logits of a full pass."""
    source = forward_slice.source.view
    memory = copy_memory(golden.content[source.content])
    source.on(memory).copy_(disturbed)
    try:
        return same_bits(runner.run(forward_slice, golden.content, golden.logits, memory), full)
    except Exception:  # No failure of a rerun matters, as a full pass takes its place.
        return False


def _cannot_record(error: Exception) -> str:
    """Return the reason for full passes of a model whose pass the recorder cannot follow."""
    return f"its operations cannot be recorded ({reason_of(error)})"


def _free_memory(device: torch.device) -> int:
    """Return the bytes that are free on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 4 * 2**30
