"""The sets of sites that a campaign reports together."""

from collections.abc import Sequence
from dataclasses import dataclass

from resilient_heads.campaign.trials.columns import CampaignSite


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """A set of sites.

    Attributes:
        description: The set in words.
        classifier_only: Whether the set leaves out the backbone.
        all_tensors: Whether the set holds every tensor of the classifier. If False, it holds the outputs of layers
            alone: of convolutions, linear and recurrent layers, embeddings and attentions.
    """

    description: str
    classifier_only: bool
    all_tensors: bool

    def rows(self, sites: Sequence[CampaignSite]) -> list[int]:
        """Return the positions of the set's sites."""
        return [
            row
            for row, site in enumerate(sites)
            if (site.in_classifier or not self.classifier_only) and (site.site.is_layer or self.all_tensors)
        ]


SCOPES = {
    "last": Scope(
        description="last layer(s): the outputs of the classifier's layers",
        classifier_only=True,
        all_tensors=False,
    ),
    "last_all": Scope(
        description="every tensor of the classifier, also between and behind its layers",
        classifier_only=True,
        all_tensors=True,
    ),
    "network": Scope(description="the outputs of all layers", classifier_only=False, all_tensors=False),
    "network_all": Scope(
        description="the outputs of all layers and every tensor of the classifier",
        classifier_only=False,
        all_tensors=True,
    ),
}
"""The scopes by name."""
