"""Weights that are known by digest: which commit to take, and what its file must be."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from resilient_heads.errors import EmbeddingError
from resilient_heads.files import file_sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """Where the usual weights of an encoder lie.

    Attributes:
        repo: Repository on the Hub.
        revision: Commit.
        sha256: Hex digest of the safetensors file with the weights.
    """

    repo: str
    revision: str
    sha256: str


# Commits and digests as several independent public projects record them for the file open_clip_model.safetensors; the
# repositories are those that open_clip names for these tags. Known here without importing open_clip.
PINS: Mapping[str, Pin] = {
    "ViT-B-16/openai": Pin(
        repo="timm/vit_base_patch16_clip_224.openai",
        revision="977e3dd0ec55ab8da155f2fbeb6b5f54948b6e3d",
        sha256="4b8699299b1e8997753c64b052ba32031449d5d853f55a039148560ee02b820f",
    ),
    "ViT-B-32/openai": Pin(
        repo="timm/vit_base_patch32_clip_224.openai",
        revision="a6f597a30f7b82c51704746581f9a4e41421e878",
        sha256="e6d1bd7789aa45192b3bf90570a789b478bae1b74ebcce7eddd908e83a2b7c31",
    ),
}

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Digest of all-MiniLM-L6-v2's model.safetensors, computed from the package that carries it."""


def weights_digest(path: Path, *, expected: str | None, what: str) -> str:
    """Return the sha256 of a file with weights.

    Args:
        path: The file.
        expected: Hex digest that it must have; None takes any.
        what: What errors call it.

    Raises:
        EmbeddingError: It is another file than the one that is known.
    """
    digest = file_sha256(path)
    if expected is not None and digest != expected:
        raise EmbeddingError(
            f"The weights of {what} have sha256 {digest}, expected {expected}: the file was damaged or replaced, and "
            f"is not used. Delete {path} and fetch it again, or name another commit with revision=."
        )
    return digest
