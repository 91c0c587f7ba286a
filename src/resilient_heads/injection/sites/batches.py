"""The batches on which the search for fault sites runs a model: two sizes that it accepts, or its only one."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from resilient_heads.errors import ForwardError

T = TypeVar("T")


def first_images(images: Tensor, count: int) -> Tensor:
    """Return the first images, ``(count, ...)``; if there are fewer, they repeat."""
    return images[torch.arange(count) % len(images)]


def run_accepted(run: Callable[[Tensor], T], example_input: Tensor) -> tuple[list[T], tuple[int, ...]]:
    """Run a model on batches of two sizes that it accepts; if it accepts only the example's size, on one.

    Args:
        run: Runs the model on a batch.
        example_input: ``(N, ...)``, a batch that the model accepts.

    Returns:
        What ``run`` returned for each batch, and the sizes, ascending.

    Raises:
        ForwardError: The model refuses the example, too.
    """
    count = len(example_input)
    for sizes in ((2, 3), (count, 2 * count), (count, count + 1)):
        try:
            return [run(first_images(example_input, size)) for size in sizes], sizes
        except ForwardError:
            continue
    return [run(example_input)], (count,)
