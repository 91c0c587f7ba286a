"""``TextEncoder``: what the library needs from a text encoder."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class TextEncoder(Protocol):
    """Anything that turns sentences into vectors.

    An encoder may also have ``weights_sha256``, the hex digest of the file with its weights; provenances record it.

    Attributes:
        id: Name of the encoder.
        revision: Commit, or ``"sha256:..."`` of its weights or of all files in its folder.
        context_length: Maximal number of tokens of a sentence; 0 if there is no limit.
        embed_dim: Dimension of an embedding, E.
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
        """Return one embedding for each sentence, ``(N, E)`` float32 on the CPU, of any norm."""
        ...
