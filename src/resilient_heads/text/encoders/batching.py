"""How every encoder goes through its sentences: each once, in batches of like length, nothing cut in silence."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from tqdm import tqdm

from resilient_heads.errors import DescriptionError, EmbeddingError, LongTextWarning
from resilient_heads.text.descriptions.texts import check_texts

LongText = Literal["warn", "chunk", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """Choices that every encoder offers.

    Attributes:
        batch_size: Sentences encoded at once.
        long_text: What to do with a text longer than the context: ``"warn"`` and let the tokenizer cut it, ``"chunk"``
            it between words and average the pieces' embeddings, or raise an ``"error"``.
        progress: Show a progress bar on stderr.

    Raises:
        EmbeddingError: A choice that does not exist.
    """

    batch_size: int = 64
    long_text: LongText = "warn"
    progress: bool = False

    def __post_init__(self) -> None:
        if self.long_text not in get_args(LongText):
            raise EmbeddingError(
                f"long_text must be one of {', '.join(map(repr, get_args(LongText)))}, found {self.long_text!r}."
            )
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise EmbeddingError(f"batch_size must be a positive integer, found {self.batch_size!r}.")


def usable_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype, or say that no weights can have it.

    Raises:
        EmbeddingError: It is none, or not floating.
    """
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise EmbeddingError(f"dtype must be a floating dtype such as torch.float32, found {dtype!r:.60}.")
    return dtype


def check_sentences(sentences: Sequence[str]) -> tuple[str, ...]:
    """Return the sentences as a tuple; raise DescriptionError unless they are strings that UTF-8 can encode."""
    return check_texts("sentences", sentences, example='["A red fruit."]', error=DescriptionError)


def encode_in_batches(
    sentences: Sequence[str],
    *,
    lengths: Callable[[list[str]], list[int]],
    run: Callable[[list[str]], Tensor],
    context_length: int,
    embed_dim: int,
    batching: Batching,
) -> Tensor:
    """Encode sentences through ``run``, which sees each distinct text once and texts of like length together.

    Args:
        sentences: N texts.
        lengths: Texts to their numbers of tokens, special tokens included; one that is too long may count as any number
            above ``context_length``.
        run: Texts to ``(n, E)``.
        context_length: Tokens that fit.
        embed_dim: E, for N = 0.
        batching: How to go about it.

    Returns:
        ``(N, E)`` float32 on the CPU, in the order of ``sentences``.

    Raises:
        DescriptionError: As :func:`check_sentences`; or a text is too long under ``long_text="error"``.
    """
    check_sentences(sentences)
    distinct = list(dict.fromkeys(sentences))
    if not distinct:
        return torch.empty(0, embed_dim)
    size_of = dict(zip(distinct, lengths(distinct), strict=True))
    pieces = _pieces(distinct, size_of, lengths, context_length, batching.long_text)
    # The text itself breaks ties, so that the batches, and the last bits, do not depend on the order of the input.
    queue = sorted({piece for own in pieces.values() for piece in own}, key=lambda text: (size_of[text], text))
    vectors: dict[str, Tensor] = {}
    with tqdm(total=len(queue), desc="Encoding", unit="text", disable=not batching.progress) as bar:
        for start in range(0, len(queue), batching.batch_size):
            batch = queue[start : start + batching.batch_size]
            encoded = run(batch).detach().float().cpu()
            vectors.update(zip(batch, encoded, strict=True))
            bar.update(len(batch))
    whole = {
        sentence: torch.stack([vectors[piece] for piece in own]).mean(dim=0) if len(own) > 1 else vectors[own[0]]
        for sentence, own in pieces.items()
    }
    return torch.stack([whole[sentence] for sentence in sentences])


def _pieces(
    distinct: list[str],
    size_of: dict[str, int],
    lengths: Callable[[list[str]], list[int]],
    context_length: int,
    long_text: LongText,
) -> dict[str, list[str]]:
    """Return what to encode for each text: itself, or pieces that fit; sizes of pieces are added to ``size_of``."""
    too_long = [text for text in distinct if size_of[text] > context_length]
    if too_long and long_text != "chunk":
        message = (
            f"{len(too_long)} of {len(distinct)} texts are longer than the encoder's {context_length} tokens, first "
            f"{too_long[0]!r:.80}. "
        )
        if long_text == "error":
            raise DescriptionError(message + 'Shorten them, or build the encoder with long_text="chunk".')
        warnings.warn(
            message + 'They are cut; long_text="chunk" encodes all of each and averages.', LongTextWarning, stacklevel=4
        )
    pieces = {text: [text] for text in distinct}
    if long_text == "chunk":
        for text in too_long:
            pieces[text] = _split(text, lengths, context_length)
            size_of.update(zip(pieces[text], lengths(pieces[text]), strict=True))
    return pieces


def _split(text: str, lengths: Callable[[list[str]], list[int]], context_length: int) -> list[str]:
    """Halve a text between words (within one where there is no blank) until every piece fits."""
    if lengths([text])[0] <= context_length:
        return [text]
    words = text.split()
    if len(words) > 1:
        halves = [" ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])]
    else:
        halves = [text[: len(text) // 2], text[len(text) // 2 :]]
    if not all(halves):
        raise DescriptionError(f"{text!r} alone is longer than the encoder's {context_length} tokens.")
    return [piece for half in halves for piece in _split(half, lengths, context_length)]
