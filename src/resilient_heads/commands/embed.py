"""``resilient-heads embed``."""

import argparse
import json
from pathlib import Path

import resilient_heads as rh
from resilient_heads.errors import ArgumentError, DescriptionError
from resilient_heads.files import make_folder


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command and its options."""
    parser = subparsers.add_parser(
        "embed",
        help="make class embeddings from class names, descriptions, or both",
        description="Encode sentences that describe classes, and write one vector for each class to a safetensors "
        "file, from which rh.wrap_model and the option --wrap make text-guided heads.",
    )
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="JSON list of class names (default: the classes of --descriptions, in their order)",
    )
    parser.add_argument(
        "--descriptions",
        type=Path,
        metavar="FILE",
        help="JSON file of descriptions (default: a template with each class name)",
    )
    parser.add_argument(
        "--encoder",
        default="clip-vit-b-16",
        help="text encoder: clip-vit-b-16, minilm-l6, or ARCHITECTURE/TAG of open_clip (default: %(default)s)",
    )
    parser.add_argument("--revision", help="commit of the weights on the Hub (default: the pinned or newest commit)")
    parser.add_argument(
        "--long-text",
        choices=["warn", "chunk", "error"],
        default="warn",
        help="texts longer than the encoder's context: cut with a warning, encode in chunks, or refuse",
    )
    parser.add_argument("--device", default="cpu", help="device to run the encoder on, such as cuda (default: cpu)")
    parser.add_argument("--offline", action="store_true", help="use only files that are on this machine")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="safetensors file to write")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Encode the texts, write the embeddings, print what was written."""
    names = None if arguments.classes is None else _read_names(arguments.classes)
    if arguments.descriptions is not None:
        descriptions = rh.ClassDescriptions.load(arguments.descriptions, names)
    elif names is not None:
        descriptions = rh.ClassDescriptions.match(names, None, templates=(rh.text.TEMPLATE,))
    else:
        raise ArgumentError("Pass --classes names.json, --descriptions d.json, or both.")
    if arguments.output.is_dir() or arguments.output.parent.is_file():
        raise ArgumentError(f"--output must be a file in a folder, such as pets.safetensors; found {arguments.output}.")
    make_folder(arguments.output.parent)  # an error comes before minutes of encoding
    encoder = rh.text.named_encoder(
        arguments.encoder,
        revision=arguments.revision,
        options=rh.text.EncoderOptions(device=arguments.device, long_text=arguments.long_text, progress=True),
        hub=rh.text.HubSettings(offline=arguments.offline),
    )
    embeddings = rh.embed_classes(descriptions, encoder)
    path = embeddings.save(arguments.output)
    origin = embeddings.provenance
    first = ", ".join(embeddings.class_names[:4]) + (", ..." if embeddings.num_classes > 4 else "")
    print(f"{embeddings!r} written to {path}")
    print(f"encoder {origin.encoder} at {origin.encoder_revision}, weights sha256 {origin.weights_sha256 or 'unknown'}")
    if names is None:
        print(
            f"Class order: as in {arguments.descriptions} ({first}). If your model's outputs have another order, pass "
            "--classes names.json."
        )
    else:
        print(f"Class order: as in {arguments.classes} ({first}).")


def _read_names(path: Path) -> list[str]:
    """Read a JSON list of names."""
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DescriptionError(f"{path} is no JSON list of class names: {error}.") from error
    if not isinstance(names, list):
        raise DescriptionError(f'{path} holds a {type(names).__name__}; expected a JSON list: ["cat", "dog"].')
    return names
