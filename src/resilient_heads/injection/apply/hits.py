"""Put drawn faults into every image of a batch, in a site's tensor that has been computed."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resilient_heads.errors import FaultError, InjectionError
from resilient_heads.injection.apply.strike import write
from resilient_heads.injection.faults.draws import Draws
from resilient_heads.injection.faults.effects import BitEffect
from resilient_heads.injection.faults.fault_model import FaultModel
from resilient_heads.injection.faults.ranges import RangeDetector, apply_range
from resilient_heads.injection.formats.bits import stored_words
from resilient_heads.injection.sites.site import Site


@dataclass(frozen=True, slots=True, eq=False)
class Hit:
    """What faults did to the first element that each of N trials strikes.

    Attributes:
        before: ``(N,)``, fault-free values.
        after: ``(N,)``, values under the fault, before any range detector.
        where: Index of these elements in the tensor, ``(N,)`` for each dimension; None unless every trial strikes one
            element and no more.
    """

    before: Tensor
    after: Tensor
    where: tuple[Tensor, ...] | None = None


def hit_(
    tensor: Tensor,
    site: Site,
    draws: Draws,
    *,
    model: FaultModel,
    range_limit: float | None = None,
    detector: RangeDetector = "clamp",
) -> Hit:
    """Strike every image of a batch, each with its own trial, in place.

    Args:
        tensor: The site's tensor for N images.
        site: The site.
        draws: Of N trials.
        model: What drew them.
        range_limit: Range of the site for the detector; None leaves struck values alone.
        detector: What becomes of values beyond the range.

    Raises:
        InjectionError: What the tensor holds afterwards is not what was drawn.
        FaultError: An element that does not exist.
    """
    device, trials = tensor.device, len(draws.neurons)
    rows = torch.arange(trials, device=device)[:, None].expand(draws.neurons.shape)
    neurons = torch.from_numpy(draws.neurons).to(device)
    if draws.neurons.size and int(draws.neurons.max()) >= site.neurons:
        raise FaultError(f"{site.name!r} has {site.neurons} neurons; found the index {int(draws.neurons.max())}.")
    struck = neurons >= 0
    index = site.index(rows, neurons.clamp(min=0), trials)
    context = None
    if model.needs_context:
        parts, dim = site.layout.split_images(tensor)
        context = model.context(parts.movedim(dim, 0).reshape(trials, -1), draws)
    before = stored_words(tensor)[index].view(tensor.dtype)
    after = model.corrupt(before, draws, context=context)
    place = tuple(one[struck] for one in index)
    write(tensor, place, after[struck])
    _verify(stored_words(tensor)[place], before, after, struck, draws, model, site.name)
    if range_limit is not None:
        write(tensor, place, apply_range(after[struck], range_limit, detector))
    if not draws.neurons.shape[1]:
        nothing = torch.full((trials,), torch.nan, device=device)
        return Hit(nothing, nothing)
    excluded = ~struck[:, 0]
    single = struck.shape[1] == 1 and not bool(excluded.any())
    before, after = (values[:, 0].masked_fill(excluded, torch.nan) for values in (before, after))
    return Hit(before, after, place if single else None)


def _verify(
    held: Tensor, before: Tensor, after: Tensor, struck: Tensor, draws: Draws, model: FaultModel, name: str
) -> None:
    """Check what is in memory: the intended values, and for bits of the tensor's own words exactly the drawn ones."""
    right = torch.equal(held, stored_words(after.contiguous())[struck])
    if isinstance(model.effect, BitEffect) and model.format is None:
        keep, flip = (torch.from_numpy(mask).to(held.device)[struck] for mask in (draws.keep, draws.flip))
        words = stored_words(before.contiguous())[struck].to(torch.int64)
        right &= torch.equal(held, ((words & keep) ^ flip).to(held.dtype))
    if not right:
        raise InjectionError(
            f"An injection into {name!r} did not change exactly what was drawn; the trial would have measured "
            "something else."
        )


def first(column: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the first of K elements of each trial, ``(N,)``; -1 where there is none."""
    return column[:, 0] if column.shape[1] else np.full(len(column), -1)
