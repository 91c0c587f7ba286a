"""Tools around heads: find a model's classifiers, start a head from trained weights, count what it costs."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
