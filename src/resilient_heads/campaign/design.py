"""Which faults a campaign draws at each site, and how many."""

from collections.abc import Sequence
from dataclasses import dataclass

from resilient_heads.campaign.trials import StruckSite
from resilient_heads.injection.draws import Draws
from resilient_heads.injection.models import FaultModel
from resilient_heads.injection.sampling import Indices

_SINGLE_FLIP = FaultModel()


@dataclass(frozen=True, slots=True)
class Plan:
    """The trials of a campaign, before they are run.

    Attributes:
        sites: The L sites.
        counts: Trials at each site, ``L`` numbers; trial i of a site has the number i.
        seed: Of all draws.
        fault: What a trial does.
    """

    sites: tuple[StruckSite, ...]
    counts: tuple[int, ...]
    seed: int
    fault: FaultModel = _SINGLE_FLIP

    @property
    def total(self) -> int:
        """Trials at all sites."""
        return sum(self.counts)

    def draw(self, row: int, numbers: Indices) -> Draws:
        """Return where the trials of these numbers strike at the site ``row``."""
        site = self.sites[row].site
        return self.fault.draw(self.seed, site.name, numbers, neurons=site.neurons, bits=site.bits)


def uniform(sites: Sequence[StruckSite], trials: int, *, seed: int) -> Plan:
    """Return a plan of equally many trials at every site, each uniform over its neurons and bits."""
    return Plan(tuple(sites), (trials,) * len(sites), seed)
