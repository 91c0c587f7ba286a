"""Repeat one trial of a campaign, and return everything that it computed."""

import os
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from resilient_heads.campaign.golden.data import Data, LabelledImages, collect
from resilient_heads.campaign.golden.digests import fingerprint
from resilient_heads.campaign.golden.environment import environment_of
from resilient_heads.campaign.golden.golden_run import logits_of
from resilient_heads.campaign.result.record import CampaignRecord
from resilient_heads.campaign.result.record_file import RESULT
from resilient_heads.campaign.result.results import CampaignResult
from resilient_heads.campaign.result.store import CampaignFolder
from resilient_heads.campaign.run.injected_pass import TrialWriter, run_trials
from resilient_heads.campaign.trials.columns import Trials
from resilient_heads.campaign.trials.outcomes import Outcome, judge
from resilient_heads.display import cut, wrapped
from resilient_heads.errors import ArgumentError, DataError, ForwardError, InjectionError, ModelError, ResultError
from resilient_heads.evaluation import device_of, evaluating
from resilient_heads.injection.sites.hooks import open_attention


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ReplayedTrial:
    """A trial, as the campaign ran it.

    Attributes:
        layer: Name of the site.
        trial: Number of the trial at this site.
        image: Index of the image.
        label: The image's class.
        neuron: Flat index into one image's part of the site's tensor.
        bit: Position in the word.
        before: Fault-free value of the neuron.
        after: Faulty value of the neuron, before any range detector.
        range_limit: Range of the site for the range detector, or None.
        outcome: Masked, tolerable, SDC or DUE.
        delta_loss: In nats.
        golden: Fault-free logits, ``(C,)``, on the CPU.
        faulty: Logits under the fault, ``(C,)``, on the CPU; NaN if the model raised an error.
        error: The error that the model raised under the fault, or None.
    """

    layer: str
    trial: int
    image: int
    label: int
    neuron: int
    bit: int
    before: float
    after: float
    range_limit: float | None
    outcome: Outcome
    delta_loss: float
    golden: Tensor
    faulty: Tensor
    error: ForwardError | None = None

    def __str__(self) -> str:
        place = f"trial {self.trial} at {cut(self.layer, 50)}, image {self.image}: neuron {self.neuron}"
        change = f"{self.before:.6g} became {self.after:.6g}"
        return wrapped(f"{place}, {change}: {self.outcome.name}, delta loss {self.delta_loss:.4g}")

    def __repr__(self) -> str:
        return wrapped(f"<ReplayedTrial: {self}>")


def replay(
    source: CampaignResult | str | os.PathLike[str], model: nn.Module, data: Data, *, site: str | int, trial: int
) -> ReplayedTrial:
    """Repeat one trial of a campaign, bit for bit.

    The whole batch that held the trial runs again, since the last bits of logits depend on the batch size. The
    function compares the repeated trial with the recorded one.

    Args:
        source: The result, or the campaign's folder; the folder need not be complete.
        model: The campaign's model, on the same kind of device.
        data: The campaign's images and labels.
        site: Name of the site, or its position in the result: the columns ``layer`` and ``site`` of a row.
        trial: Number of the trial at this site: the column ``trial``.

    Raises:
        ArgumentError: There is no such site or trial.
        ResultError: The source cannot be read.
        ModelError: The model is not the campaign's.
        DataError: The data are not the campaign's.
        InjectionError: The trial ends differently here, as on other hardware or with another version of PyTorch.

    >>> from resilient_heads.campaign.run.runner import run_campaign
    >>> model, images = nn.Sequential(nn.Linear(4, 3)).eval(), torch.eye(4)
    >>> data = images, model(images).argmax(dim=1)
    >>> result = run_campaign(model, data, protocol="raw", trials_per_site=8, progress=False)
    >>> replay(result, model, data, site="0", trial=5).after == float(result.trials.after[5])
    True
    """
    trial = int(trial)
    record, trials = _source(source, trial)
    row = _row(record, site)
    recorded = None if trials is None else trials.where((trials.site == row) & (trials.trial == trial))
    if recorded is None or not len(recorded):
        last = record.plan.counts[row] - 1
        planned = f"its trials there are 0 to {last}" if not 0 <= trial <= last else "it did not come so far"
        raise ArgumentError(f"The campaign has no trial {trial} of {record.layers[row]!r}; {planned}.")
    images = collect(data)
    _require_sha256("model", record.model_sha256, fingerprint(model), ModelError)
    _require_sha256("data", record.data_sha256, images.sha256, DataError)
    repeated = _run_again(record, model, images, row, trial)
    _require_same(repeated, recorded, record, model)
    return repeated


