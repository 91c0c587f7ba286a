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
    from resilient_heads.campaign.exhaustive import ExhaustiveResult as ExhaustiveResult
    from resilient_heads.campaign.exhaustive import exhaustive as exhaustive
    from resilient_heads.campaign.merge import merge_campaign as merge_campaign
    from resilient_heads.campaign.pilot import neyman as neyman
    from resilient_heads.campaign.replay import replay as replay
    from resilient_heads.campaign.results import CampaignResult as CampaignResult
    from resilient_heads.campaign.runner import run_campaign as run_campaign
    from resilient_heads.campaign.shards import Shard as Shard
    from resilient_heads.campaign.stopping import Until as Until
    from resilient_heads.errors import ResilientHeadsError as ResilientHeadsError
    from resilient_heads.heads.pretrained import from_pretrained as from_pretrained
    from resilient_heads.heads.pretrained import push_to_hub as push_to_hub
    from resilient_heads.heads.pretrained import save_pretrained as save_pretrained
    from resilient_heads.heads.protection.caught import CaughtFaults as CaughtFaults
    from resilient_heads.heads.protection.options import Protection as Protection
    from resilient_heads.heads.protection.protect import protect_ as protect_
    from resilient_heads.heads.protection.protect import unprotect_ as unprotect_
    from resilient_heads.heads.text_guided import TextGuidedHead as TextGuidedHead
    from resilient_heads.heads.wrap import fuse as fuse
    from resilient_heads.heads.wrap import is_wrapped as is_wrapped
    from resilient_heads.heads.wrap import unwrap_model as unwrap_model
    from resilient_heads.heads.wrap import wrap_model as wrap_model
    from resilient_heads.injection.effects import Flip as Flip
    from resilient_heads.injection.effects import LayerMaximum as LayerMaximum
    from resilient_heads.injection.effects import Negate as Negate
    from resilient_heads.injection.effects import RandomValue as RandomValue
    from resilient_heads.injection.effects import RandomWord as RandomWord
    from resilient_heads.injection.effects import SetValue as SetValue
    from resilient_heads.injection.effects import StuckAt as StuckAt
    from resilient_heads.injection.elements import At as At
    from resilient_heads.injection.elements import Drawn as Drawn
    from resilient_heads.injection.elements import ErrorRate as ErrorRate
    from resilient_heads.injection.elements import Every as Every
    from resilient_heads.injection.emulate import emulate as emulate
    from resilient_heads.injection.emulated.floating import FloatingPoint as FloatingPoint
    from resilient_heads.injection.emulated.integer import AffineInteger as AffineInteger
    from resilient_heads.injection.emulated.integer import FixedPoint as FixedPoint
    from resilient_heads.injection.emulated.shared import AdaptivFloat as AdaptivFloat
    from resilient_heads.injection.emulated.shared import BlockFloat as BlockFloat
    from resilient_heads.injection.faults import BitFlip as BitFlip
    from resilient_heads.injection.faults import Fault as Fault
    from resilient_heads.injection.faults import WeightBitFlip as WeightBitFlip
    from resilient_heads.injection.injector import inject as inject
    from resilient_heads.injection.ledger import InjectionReport as InjectionReport
    from resilient_heads.injection.models import FaultModel as FaultModel
    from resilient_heads.injection.places import Input as Input
    from resilient_heads.injection.places import Output as Output
    from resilient_heads.injection.places import Stored as Stored
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
    "AdaptivFloat": "injection.emulated.shared",
    "AffineInteger": "injection.emulated.integer",
    "At": "injection.elements",
    "BitFlip": "injection.faults",
    "BlockFloat": "injection.emulated.shared",
    "CampaignResult": "campaign.results",
    "CaughtFaults": "heads.protection.caught",
    "ClassDescriptions": "text.descriptions",
    "ClassEmbeddings": "text.embeddings",
    "Comparison": "campaign.compare",
    "Drawn": "injection.elements",
    "ErrorRate": "injection.elements",
    "Every": "injection.elements",
    "ExhaustiveResult": "campaign.exhaustive",
    "Fault": "injection.faults",
    "FaultModel": "injection.models",
    "FixedPoint": "injection.emulated.integer",
    "Flip": "injection.effects",
    "FloatingPoint": "injection.emulated.floating",
    "GOLDENEYE": "campaign.config",
    "InjectionReport": "injection.ledger",
    "Input": "injection.places",
    "LayerMaximum": "injection.effects",
    "Negate": "injection.effects",
    "OpenClipEncoder": "text.encoders.openclip",
    "Output": "injection.places",
    "PrecomputedEncoder": "text.encoders.precomputed",
    "Protection": "heads.protection.options",
    "Protocol": "campaign.config",
    "RAW": "campaign.config",
    "RandomValue": "injection.effects",
    "RandomWord": "injection.effects",
    "ResilientHeadsError": "errors",
    "SentenceTransformerEncoder": "text.encoders.sentence",
    "SetValue": "injection.effects",
    "Shard": "campaign.shards",
    "Stored": "injection.places",
    "Stratified": "campaign.design",
    "StuckAt": "injection.effects",
    "TextGuidedHead": "heads.text_guided",
    "TransformersEncoder": "text.encoders.huggingface",
    "Uniform": "campaign.design",
    "Until": "campaign.stopping",
    "WeightBitFlip": "injection.faults",
    "compare": "campaign.compare",
    "comparison_table": "report.tables",
    "embed_classes": "text.pooling",
    "emulate": "injection.emulate",
    "exhaustive": "campaign.exhaustive",
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
    "merge_campaign": "campaign.merge",
    "neyman": "campaign.pilot",
    "plot_layers": "report.plots",
    "protect_": "heads.protection.protect",
    "push_to_hub": "heads.pretrained",
    "replay": "campaign.replay",
    "run_campaign": "campaign.runner",
    "sample_size": "metrics.planning",
    "save_pretrained": "heads.pretrained",
    "unprotect_": "heads.protection.protect",
    "unwrap_model": "heads.wrap",
    "wrap_model": "heads.wrap",
}

__all__ = [
    "GOLDENEYE",
    "RAW",
    "AdaptivFloat",
    "AffineInteger",
    "At",
    "BitFlip",
    "BlockFloat",
    "CampaignResult",
    "CaughtFaults",
    "ClassDescriptions",
    "ClassEmbeddings",
    "Comparison",
    "Drawn",
    "ErrorRate",
    "Every",
    "ExhaustiveResult",
    "Fault",
    "FaultModel",
    "FixedPoint",
    "Flip",
    "FloatingPoint",
    "InjectionReport",
    "Input",
    "LayerMaximum",
    "Negate",
    "OpenClipEncoder",
    "Output",
    "PrecomputedEncoder",
    "Protection",
    "Protocol",
    "RandomValue",
    "RandomWord",
    "ResilientHeadsError",
    "SentenceTransformerEncoder",
    "SetValue",
    "Shard",
    "Stored",
    "Stratified",
    "StuckAt",
    "TextGuidedHead",
    "TransformersEncoder",
    "Uniform",
    "Until",
    "WeightBitFlip",
    "compare",
    "comparison_table",
    "embed_classes",
    "emulate",
    "exhaustive",
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
    "merge_campaign",
    "neyman",
    "plot_layers",
    "protect_",
    "push_to_hub",
    "replay",
    "run_campaign",
    "sample_size",
    "save_pretrained",
    "unprotect_",
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
