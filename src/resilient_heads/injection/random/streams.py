"""Named streams of random words: every draw of the library is a function of (seed, stream, trial)."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from resilient_heads.checks import seed_number
from resilient_heads.errors import FaultError
from resilient_heads.injection.random.philox import Words, philox4x32

Indices = NDArray[np.int64]
Masks = NDArray[np.uint64]
FourWords = tuple[Words, Words, Words, Words]

_BLOCKS = 2**16
"""Blocks of four words that a trial has in one stream: 16 bits of the counter number them."""


def stream_name(tensor: str, *purpose: object) -> str:
    r"""Return the name of a stream of random words.

    A NUL character separates the parts, and one within a part is doubled. Two tensors, or two purposes of one tensor,
    thus never share draws.

    Args:
        tensor: Name of the tensor that the draws are for; empty for draws that serve all tensors.
        purpose: What the stream is for, such as ``"input"`` or ``"stratum"``.

    >>> stream_name("conv1", "stratum")
    'conv1\x00stratum'
    """
    return "\0".join(str(part).replace("\0", "\0\0") for part in (tensor, *purpose))


def substream(stream: str, part: object) -> str:
    """Return the name of a part of a stream."""
    return f"{stream}\0{part}"


def random_words(seed: int, stream: str, trials: Indices, *, block: int | NDArray[np.int64]) -> FourWords:
    """Return four random 32-bit words for each trial.

    Args:
        seed: ``0 <= seed < 2**64``.
        stream: Name of the stream, from :func:`stream_name`.
        trials: ``(N,)``, numbers of the trials, each below 2**48.
        block: Which four words of the trial, from 0 to 65,535: one number, or ``(B,)`` numbers.

    Returns:
        Four arrays, ``(N,)`` for one block and ``(N, B)`` for several.
    """
    seed_number(seed)
    if not 0 <= np.min(block) <= np.max(block) < _BLOCKS:
        raise FaultError(f"A trial has {_BLOCKS:,} blocks of random words, found block {np.max(block)}.")
    name = hashlib.sha256(stream.encode()).digest()
    index, blocks = trials.astype(np.uint64), np.asarray(block).astype(np.uint64)
    if blocks.ndim:
        index, blocks = np.broadcast_arrays(index[:, None], blocks)
    counter = (
        index & np.uint64(0xFFFFFFFF),
        (index >> np.uint64(32)) | (blocks << np.uint64(16)),
        np.full_like(index, int.from_bytes(name[:4], "little")),
        np.full_like(index, int.from_bytes(name[4:8], "little")),
    )
    return philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))


def paged_words(seed: int, stream: str, trials: Indices, blocks: NDArray[np.int64]) -> FourWords:
    """Return four words ``(N, B)`` for any number of blocks; blocks beyond 65,535 come from further streams."""
    pages = [
        random_words(
            seed,
            substream(stream, f"page{page}") if page else stream,
            trials,
            block=blocks[blocks // _BLOCKS == page] % _BLOCKS,
        )
        for page in np.unique(blocks // _BLOCKS)
    ]
    if not pages:
        nothing = np.zeros((len(trials), 0), dtype=np.uint64)
        return nothing, nothing, nothing, nothing
    w0, w1, w2, w3 = (np.concatenate(words, axis=1) for words in zip(*pages, strict=True))
    return w0, w1, w2, w3
