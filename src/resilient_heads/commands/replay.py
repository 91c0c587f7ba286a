"""``resilient-heads replay``."""

import argparse
from pathlib import Path

import resilient_heads as rh
from resilient_heads.commands.model_and_data import add_options, load_model_and_images


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command and its options."""
    parser = subparsers.add_parser(
        "replay",
        help="repeat one trial of a campaign and print its effect",
        description="Repeat one trial of a campaign, bit for bit, and print the fault, the outcome and the leading "
        "logits with and without the fault. Name the model and the images as for the command campaign.",
    )
    parser.add_argument("folder", type=Path, help="the campaign's folder")
    parser.add_argument("--site", required=True, help="name of the site, as the command report prints it")
    parser.add_argument(
        "--trial", type=int, required=True, metavar="N", help="number of the trial at this site, from 0"
    )
    add_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Repeat the trial; print the flip, the outcome and the logits of the leading classes."""
    named, data = load_model_and_images(arguments)
    trial = rh.replay(
        arguments.folder, named.model, (data.images, data.labels), site=arguments.site, trial=arguments.trial
    )
    limit = "" if trial.range_limit is None else f", limited to {trial.range_limit:.6g}"
    print(f"trial {trial.trial} of {trial.layer}: image {trial.image} of class {trial.label}")
    print(f"bit {trial.bit} of neuron {trial.neuron}: {trial.before:.9g} became {trial.after:.9g}{limit}")
    print(f"outcome: {trial.outcome.name.lower()}, delta loss {trial.delta_loss:.6g} nats")
    leading = trial.golden.argsort(descending=True)[:5].tolist() + trial.faulty.argsort(descending=True)[:5].tolist()
    print("class   golden logit   faulty logit")
    for label in dict.fromkeys(leading):
        print(f"{label:5d} {float(trial.golden[label]):14.7g} {float(trial.faulty[label]):14.7g}")
