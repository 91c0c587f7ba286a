"""Make the embeddings that ship in the wheel: ``python -m resilient_heads.text.prebuilt.bundle``.

It reads every ``assets/descriptions/*.json`` of a source checkout, embeds it with all-MiniLM-L6-v2 (extra ``minilm``),
and writes ``assets/embeddings/*.safetensors`` in float16 with the manifest of their sha256. On one kind of processor
the same descriptions give the same bytes.
"""

import hashlib
from pathlib import Path

import torch

from resilient_heads.files import write_atomic
from resilient_heads.text.descriptions.class_descriptions import ClassDescriptions
from resilient_heads.text.encoders.pooling import embed_classes
from resilient_heads.text.encoders.sentence import SentenceTransformerEncoder
from resilient_heads.text.prebuilt.manifest import Manifest

ASSETS = Path(__file__).parents[2] / "assets"


def build(assets: Path = ASSETS) -> dict[str, str]:
    """Write the embeddings of every descriptions file, and the manifest.

    Returns:
        Dataset name to sha256 of its embeddings' file.

    Raises:
        MissingExtraError: The extra ``minilm`` is not installed.
    """
    torch.set_num_threads(1)  # sums are split by thread, and float16 shows it in a few last bits
    encoder = SentenceTransformerEncoder.minilm()
    manifest = {}
    for source in sorted((assets / "descriptions").glob("*.json")):
        embeddings = embed_classes(ClassDescriptions.load(source), encoder)
        path = embeddings.save(assets / "embeddings" / f"{source.stem}.safetensors", dtype=torch.float16)
        manifest[source.stem] = hashlib.sha256(path.read_bytes()).hexdigest()
    path = assets / "manifest.json"
    published = Manifest.from_bytes(path.read_bytes()).hub if path.is_file() else ()
    write_atomic(path, Manifest(bundled=manifest, hub=published).to_bytes())
    return manifest


if __name__ == "__main__":
    build()
