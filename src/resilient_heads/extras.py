"""Optional packages, imported when they are first needed."""

import importlib
from types import ModuleType

from resilient_heads.errors import MissingExtraError


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import ``module``, or say which extra brings it.

    Args:
        module: Dotted name of the module to import.
        extra: The extra of this package that installs it.
        purpose: What it is needed for, as the end of the sentence "... is needed for".

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
