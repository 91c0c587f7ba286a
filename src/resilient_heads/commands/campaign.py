"""``resilient-heads campaign``."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import resilient_heads as rh
from resilient_heads.campaign.result.protocol import PROTOCOLS
from resilient_heads.commands.fault_free import check_classes, classes_line, show_accuracy, warn_of_other_labels
from resilient_heads.commands.model_and_data import add_options, explain_channels, load_model_and_images
from resilient_heads.errors import ArgumentError

if TYPE_CHECKING:
    from torch import Tensor

    from resilient_heads.inputs.named_model import NamedModel


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
        metavar="PATH",
        help="images that give each layer's range, usually of the training set, in the form of --data; for goldeneye",
    )
    campaign.add_argument(
        "--layers", nargs="+", metavar="PATTERN", help="inject only at these sites, such as 'layer4.*' fc"
    )
    campaign.add_argument(
        "--trials-per-site",
        type=int,
        default=4096,
        metavar="N",
        help="number of trials at each site (default: %(default)s)",
    )
    campaign.add_argument(
        "--pilot",
        type=Path,
        metavar="FOLDER",
        help="folder of a smaller campaign, which decides how to distribute --total-trials over the sites",
    )
    campaign.add_argument(
        "--total-trials", type=int, metavar="N", help="number of trials at all sites together; for --pilot"
    )
    campaign.add_argument(
        "--until",
        metavar="METRIC:WIDTH",
        help="stop when half of the 99%% interval of the network's rate is this narrow: sdc:0.001, or sdc:10%% of the "
        "rate",
    )
    campaign.add_argument("--seed", type=int, default=0, help="seed of all random draws (default: %(default)s)")
    campaign.add_argument(
        "--batch-size", type=int, default=64, metavar="N", help="trials per pass (default: %(default)s)"
    )
    campaign.add_argument(
        "--chunk-size", type=int, metavar="N", help="trials per site and file (default: four batches)"
    )
    campaign.add_argument("--quiet", action="store_true", help="hide the progress bar")
    parser.set_defaults(run=run, after_interrupt="; to continue, run the same command again")


def run(arguments: argparse.Namespace) -> None:
    """Run one process's part of the campaign, and print the table of layers or the next step."""
    shard = rh.Shard.from_environment()
    until = None if arguments.until is None else _stopping_rule(arguments.until)
    design = _design(arguments)
    needs_ranges = PROTOCOLS[arguments.protocol].range_detector is not None
    if needs_ranges and arguments.calibration is None:
        raise ArgumentError(
            f"--protocol {arguments.protocol} clamps flipped values to each layer's range; pass --calibration with "
            "images to measure the ranges, or --protocol raw."
        )
    named, data = load_model_and_images(arguments)
    with explain_channels(named, data):
        check_classes(named, data, batch_size=arguments.batch_size)
        if shard.rank == 0:
            warn_of_other_labels(named, data)
            print(classes_line(named, data), flush=True)
        result = rh.run_campaign(
            named.model,
            (data.images, data.labels),
            protocol=arguments.protocol,
            design=design,
            until=until,
            seed=arguments.seed,
            layers=arguments.layers,
            calibration=_calibration(named, arguments) if needs_ranges else None,
            batch_size=arguments.batch_size,
            chunk_size=arguments.chunk_size,
            output=arguments.output,
            shard=shard,
            progress=not arguments.quiet,
            on_golden=show_accuracy if shard.rank == 0 else None,
        )
    if shard.is_whole:
        print(f"{rh.report.layer_table(result)}\n{result.summary()}\n")
        print(f"{len(result.trials):,} trials written to {arguments.output / 'result.parquet'}")
        if until is not None:
            print(_stopped(until, result))
    else:
        print(
            f"Shard {shard.rank} of {shard.world_size} is done: {len(result.trials):,} trials in {arguments.output}. "
            f"When all shards are done, run: resilient-heads merge {arguments.output}"
        )


def _calibration(named: "NamedModel", arguments: argparse.Namespace) -> "Tensor":
    """Return images whose classes do not matter."""
    from resilient_heads.inputs.images import read_images  # torch takes seconds: --help must not wait for it

    return read_images(arguments.calibration, named.preprocessing, most=arguments.images).images


def _stopping_rule(text: str) -> "rh.StoppingRule":
    """Parse ``sdc:0.001`` or ``sdc:10%``."""
    metric, _, width = text.partition(":")
    relative = width.endswith("%")
    try:
        half_width = float(width.removesuffix("%")) / (100 if relative else 1)
    except ValueError:
        raise ArgumentError(f"--until must be METRIC:WIDTH, such as sdc:0.001 or sdc:10%; found {text!r}.") from None
    return rh.StoppingRule(metric=metric, half_width=half_width, relative=relative)


def _stopped(until: "rh.StoppingRule", result: "rh.CampaignResult") -> str:
    """Return whether a campaign reached the width that ``--until`` asks for."""
    plan = result.record.plan
    if until.is_met(plan.sites, result.trials, plan.design, plan.fault):
        return "The interval is as narrow as --until asks for."
    found = until.estimate(plan.sites, result.trials, plan.design, plan.fault)
    return (
        f"The interval is wider than --until asks for: {until.metric} is {found}, and all trials are done. For a "
        "narrower one, run a campaign with more trials into another folder."
    )


def _design(arguments: argparse.Namespace) -> "rh.UniformDesign | rh.StratifiedDesign":
    """Return the design that the pilot gives; without a pilot, equally many trials at each site."""
    if (arguments.pilot is None) != (arguments.total_trials is None):
        raise ArgumentError("--pilot needs --total-trials, and --total-trials needs --pilot; pass both or neither.")
    if arguments.pilot is None:
        return rh.UniformDesign(trials_per_site=arguments.trials_per_site)
    return rh.neyman_design(rh.CampaignResult.load(arguments.pilot), total_trials=arguments.total_trials)
