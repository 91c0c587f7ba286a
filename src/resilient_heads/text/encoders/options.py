"""``EncoderOptions``: where and how a text encoder runs."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from resilient_heads.checks import one_of, whole_number
from resilient_heads.evaluation import usable_device
from resilient_heads.text.embeddings import floating_dtype

LongText = Literal["warn", "chunk", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderOptions:
    """Where and how a text encoder runs.

    Attributes:
        device: Device of the text tower.
        dtype: Floating dtype of its weights. Embeddings are float32 with every dtype.
        batch_size: Number of sentences to encode at once.
        long_text: What to do with a sentence that exceeds the encoder's context: ``"warn"`` and ignore the rest of it,
            ``"chunk"`` it between words and average the embeddings of the parts, or raise an ``"error"``.
        progress: Show a progress bar on stderr.

    Raises:
        ArgumentError: A value is out of its range, or the device does not exist.
    """

    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32
    batch_size: int = 64
    long_text: LongText = "warn"
    progress: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "device", usable_device(self.device))
        floating_dtype(self.dtype)
        whole_number("batch_size", self.batch_size, least=1)
        one_of("long_text", self.long_text, get_args(LongText))
