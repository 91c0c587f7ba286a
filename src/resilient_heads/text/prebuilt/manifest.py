"""``Manifest``: which prebuilt embeddings exist, and the digests that pin them."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any, Self

from resilient_heads.errors import EmbeddingError


@dataclass(frozen=True, slots=True, kw_only=True)
class HubEntry:
    """Published embeddings, pinned by commit and sha256.

    Attributes:
        name: Dataset name, such as ``"imagenet1k"``.
        encoder: The encoder's id, such as ``"ViT-B-16/openai"``.
        repo: Dataset repository, ``"owner/name"``.
        revision: Commit, 40 hexadecimal digits.
        file: Path in the repository.
        sha256: Hex digest of the file.

    Raises:
        EmbeddingError: ``repo``, ``revision`` or ``sha256`` has another form.
    """

    name: str
    encoder: str
    repo: str
    revision: str
    file: str
    sha256: str

    def __post_init__(self) -> None:
        for field, pattern in (("revision", "[0-9a-f]{40}"), ("sha256", "[0-9a-f]{64}"), ("repo", r"[^/\s]+/[^/\s]+")):
            if not re.fullmatch(pattern, str(getattr(self, field))):
                raise EmbeddingError(f"{field} must match {pattern}, found {getattr(self, field)!r:.80}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The embeddings that ``load_embeddings`` trusts.

    Attributes:
        bundled: Dataset name to sha256 of the MiniLM embeddings in the package.
        hub: Published embeddings.
    """

    bundled: Mapping[str, str]
    hub: tuple[HubEntry, ...] = ()

    @classmethod
    def of_package(cls) -> Self:
        """Return the manifest in the package."""
        return cls.from_bytes(files("resilient_heads.assets").joinpath("manifest.json").read_bytes())

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Read what :meth:`to_bytes` wrote.

        Raises:
            EmbeddingError: The content is not a manifest.
        """
        try:
            record: Any = json.loads(content)
            return cls(bundled=dict(record["bundled"]), hub=tuple(HubEntry(**entry) for entry in record["hub"]))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise EmbeddingError(f"The manifest of embeddings is damaged: {error!r}.") from error

    def to_bytes(self) -> bytes:
        """Return the manifest as JSON; equal manifests give equal bytes."""
        hub = [asdict(entry) for entry in sorted(self.hub, key=lambda entry: (entry.name, entry.encoder))]
        return (json.dumps({"bundled": dict(sorted(self.bundled.items())), "hub": hub}, indent=2) + "\n").encode()

    def find(self, name: str, encoder: str) -> HubEntry | None:
        """Return the published embeddings of a dataset with an encoder, or None."""
        return next((entry for entry in self.hub if (entry.name, entry.encoder) == (name, encoder)), None)
