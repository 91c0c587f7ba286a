"""Whether a fault in one image of a batch stays there."""

import torch
from torch import Tensor, nn

from resilient_heads.campaign.golden.golden_run import logits_of
from resilient_heads.errors import InjectionError
from resilient_heads.injection.sites.hooks import watch_sites
from resilient_heads.injection.sites.site import Site


def disturbed_pass(model: nn.Module, site: Site, images: Tensor, image: int, *, extreme: bool) -> tuple[Tensor, Tensor]:
    """Disturb all of an image's neurons at a site, and run what follows.

    Args:
        model: The model.
        site: The site.
        images: A batch.
        image: Which one is disturbed.
        extreme: Whether its values become as large as the format allows, as a flip of the top exponent bit makes them,
            or stay of their size.

    Returns:
        The site's tensor as it was disturbed, and the logits.
    """
    seen: list[Tensor] = []

    def disturb(_name: str, tensor: Tensor) -> Tensor:
        changed = tensor.clone(memory_format=torch.preserve_format)
        own = site.layout.of_image(changed, image)
        own.copy_(torch.where(own < 0, -1.0, 1.0) * torch.finfo(own.dtype).max / 4 if extreme else 1 - 2 * own)
        seen.append(changed.clone(memory_format=torch.preserve_format))
        return changed

    with watch_sites(model, [site], disturb):
        logits = logits_of(model, images)
    if len(seen) != 1:
        raise InjectionError(f"No fault struck {site.name!r}: it came by {len(seen)} times in a pass.")
    return seen[0], logits


def require_separate(site: Site, golden: Tensor, disturbed: Tensor, image: int) -> None:
    """Raise InjectionError unless disturbing one image left the logits of the others alone."""
    others = [row for row in range(len(golden)) if row != image]
    if not torch.equal(golden[others], disturbed[others]):
        raise InjectionError(
            f"A fault of one image at {site.name!r} reaches other images of its batch, as through statistics "
            "taken over the batch, so a trial would not be one flip. Pass batch_size=1."
        )
