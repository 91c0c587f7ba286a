"""Run a campaign: many single flips at every site of a model."""

import contextlib
import operator
import os
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from resilient_heads.campaign.design.designs import Design, UniformDesign
from resilient_heads.campaign.design.plan import SINGLE_FLIP, plan_trials
from resilient_heads.campaign.figures.stopping import StoppingRule
from resilient_heads.campaign.golden.data import Data, collect
from resilient_heads.campaign.golden.environment import environment_of, fingerprint
from resilient_heads.campaign.golden.golden_run import profile_ranges, run_golden
from resilient_heads.campaign.result.config import CampaignConfig, Protocol, protocol_named
from resilient_heads.campaign.result.record import CampaignRecord
from resilient_heads.campaign.result.results import CampaignResult
from resilient_heads.campaign.result.shards import Shard
from resilient_heads.campaign.result.store import CampaignFolder
from resilient_heads.campaign.run.execution import Engine, Execution
from resilient_heads.campaign.run.prefix import Prefix
from resilient_heads.campaign.run.progress import Progress, check_progress, show_progress
from resilient_heads.campaign.trials.columns import CampaignSite, Trials
from resilient_heads.errors import ArgumentError, DamagedChunkError, ModelError
from resilient_heads.evaluation import device_of, evaluating
from resilient_heads.injection.faults.fault_model import FaultModel
from resilient_heads.injection.sites.find import find_sites
from resilient_heads.injection.sites.hooks import open_attention
from resilient_heads.injection.sites.site import SiteMap


