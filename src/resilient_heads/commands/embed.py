"""``resilient-heads embed``."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from resilient_heads.errors import DescriptionError, EmbeddingError


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command and its options."""
    parser = subparsers.add_parser("embed", help="turn class names and descriptions into class embeddings")
    parser.add_argument("--classes", type=Path, help="JSON list of class names; without it, the descriptions' order")
    parser.add_argument("--descriptions", type=Path, help="JSON file of descriptions; without it, a template is used")
    parser.add_argument("--encoder", default="clip-vit-b-16", help="minilm-l6, clip-vit-b-16 (default), ARCH/TAG...")
    parser.add_argument(
        "--revision", help="commit of the encoder's weights on the Hub; without it, the pinned or newest"
    )
    parser.add_argument(
        "--long-text", choices=["warn", "chunk", "error"], default="warn", help="texts beyond the encoder's context"
    )
    parser.add_argument("--device", default="cpu", help="where to run the encoder, such as cuda")
    parser.add_argument("--offline", action="store_true", help="never touch the network")
    parser.add_argument("--output", type=Path, required=True, help="safetensors file to write")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Embed and write, then say what was written."""
    from resilient_heads.text.descriptions.class_descriptions import (
        ClassDescriptions,  # torch takes seconds: --help must not wait for it
    )
    from resilient_heads.text.descriptions.questions import TEMPLATE
    from resilient_heads.text.encoders.named import named_encoder
    from resilient_heads.text.encoders.pooling import embed_classes

    names = _names(arguments.classes) if arguments.classes is not None else None
    if arguments.descriptions is not None:
        descriptions = ClassDescriptions.load(arguments.descriptions, names)
    elif names is not None:
        descriptions = ClassDescriptions.match(names, None, templates=(TEMPLATE,))
    else:
        raise DescriptionError("Pass --classes names.json, --descriptions d.json, or both.")
    if arguments.output.is_dir() or arguments.output.parent.is_file():  # before minutes of encoding
        raise EmbeddingError(f"{arguments.output} cannot be written: name a file in a folder, embeddings.safetensors.")
    encoder = named_encoder(
        arguments.encoder,
        revision=arguments.revision,
        device=arguments.device,
        long_text=arguments.long_text,
        progress=True,
        offline=arguments.offline,
    )
    embeddings = embed_classes(descriptions, encoder)
    path = embeddings.save(arguments.output)
    print(f"{embeddings!r} written to {path}")
    made = embeddings.provenance
    print(f"encoder {made.encoder} at {made.encoder_revision}, weights sha256 {made.weights_sha256 or 'not known'}")
    if names is None:
        print(
            f"Class order: as the classes stand in {arguments.descriptions} ({_few(embeddings.class_names)}). Where "
            "that is not the order of your model's outputs, pass --classes names.json."
        )
    else:
        print(f"Class order: as in {arguments.classes} ({_few(embeddings.class_names)}).")


def _few(names: Sequence[str]) -> str:
    """Return the first names."""
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def _names(path: Path) -> list[str]:
    """Read a JSON list of names."""
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DescriptionError(f"{path} is no JSON list of class names: {error}.") from error
    if not isinstance(names, list):
        raise DescriptionError(f'{path} holds a {type(names).__name__}; expected a JSON list: ["cat", "dog"].')
    return names
