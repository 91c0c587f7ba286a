"""Descriptions and embeddings that ship in the wheel."""

import hashlib
import json
from importlib.resources import files
from importlib.resources.abc import Traversable

from resilient_heads.errors import DescriptionError, EmbeddingError
from resilient_heads.text.descriptions import ClassDescriptions
from resilient_heads.text.embeddings import ClassEmbeddings


def bundled_names() -> list[str]:
    """Return the names that :func:`load_embeddings` knows, sorted."""
    return sorted(_manifest())


def load_embeddings(name: str) -> ClassEmbeddings:
    """Return prebuilt class embeddings, checked against the manifest's sha256.

    Args:
        name: One of :func:`bundled_names`, such as ``"cifar100"``. They were made with all-MiniLM-L6-v2 (E = 384)
            from the descriptions that ship beside them.

    Raises:
        EmbeddingError: There are no such embeddings, or their file is damaged.
    """
    manifest = _manifest()
    if name not in manifest:
        raise EmbeddingError(
            f"No embeddings are named {name!r}; available: {', '.join(sorted(manifest))}. For other classes build "
            "them: resilient_heads.embed_classes(ClassDescriptions.match(names, descriptions), encoder)."
        )
    content = (_assets() / "embeddings" / f"{name}.safetensors").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != manifest[name]:
        raise EmbeddingError(
            f"The bundled embeddings {name!r} are damaged (sha256 {digest[:12]}, expected {manifest[name][:12]}); "
            "reinstall the package."
        )
    return ClassEmbeddings.from_bytes(content, name=f"{name}.safetensors")


def load_descriptions(name: str) -> ClassDescriptions:
    """Return the class descriptions behind the bundled embeddings ``name``.

    Raises:
        DescriptionError: There are no such descriptions.
    """
    if name not in _manifest():
        raise DescriptionError(f"No descriptions are named {name!r}; available: {', '.join(bundled_names())}.")
    content = json.loads((_assets() / "descriptions" / f"{name}.json").read_text(encoding="utf-8"))
    return ClassDescriptions.match(list(content), content)


def _assets() -> Traversable:
    return files("resilient_heads.assets")


def _manifest() -> dict[str, str]:
    """Return dataset name to sha256 of its embeddings' file."""
    content: dict[str, str] = json.loads((_assets() / "manifest.json").read_text(encoding="utf-8"))
    return content
