"""``resilient-heads embeddings list|show|verify|publish``."""

import argparse
import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import resilient_heads as rh
from resilient_heads.errors import ArgumentError, EmbeddingError
from resilient_heads.files import file_sha256


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command and its options."""
    parser = subparsers.add_parser(
        "embeddings",
        help="list, show, verify and publish class embeddings",
        description="List the prebuilt class embeddings, show what a file of embeddings holds, check digests, or "
        "publish embeddings with a manifest and a card.",
    )
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="list the prebuilt embeddings")
    listing.set_defaults(run=run_list)
    show = actions.add_parser("show", help="print the classes and the origin of embeddings")
    show.add_argument("source", help="safetensors file, or the name of bundled embeddings, such as cifar10")
    show.set_defaults(run=run_show)
    verify = actions.add_parser("verify", help="check the digests of embeddings")
    verify.add_argument(
        "source", nargs="?", type=Path, help="file or published folder (default: the bundled embeddings)"
    )
    verify.add_argument("--sha256", help="expected digest of the file, or of the folder's manifest.json")
    verify.set_defaults(run=run_verify)
    publish = actions.add_parser("publish", help="write embeddings with a manifest and a card, and upload them")
    publish.add_argument("files", nargs="+", type=Path, help="safetensors files; each stem becomes a name")
    publish.add_argument("--folder", type=Path, required=True, help="folder to write")
    publish.add_argument(
        "--dtype",
        choices=["keep", "float32", "float16", "bfloat16"],
        default="keep",
        help="dtype of the written vectors (default: %(default)s)",
    )
    publish.add_argument("--licence", default="apache-2.0", help="licence on the card (default: %(default)s)")
    publish.add_argument("--repo", help="OWNER/NAME on the Hub to upload to (default: write the folder only)")
    publish.add_argument("--private", action="store_true", help="make a new repository private")
    publish.set_defaults(run=run_publish)


def run_list(arguments: argparse.Namespace) -> None:
    """Print the bundled embeddings, and those on the Hub that the manifest pins."""
    manifest = rh.text.Manifest.of_package()
    for name in sorted(manifest.bundled):
        print(f"{name:12} all-MiniLM-L6-v2      bundled")
    for entry in manifest.hub:
        print(f"{entry.name:12} {entry.encoder:21} {entry.repo}@{entry.revision[:12]}")
    if not manifest.hub:
        print("No embeddings on the Hub yet. For another encoder, run: resilient-heads embed")


def run_show(arguments: argparse.Namespace) -> None:
    """Print sizes, provenance and the first class names."""
    bundled, is_file = sorted(rh.text.Manifest.of_package().bundled), Path(arguments.source).exists()
    if not is_file and arguments.source not in bundled:
        raise EmbeddingError(
            f"{arguments.source!r} is neither a file nor the name of bundled embeddings; expected one of "
            f"{', '.join(bundled)}."
        )
    embeddings = rh.ClassEmbeddings.load(arguments.source) if is_file else _bundled(arguments.source)
    print(repr(embeddings))
    for key, value in asdict(embeddings.provenance).items():
        print(f"{key}: {value}")
    shown = ", ".join(embeddings.class_names[:8])
    print(f"classes: {shown}{', ...' if embeddings.num_classes > 8 else ''}")


def run_verify(arguments: argparse.Namespace) -> None:
    """Check digests and print each one that is right; raise an error at the first that is wrong."""
    source = arguments.source
    if source is None:
        if arguments.sha256 is not None:
            raise ArgumentError(
                "--sha256 needs a file or a folder; the package knows the digests of the bundled embeddings."
            )
        verified = {name: _bundled(name) for name in sorted(rh.text.Manifest.of_package().bundled)}
    elif source.is_dir():
        verified = rh.text.verify_folder(source, manifest_sha256=arguments.sha256)
        print(f"ok  {source / 'manifest.json'} (sha256 {file_sha256(source / 'manifest.json')})")
    else:
        content = source.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if arguments.sha256 is not None and digest != arguments.sha256.lower():
            raise EmbeddingError(f"{source} has sha256 {digest}, expected {arguments.sha256}.")
        verified = {f"{source} (sha256 {digest})": rh.ClassEmbeddings.from_bytes(content, name=str(source))}
    for name, embeddings in verified.items():
        print(f"ok  {name}: {embeddings!r}")


def run_publish(arguments: argparse.Namespace) -> None:
    """Write the folder, upload it if --repo names a repository, and print the entries that pin it."""
    import torch  # takes seconds: --help must not wait for it

    embeddings = {path.stem: rh.ClassEmbeddings.load(path) for path in arguments.files}
    if len(embeddings) < len(arguments.files):
        raise ArgumentError("Two of the files share a name; rename one.")
    dtype = None if arguments.dtype == "keep" else getattr(torch, arguments.dtype)
    folder = rh.text.write_folder(embeddings, arguments.folder, licence=arguments.licence, dtype=dtype)
    print(f"{len(embeddings)} embeddings written to {folder}")
    for name, given in sorted(embeddings.items()):
        stored = given.vectors.to(dtype)
        changed = float((stored.to(given.vectors.dtype) - given.vectors).abs().max())
        note = f"rounded from {given.vectors.dtype} by at most {changed:.1e}" if changed else "no value changed"
        print(f"{name}: stored as {stored.dtype}, {note}".replace("torch.", ""))
    if arguments.repo is None:
        return
    entries = rh.text.publish(folder, arguments.repo, private=arguments.private)
    print(f"Uploaded to {arguments.repo}. These entries pin the files:")
    print(json.dumps([asdict(entry) for entry in entries], indent=2))


def _bundled(name: str) -> "rh.ClassEmbeddings":
    """Return bundled embeddings, verified against the manifest."""
    return rh.load_embeddings(name, manifest=rh.text.Manifest(bundled=rh.text.Manifest.of_package().bundled))
