"""Run a campaign: many single flips at every site of a model."""

import hashlib
import operator
import platform
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from resilient_heads.campaign.config import CampaignConfig, Protocol, protocol_named
from resilient_heads.campaign.data import Data, collect
from resilient_heads.campaign.design import Design, Uniform
from resilient_heads.campaign.execution import Execution
from resilient_heads.campaign.golden import profile_ranges, run_golden
from resilient_heads.campaign.results import CampaignResult
from resilient_heads.campaign.stopping import Until, reached
from resilient_heads.campaign.trials import StruckSite, Trials
from resilient_heads.errors import DataError
from resilient_heads.evaluation import device_of, evaluating
from resilient_heads.injection.sites import SiteMap, find_sites


def run_campaign(
    model: nn.Module,
    data: Data,
    *,
    protocol: Protocol | str = "goldeneye",
    injections_per_layer: int = 4096,
    seed: int = 0,
    layers: Sequence[str] | None = None,
    calibration: Data | None = None,
    batch_size: int = 64,
    design: Design | None = None,
    until: Until | None = None,
    progress: bool = True,
) -> CampaignResult:
    """Strike every site of a model with single bit flips and record how each trial ends.

    Sites are the outputs of Conv2d and Linear modules and the tensors of a text-guided head. All images of a batch are
    struck in the same site, each in its own neuron and bit. Trial i is a function of (seed, layer, i) alone, and
    strikes the same image in every layer. The model runs in evaluation mode and is left as it was: weights, buffers,
    hooks and modes.

    Args:
        model: The model, on the device where it shall run; gives logits ``(N, C)``.
        data: Validation images with labels: a DataLoader, an iterable of ``(images, labels)``, or one pair of tensors.
            They are held in memory.
        protocol: ``"goldeneye"`` (range detector at the struck site), ``"raw"``, or a :class:`Protocol`.
        injections_per_layer: Trials at each site.
        seed: Of all draws.
        layers: Names of sites to strike; None takes all that the model has.
        calibration: Images, usually of the training set, that give the range detector its ranges; protocols without
            one do not use them.
        batch_size: Trials run at once.
        design: Where trials strike; None strikes every site ``injections_per_layer`` times, uniformly.
        until: Stop as soon as a figure is known this well; None runs the whole design.
        progress: Show a progress bar on standard error.

    Returns:
        Every trial, with its outcome.

    Raises:
        DataError: Empty data, labels that are no classes, no calibration images where the protocol needs them.
        FaultError: A layer that does not exist or that no fault can be put into.
        InjectionError: The model is not deterministic, nothing is classified correctly, or a flip did not take place.

    Source: Mahmoud et al., *GoldenEye: A Platform for Evaluating Emerging Numerical Data Formats in DNN Accelerators*,
    DSN 2022, for the protocol of that name.
    """
    rules = protocol_named(protocol)
    if not isinstance(model, nn.Module):
        raise DataError(f"model must be a torch.nn.Module, found {type(model).__name__}.")
    injections_per_layer = _count("injections_per_layer", injections_per_layer, least=1)
    batch_size = _count("batch_size", batch_size, least=1)
    seed = _count("seed", seed, least=0)
    if rules.range_detector is not None and calibration is None:
        raise DataError(
            f"The protocol {rules.name!r} clamps flipped values to the range of each layer; pass "
            'calibration=train_loader to measure the ranges, or protocol="raw".'
        )
    images = collect(data)
    model_sha256 = fingerprint(model)
    calibration_sha256 = ""
    with evaluating(model):
        golden = run_golden(model, images, batch_size=batch_size, min_top2diff=rules.min_top2diff)
        site_map = find_sites(model, images.images[:3].to(device_of(model)))
        struck, unstruck = _chosen(site_map, layers)
        if rules.range_detector is not None and calibration is not None:
            ranges = profile_ranges(model, calibration, tuple(s.site for s in struck))
            struck = [StruckSite(s.site, ranges.limits[s.site.name], s.is_last) for s in struck]
            calibration_sha256 = ranges.sha256
        plan = (design or Uniform(trials=injections_per_layer)).plan(struck, seed=seed)
        execution = Execution(model, images, golden.eligible, plan, batch_size=batch_size)
        with tqdm(total=plan.total, unit="trial", disable=not progress, desc="injecting", leave=False) as bar:
            last = max(plan.counts)
            step = last if until is None else until.chunk * batch_size
            trials = execution.run(0, min(step, last), advance=bar.update)
            for start in range(step, last, step):
                if until is not None and reached(until, plan.sites, trials, plan.design):
                    break
                more = execution.run(start, min(start + step, last), advance=bar.update)
                trials = Trials.gather([trials, more])
        execution.close()
    return CampaignResult(
        config=CampaignConfig(
            protocol=rules,
            design=plan.design,
            seed=seed,
            batch_size=batch_size,
            model=type(model).__name__,
            model_sha256=model_sha256,
            data_sha256=images.sha256,
            calibration_sha256=calibration_sha256,
            environment=_environment(model),
        ),
        sites=tuple(struck),
        unstruck=tuple(unstruck),
        skipped=site_map.skipped,
        golden=golden,
        trials=trials,
    )


def fingerprint(model: nn.Module) -> str:
    """Return the sha256 of a model's state dict: names, shapes and every bit."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):  # extra state may be anything
            digest.update(f"{name} {tensor!r};".encode())
            continue
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _chosen(site_map: SiteMap, layers: Sequence[str] | None) -> tuple[list[StruckSite], list[StruckSite]]:
    """Return the sites to strike and those to leave out, in the order of execution."""
    last = {site.name for site in site_map.last}
    if layers is not None:
        if isinstance(layers, str) or not layers:
            raise DataError(f"layers must be a non-empty sequence of names, found {layers!r}.")
        names = {site_map.named(layer).name for layer in layers}
    else:
        names = {site.name for site in site_map.reached}
    all_sites = [StruckSite(site, None, site.name in last) for site in site_map.reached]
    return [s for s in all_sites if s.site.name in names], [s for s in all_sites if s.site.name not in names]


def _count(name: str, value: int, *, least: int) -> int:
    """Return a whole number as a plain int, or say what was expected."""
    try:
        whole = operator.index(value)
    except TypeError:
        whole = least - 1
    if whole < least or isinstance(value, bool):
        raise DataError(f"{name} must be a whole number of at least {least}, found {value!r}.")
    return whole


def _environment(model: nn.Module) -> dict[str, str]:
    """Return what a figure may depend on beside model and data."""
    device = device_of(model)
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": str(torch.get_num_threads()),
    }
