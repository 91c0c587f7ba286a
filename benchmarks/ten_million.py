"""How large ten million trials are on disk, and how long it takes to write, merge and open them.

Run it with ``python benchmarks/ten_million.py FOLDER`` (extra ``results``; pandas; 0.5 GB of disk, 4 GB of memory). The
trials are made up: 54 sites of 64x56x56 neurons, half of the faults masked, 50,000 images.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

import resilient_heads as rh
from resilient_heads.campaign.golden.golden_run import GoldenRun
from resilient_heads.campaign.result.config import CampaignConfig
from resilient_heads.campaign.result.record import CampaignRecord
from resilient_heads.campaign.result.store import CampaignFolder, reserved
from resilient_heads.campaign.trials.columns import COLUMNS, CampaignSite, Trials
from resilient_heads.extras import require
from resilient_heads.injection.sites.coverage import Coverage
from resilient_heads.injection.sites.site import Site

SITES, PER_SITE, CHUNK, IMAGES, SHAPE = 54, 185_344, 1024, 50_000, (64, 56, 56)
T = TypeVar("T")


def record() -> CampaignRecord:
    """Return a campaign without trials."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 1000, IMAGES)
    sites = tuple(
        CampaignSite(
            Site(module=f"layer{row}.conv", kind="Conv2d", shape=SHAPE, dtype=torch.float32, group=None, is_layer=True),
            None,
            row == SITES - 1,
        )
        for row in range(SITES)
    )
    return CampaignRecord(
        config=CampaignConfig(
            protocol=rh.Protocol.named("raw"),
            design=rh.UniformDesign(trials_per_site=PER_SITE),
            chunk_size=CHUNK,
        ),
        model="Synthetic",
        model_sha256="0" * 64,
        data_sha256="0" * 64,
        calibration_sha256="",
        environment={},
        sites=sites,
        excluded=(),
        uninjectable={},
        coverage=Coverage(macs=1.0, bits=1.0),
        golden=GoldenRun(
            labels=labels,
            predicted=labels,
            loss=generator.exponential(size=IMAGES),
            top2diff=generator.random(IMAGES),
            eligible=np.ones(IMAGES, dtype=bool),
        ),
    )


def trials(start: int, stop: int) -> Trials:
    """Return the trials of a chunk."""
    generator = np.random.default_rng(start)
    each, rows = stop - start, (stop - start) * SITES
    bit = generator.integers(0, 32, rows).astype(np.uint32)
    before = np.maximum(generator.normal(size=rows), 0).astype(np.float32)
    after = (before.view(np.uint32) ^ (np.uint32(1) << bit)).view(np.float32)
    masked, harmful = generator.random(rows) < 0.5, generator.random(rows) < 0.02
    outcome = np.where(masked, 0, np.where(harmful, 2, 1))
    change = np.where(masked, 0, generator.normal(size=rows) * 1e-3)
    columns: dict[str, NDArray[Any]] = {
        "site": np.repeat(np.arange(SITES), each),
        "trial": np.tile(np.arange(start, stop), SITES),
        "image": np.tile(generator.integers(0, IMAGES, each), SITES),
        "neuron": generator.integers(0, int(np.prod(SHAPE)), rows),
        "bit": bit,
        "before": before,
        "after": after,
        "outcome": outcome,
        "delta_loss": np.abs(change),
        "predicted": np.tile(generator.integers(0, 1000, each), SITES),
        "rank": np.where(outcome == 2, generator.integers(1, 10, rows), 0),
        "confidence_change": change,
        "weight": np.ones(len(change)),
    }
    with np.errstate(invalid="ignore", over="ignore"):
        return Trials(**{name: columns[name].astype(kind) for name, kind in COLUMNS.items()})


def timed(what: str, run: Callable[[], T]) -> T:
    """Run and print how long it took."""
    start = time.perf_counter()
    value = run()
    print(f"{what}: {time.perf_counter() - start:.1f} s")
    return value


def main() -> None:
    """Write, merge and open."""
    folder, pandas = Path(sys.argv[1]), require("pandas", extra="test", purpose="this benchmark")
    with reserved(folder, rh.Shard()) as path:
        store = CampaignFolder.resume(path, record(), shard=rh.Shard())
        for chunk in range(store.record.num_chunks):
            store.write(chunk, trials(*store.record.chunk_bounds(chunk)))
    merged = timed("merge", lambda: rh.merge_campaign(folder))
    print(f"{len(merged.trials):,} trials in {store.record.num_chunks} chunks")
    del merged
    for what, files in (("result.parquet", [folder / "result.parquet"]), ("trials/", [*folder.glob("trials/*")])):
        print(f"{what}: {sum(file.stat().st_size for file in files) / 1e6:.0f} MB")
    for name in ("result.parquet", "trials"):
        frame = timed(f"pandas.read_parquet({name!r})", partial(pandas.read_parquet, folder / name))
        print(f"in memory: {frame.memory_usage(deep=True).sum() / 1e6:.0f} MB")
        del frame
    two = ["layer", "outcome"]
    timed("two columns", lambda: pandas.read_parquet(folder / "result.parquet", columns=two))
    timed("CampaignResult.load", lambda: rh.CampaignResult.load(folder))


if __name__ == "__main__":
    main()
