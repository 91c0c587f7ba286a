"""``resilient-heads embeddings list|show|verify|publish``."""

import argparse
import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from resilient_heads.errors import EmbeddingError
from resilient_heads.files import file_sha256


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command and its options."""
    parser = subparsers.add_parser("embeddings", help="list, show, verify and publish class embeddings")
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="which prebuilt embeddings exist")
    listing.set_defaults(run=run_list)
    show = actions.add_parser("show", help="what a file or prebuilt embeddings hold")
    show.add_argument("source", help="safetensors file, or a name such as cifar10")
    show.set_defaults(run=run_show)
    verify = actions.add_parser("verify", help="check the wheel's embeddings, a published folder, or a file")
    verify.add_argument("source", nargs="?", type=Path, help="folder or file; without it, the wheel's embeddings")
    verify.add_argument("--sha256", help="digest that the file must have; of a folder, that of its manifest.json")
    verify.set_defaults(run=run_verify)
    publish = actions.add_parser("publish", help="write embeddings with manifest and card, and upload them")
    publish.add_argument("files", nargs="+", type=Path, help="safetensors files; their stems become the names")
    publish.add_argument("--folder", type=Path, required=True, help="folder to write")
    publish.add_argument(
        "--dtype", choices=["keep", "float32", "float16", "bfloat16"], default="keep", help="stored as (default: keep)"
    )
    publish.add_argument("--licence", default="apache-2.0", help="licence identifier for the card")
    publish.add_argument("--repo", help="OWNER/NAME to upload to; without it, only the folder is written")
    publish.add_argument("--private", action="store_true", help="make a new repository private")
    publish.set_defaults(run=run_publish)


def run_list(arguments: argparse.Namespace) -> None:
    """Print what the wheel bundles and what its manifest pins on the Hub."""
    from resilient_heads.text.prebuilt.manifest import Manifest

    manifest = Manifest.of_wheel()
    for name in sorted(manifest.bundled):
        print(f"{name:12} all-MiniLM-L6-v2      in the wheel")
    for entry in manifest.hub:
        print(f"{entry.name:12} {entry.encoder:21} {entry.repo}@{entry.revision[:12]}")
    if not manifest.hub:
        print("Nothing is published on the Hub for this release; other encoders are run on this machine.")


def run_show(arguments: argparse.Namespace) -> None:
    """Print names, sizes and provenance."""
    from resilient_heads.text.embeddings import ClassEmbeddings
    from resilient_heads.text.prebuilt.bundled import bundled_names, load_bundled

    bundled = arguments.source in bundled_names() and not Path(arguments.source).exists()
    if not bundled and not Path(arguments.source).exists():
        raise EmbeddingError(
            f"{arguments.source!r} is no file, and no prebuilt embeddings; those are {', '.join(bundled_names())}."
        )
    embeddings = load_bundled(arguments.source) if bundled else ClassEmbeddings.load(arguments.source)
    print(repr(embeddings))
    for key, value in asdict(embeddings.provenance).items():
        print(f"{key}: {value}")
    shown = ", ".join(embeddings.class_names[:8])
    print(f"classes: {shown}{', ...' if embeddings.num_classes > 8 else ''}")


def run_verify(arguments: argparse.Namespace) -> None:
    """Check digests; the first that is wrong ends the command with exit code 1."""
    from resilient_heads.text.embeddings import ClassEmbeddings
    from resilient_heads.text.prebuilt.bundled import bundled_names, load_bundled
    from resilient_heads.text.prebuilt.publish import verify_folder

    if arguments.source is None:
        if arguments.sha256 is not None:
            raise EmbeddingError("--sha256 needs a file or a folder; the wheel's own digests are in its manifest.")
        found = {name: load_bundled(name) for name in bundled_names()}
    elif arguments.source.is_dir():
        found = verify_folder(arguments.source, manifest_sha256=arguments.sha256)
        print(f"ok  {arguments.source / 'manifest.json'} (sha256 {file_sha256(arguments.source / 'manifest.json')})")
    else:
        content = arguments.source.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if arguments.sha256 is not None and digest != arguments.sha256.lower():
            raise EmbeddingError(f"{arguments.source} has sha256 {digest}, expected {arguments.sha256}.")
        found = {
            f"{arguments.source} (sha256 {digest})": ClassEmbeddings.from_bytes(content, name=str(arguments.source))
        }
    for name, embeddings in found.items():
        print(f"ok  {name}: {embeddings!r}")


def run_publish(arguments: argparse.Namespace) -> None:
    """Write the folder, upload it if a repository is named, and print what was stored and what pins it."""
    import torch

    from resilient_heads.text.embeddings import ClassEmbeddings
    from resilient_heads.text.prebuilt.publish import publish, write_folder

    embeddings = {path.stem: ClassEmbeddings.load(path) for path in arguments.files}
    if len(embeddings) < len(arguments.files):
        raise EmbeddingError("Two of the files share a name; rename one.")
    dtype = None if arguments.dtype == "keep" else getattr(torch, arguments.dtype)
    folder = write_folder(embeddings, arguments.folder, licence=arguments.licence, dtype=dtype)
    print(f"{len(embeddings)} embeddings written to {folder}")
    for name, own in sorted(embeddings.items()):
        kept = own.vectors.to(dtype)
        changed = float((kept.to(own.vectors.dtype) - own.vectors).abs().max())
        note = f"rounded from {_short(own.vectors.dtype)}, by at most {changed:.1e}" if changed else "no value changed"
        print(f"{name}: stored as {_short(kept.dtype)}, {note}")
    if arguments.repo is None:
        return
    entries = publish(folder, arguments.repo, private=arguments.private)
    print(f"Uploaded to {arguments.repo}. What pins each file:")
    print(json.dumps([asdict(entry) for entry in entries], indent=2))


def _short(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
