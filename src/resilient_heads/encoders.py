"""Text encoders for class descriptions."""

from resilient_heads.text.encoders.huggingface import TransformersEncoder
from resilient_heads.text.encoders.openclip import OpenClipEncoder
from resilient_heads.text.encoders.precomputed import PrecomputedEncoder
from resilient_heads.text.encoders.protocol import TextEncoder
from resilient_heads.text.encoders.sentence import SentenceTransformerEncoder

__all__ = [
    "OpenClipEncoder",
    "PrecomputedEncoder",
    "SentenceTransformerEncoder",
    "TextEncoder",
    "TransformersEncoder",
]
