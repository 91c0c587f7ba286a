"""Descriptions and embeddings that ship in the wheel."""

import hashlib
from importlib.resources import files
from importlib.resources.abc import Traversable

from resilient_heads.errors import DescriptionError, EmbeddingError
from resilient_heads.text.descriptions.class_descriptions import ClassDescriptions
from resilient_heads.text.embeddings import ClassEmbeddings
from resilient_heads.text.prebuilt.manifest import Manifest


def bundled_names() -> list[str]:
    """Return the dataset names that ship in the wheel, sorted."""
    return sorted(Manifest.of_wheel().bundled)


def load_bundled(name: str, *, manifest: Manifest | None = None) -> ClassEmbeddings:
    """Return the wheel's class embeddings, checked against the manifest's sha256.

    Args:
        name: One of :func:`bundled_names`, such as ``"cifar100"``. They were made with all-MiniLM-L6-v2 (E = 384)
            from the descriptions that ship beside them.
        manifest: What to trust instead of the wheel's manifest.

    Raises:
        EmbeddingError: There are no such embeddings, their file is damaged, or it is another than the given manifest
            trusts.
    """
    wheel = Manifest.of_wheel().bundled
    expected = wheel if manifest is None else manifest.bundled
    if name not in expected or name not in wheel:
        raise EmbeddingError(unknown(name))
    content = (_assets() / "embeddings" / f"{name}.safetensors").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest == wheel[name] != expected[name]:
        raise EmbeddingError(
            f"This release bundles other embeddings {name!r} than the given manifest trusts: sha256 {digest[:12]}, "
            f"expected {expected[name][:12]}. Install the release that the manifest belongs to."
        )
    if digest != expected[name]:
        raise EmbeddingError(
            f"The bundled embeddings {name!r} are damaged (sha256 {digest[:12]}, expected {expected[name][:12]}); "
            "reinstall the package."
        )
    return ClassEmbeddings.from_bytes(content, name=f"{name}.safetensors")


def load_descriptions(name: str) -> ClassDescriptions:
    """Return the class descriptions behind the bundled embeddings ``name``; its ``class_names`` is the class order.

    Raises:
        DescriptionError: There are no such descriptions.
    """
    if name not in bundled_names():
        raise DescriptionError(f"No descriptions are named {name!r}; available: {', '.join(bundled_names())}.")
    content = (_assets() / "descriptions" / f"{name}.json").read_bytes()
    return ClassDescriptions.from_bytes(content, name=f"{name}.json")


def unknown(name: str) -> str:
    """Return the message about a dataset name that the library does not know."""
    return (
        f"No embeddings are named {name!r}; available: {', '.join(bundled_names())}. For other classes build "
        "them: resilient_heads.embed_classes(ClassDescriptions.match(names, descriptions), encoder)."
    )


def _assets() -> Traversable:
    return files("resilient_heads.assets")
