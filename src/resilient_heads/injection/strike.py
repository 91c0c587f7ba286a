"""Put one drawn fault into every image of a batch, in a tensor that has been computed."""

from dataclasses import dataclass

import torch
from torch import Tensor

from resilient_heads.errors import InjectionError
from resilient_heads.injection.bits import bit_masks, flip_bits, words
from resilient_heads.injection.injector import clamp_to_range
from resilient_heads.injection.sampling import Draws
from resilient_heads.injection.sites import Site


@dataclass(frozen=True, slots=True, eq=False)
class Struck:
    """What faults did.

    Attributes:
        before: ``(N,)``, fault-free values of the struck neurons.
        after: ``(N,)``, the same values with their bit flipped, before any range detector.
    """

    before: Tensor
    after: Tensor


def strike_(tensor: Tensor, site: Site, draws: Draws, *, limit: float | None = None) -> Struck:
    """Flip a bit of one neuron of every image, in place.

    Args:
        tensor: The site's tensor for a batch of N images.
        site: The site.
        draws: N neurons and bits.
        limit: Range of the site for the range detector; None leaves flipped values alone.

    Raises:
        InjectionError: A bit did not change, or something else did.
        FaultError: A neuron or bit that does not exist.
    """
    device = tensor.device
    neurons, bits = (torch.from_numpy(column).to(device) for column in (draws.neurons, draws.bits))
    index = site.index(torch.arange(len(neurons), device=device), neurons, len(neurons))
    before = tensor[index]
    tensor[index] = flip_bits(before, bits)
    after = tensor[index]
    if not torch.equal(torch.bitwise_xor(words(after), words(before)), bit_masks(bits, tensor.dtype)):
        raise InjectionError(
            f"An injection into {site.name!r} did not change exactly the drawn bits; the trial would have measured "
            "something else."
        )
    if limit is not None:
        tensor[index] = clamp_to_range(after, limit)
    return Struck(before, after)
