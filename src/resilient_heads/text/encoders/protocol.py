"""What the library asks of a text encoder."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class TextEncoder(Protocol):
    """Sentences to vectors.

    Attributes:
        id: Name under which provenance records it.
        revision: What pins it: a commit, or ``"sha256:..."`` of the weights' file, or of a folder's files.
        context_length: Tokens it takes at once; 0 where it has no such limit.
        embed_dim: E.

    An encoder that also has ``weights_sha256``, the digest of the file with its weights, gets it recorded.
    """

    @property
    def id(self) -> str: ...  # noqa: D102

    @property
    def revision(self) -> str: ...  # noqa: D102

    @property
    def context_length(self) -> int: ...  # noqa: D102

    @property
    def embed_dim(self) -> int: ...  # noqa: D102

    def encode(self, sentences: Sequence[str]) -> Tensor:
        """Return one embedding a sentence, ``(N, E)`` float32 on the CPU, not necessarily of unit norm."""
        ...
