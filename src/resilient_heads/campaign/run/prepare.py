"""Observe everything that a campaign needs before its first trial: golden run, sites, ranges and plan."""

import dataclasses
from collections.abc import Sequence

from torch import nn

from resilient_heads.campaign.design.plan import plan_trials
from resilient_heads.campaign.golden.data import Data, LabelledImages
from resilient_heads.campaign.golden.digests import fingerprint
from resilient_heads.campaign.golden.environment import environment_of
from resilient_heads.campaign.golden.golden_run import profile_ranges, run_golden
from resilient_heads.campaign.result.config import CampaignConfig
from resilient_heads.campaign.result.record import CampaignRecord
from resilient_heads.campaign.trials.columns import CampaignSite
from resilient_heads.evaluation import device_of
from resilient_heads.injection.sites.batches import first_images
from resilient_heads.injection.sites.find import find_sites
from resilient_heads.injection.sites.site import SiteMap
from resilient_heads.phases import phase
from resilient_heads.wrappers import refuse_distributed, refuse_opaque


def check_model(model: nn.Module) -> None:
    """Raise an error unless faults can reach the layers of a model."""
    refuse_opaque(model)
    refuse_distributed(model)


def prepare(
    model: nn.Module, images: LabelledImages, config: CampaignConfig, calibration: Data | None
) -> CampaignRecord:
    """Return the record of a campaign; call it inside :func:`~resilient_heads.evaluation.evaluating`."""
    golden = run_golden(model, images, batch_size=config.batch_size, min_top2diff=config.protocol.min_top2diff)
    with phase("finding the sites"):
        example_input = first_images(images.images, config.batch_size).to(device_of(model))
        site_map = find_sites(model, example_input, modules=config.modules)
    sites, excluded = _chosen(site_map, config.layers)
    calibration_sha256 = ""
    if config.protocol.range_detector is not None and calibration is not None:
        chosen = tuple(site.site for site in sites)
        with phase("measuring the range of each site on the calibration images"):
            ranges = profile_ranges(model, calibration, chosen, batch_size=config.batch_size)
        sites = [dataclasses.replace(site, range_limit=ranges.limits[site.name]) for site in sites]
        calibration_sha256 = ranges.sha256
    plan = plan_trials(config.design, sites, seed=config.seed, fault=config.fault)
    return CampaignRecord(
        config=dataclasses.replace(config, design=plan.design, chunk_size=config.trials_per_chunk),
        model=type(model).__name__,
        model_sha256=fingerprint(model),
        data_sha256=images.sha256,
        calibration_sha256=calibration_sha256,
        environment=environment_of(model),
        sites=tuple(sites),
        excluded=tuple(excluded),
        uninjectable=site_map.uninjectable,
        coverage=site_map.coverage,
        golden=golden,
    )


def _chosen(site_map: SiteMap, layers: Sequence[str] | None) -> tuple[list[CampaignSite], list[CampaignSite]]:
    """Return the sites of the campaign and the excluded ones, in the order of execution."""
    classifier = {site.name for site in site_map.last}
    chosen = site_map.reached if layers is None else site_map.matching(layers)
    names = {site.name for site in chosen}
    sites = [CampaignSite(site, None, site.name in classifier) for site in site_map.reached]
    return [site for site in sites if site.name in names], [site for site in sites if site.name not in names]
