"""Text-guided classifier heads, and the campaigns that measure what they gain.

>>> import resilient_heads as rh
>>> rh.load_embeddings("cifar10")
ClassEmbeddings(10 classes, 384 dimensions, encoder='all-MiniLM-L6-v2')
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from resilient_heads.campaign.compare import Comparison as Comparison
    from resilient_heads.campaign.compare import compare as compare
    from resilient_heads.campaign.config import GOLDENEYE as GOLDENEYE
    from resilient_heads.campaign.config import RAW as RAW
    from resilient_heads.campaign.config import Protocol as Protocol
    from resilient_heads.campaign.design import Stratified as Stratified
    from resilient_heads.campaign.design import Uniform as Uniform
    from resilient_heads.campaign.pilot import neyman as neyman
    from resilient_heads.campaign.results import CampaignResult as CampaignResult
    from resilient_heads.campaign.runner import run_campaign as run_campaign
    from resilient_heads.campaign.stopping import Until as Until
    from resilient_heads.errors import ResilientHeadsError as ResilientHeadsError
    from resilient_heads.heads.pretrained import from_pretrained as from_pretrained
    from resilient_heads.heads.pretrained import push_to_hub as push_to_hub
    from resilient_heads.heads.pretrained import save_pretrained as save_pretrained
    from resilient_heads.heads.text_guided import TextGuidedHead as TextGuidedHead
    from resilient_heads.heads.wrap import fuse as fuse
    from resilient_heads.heads.wrap import is_wrapped as is_wrapped
    from resilient_heads.heads.wrap import unwrap_model as unwrap_model
    from resilient_heads.heads.wrap import wrap_model as wrap_model
    from resilient_heads.injection.faults import BitFlip as BitFlip
    from resilient_heads.injection.faults import WeightBitFlip as WeightBitFlip
    from resilient_heads.injection.injector import inject as inject
    from resilient_heads.injection.sites import find_sites as find_sites
    from resilient_heads.metrics.planning import margin_of_error as margin_of_error
    from resilient_heads.metrics.planning import sample_size as sample_size
    from resilient_heads.report.plots import plot_layers as plot_layers
    from resilient_heads.report.tables import comparison_table as comparison_table
    from resilient_heads.report.tables import layer_table as layer_table
    from resilient_heads.text.bundled import load_descriptions as load_descriptions
    from resilient_heads.text.descriptions import ClassDescriptions as ClassDescriptions
    from resilient_heads.text.embeddings import ClassEmbeddings as ClassEmbeddings
    from resilient_heads.text.encoders.huggingface import TransformersEncoder as TransformersEncoder
    from resilient_heads.text.encoders.openclip import OpenClipEncoder as OpenClipEncoder
    from resilient_heads.text.encoders.precomputed import PrecomputedEncoder as PrecomputedEncoder
    from resilient_heads.text.encoders.sentence import SentenceTransformerEncoder as SentenceTransformerEncoder
    from resilient_heads.text.generate import generate_descriptions as generate_descriptions
    from resilient_heads.text.pooling import embed_classes as embed_classes
    from resilient_heads.text.prebuilt import load_embeddings as load_embeddings

_HOME = {
    "BitFlip": "injection.faults",
    "CampaignResult": "campaign.results",
    "ClassDescriptions": "text.descriptions",
    "ClassEmbeddings": "text.embeddings",
    "Comparison": "campaign.compare",
    "GOLDENEYE": "campaign.config",
    "OpenClipEncoder": "text.encoders.openclip",
    "PrecomputedEncoder": "text.encoders.precomputed",
    "Protocol": "campaign.config",
    "RAW": "campaign.config",
    "ResilientHeadsError": "errors",
    "SentenceTransformerEncoder": "text.encoders.sentence",
    "Stratified": "campaign.design",
    "TextGuidedHead": "heads.text_guided",
    "TransformersEncoder": "text.encoders.huggingface",
    "Uniform": "campaign.design",
    "Until": "campaign.stopping",
    "WeightBitFlip": "injection.faults",
    "compare": "campaign.compare",
    "comparison_table": "report.tables",
    "embed_classes": "text.pooling",
    "find_sites": "injection.sites",
    "from_pretrained": "heads.pretrained",
    "fuse": "heads.wrap",
    "generate_descriptions": "text.generate",
    "inject": "injection.injector",
    "is_wrapped": "heads.wrap",
    "layer_table": "report.tables",
    "load_descriptions": "text.bundled",
    "load_embeddings": "text.prebuilt",
    "margin_of_error": "metrics.planning",
    "neyman": "campaign.pilot",
    "plot_layers": "report.plots",
    "push_to_hub": "heads.pretrained",
    "run_campaign": "campaign.runner",
    "sample_size": "metrics.planning",
    "save_pretrained": "heads.pretrained",
    "unwrap_model": "heads.wrap",
    "wrap_model": "heads.wrap",
}

__all__ = [
    "GOLDENEYE",
    "RAW",
    "BitFlip",
    "CampaignResult",
    "ClassDescriptions",
    "ClassEmbeddings",
    "Comparison",
    "OpenClipEncoder",
    "PrecomputedEncoder",
    "Protocol",
    "ResilientHeadsError",
    "SentenceTransformerEncoder",
    "Stratified",
    "TextGuidedHead",
    "TransformersEncoder",
    "Uniform",
    "Until",
    "WeightBitFlip",
    "compare",
    "comparison_table",
    "embed_classes",
    "find_sites",
    "from_pretrained",
    "fuse",
    "generate_descriptions",
    "inject",
    "is_wrapped",
    "layer_table",
    "load_descriptions",
    "load_embeddings",
    "margin_of_error",
    "neyman",
    "plot_layers",
    "push_to_hub",
    "run_campaign",
    "sample_size",
    "save_pretrained",
    "unwrap_model",
    "wrap_model",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its home when it is first used, so that ``import resilient_heads`` stays light."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
