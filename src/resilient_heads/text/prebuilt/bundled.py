"""Descriptions and embeddings that are part of the package."""

import hashlib
from importlib.resources import files

from resilient_heads.errors import DescriptionError, EmbeddingError
from resilient_heads.text.descriptions.class_descriptions import ClassDescriptions
from resilient_heads.text.embeddings import ClassEmbeddings
from resilient_heads.text.prebuilt.manifest import Manifest


def bundled_names() -> list[str]:
    """Return the names of the bundled datasets, sorted."""
    return sorted(Manifest.of_package().bundled)


def load_bundled(name: str, *, manifest: Manifest | None = None) -> ClassEmbeddings:
    """Return bundled class embeddings (all-MiniLM-L6-v2, E = 384), checked against the manifest's sha256.

    Args:
        name: One of :func:`bundled_names`, such as ``"cifar100"``.
        manifest: Embeddings to trust in place of the manifest in the package.

    Raises:
        EmbeddingError: No such embeddings are bundled, their file is damaged, or ``manifest`` trusts another file.
    """
    packaged = Manifest.of_package().bundled
    expected = packaged if manifest is None else manifest.bundled
    if name not in expected or name not in packaged:
        raise EmbeddingError(unknown_name(name))
    content = _asset(f"embeddings/{name}.safetensors")
    digest = hashlib.sha256(content).hexdigest()
    if digest != expected[name]:
        defect, advice = "are damaged", "reinstall the package"
        if digest == packaged[name]:
            defect, advice = "are not those that the given manifest trusts", "install the release that it belongs to"
        digests = f"sha256 {digest[:12]}, expected {expected[name][:12]}"
        raise EmbeddingError(f"The bundled embeddings {name!r} {defect} ({digests}); {advice}.")
    return ClassEmbeddings.from_bytes(content, name=f"{name}.safetensors")


def load_descriptions(name: str) -> ClassDescriptions:
    """Return the bundled class descriptions of a dataset, with the classes in the order of its labels.

    Args:
        name: ``"imagenet1k"``, ``"cifar10"``, ``"cifar100"``, ``"stl10"``, ``"food101"`` or ``"digits"``.

    Raises:
        DescriptionError: No such descriptions are bundled.

    Example:
        >>> import resilient_heads as rh
        >>> rh.load_descriptions("cifar10").class_names[:3]
        ('airplane', 'automobile', 'bird')
    """
    if name not in bundled_names():
        raise DescriptionError(f"No descriptions are named {name!r}; available: {', '.join(bundled_names())}.")
    return ClassDescriptions.from_bytes(_asset(f"descriptions/{name}.json"), name=f"{name}.json")


def unknown_name(name: object) -> str:
    """Return the message about a dataset that the library does not know."""
    return (
        f"No embeddings are named {name!r}; available: {', '.join(bundled_names())}. For other classes, build "
        "embeddings: rh.embed_classes(rh.ClassDescriptions.match(names, descriptions), encoder)."
    )


def _asset(path: str) -> bytes:
    return files("resilient_heads.assets").joinpath(path).read_bytes()