def run_campaign(
    model: nn.Module,
    data: Data,
    *,
    protocol: Protocol | str = "goldeneye",
    trials_per_site: int = 4096,
    design: Design | None = None,
    until: StoppingRule | None = None,
    fault: FaultModel | None = None,
    seed: int = 0,
    layers: Sequence[str] | None = None,
    modules: Sequence[str | type[nn.Module]] = (),
    calibration: Data | None = None,
    batch_size: int = 64,
    chunk_size: int | None = None,
    output: str | os.PathLike[str] | None = None,
    shard: Shard | None = None,
    engine: Engine = "incremental",
    memory_limit: int | None = None,
    progress: Progress = True,
) -> CampaignResult:
    """Strike every site of a model with single bit flips and record how each trial ends.

    Sites are the outputs of Conv2d and Linear modules, products with an attention's weights, and the tensors of a
    text-guided head; see :func:`find_sites`. All images of a batch are struck in the same site, each in its own neuron
    and bit. Trial i is a function of (seed, layer, i) alone, and
    strikes the same image in every layer. The model runs in evaluation mode and is left as it was: weights, buffers,
    hooks and modes.

    Args:
        model: The model, on the device where it shall run; gives logits ``(N, C)``.
        data: Validation images with labels: a DataLoader, an iterable of ``(images, labels)``, or one pair of tensors.
            They are held in memory.
        protocol: ``"goldeneye"`` (range detector at the struck site), ``"raw"``, or a :class:`Protocol`.
        trials_per_site: Trials at each site, uniform over its neurons and bits.
        design: Takes the place of ``trials_per_site``: :class:`UniformDesign` or :class:`StratifiedDesign`, such as
            :func:`neyman_design` gives.
        until: Stop as soon as a figure is known this well; None runs the whole design.
        fault: What a trial does; None flips one bit of one neuron.
        seed: Of all draws.
        layers: Names of sites to strike, or patterns such as ``"layer4.*"``; None takes all that the model has.
        modules: Further modules whose outputs shall be sites: classes, names or patterns of names.
        calibration: Images, usually of the training set, that give the range detector its ranges; protocols without
            one do not use them.
        batch_size: Trials run at once.
        chunk_size: Trials of each site that are written to disk together, a multiple of ``batch_size``; None takes four
            batches.
        output: Folder to keep the trials in. Each chunk is written as soon as it is done, and the same call goes on
            where a killed one stopped; at the end there is ``result.parquet``. Needs the extra ``results``.
        shard: Run a part of the chunks only, beside other processes with the same ``output``: pass
            ``Shard.from_environment()`` under torchrun, and call :func:`merge_campaign` when all are done.
        engine: ``"incremental"`` runs only the operations that come after a site, and drops images that have become
            golden; ``"full"`` runs the whole model for each batch and site. Both give the same bits; where a model
            cannot be run in part, the full pass is taken and a log entry says so.
        memory_limit: Bytes that golden activations may take on the model's device; None takes half of what is free. A
            site that needs more takes full passes.
        progress: Show a progress bar on standard error; or a function that is called after each batch of trials with
            how many are done, and how many there are.

    Returns:
        Every trial, with its outcome; with ``shard``, those of the shard.

    Raises:
        ArgumentError: A wrong argument, or no calibration images where the protocol needs them.
        DataError: Empty data, or labels that are no classes.
        ModelError: A compiled or scripted model, or one that gives no logits.
        FaultError: A layer that does not exist or that no fault can be put into.
        InjectionError: The model is not deterministic, nothing is classified correctly, or a flip did not take place.
        ResultError: The folder ``output`` holds another campaign, or files of something else.
        StoreError: The folder cannot be written, or another process runs the same in it.

    Source: Mahmoud et al., *GoldenEye: A Platform for Evaluating Emerging Numerical Data Formats in DNN Accelerators*,
    DSN 2022, for the protocol of that name.
    """
    rules = protocol_named(protocol)
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model must be a torch.nn.Module, found {type(model).__name__}.")
    if hasattr(model, "_orig_mod"):
        raise ModelError("The model is compiled, so no fault reaches its layers; pass the one inside: model._orig_mod.")
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError("The model is TorchScript, so no fault reaches its layers; pass the module it was made from.")
    trials_per_site = _count("trials_per_site", trials_per_site, least=1)
    batch_size = _count("batch_size", batch_size, least=1)
    chunk_size = 4 * batch_size if chunk_size is None else _count("chunk_size", chunk_size, least=1)
    if chunk_size % batch_size:
        raise ArgumentError(f"chunk_size must be a multiple of batch_size, {batch_size}; found {chunk_size}.")
    seed = _count("seed", seed, least=0)
    if engine not in ("incremental", "full"):
        raise ArgumentError(f'engine must be "incremental" or "full", found {engine!r}.')
    check_progress(progress)
    memory_limit = None if memory_limit is None else _count("memory_limit", memory_limit, least=1)
    shard = Shard() if shard is None else shard
    if not isinstance(shard, Shard):
        raise ArgumentError(f"shard must be a Shard, such as Shard(rank=0, world_size=4); found {shard!r}.")
    if output is None and not shard.is_whole:
        raise ArgumentError("A shard is kept in a folder for the others to be merged with: pass output=folder.")
    if rules.range_detector is not None and calibration is None:
        raise ArgumentError(
            f"The protocol {rules.name!r} clamps flipped values to the range of each layer; pass "
            'calibration=train_loader to measure the ranges, or protocol="raw".'
        )
    images = collect(data)
    model_sha256 = fingerprint(model)
    calibration_sha256 = ""
    with evaluating(model), open_attention():
        golden = run_golden(model, images, batch_size=batch_size, min_top2diff=rules.min_top2diff)
        site_map = find_sites(model, images.images[:3].to(device_of(model)), modules=modules)
        struck, excluded = _chosen(site_map, layers)
        if rules.range_detector is not None and calibration is not None:
            ranges = profile_ranges(model, calibration, tuple(s.site for s in struck))
            struck = [CampaignSite(s.site, ranges.limits[s.site.name], s.in_classifier) for s in struck]
            calibration_sha256 = ranges.sha256
        chosen = UniformDesign(trials_per_site=trials_per_site) if design is None else design
        plan = plan_trials(chosen, struck, seed=seed, fault=SINGLE_FLIP if fault is None else fault)
        record = CampaignRecord(
            config=CampaignConfig(
                protocol=rules,
                design=plan.design,
                fault=plan.fault,
                until=until,
                seed=seed,
                batch_size=batch_size,
                chunk_size=chunk_size,
                model=type(model).__name__,
                model_sha256=model_sha256,
                data_sha256=images.sha256,
                calibration_sha256=calibration_sha256,
                environment=environment_of(model),
            ),
            sites=tuple(struck),
            excluded=tuple(excluded),
            uninjectable=site_map.uninjectable,
            golden=golden,
        )
        execution = Execution(
            model,
            images,
            plan.image_weights(golden),
            plan,
            protocol=rules,
            batch_size=batch_size,
            engine=engine,
            memory_limit=memory_limit,
        )
        with contextlib.ExitStack() as stack:
            folder = None
            if output is not None:
                folder = stack.enter_context(CampaignFolder.resume(output, record, shard=shard))
                record = folder.record
            result = CampaignResult.of(record, _run(execution, record, folder, shard, progress=progress), shard=shard)
            if folder is not None and shard.is_whole:
                folder.write_result(result.encode())
    return result