def _run_again(record: CampaignRecord, model: nn.Module, images: LabelledImages, row: int, trial: int) -> ReplayedTrial:
    """Run the batch that held a trial of the site ``row``, and return the trial."""
    plan, place = record.plan, record.sites[row]
    size = min(record.config.batch_size, max(plan.counts))
    numbers = np.arange(trial // size * size, (trial // size + 1) * size)
    position = trial % size
    drawn = torch.from_numpy(plan.images(row, numbers, plan.image_weights(record.golden)))
    write = TrialWriter(plan, row, numbers, record.config.protocol.range_detector or "clamp")
    with evaluating(model), open_attention():
        inputs = images.images[drawn].to(device_of(model))
        golden = logits_of(model, inputs)
        batch = run_trials(model, place.site, inputs, write, golden)
    injection = batch.injection
    judged = judge(golden, batch.logits, images.labels[drawn].to(device_of(model)))
    return ReplayedTrial(
        layer=place.site.name,
        trial=trial,
        image=int(drawn[position]),
        label=int(images.labels[drawn[position]]),
        neuron=int(injection.neurons[position]),
        bit=int(injection.bits[position]) & 0xFF,
        before=float(injection.before[position]),
        after=float(injection.after[position]),
        range_limit=place.range_limit,
        outcome=Outcome(int(judged.outcome[position])),
        delta_loss=float(judged.delta_loss[position]),
        golden=golden[position].cpu(),
        faulty=batch.logits[position].cpu(),
        error=batch.errors.get(position),
    )


def _source(source: CampaignResult | str | os.PathLike[str], trial: int) -> tuple[CampaignRecord, Trials | None]:
    """Return the record and as many of the trials as are needed."""
    if isinstance(source, CampaignResult):
        return source.record, source.trials
    if not os.path.isdir(source) or os.path.exists(os.path.join(source, RESULT)):
        result = CampaignResult.load(source)
        return result.record, result.trials
    folder = CampaignFolder.open(source)
    chunk = trial // folder.record.config.trials_per_chunk
    if not 0 <= chunk < folder.record.num_chunks:
        return folder.record, None
    try:
        return folder.record, folder.read(chunk)
    except FileNotFoundError as error:
        raise ResultError(
            f"{folder.path} does not hold chunk {chunk} with the trials of number {trial} yet."
        ) from error


def _row(record: CampaignRecord, site: str | int) -> int:
    """Return a site's position."""
    if isinstance(site, str):
        if site not in record.layers:
            raise ArgumentError(f"The campaign has no site named {site!r}; its sites are: {', '.join(record.layers)}.")
        return record.layers.index(site)
    if not 0 <= site < len(record.layers):
        raise ArgumentError(f"The sites are numbered from 0 to {len(record.layers) - 1}, found {site}.")
    return int(site)


def _require_sha256(what: str, then: str, now: str, error: type[Exception]) -> None:
    """Raise an error unless the model, or the data, are those of the campaign."""
    if then != now:
        raise error(
            f"The campaign's {what} has the sha256 {then[:12]}..., this one {now[:12]}...; pass the {what} that the "
            "campaign ran on."
        )


def _require_same(repeated: ReplayedTrial, recorded: Trials, record: CampaignRecord, model: nn.Module) -> None:
    """Raise InjectionError unless the trial ended as it did in the campaign."""
    columns = ("image", "neuron", "bit", "before", "after", "outcome", "delta_loss")
    differing = [
        name
        for name in columns
        if not np.array_equal(getattr(recorded, name), [getattr(repeated, name)], equal_nan=name != "outcome")
    ]
    if differing:
        then, now = record.environment, environment_of(model)
        changed = [f"{name} {then.get(name)} there, {now[name]} here" for name in now if then.get(name) != now[name]]
        raise InjectionError(
            f"Trial {repeated.trial} of {repeated.layer!r} does not repeat itself: {', '.join(differing)} differ "
            f"({'; '.join(changed) or 'the environment is the same'})."
        )
