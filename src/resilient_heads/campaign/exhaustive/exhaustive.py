"""Every single bit flip in every tensor of a head: the rates are exact, without sampling error."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from resilient_heads.campaign.exhaustive.executed import ExhaustiveExecution
from resilient_heads.campaign.golden.data import Data, collect
from resilient_heads.campaign.golden.golden_run import run_golden
from resilient_heads.campaign.run.prepare import check_model
from resilient_heads.campaign.run.progress import Progress, check_progress, show_phases
from resilient_heads.campaign.trials.outcomes import Outcome
from resilient_heads.checks import strings, true_or_false, whole_number
from resilient_heads.display import columns, cut, shortened, wrapped
from resilient_heads.errors import FaultError
from resilient_heads.evaluation import device_of, evaluating
from resilient_heads.injection.sites.find import find_sites
from resilient_heads.injection.sites.hooks import open_attention
from resilient_heads.injection.sites.site import Site


@dataclass(frozen=True, slots=True, eq=False)
class TensorCounts:
    """The outcomes of all faults in one tensor.

    Attributes:
        site: The tensor.
        outcomes: ``(word_bits, 4)`` int64, faults by bit (0 is the lowest mantissa bit) and :class:`Outcome`.
    """

    site: Site
    outcomes: Tensor

    def __repr__(self) -> str:
        return wrapped(f"<TensorCounts {cut(self.site.name, 50)}: {self.faults:,} faults, {_counts(self)}>")

    @property
    def faults(self) -> int:
        """Number of faults: images times neurons times bits."""
        return int(self.outcomes.sum())

    def count(self, outcome: Outcome) -> int:
        """Return the number of faults with an outcome."""
        return int(self.outcomes[:, outcome].sum())

    def rate(self, outcome: Outcome) -> float:
        """Return the fraction of faults with an outcome; it is exact, not estimated."""
        return self.count(outcome) / self.faults


@dataclass(frozen=True, slots=True, eq=False)
class ExhaustiveResult:
    """The outcomes of all single bit flips in some tensors.

    Attributes:
        tensors: The counts of each tensor, in the order of execution.
        images: Number of images: those that the fault-free model classifies correctly.
        uninjectable: Names of tensors that no fault can be injected into, each with the reason.
    """

    tensors: tuple[TensorCounts, ...]
    images: int
    uninjectable: dict[str, str]

    @property
    def faults(self) -> int:
        """Number of faults in all tensors."""
        return sum(tensor.faults for tensor in self.tensors)

    def count(self, outcome: Outcome) -> int:
        """Return the number of faults with an outcome, in all tensors."""
        return sum(tensor.count(outcome) for tensor in self.tensors)

    def __getitem__(self, name: str) -> TensorCounts:
        for tensor in self.tensors:
            if tensor.site.name == name:
                return tensor
        names = ", ".join(repr(tensor.site.name) for tensor in self.tensors)
        raise FaultError(f"The result has no tensor {name!r}; its tensors are: {names}.")

    def __str__(self) -> str:
        head = f"{self.faults:,} faults in {len(self.tensors)} tensors, {self.images} images: {_counts(self)}"
        counts = [[cut(one.site.name, 40), *(f"{one.count(outcome):,}" for outcome in Outcome)] for one in self.tensors]
        table = columns([["tensor", *(outcome.name for outcome in Outcome)], *counts])
        return "\n".join([wrapped(head), shortened(table.splitlines())])

    def __repr__(self) -> str:
        return wrapped(f"<ExhaustiveResult: {len(self.tensors)} tensors, {self.faults:,} faults, {_counts(self)}>")


def _counts(counted: TensorCounts | ExhaustiveResult) -> str:
    """Return the number of faults with each outcome as text."""
    return ", ".join(f"{counted.count(outcome):,} {outcome.name}" for outcome in Outcome)


def run_exhaustive(
    model: nn.Module,
    data: Data,
    *,
    layers: Iterable[str] | None = None,
    closed_form: bool = False,
    batch_size: int = 2048,
    progress: Progress = True,
) -> ExhaustiveResult:
    """Flip every bit of every neuron of some tensors, one at a time and for every image, and count the outcomes.

    The protocol is ``raw``: no range detector changes a faulty value. The engine of :func:`run_campaign` executes each
    fault, except faults in the logits, whose outcome follows from the logits alone.

    Args:
        model: A classifier, or a head on its own.
        data: Batches of images and labels, or one pair of tensors. A head takes features ``(N, F)`` and labels. Images
            that the fault-free model misclassifies are left out.
        layers: Names of tensors, or patterns of names; None takes every tensor of the classifier. The tensors of a
            head on its own are named ``"head.latent"`` and so on, its output ``"head"``.
        closed_form: Derive the outcomes of faults in those tensors of an unprotected head on which its scores depend
            linearly, and execute only the faults that rounding or overflow could decide. Where the head's output is not
            the model's logits, as if the model masks some, all faults are executed. This is many times faster for
            1,000 classes. SDC and DUE counts are the same; MASKED faults in these tensors count as TOLERABLE.
        batch_size: Faults that run at once.
        progress: True shows a bar, False nothing; a function is called with ``(done, total)`` faults.

    Raises:
        ArgumentError: A wrong argument.
        DataError: Images or labels that cannot be used.
        FaultError: A name that matches no tensor.
        InjectionError: No image is classified correctly, or a fault reaches other images of its batch.

    >>> head, features = nn.Linear(4, 3), torch.eye(4)
    >>> result = run_exhaustive(head, (features, head(features).argmax(dim=1)), progress=False)
    >>> result["head"].faults == 4 * 3 * 32
    True
    """
    check_model(model)
    whole_number("batch_size", batch_size, least=1)
    true_or_false("closed_form", closed_form)
    check_progress(progress)
    if layers is not None:
        names = layers if isinstance(layers, str) or not isinstance(layers, Iterable) else tuple(layers)
        layers = strings("layers", names, example='["head.latent"]')
    if getattr(model, "fault_sites", ()) or isinstance(model, nn.Linear | nn.Conv2d):
        model = nn.Sequential(OrderedDict(head=model))  # Its own output thus has a name.
    images = collect(data)
    with show_phases(progress), evaluating(model), open_attention():
        golden = run_golden(model, images, batch_size=batch_size, min_top2diff=0.0)
        modules = [name for name, _ in model.named_modules() if name in (layers or ())]
        site_map = find_sites(model, images.images[:batch_size].to(device_of(model)), modules=modules)
        sites = site_map.last if layers is None else site_map.matching(layers)
        eligible = images.images[torch.from_numpy(golden.eligible)].to(device_of(model))
        scores = _scores(model, site_map.reached) if closed_form else {}
        counts = ExhaustiveExecution(model, sites, eligible, scores, batch_size).run(progress=progress)
    tensors = tuple(TensorCounts(site, counts[site.name].reshape(site.word_bits, -1)) for site in sites)
    return ExhaustiveResult(tensors, len(eligible), site_map.uninjectable)


def _scores(model: nn.Module, reached: Sequence[Site]) -> dict[str, tuple[Tensor, Site]]:
    """Return, by name of a head's tensor, the rows whose products with it order the classes, and the output's site."""
    rows = {
        f"{name}.{child}" if name else child: (name, rows)
        for name, module in model.named_modules()
        for child, rows in getattr(module, "score_rows", {}).items()
    }
    last = {site.group: site for site in reached}
    return {name: (rows, last[head]) for name, (head, rows) in rows.items() if head in last}
