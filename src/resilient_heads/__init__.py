"""Text-guided classifier heads, and the fault-injection campaigns that measure what they gain.

>>> import resilient_heads as rh
>>> rh.load_embeddings("cifar10")
ClassEmbeddings(10 classes, 384 dimensions, encoder='all-MiniLM-L6-v2')
"""

import lazy_loader

__version__ = "0.1.0"

# The stub __init__.pyi is the one list of public names; each is imported when it is first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
