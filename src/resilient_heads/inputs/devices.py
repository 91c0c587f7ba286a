"""Where to run."""

import os

import torch

from resilient_heads.errors import ArgumentError


def usable_device(name: str) -> torch.device:
    """Return the device of a name; ``cuda`` is the one of ``LOCAL_RANK`` where a launcher has set that.

    Raises:
        ArgumentError: No tensor can be put there.
    """
    local = os.environ.get("LOCAL_RANK", "")
    chosen = f"cuda:{local}" if name == "cuda" and local.isdecimal() else name
    try:
        torch.zeros(1, device=chosen).item()
        return torch.device(chosen)
    except (RuntimeError, AssertionError) as error:
        raise ArgumentError(f"The device {chosen!r} cannot be used: {str(error).splitlines()[0]}") from error
