"""``resilient-heads embed``."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from resilient_heads.errors import ArgumentError, DescriptionError


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command and its options."""
    parser = subparsers.add_parser("embed", help="make class embeddings from class names and descriptions")
    parser.add_argument(
        "--classes", type=Path, help="JSON list of class names (default: the classes of --descriptions, in their order)"
    )
    parser.add_argument(
        "--descriptions", type=Path, help="JSON file of descriptions (default: a template with each class name)"
    )
    parser.add_argument(
        "--encoder",
        default="clip-vit-b-16",
        help="text encoder: minilm-l6, clip-vit-b-16, ARCHITECTURE/TAG of open_clip... (default: %(default)s)",
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
    parser.add_argument("--output", type=Path, required=True, help="safetensors file to write")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Encode the texts, write the embeddings, print what was written."""
    # torch takes seconds: --help must not wait for it
    from resilient_heads.text.descriptions.class_descriptions import ClassDescriptions
    from resilient_heads.text.descriptions.questions import TEMPLATE
    from resilient_heads.text.encoders.named import named_encoder
    from resilient_heads.text.encoders.options import EncoderOptions
    from resilient_heads.text.encoders.pooling import embed_classes
    from resilient_heads.text.hub.settings import HubSettings

    names = None if arguments.classes is None else _read_names(arguments.classes)
    if arguments.descriptions is not None:
        descriptions = ClassDescriptions.load(arguments.descriptions, names)
    elif names is not None:
        descriptions = ClassDescriptions.match(names, None, templates=(TEMPLATE,))
    else:
        raise ArgumentError("Pass --classes names.json, --descriptions d.json, or both.")
    if arguments.output.is_dir() or arguments.output.parent.is_file():  # before minutes of encoding
        raise ArgumentError(f"--output must be a file in a folder, such as pets.safetensors; found {arguments.output}.")
    encoder = named_encoder(
        arguments.encoder,
        revision=arguments.revision,
        options=EncoderOptions(device=arguments.device, long_text=arguments.long_text, progress=True),
        hub=HubSettings(offline=arguments.offline),
    )
    embeddings = embed_classes(descriptions, encoder)
    path = embeddings.save(arguments.output)
    origin, first = embeddings.provenance, _first(embeddings.class_names)
    print(f"{embeddings!r} written to {path}")
    print(f"encoder {origin.encoder} at {origin.encoder_revision}, weights sha256 {origin.weights_sha256 or 'unknown'}")
    if names is None:
        print(
            f"Class order: as in {arguments.descriptions} ({first}). If your model's outputs have another order, pass "
            "--classes names.json."
        )
    else:
        print(f"Class order: as in {arguments.classes} ({first}).")


def _first(names: Sequence[str]) -> str:
    """Return the first four names."""
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def _read_names(path: Path) -> list[str]:
    """Read a JSON list of names."""
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DescriptionError(f"{path} is no JSON list of class names: {error}.") from error
    if not isinstance(names, list):
        raise DescriptionError(f'{path} holds a {type(names).__name__}; expected a JSON list: ["cat", "dog"].')
    return names
