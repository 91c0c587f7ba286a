"""Optional packages, imported when a function first needs them."""

import importlib
from types import ModuleType

from resilient_heads.errors import MissingExtraError


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import a module of an optional package, or raise an error with the command that installs it.

    Args:
        module: Dotted name of the module to import.
        extra: The extra of this library that installs the module.
        purpose: What needs the module, as the end of the sentence "... is needed for".

    Raises:
        MissingExtraError: The module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = error.name or module
        raise MissingExtraError(
            f'{package} is needed for {purpose}. Install it: pip install "resilient-heads[{extra}]"'
        ) from error
