"""``resilient-heads campaign``."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from resilient_heads.campaign.result.config import PROTOCOLS
from resilient_heads.commands.model_and_data import add_options, load_images, load_model
from resilient_heads.errors import ArgumentError

if TYPE_CHECKING:
    from resilient_heads.campaign.design.designs import StratifiedDesign
    from resilient_heads.campaign.figures.stopping import StoppingRule


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command and its options."""
    parser = subparsers.add_parser(
        "campaign",
        help="strike every layer of a model with bit flips, into a folder; the same command goes on after a stop",
        description="Strikes every layer of a model with bit flips and keeps the trials in a folder. The same command "
        "goes on where a killed one stopped. Several processes share the work if RANK and WORLD_SIZE are set, as by "
        "torchrun; then put their chunks together with: resilient-heads merge FOLDER.",
    )
    add_options(parser)
    campaign = parser.add_argument_group("campaign")
    campaign.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="where to keep the trials")
    campaign.add_argument(
        "--protocol", choices=PROTOCOLS, default="goldeneye", help="how flips are applied (%(default)s)"
    )
    campaign.add_argument("--calibration", type=Path, help="like --data, usually of the training set; for goldeneye")
    campaign.add_argument("--layers", nargs="+", metavar="PATTERN", help="sites to strike, such as 'layer4.*' fc")
    campaign.add_argument("--injections", type=int, default=4096, help="trials at each site (%(default)s)")
    campaign.add_argument(
        "--pilot", type=Path, metavar="RESULT", help="folder or file of a smaller campaign: share --trials out by it"
    )
    campaign.add_argument("--trials", type=int, help="with --pilot: trials at all sites together")
    campaign.add_argument(
        "--until",
        metavar="METRIC:HALF",
        help="stop as soon as half of the network's 99 %% interval is this narrow: sdc:0.001, or sdc:10%% of the rate",
    )
    campaign.add_argument("--seed", type=int, default=0, help="of all draws (%(default)s)")
    campaign.add_argument("--batch-size", type=int, default=64, help="trials run at once (%(default)s)")
    campaign.add_argument("--chunk-size", type=int, help="trials of each site in one file (four batches)")
    campaign.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run one process's share of the campaign and print the layers, or what is left to do."""
    from resilient_heads.campaign.result.shards import Shard
    from resilient_heads.campaign.run.runner import run_campaign  # torch takes seconds: --help must not wait for it
    from resilient_heads.report.tables import layer_table

    shard = Shard.from_environment()
    until = _until(arguments.until)
    design = _design(arguments)
    model, preprocessing = load_model(arguments)
    data = load_images(arguments.data, preprocessing, arguments)
    calibration = (
        load_images(arguments.calibration, preprocessing, arguments)
        if arguments.calibration is not None and PROTOCOLS[arguments.protocol].range_detector is not None
        else None
    )
    result = run_campaign(
        model,
        data,
        protocol=arguments.protocol,
        trials_per_site=arguments.injections,
        design=design,
        until=until,
        seed=arguments.seed,
        layers=arguments.layers,
        calibration=calibration,
        batch_size=arguments.batch_size,
        chunk_size=arguments.chunk_size,
        output=arguments.output,
        shard=shard,
        progress=not arguments.quiet,
    )
    if shard.is_whole:
        print(f"{layer_table(result)}\n{len(result.trials):,} trials written to {arguments.output / 'result.parquet'}")
    else:
        print(
            f"Shard {shard.rank} of {shard.world_size} is done: {len(result.trials):,} trials in {arguments.output}. "
            f"When all are: resilient-heads merge {arguments.output}"
        )


def _until(text: str | None) -> "StoppingRule | None":
    """Return the stopping rule that ``sdc:0.001`` or ``sdc:10%`` names."""
    from resilient_heads.campaign.figures.stopping import StoppingRule

    if text is None:
        return None
    metric, _, width = text.partition(":")
    relative = width.endswith("%")
    try:
        half = float(width.removesuffix("%")) / (100 if relative else 1)
    except ValueError:
        raise ArgumentError(f"--until takes METRIC:HALF, such as sdc:0.001 or sdc:10%; found {text!r}.") from None
    return StoppingRule(metric=metric, half_width=half, relative=relative)


def _design(arguments: argparse.Namespace) -> "StratifiedDesign | None":
    """Return the design that a pilot gives, if there is one."""
    from resilient_heads.campaign.analysis.pilot import neyman_design
    from resilient_heads.campaign.result.results import CampaignResult

    if (arguments.pilot is None) != (arguments.trials is None):
        raise ArgumentError("--pilot and --trials go together: the pilot says where, --trials how many.")
    if arguments.pilot is None:
        return None
    if not arguments.pilot.exists():
        raise ArgumentError(f"There is no pilot at {arguments.pilot}.")
    return neyman_design(CampaignResult.load(arguments.pilot), total_trials=arguments.trials)
