"""The injection core: write drawn faults into a tensor, verify the whole tensor, observe.

``inject``, ``run_campaign``, ``run_exhaustive`` and ``replay`` write every fault here. Without the verification, a
campaign could report that a model is resilient when in truth nothing was injected.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from resilient_heads.errors import FaultError, InjectionError
from resilient_heads.incremental.recording.words import words
from resilient_heads.injection.faults.draws import Draws
from resilient_heads.injection.faults.effects import BitEffect, RandomWord
from resilient_heads.injection.faults.fault_model import FaultModel
from resilient_heads.injection.faults.ranges import RangeDetector, apply_range
from resilient_heads.injection.random.streams import Indices
from resilient_heads.injection.sites.site import Site

ImagesFirst = Callable[[Tensor], Tensor]
"""Returns a view of a tensor whose first dimension counts images: ``(N, *shape)``."""

Select = Callable[[Tensor], Tensor]
"""Returns the ``(S,)`` values of the injected elements among ``(N, K)`` values."""


@dataclass(frozen=True, slots=True, eq=False)
class Write:
    """What one fault model wrote into K elements of each of N images.

    Attributes:
        images: ``(N', *shape)``, the faulty tensor with images first; a view of its memory.
        index: Index of the S injected elements in ``images``, one ``(S,)`` tensor for each dimension.
        before: ``(N, K)``, the values before the write.
        after: ``(N, K)``, the faulty values, before any range detector.
        replaced: ``(S,)``, the values of ``before`` at the injected elements.
        written: ``(S,)``, the values that were written there: ``after`` as the range detector leaves it.
    """

    images: Tensor
    index: tuple[Tensor, ...]
    before: Tensor
    after: Tensor
    replaced: Tensor
    written: Tensor

    @property
    def addresses(self) -> Indices:
        """``(S,)``, addresses of the injected elements in memory, in bytes."""
        strides = self.images.stride()
        offset = torch.stack([one * stride for one, stride in zip(self.index, strides, strict=True)]).sum(dim=0)
        address: Indices = offset.cpu().numpy() * self.images.element_size() + np.int64(self.images.data_ptr())
        return address


class FaultyTensor:
    """A tensor that faults are written into, one after another.

    Args:
        faulty: The tensor to write into, in place. It holds the golden values.
        golden: The golden values, in other memory. They are read and never written.
        name: What errors call the tensor, such as ``"the output of 'fc'"``.
    """

    def __init__(self, faulty: Tensor, golden: Tensor, name: str) -> None:
        self.faulty = faulty
        self.golden = golden.detach()
        self.name = name
        self.writes: list[Write] = []

    def inject(
        self,
        draws: Draws,
        model: FaultModel,
        images_first: ImagesFirst,
        *,
        rows: Tensor | None = None,
        range_limit: float | None = None,
        detector: RangeDetector = "clamp",
    ) -> Write:
        """Write the draws of N trials into N images, in place; call :meth:`verify` after the last write.

        Args:
            draws: The draws of N trials.
            model: The fault model that made the draws.
            images_first: Brings the images of the tensor to the front.
            rows: ``(N,)``, the image of each trial; None gives trial i image i.
            range_limit: Range of the tensor for the range detector; None writes faulty values as they are.
            detector: What replaces a faulty value beyond the range.

        Raises:
            FaultError: The draws name an element that does not exist, or another number of images.
            InjectionError: The faulty values are not what the draws ask for.
        """
        images, golden = images_first(self.faulty), images_first(self.golden)
        rows = torch.arange(len(images), device=images.device) if rows is None else rows.to(images.device)
        self._check_elements(draws, len(rows), images.shape[1:])
        inner = np.unravel_index(np.maximum(draws.neurons, 0), images.shape[1:]) if images.ndim > 1 else ()
        every = (rows[:, None].expand(draws.neurons.shape), *(torch.from_numpy(one).to(images.device) for one in inner))
        context = None
        if model.needs_context:
            context = model.context(golden[rows].reshape(len(rows), -1), draws)
        before = words(images.detach())[every].view(images.dtype)
        after = model.corrupt(before, draws, context=context)
        select = _selection(draws, images.device)
        faulty = select(after)
        self._check_bits(select(before), faulty, select, draws, model)
        index = tuple(select(one) for one in every)
        written = apply_range(faulty, range_limit, detector)
        write_values(images, index, written)
        write = Write(images, index, before, after, select(before), written)
        self.writes.append(write)
        return write

    def verify(self) -> None:
        """Compare the whole tensor with the golden one, bit by bit.

        Raises:
            InjectionError: An injected element does not hold the value that was last written to it, or another
                element changed.
        """
        if not self.writes:
            return
        in_place, due = self._check_written()
        changed = _count_different(words(self.faulty.detach()), words(self.golden))
        if not in_place or changed != due:
            raise InjectionError(
                f"The injection into {self.name} went wrong: {changed} elements changed; expected {due}, exactly as "
                "drawn. The trial would have measured another fault."
            )

    def _check_written(self) -> tuple[bool, int]:
        """Return whether every injected element holds its last value, and how many elements must have changed."""
        if len(self.writes) == 1:  # Its elements are all different, so nothing needs to be sorted.
            write = self.writes[0]
            written = words(write.written)
            in_place = torch.equal(words(write.images.detach())[write.index], written)
            return in_place, int(torch.count_nonzero(written != words(write.replaced)))
        _, first, which = np.unique(
            np.concatenate([write.addresses for write in self.writes]), return_index=True, return_inverse=True
        )
        written = torch.cat([words(write.written) for write in self.writes])
        held = torch.cat([words(write.images.detach())[write.index] for write in self.writes])
        golden = torch.cat([words(write.replaced) for write in self.writes])[first]
        last = np.zeros(len(first), dtype=np.int64)
        last[which] = np.arange(len(which))  # The last write to an element decides.
        return torch.equal(held, written[last][which]), int(torch.count_nonzero(written[last] != golden))

    def _check_elements(self, draws: Draws, images: int, shape: torch.Size) -> None:
        """Raise FaultError unless the draws are of this many images and name existing elements."""
        if len(draws.neurons) != images:
            raise FaultError(
                f"Expected draws for {images} images of {self.name}, found draws for {len(draws.neurons)}."
            )
        highest = int(draws.neurons.max(initial=-1))
        if highest >= shape.numel():
            raise FaultError(
                f"{self.name} has the elements 0 to {shape.numel() - 1} in each image; found the element {highest}."
            )

    def _check_bits(self, before: Tensor, after: Tensor, select: Select, draws: Draws, model: FaultModel) -> None:
        """Raise InjectionError unless faults in bits of the tensor's own words changed exactly the drawn bits."""
        if model.format is not None or not isinstance(model.effect, BitEffect | RandomWord):
            return
        keep, flip = (select(torch.from_numpy(mask).to(after.device)) for mask in (draws.keep, draws.flip))
        held = words(before)
        drawn = ((held.to(torch.int64) & keep) ^ flip).to(held.dtype)
        if not torch.equal(words(after), drawn):
            raise InjectionError(f"The injection into {self.name} would change other bits than those drawn.")


@dataclass(frozen=True, slots=True, eq=False)
class SiteInjection:
    """What each of N trials did to the first element that it injects into.

    Attributes:
        draws: The draws of the trials.
        before: ``(N,)``, fault-free values; NaN for no element.
        after: ``(N,)``, faulty values, before any range detector; NaN for no element.
        where: Index of the elements in the site's tensor, one ``(N,)`` tensor for each dimension. None unless every
            trial injects into exactly one element.
    """

    draws: Draws
    before: Tensor
    after: Tensor
    where: tuple[Tensor, ...] | None

    @property
    def neurons(self) -> Indices:
        """``(N,)``, flat index into one image's part of the tensor; -1 for a trial that injects into no element."""
        return _first_column(self.draws.neurons)

    @property
    def bits(self) -> Indices:
        """``(N,)``, the lowest changed bit; -1 for no element, and for an effect on values."""
        return _first_column(self.draws.bits)


def inject_at_site(
    faulty: Tensor,
    golden: Tensor,
    site: Site,
    draws: Draws,
    *,
    model: FaultModel,
    range_limit: float | None = None,
    detector: RangeDetector = "clamp",
) -> SiteInjection:
    """Write one trial into each image of a batch, in place, and verify the whole tensor.

    Args:
        faulty: The site's tensor for N images, with the golden values, to write into.
        golden: The same tensor in other memory.
        site: The site.
        draws: The draws of N trials.
        model: The fault model that made the draws.
        range_limit: Range of the site for the range detector; None writes faulty values as they are.
        detector: What replaces a faulty value beyond the range.

    Raises:
        FaultError: An element that does not exist.
        InjectionError: The tensor differs from the golden one in more or less than what was drawn.
    """
    target = FaultyTensor(faulty, golden, repr(site.name))
    write = target.inject(draws, model, site.images_first, range_limit=range_limit, detector=detector)
    target.verify()
    trials, elements = draws.neurons.shape
    if not elements:
        missing = torch.full((trials,), torch.nan, device=faulty.device)
        return SiteInjection(draws, missing, missing, None)
    before, after, where = write.before[:, 0], write.after[:, 0], None
    without = draws.neurons[:, 0] < 0
    if without.any():
        mask = torch.from_numpy(without).to(before.device)
        if before.dtype.itemsize == 1:  # Not every device can fill one-byte floats.
            before, after = before.float(), after.float()
        before, after = (values.masked_fill(mask, torch.nan) for values in (before, after))
    elif elements == 1:
        where = site.whole_index(*write.index, batch=trials)
    return SiteInjection(draws, before, after, where)


def write_values(tensor: Tensor, index: tuple[Tensor, ...], values: Tensor) -> None:
    """Write values into a tensor, in place, without changing a bit of them.

    The function writes values, not words, so that autograd sees the write. One-byte floats are the exception, since
    not every device can index them.
    """
    if tensor.dtype.itemsize == 1:
        words(tensor)[index] = words(values)
    else:
        tensor[index] = values


def _selection(draws: Draws, device: torch.device) -> Select:
    """Return what selects the values of injected elements."""
    injected = draws.neurons >= 0
    if injected.all():  # The usual case, without a search for the elements.
        return torch.flatten
    mask = torch.from_numpy(injected).to(device)
    return lambda values: values[mask]


def _first_column(values: Indices) -> Indices:
    """Return the first of K values of each trial, ``(N,)``; -1 where K is 0."""
    return values[:, 0] if values.shape[1] else np.full(len(values), -1)


def _count_different(first: Tensor, second: Tensor) -> int:
    """Return the number of elements in which two integer tensors differ."""
    if first.device.type == "cpu":  # NumPy takes less than half of the time.
        # Not numpy(), after which PyTorch never lets the memory of a weight be resized or freed again.
        return int(np.count_nonzero(np.from_dlpack(first) != np.from_dlpack(second)))
    return int(torch.count_nonzero(first != second))
