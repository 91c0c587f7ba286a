"""Sentences about classes from a language model: the model to ask, and how to ask it."""

from resilient_heads.text.descriptions.class_descriptions import MatchReport
from resilient_heads.text.descriptions.generate import Asking
from resilient_heads.text.descriptions.openai_chat import OpenAIChat

__all__ = ["Asking", "MatchReport", "OpenAIChat"]
