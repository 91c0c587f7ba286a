"""Many faults: what campaigns return, from single trials to figures with their intervals."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
