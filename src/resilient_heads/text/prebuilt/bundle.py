"""Make the bundled embeddings: ``python -m resilient_heads.text.prebuilt.bundle``, in a source checkout.

The command embeds every ``assets/descriptions/*.json`` with all-MiniLM-L6-v2 (extra ``minilm``), and writes
``assets/embeddings/*.safetensors`` in float16 and the manifest with their sha256. On one kind of processor, the same
descriptions give the same bytes.
"""

from pathlib import Path

import torch

from resilient_heads.files import file_sha256, write_atomic
from resilient_heads.text.descriptions.class_descriptions import ClassDescriptions
from resilient_heads.text.encoders.pooling import embed_classes
from resilient_heads.text.encoders.sentence import SentenceTransformerEncoder
from resilient_heads.text.prebuilt.manifest import Manifest


def bundle() -> None:
    """Write the embeddings of every file of descriptions, and the manifest.

    Raises:
        MissingExtraError: The extra ``minilm`` is not installed.
    """
    assets = Path(__file__).parents[2] / "assets"
    torch.set_num_threads(1)  # the number of threads decides the order of sums, and with it some last bits of float16
    encoder = SentenceTransformerEncoder.minilm()
    digests = {}
    for source in sorted((assets / "descriptions").glob("*.json")):
        embeddings = embed_classes(ClassDescriptions.load(source), encoder)
        path = embeddings.save(assets / "embeddings" / f"{source.stem}.safetensors", dtype=torch.float16)
        digests[source.stem] = file_sha256(path)
    path = assets / "manifest.json"
    published = Manifest.from_bytes(path.read_bytes()).hub if path.is_file() else ()
    write_atomic(path, Manifest(bundled=digests, hub=published).to_bytes())


if __name__ == "__main__":
    bundle()