def _run(
    execution: Execution,
    record: CampaignRecord,
    folder: CampaignFolder | None,
    shard: Shard,
    *,
    progress: Progress,
) -> Trials:
    """Run the chunks of a shard that the folder does not have yet, and write each when it is done."""
    counts, size = record.plan.counts, record.config.chunk_size
    whole = -(-max(counts) // size)
    if shard.world_size > whole:
        raise ArgumentError(
            f"The campaign has {whole} chunks for {shard.world_size} processes; start {whole} at most, or pass a "
            f"chunk_size below {size}."
        )
    chunks = shard.chunks(whole)
    done = folder.stored(shard) if folder is not None else {}
    total = sum(max(0, min(count - chunk * size, size)) for chunk in chunks for count in counts)
    finished = sum(map(len, done.values()))
    with show_progress(progress, total=total, done=finished, unit="trial") as advance:
        prefix = Prefix(record)
        for chunk in chunks:
            if prefix.complete(lambda number: _known(number, done, folder)):
                break
            if chunk not in done:
                start = chunk * size
                done[chunk] = execution.run(start, min(start + size, max(counts)), advance=advance)
                execution.close()  # nothing is kept of a model that has changed meanwhile
                if folder is not None:
                    folder.write(chunk, done[chunk])
    prefix.complete(lambda number: _known(number, done, folder))
    return Trials.gather([trials for chunk, trials in done.items() if prefix.holds(chunk)])


def _known(chunk: int, done: Mapping[int, Trials], folder: CampaignFolder | None) -> Trials | None:
    """Return a chunk that this process has run, or that another one has written; None if there is none yet."""
    if chunk in done or folder is None:
        return done.get(chunk)
    try:
        return folder.read(chunk)
    except (FileNotFoundError, DamagedChunkError):
        return None


def _chosen(site_map: SiteMap, layers: Sequence[str] | None) -> tuple[list[CampaignSite], list[CampaignSite]]:
    """Return the sites to strike and those to leave out, in the order of execution."""
    last = {site.name for site in site_map.last}
    if layers is not None:
        if isinstance(layers, str) or not layers:
            raise ArgumentError(f"layers must be a non-empty sequence of names, found {layers!r}.")
        names = {site.name for site in site_map.matching(layers)}
    else:
        names = {site.name for site in site_map.reached}
    all_sites = [CampaignSite(site, None, site.name in last) for site in site_map.reached]
    return [s for s in all_sites if s.site.name in names], [s for s in all_sites if s.site.name not in names]


def _count(name: str, value: int, *, least: int) -> int:
    """Return a whole number as a plain int, or say what was expected."""
    try:
        whole = operator.index(value)
    except TypeError:
        whole = least - 1
    if whole < least or isinstance(value, bool):
        raise ArgumentError(f"{name} must be a whole number of at least {least}, found {value!r}.")
    return whole
