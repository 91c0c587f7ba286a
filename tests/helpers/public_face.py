"""The public names of the library, as ``resilient_heads/__init__.pyi`` lists them."""

from types import ModuleType

import resilient_heads as rh

NAMESPACES = tuple(name for name in rh.__all__ if isinstance(getattr(rh, name), ModuleType))


def public_objects() -> dict[str, object]:
    """Return every public class, function and constant by its name as a reader types it, such as ``rh.faults.Flip``."""
    top = {f"rh.{name}": getattr(rh, name) for name in rh.__all__ if name not in NAMESPACES}
    inner = {
        f"rh.{space}.{name}": getattr(getattr(rh, space), name)
        for space in NAMESPACES
        for name in getattr(rh, space).__all__
    }
    return top | inner
