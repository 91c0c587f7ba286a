"""Heads that a guard can protect: the text-guided heads, and plain layers."""

from torch import Tensor, nn

from resilient_heads.checks import instance_of
from resilient_heads.errors import ModelError
from resilient_heads.heads.protection.graph import HeadGraph, Product
from resilient_heads.heads.protection.guard import Guard
from resilient_heads.heads.protection.options import Protection


class Protectable(nn.Module):
    """A head that a guard can protect in evaluation mode. In training mode the head computes once, unprotected."""

    guard: Guard | None

    def graph(self) -> HeadGraph:
        """Return what the head computes."""
        raise NotImplementedError

    def _compute(self, x: Tensor) -> Tensor:
        """Return the logits, without protection."""
        raise NotImplementedError

    @property
    def _plain_sites(self) -> tuple[str, ...]:
        """The ``fault_sites`` of the head without protection."""
        return ("",)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        if self.guard is None or self.training:
            return self._compute(x)
        return self.guard.run(self.graph(), x)

    @property
    def fault_sites(self) -> tuple[str, ...]:
        """Names of the modules whose outputs are this head's tensors, in order; ``""`` is the head itself."""
        if self.guard is None:
            return self._plain_sites
        layers = (product.name for product in self.graph().products if product.runs)
        return (*layers, *(f"guard.{name}" for name in self.guard.sites()), "")

    @property
    def protection(self) -> Protection | None:
        """What the head does against faults, or None."""
        return None if self.guard is None else self.guard.protection

    def protect(self, protection: Protection | None) -> None:
        """Set the protection in place, or remove it with None; parameters and fault-free logits keep their bits.

        Raises:
            ArgumentError: ``protection`` is not a :class:`Protection`.
        """
        if protection is not None:
            instance_of("protection", protection, Protection, example="rh.Protection(checksum=True)")
        self.guard = None if protection is None else Guard(self.graph(), protection)


class _ProtectedLayer(Protectable):
    """A plain layer that is protected: the same object, whose class is changed while the protection lasts.

    The layer keeps its hooks, attributes, parameters and names in the state dict.
    """

    plain_type: type[nn.Module]

    def make_plain(self) -> None:
        """Remove the protection in place: the layer gets its class back."""
        kind = self.plain_type
        del self.guard, self.plain_type
        self.__class__ = kind  # type: ignore[assignment]

    def graph(self) -> HeadGraph:
        """Return what the layer computes."""
        assert isinstance(self, nn.Linear | nn.Conv2d)
        return HeadGraph((Product("projection", self, runs=False),))

    def _compute(self, x: Tensor) -> Tensor:
        """Return the logits as the plain layer computes them."""
        logits: Tensor = super(Protectable, self).forward(x)
        return logits


class ProtectedLinear(_ProtectedLayer, nn.Linear):
    """A protected Linear; its state dict is that of a Linear."""


class ProtectedConv2d(_ProtectedLayer, nn.Conv2d):
    """A protected 1x1 Conv2d; its state dict is that of a Conv2d."""


def protect_layer_(layer: nn.Linear | nn.Conv2d, protection: Protection) -> ProtectedLinear | ProtectedConv2d:
    """Protect a plain layer in place, and return it."""
    layer.__dict__["plain_type"] = type(layer)
    layer.__class__ = ProtectedConv2d if isinstance(layer, nn.Conv2d) else ProtectedLinear
    assert isinstance(layer, ProtectedLinear | ProtectedConv2d)
    layer.protect(protection)
    return layer


def find_protectable(model: nn.Module) -> dict[str, Protectable]:
    """Return the heads of a model that can be protected as they are, by dotted path."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Protectable)}


def find_protected(model: nn.Module) -> dict[str, Protectable]:
    """Return the protected heads of a model by dotted path, or raise ModelError if it has none."""
    heads = {name: head for name, head in find_protectable(model).items() if head.guard is not None}
    if not heads:
        raise ModelError(f"{type(model).__name__} has no protected head; call protect_(model, ...) first.")
    return heads
