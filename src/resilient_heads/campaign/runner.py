"""Run a campaign: many single flips at every site of a model."""

import hashlib
import operator
import platform
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from resilient_heads.campaign.config import CampaignConfig, Protocol, protocol_named
from resilient_heads.campaign.data import Data, LabelledImages, collect
from resilient_heads.campaign.golden import logits_of, profile_ranges, run_golden
from resilient_heads.campaign.outcomes import judge
from resilient_heads.campaign.results import CampaignResult
from resilient_heads.campaign.trials import StruckSite, Trials
from resilient_heads.errors import DataError, InjectionError
from resilient_heads.evaluation import device_of, evaluating
from resilient_heads.injection.injector import inject_batch
from resilient_heads.injection.sampling import draw_faults, draw_images
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
        drawn = draw_images(seed, np.arange(injections_per_layer), golden.eligible)
        trials = _run_trials(model, images, struck, drawn, seed=seed, batch_size=batch_size, progress=progress)
    return CampaignResult(
        config=CampaignConfig(
            protocol=rules,
            injections_per_layer=injections_per_layer,
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


def _run_trials(
    model: nn.Module,
    data: LabelledImages,
    struck: list[StruckSite],
    drawn: NDArray[np.int64],
    *,
    seed: int,
    batch_size: int,
    progress: bool,
) -> Trials:
    """Run all trials; one golden run of a batch serves every site, since trial i strikes the same image in each."""
    trials = Trials.empty(len(struck), len(drawn))
    device = device_of(model)
    bar = tqdm(total=trials.outcome.size, unit="trial", disable=not progress, desc="injecting", leave=False)
    with bar:
        first: tuple[Tensor, Tensor] | None = None
        for start in range(0, len(drawn), batch_size):
            batch = slice(start, min(start + batch_size, len(drawn)))
            numbers = np.arange(batch.start, batch.stop)
            chosen = torch.from_numpy(drawn[batch])
            inputs = data.images[chosen].to(device)
            targets = data.labels[chosen].to(device)
            golden = logits_of(model, inputs)
            if first is None:
                _require_same(golden, logits_of(model, inputs), "The model gives different logits on the same images")
                first = (inputs, golden)
                _require_separate_images(model, struck, inputs, golden)
            for row, site in enumerate(struck):
                _strike(model, site, row, trials, batch, numbers, inputs, targets, golden, drawn[batch], seed)
                bar.update(len(numbers))
        if first is not None:
            _require_same(first[1], logits_of(model, first[0]), "The campaign changed the model's golden logits")
    return trials


def _strike(
    model: nn.Module,
    struck: StruckSite,
    row: int,
    trials: Trials,
    batch: slice,
    numbers: NDArray[np.int64],
    inputs: Tensor,
    targets: Tensor,
    golden: Tensor,
    drawn: NDArray[np.int64],
    seed: int,
) -> None:
    """Run one batch of trials at one site and write down what came of each."""
    site = struck.site
    draws = draw_faults(seed, site.name, numbers, neurons=site.neurons, bits=site.bits)
    neurons, bits = torch.from_numpy(draws.neurons), torch.from_numpy(draws.bits)
    with inject_batch(model, site.name, neurons, bits, limit=struck.limit) as strike:
        faulty = logits_of(model, inputs)
    judgement = judge(golden, faulty, targets)
    columns: dict[str, Tensor | NDArray[np.int64]] = {
        "image": drawn,
        "neuron": draws.neurons,
        "bit": draws.bits,
        "before": strike.before.double(),
        "after": strike.after.double(),
        "outcome": judgement.outcome,
        "delta_loss": judgement.delta_loss,
        "predicted": judgement.predicted,
        "rank": judgement.rank,
        "confidence_change": judgement.confidence_change,
    }
    for name, column in columns.items():
        trials.columns[name][row, batch] = column.cpu().numpy() if isinstance(column, Tensor) else column


def _require_separate_images(model: nn.Module, struck: list[StruckSite], inputs: Tensor, golden: Tensor) -> None:
    """Raise InjectionError unless a fault in one image of a batch leaves the other images' logits alone."""
    if len(inputs) == 1:
        return
    modules = dict(model.named_modules(remove_duplicate=False))
    for own in struck:

        def disturb(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
            changed = output.clone(memory_format=torch.preserve_format)
            changed[0] = 1 - 2 * changed[0]
            return changed

        handle = modules[own.site.name].register_forward_hook(disturb)
        try:
            others = logits_of(model, inputs)[1:]
        finally:
            handle.remove()
        if not torch.equal(others, golden[1:]):
            raise InjectionError(
                f"A fault of one image at {own.site.name!r} reaches other images of its batch, as through statistics "
                "taken over the batch, so a trial would not be one flip. Pass batch_size=1."
            )


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


def _require_same(golden: Tensor, again: Tensor, what: str) -> None:
    """Raise InjectionError unless two runs gave the same bits."""
    if not torch.equal(golden, again):
        raise InjectionError(
            f"{what}, so 'masked' could not mean bit-identical. Remove what is random or stateful in evaluation "
            "mode, or call torch.use_deterministic_algorithms(True)."
        )


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
