"""Strike every row of a batch, each with its own trial: what campaigns run on."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from resilient_heads.errors import FaultError, InjectionError
from resilient_heads.injection.apply.activations import never, plain_tensor
from resilient_heads.injection.apply.strike import unraveled, write
from resilient_heads.injection.faults.draws import Draws
from resilient_heads.injection.faults.effects import Flip
from resilient_heads.injection.faults.fault_model import FaultModel
from resilient_heads.injection.faults.ranges import RangeDetector, apply_range
from resilient_heads.injection.formats.bits import stored_words
from resilient_heads.injection.sites.modules import module_named, refuse_scripts
from resilient_heads.injection.sites.nested import locate, replaced


@dataclass(slots=True)
class Strike:
    """What a batch injection saw at the site.

    Attributes:
        before: ``(N, K)``, the fault-free values of the struck neurons (``(N,)`` from :func:`inject_batch`); set once
            the forward pass has run. Where a trial strikes fewer than K, any value.
        after: The same values under the fault, before any range detector.
        changed: Of the same shape, whether the fault changed the value. A flip always does; what is stuck at what it
            was, or not struck, is False.
        flat: Whether K is 1 and left out of the shapes.
    """

    before: Tensor = field(default_factory=lambda: torch.empty(0))
    after: Tensor = field(default_factory=lambda: torch.empty(0))
    changed: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))
    flat: bool = False

    def note(self, before: Tensor, after: Tensor) -> None:
        """Fill in what the forward pass saw, ``(N, K)`` each."""
        self.before, self.after = (x[:, 0] if self.flat else x for x in (before, after))
        self.changed = stored_words(self.before) != stored_words(self.after)


@contextmanager
def inject_trials(
    model: nn.Module,
    layer: str,
    draws: Draws,
    *,
    fault_model: FaultModel | None = None,
    range_limit: float | None = None,
    detector: RangeDetector = "clamp",
) -> Iterator[Strike]:
    """Strike every row of a batch at one layer's output, each row with its own draws.

    Args:
        model: The model; run it exactly once inside the block, on a batch of N.
        layer: Dotted name of the module whose output (the first floating tensor of it) is struck.
        draws: Of N trials, from :meth:`FaultModel.draw`.
        fault_model: The fault model that drew them; None is the default one, a single flip.
        range_limit: Range of the layer for the range detector; None leaves struck values alone.
        detector: What becomes of a struck value that is NaN, infinite or larger in magnitude than the limit:
            ``"clamp"`` makes it the limit with its sign (NaN: positive), ``"zero"`` makes it 0.

    Yields:
        A :class:`Strike`, filled by the forward pass.

    Raises:
        InjectionError: The layer did not run exactly once, or anything else changed than what was drawn.
        FaultError: An unknown layer, or an element that does not exist.

    Source: range detector after Mahmoud et al., *GoldenEye*, DSN 2022.
    """
    refuse_scripts(model)
    module, chosen = module_named(model, layer), fault_model or FaultModel()
    strike, fired = Strike(), 0
    apply_range(torch.zeros(1), range_limit, detector)  # a wrong range_limit is told before anything runs

    def hook(_module: nn.Module, _inputs: object, output: object) -> object:
        nonlocal fired
        fired += 1
        path, golden = locate(output, None, f"the output of {layer!r}")
        golden = plain_tensor(golden, f"the output of {layer!r}")
        if golden.ndim < 2 or golden.shape[0] != len(draws.neurons):
            raise InjectionError(
                f"{layer!r} gave an output of shape {tuple(golden.shape)} for {len(draws.neurons)} faults; expected "
                "one row for each."
            )
        return replaced(output, path, _struck(golden, layer, draws, chosen, range_limit, detector, strike))

    handle = module.register_forward_hook(hook)
    try:
        yield strike
    finally:
        handle.remove()
    if fired != 1:
        raise InjectionError(never(layer) if not fired else f"{layer!r} ran {fired} times; expected one run.")


@contextmanager
def inject_batch(
    model: nn.Module, layer: str, neurons: Tensor, bits: Tensor, *, range_limit: float | None = None
) -> Iterator[Strike]:
    """Flip one bit in every row of a batch at one layer, each row in its own neuron and bit.

    Args:
        model: The model; run it exactly once inside the block, on a batch of N.
        layer: Dotted name of the module whose output is struck.
        neurons: ``(N,)``, flat index into one sample's output.
        bits: ``(N,)``, position in the word.
        range_limit: Range of the layer for the range detector: a flipped value that is NaN, infinite or larger
            becomes the limit with the flipped value's sign (NaN: positive). None leaves flipped values alone.

    Yields:
        A :class:`Strike` of ``(N,)`` values, filled by the forward pass.

    Raises:
        InjectionError: The layer did not run exactly once, or anything else than one bit of each row changed.
        FaultError: An unknown layer, or a neuron or bit that does not exist.

    Source: range detector after Mahmoud et al., *GoldenEye*, DSN 2022.
    """
    if neurons.shape != bits.shape or neurons.ndim != 1:
        raise FaultError(
            f"Expected one neuron and one bit a row, found {tuple(neurons.shape)} and {tuple(bits.shape)}."
        )
    positions = bits.cpu().numpy().astype(np.int64)
    if len(positions) and not 0 <= positions.min() <= positions.max() < 64:
        wrong = positions.min() if positions.min() < 0 else positions.max()
        raise FaultError(f"Bit {wrong} does not exist; a word has at most 64.")
    masks = np.uint64(1) << positions.astype(np.uint64)
    places = neurons.cpu().numpy().astype(np.int64)
    if (places < 0).any():
        raise FaultError(f"{layer!r} has neurons from 0 on; found the index {places.min()}.")
    draws = Draws.of_masks(places[:, None], np.full_like(masks, ~np.uint64(0))[:, None], masks[:, None])
    with inject_trials(model, layer, draws, range_limit=range_limit) as strike:
        strike.flat = True
        yield strike


def _struck(
    golden: Tensor,
    layer: str,
    draws: Draws,
    model: FaultModel,
    range_limit: float | None,
    detector: RangeDetector,
    strike: Strike,
) -> Tensor:
    """Return the output with every row struck, and note what was there."""
    shape, count = golden.shape[1:], golden.shape[1:].numel()
    hit = draws.neurons >= 0
    if hit.any() and int(draws.neurons.max()) >= count:
        raise FaultError(f"{layer!r} has {count} neurons; found the index {int(draws.neurons.max())}.")
    context = None
    if model.needs_context:
        context = model.context(golden.reshape(len(golden), -1), draws)
    index = unraveled(np.maximum(draws.neurons, 0), np.arange(len(golden)), shape, golden.device)
    struck = torch.from_numpy(hit).to(golden.device)
    place = tuple(one[struck] for one in index)
    before = stored_words(golden.detach())[index].view(golden.dtype)
    after = model.corrupt(before, draws, context=context)
    faulty = golden.clone(memory_format=torch.preserve_format)
    write(faulty, place, after[struck])
    _verify(golden.detach(), faulty.detach(), place, after[struck], draws, model, layer)
    if range_limit is not None:
        write(faulty, place, apply_range(after[struck], range_limit, detector))
    strike.note(before, after)
    return faulty


def _verify(
    golden: Tensor,
    faulty: Tensor,
    place: tuple[Tensor, ...],
    after: Tensor,
    draws: Draws,
    model: FaultModel,
    layer: str,
) -> None:
    """Check that every struck element is what it should be, and no other changed, in what the next layer will read."""
    held = stored_words(faulty)
    difference = torch.bitwise_xor(held, stored_words(golden))
    due = difference[place]
    exact = held[place] == stored_words(after)
    wanted = int(torch.count_nonzero(due))
    if isinstance(model.effect, Flip) and not model.shared:
        wanted = len(due)
        if model.format is None:
            flip = torch.from_numpy(draws.flip[draws.neurons >= 0]).to(due.device)
            exact &= due == flip.to(due.dtype)
    changed = int(torch.count_nonzero(difference))
    if not bool(exact.all()) or changed != wanted:
        raise InjectionError(
            f"An injection into {layer!r} changed {changed} elements where {len(due)} faults were due, or not as "
            "drawn; the trial would have measured something else."
        )
