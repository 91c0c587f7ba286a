"""Run a model with one trial in each image of a batch, as campaigns do."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from resilient_heads.injection.apply.core import SiteInjection, inject_at_site
from resilient_heads.injection.faults.draws import Draws
from resilient_heads.injection.faults.fault_model import FaultModel
from resilient_heads.injection.faults.ranges import RangeDetector
from resilient_heads.injection.sites.hooks import watch_sites
from resilient_heads.injection.sites.site import Site


def run_with_trials(
    model: nn.Module,
    x: Tensor,
    layer: str,
    draws: Draws,
    *,
    fault_model: FaultModel | None = None,
    range_limit: float | None = None,
    detector: RangeDetector = "clamp",
) -> tuple[SiteInjection, Tensor]:
    """Return what the trials did, and the model's output."""
    outputs: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    model(x)
    handle.remove()
    shape, dtype = tuple(outputs[0].shape[1:]), outputs[0].dtype
    site = Site(module=layer, kind="", shape=shape, dtype=dtype, group=None, is_layer=True)
    injections: list[SiteInjection] = []

    def replace(_name: str, golden: Tensor) -> Tensor:
        faulty = golden.clone(memory_format=torch.preserve_format)
        injections.append(
            inject_at_site(
                faulty,
                golden,
                site,
                draws,
                model=fault_model or FaultModel(),
                range_limit=range_limit,
                detector=detector,
            )
        )
        return faulty

    with watch_sites(model, [site], replace):
        output = model(x)
    (injection,) = injections
    return injection, output


def single_flips(neurons: Sequence[int], bits: Sequence[int]) -> Draws:
    """Return the draws of one flip in each image."""
    return Draws.single_flips(np.array(neurons, dtype=np.int64), np.array(bits, dtype=np.int64))
