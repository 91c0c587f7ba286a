"""Descriptions of classes: how they match class names, and the language models that write them."""

from resilient_heads.text.descriptions.asking import AskOptions
from resilient_heads.text.descriptions.matching import MatchReport, match_report
from resilient_heads.text.descriptions.openai_chat import OpenAIChat
from resilient_heads.text.descriptions.questions import QUESTIONS, TEMPLATE

__all__ = ["QUESTIONS", "TEMPLATE", "AskOptions", "MatchReport", "OpenAIChat", "match_report"]
