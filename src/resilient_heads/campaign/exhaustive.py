"""Every single-bit fault in every tensor of a head, by execution: no sampling, so no sampling error."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from resilient_heads.campaign.outcomes import Outcome, judge
from resilient_heads.errors import ModelError
from resilient_heads.injection.bits import flip_bits
from resilient_heads.injection.formats import format_of


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TensorCounts:
    """Outcomes of all faults in one tensor.

    Attributes:
        site: Name of the module whose output was struck; ``""`` is the head itself.
        outcomes: ``(bits, 4)`` int64, faults per bit (0 is the least significant) and :class:`Outcome`.
    """

    site: str
    outcomes: Tensor

    @property
    def faults(self) -> int:
        """How many faults were executed."""
        return int(self.outcomes.sum())

    def count(self, outcome: Outcome) -> int:
        """How many faults ended so."""
        return int(self.outcomes[:, outcome].sum())


@torch.no_grad()
def exhaustive(
    head: nn.Module, features: Tensor, targets: Tensor, *, sites: Sequence[str], chunk: int = 8192
) -> tuple[TensorCounts, ...]:
    """Flip each bit of each neuron of each site for each image (protocol ``raw``), and judge the logits.

    Args:
        head: Module in eval mode whose rows do not depend on each other.
        features: ``(N, F)``.
        targets: ``(N,)`` int64, the true classes.
        sites: Modules whose outputs are struck, such as a head's ``fault_sites``.
        chunk: Faults executed at once; bounds the memory.

    Raises:
        ModelError: The head is training, a size is wrong, or a site is missing or gives no ``(N, ...)`` float tensor.
    """
    if head.training:
        raise ModelError("The head is in training mode; expected eval mode. Call head.eval().")
    if features.ndim != 2 or not len(features) or targets.shape != features.shape[:1] or chunk < 1:
        raise ModelError(
            "Expected features (N, F) with N > 0, targets (N,) and chunk > 0; "
            f"found {tuple(features.shape)}, {tuple(targets.shape)} and {chunk}."
        )
    return tuple(_strike_site(head, features, targets, site, chunk) for site in sites)


def _strike_site(head: nn.Module, features: Tensor, targets: Tensor, site: str, chunk: int) -> TensorCounts:
    """Execute all faults of one site."""
    modules = dict(head.named_modules())
    if site not in modules:
        raise ModelError(f"No module {site!r} in the head; expected one of {', '.join(map(repr, modules))}.")
    seen: list[object] = []
    with modules[site].register_forward_hook(lambda _m, _i, out: seen.append(out)):
        head(features)
    if len(seen) != 1 or not isinstance(seen[0], Tensor) or len(seen[0]) != len(features):
        raise ModelError(f"Module {site!r} must run once and give one tensor with a row per image.")
    neurons, bits = seen[0][0].numel(), format_of(seen[0].dtype).bits
    counts = torch.zeros(bits * len(Outcome), dtype=torch.int64)
    for start in range(0, len(features) * neurons * bits, chunk):
        fault = torch.arange(start, min(start + chunk, len(features) * neurons * bits), device=features.device)
        image, neuron, bit = fault // (neurons * bits), fault // bits % neurons, fault % bits

        def flip(_m: nn.Module, _i: object, out: Tensor, neuron: Tensor = neuron, bit: Tensor = bit) -> Tensor:
            struck = out.flatten(1).clone()
            row = torch.arange(len(struck), device=struck.device)
            struck[row, neuron] = flip_bits(struck[row, neuron], bit)
            return struck.reshape(out.shape)

        # The golden run has the same shape: a matrix product may round otherwise in another batch size.
        rows = features[image]
        golden = head(rows)
        with modules[site].register_forward_hook(flip):
            faulty = head(rows)
        outcome = judge(golden, faulty, targets[image]).outcome.long()
        counts += torch.bincount(bit.cpu() * len(Outcome) + outcome.cpu(), minlength=len(counts))
    return TensorCounts(site=site, outcomes=counts.reshape(bits, len(Outcome)))
