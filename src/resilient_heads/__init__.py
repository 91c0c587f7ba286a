"""Text-guided classifier heads, and the fault-injection campaigns that measure what they gain.

>>> import resilient_heads as rh
>>> rh.load_embeddings("cifar10")
ClassEmbeddings(10 classes, 384 dimensions, encoder='all-MiniLM-L6-v2')
"""

import importlib
from typing import Any

import lazy_loader

__version__ = "0.1.0"

# The stub __init__.pyi is the one list of public names; each is imported when it is first used.
_public, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    """Return a public name; for a name of a namespace, raise an AttributeError that says where it is."""
    try:
        return _public(name)
    except AttributeError:
        if name.startswith("_"):
            raise
    for space in ("faults", "formats", "errors", "statistics", "campaign", "report", "text"):
        if name in getattr(importlib.import_module(f"{__name__}.{space}"), "__all__", ()):
            raise AttributeError(f"No resilient_heads attribute {name}; did you mean resilient_heads.{space}.{name}?")
    raise AttributeError(f"No resilient_heads attribute {name}; dir(resilient_heads) lists its names.")
