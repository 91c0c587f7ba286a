"""Known weights: which commit to download, and the sha256 of its file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from resilient_heads.errors import EmbeddingError
from resilient_heads.files import file_sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """Known weights of an encoder: repository on the Hub, commit, and hex digest of the safetensors file."""

    repo: str
    revision: str
    sha256: str


# Several independent public projects record these commits and digests for open_clip_model.safetensors. The repositories
# are those that open_clip names for these tags; they are repeated here because importing open_clip takes seconds.
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
MINILM = "all-MiniLM-L6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Digest of MiniLM's ``model.safetensors`` in the package of the extra ``minilm``."""


def weights_digest(path: Path, *, expected: str | None, encoder: str) -> str:
    """Return the sha256 of a file with weights; raise EmbeddingError unless it is the expected one, if there is one."""
    digest = file_sha256(path)
    if expected is not None and digest != expected:
        raise EmbeddingError(
            f"The weights of {encoder} have sha256 {digest}, expected {expected}: the file was damaged or replaced "
            f"and is not used. Delete {path} and download it again, or choose another commit with revision=."
        )
    return digest
