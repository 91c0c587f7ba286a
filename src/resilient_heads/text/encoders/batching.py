"""The part that all text encoders share: which sentences run together, and what happens to long ones."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from resilient_heads.checks import instance_of
from resilient_heads.errors import DescriptionError, LongTextWarning
from resilient_heads.text.descriptions.texts import check_texts
from resilient_heads.text.encoders.options import EncoderOptions


def check_sentences(sentences: Sequence[str]) -> tuple[str, ...]:
    """Return the sentences as a tuple; raise DescriptionError unless they are strings that UTF-8 can encode."""
    return check_texts("sentences", sentences, example='["A red fruit."]', error=DescriptionError)


class BatchedEncoder(ABC):
    """Base class of the encoders that run a tokenizer and a text tower.

    A subclass sets the attributes, which :class:`~resilient_heads.text.encoders.protocol.TextEncoder` explains, and
    implements :meth:`count_tokens` and :meth:`run`.
    """

    id: str
    revision: str
    weights_sha256: str
    context_length: int
    embed_dim: int

    def __init__(self, options: EncoderOptions | None) -> None:
        options = EncoderOptions() if options is None else options
        self.options = instance_of("options", options, EncoderOptions, example='EncoderOptions(device="cuda")')

    @abstractmethod
    def count_tokens(self, sentences: list[str]) -> list[int]:
        """Return the number of tokens of each sentence, or any larger number than ``context_length`` for a long one."""

    @abstractmethod
    def run(self, sentences: list[str]) -> Tensor:
        """Return the embeddings of one batch, ``(n, E)``."""

    def encode(self, sentences: Sequence[str]) -> Tensor:
        """Encode sentences.

        Each distinct sentence runs once, in a batch of sentences of similar length.

        Args:
            sentences: N sentences.

        Returns:
            ``(N, E)``, float32 on the CPU, in the order of the sentences.

        Raises:
            DescriptionError: A sentence is not a string, or is too long under ``long_text="error"``.
        """
        sentences = check_sentences(sentences)
        distinct = list(dict.fromkeys(sentences))
        if not distinct:
            return torch.empty(0, self.embed_dim)
        tokens = dict(zip(distinct, self.count_tokens(distinct), strict=True))
        parts_of = self._parts(tokens)
        # The text breaks ties, so that batches, and the last bits of the results, do not depend on the input's order.
        queue = sorted({part for parts in parts_of.values() for part in parts}, key=lambda part: (tokens[part], part))
        vectors: dict[str, Tensor] = {}
        with tqdm(total=len(queue), desc="Encoding", unit="text", disable=not self.options.progress) as bar:
            for start in range(0, len(queue), self.options.batch_size):
                batch = queue[start : start + self.options.batch_size]
                vectors.update(zip(batch, self.run(batch).detach().float().cpu(), strict=True))
                bar.update(len(batch))
        for sentence, parts in parts_of.items():
            if len(parts) > 1:
                vectors[sentence] = torch.stack([vectors[part] for part in parts]).mean(dim=0)
        return torch.stack([vectors[sentence] for sentence in sentences])

    def _parts(self, tokens: dict[str, int]) -> dict[str, list[str]]:
        """Return the texts to encode for each sentence: itself, or parts that fit. Add the parts' lengths to tokens."""
        parts_of = {sentence: [sentence] for sentence in tokens}
        too_long = [sentence for sentence in tokens if tokens[sentence] > self.context_length]
        if too_long and self.options.long_text == "chunk":
            for sentence in too_long:
                parts_of[sentence] = parts = self._split(sentence)
                tokens.update(zip(parts, self.count_tokens(parts), strict=True))
        elif too_long:
            message = (
                f"{len(too_long)} of {len(tokens)} texts are longer than the encoder's {self.context_length} tokens, "
                f"first {too_long[0]!r:.80}. "
            )
            if self.options.long_text == "error":
                raise DescriptionError(f'{message}Shorten them, or pass EncoderOptions(long_text="chunk").')
            warnings.warn(
                f'{message}The encoder ignores the rest of each; EncoderOptions(long_text="chunk") uses all of it.',
                LongTextWarning,
                stacklevel=3,
            )
        return parts_of

    def _split(self, text: str) -> list[str]:
        """Halve a text between words, or within a single word, until every part fits."""
        if self.count_tokens([text])[0] <= self.context_length:
            return [text]
        words = text.split()
        if len(words) > 1:
            halves = [" ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])]
        else:
            halves = [text[: len(text) // 2], text[len(text) // 2 :]]
        if not all(halves):
            raise DescriptionError(f"{text!r} alone is longer than the encoder's {self.context_length} tokens.")
        return [part for half in halves for part in self._split(half)]
