"""The guard of a protected head: one, two or three computations, and the choice or the vote among them."""

from torch import Tensor, nn

from resilient_heads.heads.protection.computation import Computation, Copy
from resilient_heads.heads.protection.graph import HeadGraph
from resilient_heads.heads.protection.options import Protection
from resilient_heads.heads.protection.parts import Choice, Vote


class Guard(nn.Module):
    """Compute a head under protection. A guard holds no tensor, only modules whose outputs are fault sites.

    Args:
        graph: What the head computes.
        protection: Range restriction, ABFT checksum, median vote (TMR).
    """

    def __init__(self, graph: HeadGraph, protection: Protection) -> None:
        super().__init__()
        self.protection = protection
        bounds, repeated = protection.bounds, protection.checksum or protection.median
        self.first = Computation(graph, Copy.FIRST, bounds=bounds, checks=protection.checksum)
        self.second = Computation(graph, Copy.NEGATED_INPUT, bounds=bounds, checks=False) if repeated else None
        self.third = Computation(graph, Copy.NEGATED_WEIGHT, bounds=bounds, checks=False) if protection.median else None
        self.choice = Choice() if protection.checksum else None
        self.vote = Vote() if protection.median else None

    def run(self, graph: HeadGraph, x: Tensor) -> Tensor:
        """Return the logits; ``graph`` names the head's present tensors, which may have moved since it was built."""
        logits, excess = self.first.run(graph, x)
        if self.second is not None:
            again, _ = self.second.run(graph, x)
            if self.choice is not None:
                logits = self.choice(logits, again, excess, graph.dim)
            if self.third is not None and self.vote is not None:
                logits = self.vote(logits, again, self.third.run(graph, x)[0])
        return logits

    def sites(self) -> tuple[str, ...]:
        """Return the names of the modules whose outputs are the tensors before the head's logits."""
        return tuple(
            name
            for name, module in self.named_modules()
            if name and not isinstance(module, Computation | Vote | Choice)
        )
