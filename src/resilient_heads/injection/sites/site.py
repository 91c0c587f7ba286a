"""Fault sites as values: where a tensor comes from, and where the images of a batch lie in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from resilient_heads.display import as_code, columns, cut, shortened, wrapped
from resilient_heads.errors import FaultError, InjectionError
from resilient_heads.incremental.recording.batch_layout import BatchLayout
from resilient_heads.injection.faults.targets import Key, names_matching
from resilient_heads.injection.formats.dtypes import format_of
from resilient_heads.injection.sites.coverage import Coverage

Source = Literal["output", "product"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A fault site: one tensor that a model computes once in each forward pass.

    Attributes:
        module: Dotted name of the module that computes the tensor.
        call: Which run of the module within a forward pass, from 0.
        kind: Class of the module.
        shape: Shape of one image's part of the tensor.
        dtype: Dtype of the tensor.
        group: Name of the module that lists this site's module in its ``fault_sites``, or None.
        is_layer: Whether the module is a layer: a convolution, a linear or recurrent layer, an embedding, an attention.
            Published campaigns inject into Conv2d and Linear.
        source: ``"output"`` of the module, or ``"product"`` of the module's weight and an input, for a model that
            multiplies with the weight and never runs the module.
        dim: Dimension of the tensor along which images lie.
        fold: Entries of that dimension that belong to one image; above 1 where a model folds windows or tokens into
            the batch.
        interleaved: Whether entry f of image i lies at ``f * batch + i``. If False, it lies at ``i * fold + f``.
        path: Keys of the tensor in what the module returns, from the outside in; ``()`` if it returns the tensor.
        label: Name of the site; empty for the usual one.
    """

    module: str
    call: int = 0
    kind: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    group: str | None
    is_layer: bool
    source: Source = "output"
    dim: int = 0
    fold: int = 1
    interleaved: bool = False
    path: tuple[Key, ...] = ()
    label: str = ""

    def __repr__(self) -> str:
        return as_code(self)

    @property
    def name(self) -> str:
        """Name of the site, which no other site of the model has.

        It is the name of the module, followed by ``@2`` for the module's second run, ``@3`` for the third, and by
        ``[1]`` or ``[1][0]`` for a further tensor of several that the module returns. Where a module has that very
        name, ``~`` follows.
        """
        return self.label or (self.module if self.call == 0 else f"{self.module}@{self.call + 1}")

    @property
    def layout(self) -> BatchLayout:
        """Where the images of a batch lie in the tensor."""
        return BatchLayout(self.dim, self.fold, self.interleaved)

    @property
    def neurons(self) -> int:
        """Elements of one image's part of the tensor."""
        return int(torch.Size(self.shape).numel())

    @property
    def word_bits(self) -> int:
        """Bits of one element."""
        return format_of(self.dtype).word_bits

    def images_first(self, tensor: Tensor) -> Tensor:
        """Return a view of the site's tensor in which images come first: ``(N, *shape)``.

        Raises:
            InjectionError: The tensor has another shape than when the site was found.
        """
        if tensor.ndim > self.dim and tensor.shape[self.dim] % self.fold == 0:
            parts, dim = self.layout.split_images(tensor)
            images = parts.movedim(dim, 0)
            if images.shape[1:] == self.shape:
                return images
        raise InjectionError(
            f"The site {self.name!r} gave a tensor of shape {tuple(tensor.shape)}; when it was found, the shape of one "
            f"image was {self.shape}. Give all images the same size, for example by padding all texts to one length."
        )

    def index(self, images: Tensor, neurons: Tensor, batch: int) -> tuple[Tensor, ...]:
        """Return the index of neurons in the tensor of a whole batch.

        Args:
            images: Positions in the batch, any shape.
            neurons: Flat indices into one image's part of the tensor, same shape.
            batch: Images in the batch.

        Returns:
            One index tensor for each dimension, each in the shape of ``neurons``.

        Raises:
            FaultError: A neuron that does not exist.
        """
        if neurons.numel() and not (int(neurons.min()) >= 0 and int(neurons.max()) < self.neurons):
            wrong = int(neurons.min()) if int(neurons.min()) < 0 else int(neurons.max())
            raise FaultError(f"{self.name!r} has {self.neurons} neurons, from 0 on; found the index {wrong}.")
        return self.whole_index(images, *torch.unravel_index(neurons, self.shape), batch=batch)

    def whole_index(self, images: Tensor, *inner: Tensor, batch: int) -> tuple[Tensor, ...]:
        """Return an index of the tensor of a whole batch, given one of the view with images first."""
        index = list(inner)
        if self.fold > 1:
            entry = index.pop(self.dim)
            images = entry * batch + images if self.interleaved else images * self.fold + entry
        index.insert(self.dim, images)
        return tuple(index)


@dataclass(frozen=True, slots=True)
class SiteMap:
    """The fault sites of a model.

    Attributes:
        reached: The sites, in the order in which a forward pass computes them.
        uninjectable: Names of modules or sites that no fault can be injected into, each with the reason.
        coverage: How much of the model's computation the sites hold.
    """

    reached: tuple[Site, ...]
    uninjectable: dict[str, str]
    coverage: Coverage

    def __str__(self) -> str:
        rows = [[cut(site.name, 50), site.kind, str(site.shape)] for site in self.reached]
        lines = columns([["site", "kind", "shape of one image"], *rows]).splitlines()
        lost = [f"uninjectable: {', '.join(self.uninjectable)}"] if self.uninjectable else []
        notes = [f"{len(self.reached)} sites", f"coverage: {self.coverage}", *lost]
        return "\n".join([*(wrapped(cut(note, 190)) for note in notes), shortened(lines, 16)])

    def __repr__(self) -> str:
        return f"<SiteMap: {len(self.reached)} sites, {len(self.uninjectable)} uninjectable tensors>"

    def named(self, name: str) -> Site:
        """Return one site.

        Raises:
            FaultError: No site has this name. The message lists the valid names.
        """
        for site in self.reached:
            if site.name == name:
                return site
        if name in self.uninjectable:
            raise FaultError(f"No fault can be injected into {name!r}: {self.uninjectable[name]}.")
        names = ", ".join(site.name for site in self.reached)
        raise FaultError(f"No fault site is named {name!r}; the model's sites are: {names}.")

    def matching(self, patterns: Sequence[str]) -> tuple[Site, ...]:
        """Return the sites whose names match any of the patterns, such as ``"layer4.*"``, in the order of execution.

        The name of a site means that site, also if it holds ``*`` or ``[``; other texts are patterns.

        Raises:
            FaultError: A pattern matches no site. The message lists the valid names.
        """
        chosen, names = set[str](), [site.name for site in self.reached]
        for pattern in patterns:
            chosen |= set(names_matching(pattern, names)) or {self.named(pattern).name}
        return tuple(site for site in self.reached if site.name in chosen)

    @property
    def last(self) -> tuple[Site, ...]:
        """The sites of the classifier: all sites of the last site's group, or the last site alone."""
        final = self.reached[-1]
        if final.group is None:
            return (final,)
        return tuple(site for site in self.reached if site.group == final.group)
