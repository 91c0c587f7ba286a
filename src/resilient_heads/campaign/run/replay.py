"""One trial of a campaign once more, with all that it computed."""

import os
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from resilient_heads.campaign.golden.data import Data, collect
from resilient_heads.campaign.golden.digests import fingerprint
from resilient_heads.campaign.golden.environment import environment_of
from resilient_heads.campaign.golden.golden_run import logits_of
from resilient_heads.campaign.result.record import CampaignRecord
from resilient_heads.campaign.result.results import CampaignResult
from resilient_heads.campaign.result.store import RESULT, CampaignFolder
from resilient_heads.campaign.trials.columns import Trials
from resilient_heads.campaign.trials.outcomes import Outcome, judge
from resilient_heads.errors import ArgumentError, DataError, InjectionError, ModelError, ResultError
from resilient_heads.evaluation import device_of, evaluating
from resilient_heads.injection.apply.hits import Hit, first, hit_
from resilient_heads.injection.faults.draws import Draws
from resilient_heads.injection.sites.hooks import open_attention, watch_sites


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ReplayedTrial:
    """A trial, as the campaign ran it.

    Attributes:
        layer: Name of the site.
        trial: Its number.
        image: Index of the struck image.
        label: The image's class.
        neuron: Flat index into one sample's output of the site.
        bit: Position in the word.
        before: Fault-free value of the neuron.
        after: Its value with the bit flipped, before any range detector.
        range_limit: Range of the detector, or None.
        outcome: How the trial ended.
        delta_loss: In nats.
        golden: Fault-free logits, ``(C,)``, on the CPU.
        faulty: Logits under the fault, ``(C,)``, on the CPU.
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


def replay(
    source: CampaignResult | str | os.PathLike[str], model: nn.Module, data: Data, *, site: str | int, trial: int
) -> ReplayedTrial:
    """Repeat one trial of a campaign, bit for bit.

    The whole batch to which the trial belonged is run again, since the last bits of logits depend on the shape of the
    batch. What comes out is compared with what the campaign wrote down.

    Args:
        source: The result, its file, or the campaign's folder, which need not be complete.
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
    """
    trial = int(trial)
    record, trials = _source(source, trial)
    row = _row(record, site)
    found = np.flatnonzero((trials.site == row) & (trials.trial == trial)) if trials is not None else np.empty(0)
    if trials is None or not len(found):
        raise ArgumentError(f"The campaign has no trial {trial} of {record.layers[row]!r}.")
    recorded = trials.where(np.isin(np.arange(len(trials)), found))
    images = collect(data)
    for what, kind, then, now in (
        ("model", ModelError, record.model_sha256, fingerprint(model)),
        ("data", DataError, record.data_sha256, images.sha256),
    ):
        if then != now:
            raise kind(
                f"The campaign's {what} has the sha256 {then[:12]}..., this one {now[:12]}...; pass the one that the "
                "campaign ran on."
            )
    plan, struck = record.plan, record.sites[row]
    size = min(record.config.batch_size, max(plan.counts))
    numbers = np.arange(trial // size * size, (trial // size + 1) * size)  # the batch that the campaign ran
    drawn = torch.from_numpy(plan.images(row, numbers, plan.image_weights(record.golden)))
    draws, weights, position = Draws.none(), np.empty(0), trial % size
    device = device_of(model)
    done: list[Hit] = []
    detector = record.config.protocol.range_detector or "clamp"

    def strike(_name: str, tensor: Tensor) -> Tensor:
        nonlocal draws, weights
        draws, weights = plan.draw_with_weights(
            row, np.minimum(numbers, plan.counts[row] - 1), tensor, detector=detector
        )
        changed = tensor.clone(memory_format=torch.preserve_format)
        done.append(
            hit_(changed, struck.site, draws, model=plan.fault, range_limit=struck.range_limit, detector=detector)
        )
        return changed

    with evaluating(model), open_attention():
        inputs = images.images[drawn].to(device)
        golden = logits_of(model, inputs)
        with watch_sites(model, [struck.site], strike):
            faulty = logits_of(model, inputs)
    if len(done) != 1:
        raise InjectionError(f"No fault struck {struck.site.name!r}: it came by {len(done)} times in a pass.")
    judged = judge(golden, faulty, images.labels[drawn].to(device))
    repeated = ReplayedTrial(
        layer=struck.site.name,
        trial=trial,
        image=int(drawn[position]),
        label=int(images.labels[drawn[position]]),
        neuron=int(first(draws.neurons)[position]),
        bit=int(first(draws.bits)[position]) & 0xFF,
        before=float(done[0].before[position]),
        after=float(done[0].after[position]),
        range_limit=struck.range_limit,
        outcome=Outcome(int(judged.outcome[position])),
        delta_loss=float(judged.delta_loss[position]),
        golden=golden[position].cpu(),
        faulty=faulty[position].cpu(),
    )
    _require_same(repeated, recorded, record, model)
    return repeated


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
            raise ArgumentError(f"No struck site is named {site!r}; expected one of: {', '.join(record.layers)}.")
        return record.layers.index(site)
    if not 0 <= site < len(record.layers):
        raise ArgumentError(f"The sites are numbered from 0 to {len(record.layers) - 1}, found {site}.")
    return int(site)


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
