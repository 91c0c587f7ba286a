"""Check that a fault in one image of a batch leaves the other images alone."""

import torch
from torch import Tensor, nn

from resilient_heads.campaign.run.injected_pass import injected_pass
from resilient_heads.errors import ForwardError, InjectionError
from resilient_heads.injection.sites.site import Site


def check_isolation(model: nn.Module, site: Site, images: Tensor, golden: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Check that a change of one image at a site leaves the logits of the other images alone.

    Each of the first two images is changed once, the last of them to the largest values of the format. A pass in which
    the model raises an error for the changed values does not count.

    Args:
        model: The model.
        site: The site.
        images: A batch.
        golden: The batch's fault-free logits.

    Returns:
        For each pass, the site's tensor after the change, and the logits.

    Raises:
        InjectionError: The logits of another image differ, or no pass came to its end.
    """
    passes = []
    error: ForwardError | None = None
    changed = range(min(2, len(images)))
    for image in changed:
        try:
            passes.append(_disturbed_pass(model, site, images, image, extreme=image == changed[-1]))
        except ForwardError as raised:
            error = raised
            continue
        _require_separate(site, golden, passes[-1][1], image)
    if not passes and len(images) > 1:
        raise InjectionError(
            f"It is unknown whether a fault in one image at {site.name!r} changes the logits of other images, because "
            f"the model raises an error for every changed value there. Pass batch_size=1. The error: {error}"
        ) from error
    return passes


def _disturbed_pass(
    model: nn.Module, site: Site, images: Tensor, image: int, *, extreme: bool
) -> tuple[Tensor, Tensor]:
    """Change all neurons of one image at a site, and run the rest of the model.

    Args:
        model: The model.
        site: The site.
        images: A batch.
        image: Position of the changed image in the batch.
        extreme: Change the values to a quarter of the dtype's largest value, as a flip of the top exponent bit might.
            Otherwise they keep their order of magnitude.

    Returns:
        The site's tensor after the change, and the logits.
    """

    def disturb(tensor: Tensor, _golden: Tensor) -> Tensor:
        part = site.layout.of_image(tensor, image)
        largest = torch.finfo(part.dtype).max / 4
        values = part.float() if part.element_size() == 1 else part  # No device computes with floats of one byte.
        changed = torch.where(values < 0, -1.0, 1.0) * largest if extreme else 1 - 2 * values
        part.copy_(changed.to(part.dtype))
        return tensor.clone(memory_format=torch.preserve_format)

    return injected_pass(model, site, images, disturb)


def _require_separate(site: Site, golden: Tensor, disturbed: Tensor, image: int) -> None:
    """Check that a change of one image left the logits of the other images alone.

    Raises:
        InjectionError: The logits of another image differ.
    """
    others = [row for row in range(len(golden)) if row != image]
    if not torch.equal(golden[others], disturbed[others]):
        raise InjectionError(
            f"A fault in one image at {site.name!r} changes the logits of other images in its batch, as through "
            "statistics over the batch, so a trial would not be one fault in one image. Pass batch_size=1."
        )
