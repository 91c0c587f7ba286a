"""``resilient-heads replay``."""

import argparse
from pathlib import Path

from resilient_heads.commands.model_and_data import add_options, load_images, load_model


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command and its options."""
    parser = subparsers.add_parser("replay", help="repeat one trial of a campaign and print what it does")
    parser.add_argument("source", type=Path, help="the campaign's folder or result")
    parser.add_argument("--site", required=True, help="name of the site: the column layer of the result")
    parser.add_argument("--trial", type=int, required=True, help="number of the trial at this site")
    add_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Repeat the trial and print what it did."""
    from resilient_heads.campaign.run.replay import replay  # torch takes seconds: --help must not wait for it

    model, preprocessing = load_model(arguments)
    data = load_images(arguments.data, preprocessing, arguments)
    found = replay(arguments.source, model, data, site=arguments.site, trial=arguments.trial)
    limit = "" if found.range_limit is None else f", limited to {found.range_limit:.6g}"
    print(f"trial {found.trial} of {found.layer}: image {found.image} of class {found.label}")
    print(f"bit {found.bit} of neuron {found.neuron}: {found.before:.9g} became {found.after:.9g}{limit}")
    print(f"outcome: {found.outcome.name.lower()}, delta loss {found.delta_loss:.6g} nats")
    order = found.golden.argsort(descending=True)[:5].tolist()
    order += [label for label in found.faulty.argsort(descending=True)[:5].tolist() if label not in order]
    print("class   golden logit   faulty logit")
    for label in order:
        print(f"{label:5d} {float(found.golden[label]):14.7g} {float(found.faulty[label]):14.7g}")
