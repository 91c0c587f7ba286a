"""``resilient-heads campaign``."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from resilient_heads.campaign.result.protocol import PROTOCOLS
from resilient_heads.commands.model_and_data import add_options, load_images, load_model
from resilient_heads.errors import ArgumentError

if TYPE_CHECKING:
    from resilient_heads.campaign.design.designs import StratifiedDesign
    from resilient_heads.campaign.figures.stopping import StoppingRule


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command and its options."""
    parser = subparsers.add_parser(
        "campaign",
        help="inject bit flips into every layer of a model; the same command resumes an interrupted campaign",
        description="Inject bit flips into every layer of a model and write each trial to a folder. To resume an "
        "interrupted campaign, run the same command again. Several processes share the work if RANK and WORLD_SIZE are "
        "set, as torchrun sets them; afterwards combine their trials with: resilient-heads merge FOLDER.",
    )
    add_options(parser)
    campaign = parser.add_argument_group("campaign")
    campaign.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder for the trials")
    campaign.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        default="goldeneye",
        help="goldeneye clamps flipped values to each layer's range, raw does not (default: %(default)s)",
    )
    campaign.add_argument(
        "--calibration",
        type=Path,
        help="images that give each layer's range, usually of the training set, in the form of --data; for goldeneye",
    )
    campaign.add_argument(
        "--layers", nargs="+", metavar="PATTERN", help="inject only at these sites, such as 'layer4.*' fc"
    )
    campaign.add_argument(
        "--trials-per-site", type=int, default=4096, help="number of trials at each site (default: %(default)s)"
    )
    campaign.add_argument(
        "--pilot",
        type=Path,
        metavar="FOLDER",
        help="folder of a smaller campaign, which decides how to distribute --total-trials over the sites",
    )
    campaign.add_argument("--total-trials", type=int, help="number of trials at all sites together; for --pilot")
    campaign.add_argument(
        "--until",
        metavar="METRIC:WIDTH",
        help="stop when half of the 99%% interval of the network's rate is this narrow: sdc:0.001, or sdc:10%% of the "
        "rate",
    )
    campaign.add_argument("--seed", type=int, default=0, help="seed of all random draws (default: %(default)s)")
    campaign.add_argument("--batch-size", type=int, default=64, help="trials per forward pass (default: %(default)s)")
    campaign.add_argument("--chunk-size", type=int, help="trials of each site in one file (default: four batches)")
    campaign.add_argument("--quiet", action="store_true", help="hide the progress bar")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run one process's part of the campaign, and print the table of layers or the next step."""
    # torch takes seconds: --help must not wait for it
    from resilient_heads.campaign.result.shards import Shard
    from resilient_heads.campaign.run.runner import run_campaign
    from resilient_heads.report.tables import layer_table

    shard = Shard.from_environment()
    until = _stopping_rule(arguments.until)
    design = _design(arguments)
    model, preprocessing = load_model(arguments)
    data = load_images(arguments.data, preprocessing, arguments)
    clamps = PROTOCOLS[arguments.protocol].range_detector is not None
    calibration = (
        load_images(arguments.calibration, preprocessing, arguments) if arguments.calibration and clamps else None
    )
    result = run_campaign(
        model,
        data,
        protocol=arguments.protocol,
        trials_per_site=arguments.trials_per_site if design is None else None,
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
            f"When all shards are done, run: resilient-heads merge {arguments.output}"
        )


def _stopping_rule(text: str | None) -> "StoppingRule | None":
    """Parse ``sdc:0.001`` or ``sdc:10%``."""
    from resilient_heads.campaign.figures.stopping import StoppingRule

    if text is None:
        return None
    metric, _, width = text.partition(":")
    relative = width.endswith("%")
    try:
        half_width = float(width.removesuffix("%")) / (100 if relative else 1)
    except ValueError:
        raise ArgumentError(f"--until must be METRIC:WIDTH, such as sdc:0.001 or sdc:10%; found {text!r}.") from None
    return StoppingRule(metric=metric, half_width=half_width, relative=relative)


def _design(arguments: argparse.Namespace) -> "StratifiedDesign | None":
    """Return the design that a pilot gives; None without a pilot."""
    from resilient_heads.campaign.analysis.pilot import neyman_design
    from resilient_heads.campaign.result.results import CampaignResult

    if (arguments.pilot is None) != (arguments.total_trials is None):
        raise ArgumentError("--pilot needs --total-trials, and --total-trials needs --pilot; pass both or neither.")
    if arguments.pilot is None:
        return None
    if not arguments.pilot.exists():
        raise ArgumentError(f"There is no pilot at {arguments.pilot}.")
    return neyman_design(CampaignResult.load(arguments.pilot), total_trials=arguments.total_trials)
