"""Run a fault injection campaign."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence

from torch import nn

from resilient_heads.campaign.design.designs import Design, UniformDesign
from resilient_heads.campaign.figures.stopping import StoppingRule
from resilient_heads.campaign.golden.data import Data, collect
from resilient_heads.campaign.golden.golden_run import GoldenRun
from resilient_heads.campaign.result.config import CampaignConfig, Engine
from resilient_heads.campaign.result.protocol import Protocol
from resilient_heads.campaign.result.results import CampaignResult
from resilient_heads.campaign.result.shards import Shard
from resilient_heads.campaign.result.store import CampaignFolder, reserved
from resilient_heads.campaign.run.chunks import run_chunks
from resilient_heads.campaign.run.execution import Execution
from resilient_heads.campaign.run.prepare import check_model, prepare
from resilient_heads.campaign.run.progress import Progress, check_progress, show_phases
from resilient_heads.campaign.run.termination import unwound_before_termination
from resilient_heads.checks import instance_of
from resilient_heads.errors import ArgumentError
from resilient_heads.evaluation import evaluating
from resilient_heads.injection.faults.fault_model import FaultModel
from resilient_heads.injection.sites.hooks import open_attention
from resilient_heads.phases import phase


def run_campaign(
    model: nn.Module,
    data: Data,
    config: CampaignConfig | None = None,
    *,
    calibration: Data | None = None,
    output: str | os.PathLike[str] | None = None,
    shard: Shard | None = None,
    progress: Progress = True,
    on_golden: Callable[[GoldenRun], object] | None = None,
    protocol: Protocol | str | None = None,
    trials_per_site: int | None = None,
    design: Design | None = None,
    until: StoppingRule | None = None,
    fault: FaultModel | None = None,
    seed: int | None = None,
    layers: Sequence[str] | None = None,
    modules: Sequence[str | type[nn.Module]] | None = None,
    batch_size: int | None = None,
    chunk_size: int | None = None,
    engine: Engine | None = None,
    memory_limit: int | None = None,
) -> CampaignResult:
    """Inject many faults into a model, one in each inference, and record the outcome of each trial.

    Fault sites are the outputs of layers, products with the weights of an attention, and the tensors of a text-guided
    head; see :func:`find_sites`. Every image of a batch has its own fault in the same site. Trial i at a site is a
    function of (seed, site, i) alone, and it uses the same image at every site. The model runs in evaluation mode;
    afterwards its weights, buffers, hooks and modes are as before.

    Give your choices either as one ``config`` or as keywords. A keyword that is None has the default of
    :class:`CampaignConfig`, which explains each choice.

    Args:
        model: The model, on the device where it runs; it returns logits ``(N, C)``.
        data: Validation images with labels: a DataLoader, an iterable of ``(images, labels)``, or one pair of tensors.
            They are held in memory.
        config: All choices at once.
        calibration: Images, usually of the training set, from which the range detector takes its ranges. A protocol
            with a range detector needs them.
        output: Folder for the trials. Every chunk is written when it is finished, and the same call continues after an
            interruption. When the campaign is complete, the folder holds ``result.parquet``. Needs the extra
            ``results``.
        shard: Run only this process's part of the chunks. All processes have the same ``output``; pass
            ``Shard.from_environment()`` under torchrun, and call :func:`merge_campaign` when all have ended.
        progress: True shows a bar on standard error. A function is called after each batch with the number of finished
            trials and their total.
        on_golden: A function that is called with the golden run before the first trial, to show the fault-free
            accuracy or to stop.
        protocol: A protocol, or the name of a built-in one: ``"goldeneye"`` or ``"raw"``.
        trials_per_site: Short for ``design=UniformDesign(trials_per_site=...)``.
        design: See :class:`CampaignConfig`.
        until: See :class:`CampaignConfig`.
        fault: See :class:`CampaignConfig`.
        seed: See :class:`CampaignConfig`.
        layers: See :class:`CampaignConfig`.
        modules: See :class:`CampaignConfig`.
        batch_size: See :class:`CampaignConfig`.
        chunk_size: See :class:`CampaignConfig`.
        engine: See :class:`CampaignConfig`. If a site cannot be run incrementally, its batches run the whole model, and
            a log entry says so.
        memory_limit: See :class:`CampaignConfig`. A site that needs more runs the whole model.

    Returns:
        Every trial with its outcome; with ``shard``, the trials of the shard.

    Raises:
        ArgumentError: A choice is wrong, or calibration images are missing.
        DataError: The data are empty, or have labels that are not classes of the model.
        ModelError: The model is compiled, or does not return logits of at least two classes.
        FaultError: A layer does not exist, or no fault can be injected into it.
        InjectionError: The model is not deterministic, classifies no image correctly, or a fault did not take effect.
        ResultError: The folder ``output`` holds another campaign, or files of something else.
        StoreError: The folder cannot be written, or another process runs the same shard in it.

    Source: Mahmoud et al., *GoldenEye: A Platform for Evaluating Emerging Numerical Data Formats in DNN Accelerators*,
    DSN 2022, for the protocol ``"goldeneye"``.

    >>> import torch, resilient_heads as rh
    >>> model, images = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)), torch.randn(8, 3, 2, 2)
    >>> labels = model(images).argmax(dim=1)
    >>> result = rh.run_campaign(model, (images, labels), protocol="raw", trials_per_site=64, progress=False)
    >>> len(result.trials), result.sites[0].name
    (64, '1')
    """
    if trials_per_site is not None:
        if design is not None:
            raise ArgumentError("Pass trials_per_site= or design=, not both; a design has its own number of trials.")
        if config is not None:
            raise ArgumentError(
                "Pass config= or trials_per_site=, not both. To change the config, pass "
                f"dataclasses.replace(config, design=rh.UniformDesign(trials_per_site={trials_per_site}))."
            )
        design = UniformDesign(trials_per_site=trials_per_site)
    choices = {
        "protocol": protocol,
        "design": design,
        "until": until,
        "fault": fault,
        "seed": seed,
        "layers": layers,
        "modules": modules,
        "batch_size": batch_size,
        "chunk_size": chunk_size,
        "engine": engine,
        "memory_limit": memory_limit,
    }
    config = _one_config(config, {name: choice for name, choice in choices.items() if choice is not None})
    shard = Shard() if shard is None else instance_of("shard", shard, Shard, example="Shard(rank=0, world_size=4)")
    check_model(model)
    check_progress(progress)
    if output is None and not shard.is_whole:
        raise ArgumentError("A shard is written to a folder, so that shards can be merged; pass output=folder.")
    if config.protocol.range_detector is not None and calibration is None:
        raise ArgumentError(
            f"The protocol {config.protocol.name!r} restricts faulty values to the range of each site; pass "
            'calibration=train_loader to measure the ranges, or protocol="raw".'
        )
    with contextlib.ExitStack() as stack:
        stack.enter_context(show_phases(progress))
        path = None
        if output is not None:
            stack.enter_context(unwound_before_termination())
            path = stack.enter_context(reserved(output, shard))
        with phase("reading the images"):
            images = collect(data)
        stack.enter_context(evaluating(model))
        stack.enter_context(open_attention())
        record = prepare(model, images, config, calibration)
        folder = None if path is None else CampaignFolder.resume(path, record, shard=shard)
        if folder is not None:
            # The folder's config names classes by their path and leaves out what changes no trial.
            given = {name: getattr(config, name) for name in ("engine", "memory_limit", "modules")}
            record = dataclasses.replace(folder.record, config=dataclasses.replace(folder.record.config, **given))
        if on_golden is not None:
            on_golden(record.golden)
        plan = record.plan
        execution = Execution(
            model,
            images,
            plan.image_weights(record.golden),
            plan,
            protocol=config.protocol,
            batch_size=config.batch_size,
            engine=config.engine,
            memory_limit=config.memory_limit,
        )
        trials = run_chunks(execution, record, folder, shard, progress=progress)
        result = CampaignResult(record=record, trials=trials, shard=shard)
        if folder is not None and shard.is_whole:
            with phase("writing the result"):
                folder.write_result(trials)
    return result


def _one_config(config: CampaignConfig | None, choices: dict[str, object]) -> CampaignConfig:
    """Return the config, or the config of single choices; refuse both together."""
    if config is None:
        return CampaignConfig(**choices)  # type: ignore[arg-type]
    if choices:
        name = next(iter(choices))
        raise ArgumentError(
            f"Pass config= or single choices, not both; found config and {', '.join(choices)}. To change the config, "
            f"pass dataclasses.replace(config, {name}=...)."
        )
    return instance_of("config", config, CampaignConfig, example="CampaignConfig(seed=1)")
