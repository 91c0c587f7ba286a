"""``resilient-heads campaign``."""

import argparse
from pathlib import Path

from resilient_heads.campaign.config import PROTOCOLS
from resilient_heads.commands.model_and_data import add_options, load_images, load_model


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
    campaign.add_argument("--seed", type=int, default=0, help="of all draws (%(default)s)")
    campaign.add_argument("--batch-size", type=int, default=64, help="trials run at once (%(default)s)")
    campaign.add_argument("--chunk-size", type=int, help="trials of each site in one file (four batches)")
    campaign.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run one process's share of the campaign and print the layers, or what is left to do."""
    from resilient_heads.campaign.runner import run_campaign  # torch takes seconds: --help must not wait for it
    from resilient_heads.campaign.shards import Shard
    from resilient_heads.report.tables import layer_table

    shard = Shard.from_environment()
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
        injections_per_layer=arguments.injections,
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
