"""What can be protected, and a plain classifier that is."""

from torch import Tensor, nn

from resilient_heads.errors import ModelError
from resilient_heads.heads.protection.guard import Guard, HeadGraph, Product
from resilient_heads.heads.protection.options import Protection


class Protectable(nn.Module):
    """A head that a guard can compute. Protection acts in evaluation mode; training computes once, unguarded."""

    guard: Guard | None

    def plan(self) -> HeadGraph:
        """Return what the head computes."""
        raise NotImplementedError

    @property
    def features_dim(self) -> int:
        """The dimension of features and classes."""
        return 1 if isinstance(self.plan().products[0].layer, nn.Conv2d) else -1

    @property
    def protection(self) -> Protection | None:
        """What is done against faults, or None."""
        return None if self.guard is None else self.guard.protection

    def protect(self, protection: Protection | None) -> None:
        """Take up a protection, or drop it with None. Parameters, state dict and fault-free logits stay as they are.

        Raises:
            ModelError: It is not a :class:`Protection`.
        """
        if protection is not None and not isinstance(protection, Protection):
            raise ModelError(
                f"protection must be a Protection or None, found {protection!r}; pass rh.Protection(checksum=True)."
            )
        self.guard = None if protection is None else Guard(self.plan(), protection)

    def guarded_sites(self) -> tuple[str, ...]:
        """Return the names of the modules whose outputs are the protected head's tensors; ``""`` is the last."""
        assert self.guard is not None
        own = tuple(product.name for product in self.plan().products if product.runs)
        return (*own, *(f"guard.{name}" for name in self.guard.sites()), "")


class _ProtectedLayer(Protectable):
    """A plain layer that is computed under protection: the layer itself, of another class while it is protected.

    So whatever is kept in it or refers to it stays: hooks, attributes, parameters, their names in the state dict.
    """

    plain_type: type[nn.Module]

    def make_plain(self) -> None:
        """Give the layer back its class."""
        kind = self.plain_type
        del self.guard, self.plain_type
        self.__class__ = kind  # type: ignore[assignment]

    @property
    def fault_sites(self) -> tuple[str, ...]:
        """Names of the modules whose outputs are this layer's tensors; ``""`` is the layer itself."""
        return self.guarded_sites() if self.guard is not None else ("",)

    def plan(self) -> HeadGraph:
        """Return what the layer computes."""
        assert isinstance(self, nn.Linear | nn.Conv2d)
        return HeadGraph((Product("projection", self, runs=False),))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        if self.guard is None or self.training:
            logits: Tensor = super().forward(x)
            return logits
        return self.guard.run(self.plan(), x, self.features_dim)


class ProtectedLinear(_ProtectedLayer, nn.Linear):
    """A Linear that is computed under protection; its state dict is that of a Linear."""


class ProtectedConv2d(_ProtectedLayer, nn.Conv2d):
    """A 1x1 Conv2d that is computed under protection; its state dict is that of a Conv2d."""


def protected(layer: nn.Linear | nn.Conv2d, protection: Protection) -> ProtectedLinear | ProtectedConv2d:
    """Protect a plain layer in place, and return it."""
    layer.__dict__["plain_type"] = type(layer)
    layer.__class__ = ProtectedConv2d if isinstance(layer, nn.Conv2d) else ProtectedLinear
    assert isinstance(layer, ProtectedLinear | ProtectedConv2d)
    layer.protect(protection)
    return layer


def find_protectable(model: nn.Module) -> dict[str, Protectable]:
    """Return the heads within a model that can be protected as they are, by dotted path."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Protectable)}
