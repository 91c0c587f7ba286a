"""Which prebuilt embeddings exist, where, and the digests that prove them."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any, Self

from resilient_heads.errors import EmbeddingError


@dataclass(frozen=True, slots=True, kw_only=True)
class HubEntry:
    """Embeddings published on the Hub, pinned.

    Attributes:
        name: Dataset name, such as ``"imagenet1k"``.
        encoder: The encoder's id, such as ``"ViT-B-16/openai"``.
        repo: Dataset repository, ``"owner/name"``.
        revision: Commit, 40 hexadecimal digits.
        file: Path in the repository.
        sha256: Hex digest of the file.
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
                raise EmbeddingError(
                    f"{field} of published embeddings must match {pattern}, found {getattr(self, field)!r}."
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What the library trusts.

    Attributes:
        bundled: Dataset name to sha256 of the embeddings' file in the wheel; all are of one encoder, MiniLM.
        hub: Published embeddings. Empty where nothing has been published.
    """

    bundled: Mapping[str, str]
    hub: tuple[HubEntry, ...] = ()

    @classmethod
    def of_wheel(cls) -> Self:
        """Return the manifest that ships in the wheel."""
        return cls.from_bytes(files("resilient_heads.assets").joinpath("manifest.json").read_bytes())

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Read what :meth:`to_bytes` wrote.

        Raises:
            EmbeddingError: It is something else.
        """
        try:
            record: Any = json.loads(content)
            return cls(bundled=dict(record["bundled"]), hub=tuple(HubEntry(**entry) for entry in record["hub"]))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise EmbeddingError(f"The manifest of embeddings is damaged: {error!r}.") from error

    def to_bytes(self) -> bytes:
        """Return JSON; equal manifests are equal bytes."""
        hub = [asdict(entry) for entry in sorted(self.hub, key=lambda entry: (entry.name, entry.encoder))]
        return (json.dumps({"bundled": dict(sorted(self.bundled.items())), "hub": hub}, indent=2) + "\n").encode()

    def find(self, name: str, encoder: str) -> HubEntry | None:
        """Return where embeddings are published, or None."""
        return next((entry for entry in self.hub if (entry.name, entry.encoder) == (name, encoder)), None)

    def with_published(self, entries: Iterable[HubEntry]) -> Self:
        """Return a manifest that also pins these, in place of older ones of the same name and encoder."""
        merged = {(entry.name, entry.encoder): entry for entry in (*self.hub, *entries)}
        return type(self)(bundled=self.bundled, hub=tuple(merged.values()))
