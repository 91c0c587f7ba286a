"""What can be protected, and a plain classifier that is."""

from typing import Self

import torch
from torch import Tensor, nn

from resilient_heads.heads.protection.guard import Guard, Plan, Product
from resilient_heads.heads.protection.options import Protection


class Protectable(nn.Module):
    """A head that a guard can compute. Protection acts in evaluation mode; training computes once, unguarded."""

    guard: Guard | None

    def plan(self) -> Plan:
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
        """Take up a protection, or drop it with None. Parameters, state dict and fault-free logits stay as they are."""
        self.guard = None if protection is None else Guard(self.plan(), protection)

    def guarded_sites(self) -> tuple[str, ...]:
        """Return the names of the modules whose outputs are the protected head's tensors; ``""`` is the last."""
        assert self.guard is not None
        own = tuple(product.name for product in self.plan().products if product.runs)
        return (*own, *(f"guard.{name}" for name in self.guard.sites()), "")


class ProtectedLinear(Protectable, nn.Linear):
    """A Linear that is computed under protection; its state dict is that of a Linear."""

    @classmethod
    def of(cls, layer: nn.Linear, protection: Protection) -> Self:
        """Return one with the parameters of a plain layer."""
        with torch.device("meta"):
            protected = cls(layer.in_features, layer.out_features, bias=layer.bias is not None)
        protected.weight, protected.bias = layer.weight, layer.bias
        protected.protect(protection)
        return protected.train(layer.training)

    def plain(self) -> nn.Linear:
        """Return a plain layer with the same parameters."""
        with torch.device("meta"):
            layer = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
        layer.weight, layer.bias = self.weight, self.bias
        return layer.train(self.training)

    @property
    def fault_sites(self) -> tuple[str, ...]:
        """Names of the modules whose outputs are this layer's tensors; ``""`` is the layer itself."""
        return self.guarded_sites() if self.guard is not None else ("",)

    def plan(self) -> Plan:
        """Return what the layer computes."""
        return Plan((Product("projection", self, runs=False),))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        if self.guard is None or self.training:
            return super().forward(x)
        return self.guard.run(self.plan(), x, -1)


class ProtectedConv2d(Protectable, nn.Conv2d):
    """A 1x1 Conv2d that is computed under protection; its state dict is that of a Conv2d."""

    @classmethod
    def of(cls, layer: nn.Conv2d, protection: Protection) -> Self:
        """Return one with the parameters of a plain layer."""
        with torch.device("meta"):
            protected = cls(layer.in_channels, layer.out_channels, 1, bias=layer.bias is not None)
        protected.weight, protected.bias = layer.weight, layer.bias
        protected.protect(protection)
        return protected.train(layer.training)

    def plain(self) -> nn.Conv2d:
        """Return a plain layer with the same parameters."""
        with torch.device("meta"):
            layer = nn.Conv2d(self.in_channels, self.out_channels, 1, bias=self.bias is not None)
        layer.weight, layer.bias = self.weight, self.bias
        return layer.train(self.training)

    @property
    def fault_sites(self) -> tuple[str, ...]:
        """Names of the modules whose outputs are this layer's tensors; ``""`` is the layer itself."""
        return self.guarded_sites() if self.guard is not None else ("",)

    def plan(self) -> Plan:
        """Return what the layer computes."""
        return Plan((Product("projection", self, runs=False),))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        if self.guard is None or self.training:
            return super().forward(x)
        return self.guard.run(self.plan(), x, 1)


def protected(layer: nn.Linear | nn.Conv2d, protection: Protection) -> ProtectedLinear | ProtectedConv2d:
    """Return a protected layer with the parameters of a plain one."""
    if isinstance(layer, nn.Conv2d):
        return ProtectedConv2d.of(layer, protection)
    return ProtectedLinear.of(layer, protection)
