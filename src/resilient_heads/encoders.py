"""Text encoders: from sentences that describe classes to vectors."""

from resilient_heads.text.embeddings import Provenance
from resilient_heads.text.encoders.huggingface import TransformersEncoder
from resilient_heads.text.encoders.named import encoder_of, named_encoder
from resilient_heads.text.encoders.openclip import OpenClipEncoder
from resilient_heads.text.encoders.options import EncoderOptions
from resilient_heads.text.encoders.precomputed import PrecomputedEncoder
from resilient_heads.text.encoders.protocol import TextEncoder
from resilient_heads.text.encoders.sentence import SentenceTransformerEncoder

__all__ = [
    "EncoderOptions",
    "OpenClipEncoder",
    "PrecomputedEncoder",
    "Provenance",
    "SentenceTransformerEncoder",
    "TextEncoder",
    "TransformersEncoder",
    "encoder_of",
    "named_encoder",
]
