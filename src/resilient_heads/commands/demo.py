"""``resilient-heads demo``."""

import argparse
from pathlib import Path

from resilient_heads.campaign.result.config import PROTOCOLS
from resilient_heads.errors import ArgumentError


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command and its options."""
    parser = subparsers.add_parser(
        "demo",
        help="train a plain and a text-guided ResNet-18 on digits, strike both, print what was gained",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and trials")
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="folder to write into")
    parser.add_argument("--injections", type=int, default=512, help="trials at each site and protocol")
    parser.add_argument("--protocol", choices=[*PROTOCOLS, "both"], default="both", help="how flips are applied")
    parser.add_argument("--device", default="cpu", help="where to train and strike, such as cuda")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the demo, print its table and where everything was written."""
    from resilient_heads.demo import DemoOptions, run_demo  # torch takes seconds: --help must not wait for it

    if arguments.injections < 1 or not 0 <= arguments.seed < 2**32:
        raise ArgumentError("--injections must be at least 1, and --seed must lie in [0, 2**32).")
    chosen = tuple(PROTOCOLS) if arguments.protocol == "both" else (arguments.protocol,)
    options = DemoOptions(
        seed=arguments.seed,
        output=arguments.output,
        injections=arguments.injections,
        protocols=chosen,
        device=arguments.device,
    )
    print(run_demo(options))
    print(f"Written to {options.output.resolve()}: table.md, layers.png and each campaign's trials (.parquet).")
