"""A campaign in a few figures."""

from dataclasses import dataclass

from resilient_heads.campaign.figures.summary import SCOPE_HEADER, ScopeSummary
from resilient_heads.campaign.result.protocol import Protocol
from resilient_heads.display import columns, cut, percent, wrapped
from resilient_heads.errors import ResultError
from resilient_heads.injection.sites.coverage import Coverage
from resilient_heads.statistics.intervals import Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A campaign in a few figures.

    Attributes:
        protocol: How faults were applied.
        level: Confidence level of all intervals.
        images: Number of images.
        eligible_images: Number of images into which faults were injected.
        accuracy: Fraction of images that the fault-free model classifies correctly; Wilson interval.
        top2diff: Mean difference of the two largest softmax probabilities over all images, fault-free.
        trials: Number of trials.
        coverage: How much of the model's computation the sites hold. If it is less than 99 % of the
            multiply-accumulates, the figures of the network are those of the covered part.
        scopes: The figures of each scope by its name in ``SCOPES``, without scopes of which ``layers=`` left out a
            site.
    """

    protocol: Protocol
    level: float
    images: int
    eligible_images: int
    accuracy: Estimate
    top2diff: Estimate
    trials: int
    coverage: Coverage
    scopes: dict[str, ScopeSummary]

    @property
    def last(self) -> ScopeSummary:
        """The classifier's layers."""
        return self._scope("last")

    @property
    def last_all(self) -> ScopeSummary:
        """Every tensor of the classifier."""
        return self._scope("last_all")

    @property
    def network(self) -> ScopeSummary:
        """All layers."""
        return self._scope("network")

    @property
    def network_all(self) -> ScopeSummary:
        """All layers, and every tensor of the classifier."""
        return self._scope("network_all")

    def __str__(self) -> str:
        images = f"{self.eligible_images:,} of {self.images:,} images"
        lines = [
            f"{cut(self.protocol.name, 40)}: {self.trials:,} trials on {images}, {percent(self.level)} intervals",
            f"fault-free accuracy {self.accuracy}",
            wrapped(cut(f"coverage: {self.coverage}", 190)),
        ]
        if self.coverage.part and "network" in self.scopes:
            lines.append(f"figures of the network are {self.coverage.part}")
        if not self.scopes:
            return "\n".join([*lines, "no scope: layers= left out some sites of each; read result.by_layer()"])
        same: dict[tuple[str, ...], list[ScopeSummary]] = {}
        for name in reversed(self.scopes):
            same.setdefault(self.scopes[name].layers, []).insert(0, self.scopes[name])
        rows = []
        for scopes in same.values():
            names = [scopes[0].name, *(f"= {scope.name}" for scope in scopes[1:]), *[""] * 4]
            cells = scopes[0].rows(("sdc", "due", "delta_loss"))
            rows += [[name, *row] for name, row in zip(names, cells, strict=False)]
        return "\n".join([*lines, columns([["scope", *SCOPE_HEADER], *rows])])

    def __repr__(self) -> str:
        sdc = [f"{name} SDC rate {scope.layer_averaged.sdc}" for name, scope in self.scopes.items()]
        return wrapped(f"<Summary, {self.trials:,} trials: {'; '.join(sdc) or 'no scope'}>")

    def _scope(self, name: str) -> ScopeSummary:
        """Return a scope, or say why the summary has no figures for it."""
        if name not in self.scopes:
            raise ResultError(
                f"The campaign has no figures for {name!r}, because layers= left out some of its sites; it has figures "
                f"for: {', '.join(self.scopes) or 'no scope'}. Read result.by_layer(), or run the campaign without "
                "layers=."
            )
        return self.scopes[name]
