"""A model from a function in a Python file, which is run as an import runs it."""

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from resilient_heads.checks import printable
from resilient_heads.errors import ModelError, ResilientHeadsError


def model_from_file(path: Path, name: str) -> nn.Module:
    """Run a Python file and return the model that it names.

    The file runs as a module of its own, as an import would run it: it can import the modules beside it, its classes
    can be pickled in this process, and code under ``if __name__ == "__main__"`` does not run. It sees no arguments of
    the command line.

    Args:
        path: The file.
        name: A function or class that is called without arguments and returns a model, or a model.

    Raises:
        ModelError: There is no such file or name, the file or the function fails or ends the program, or what it
            returns is no model. The message names the line.
    """
    if not path.is_file():
        raise ModelError(f"There is no file {printable(path)}.")
    path = Path(os.path.abspath(path))
    with _program_of(path):
        with _explained(path, f"{printable(path)} cannot be run"):
            module = _run(path)
        made = _named(module, name, path)
        if isinstance(made, nn.Module):
            return made
        _check_call(made, name, path)
        with _explained(path, f"{name}() in {printable(path)} failed"):
            model = made()
    if isinstance(model, nn.Module):
        return model
    returned = "None; does it lack a return?" if model is None else f"a {type(model).__name__}."
    raise ModelError(f"{name}() in {printable(path)} must return a torch.nn.Module, found {returned}")


def _run(path: Path) -> ModuleType:
    """Run a file as a module that ``sys.modules`` knows, as dataclasses and pickle need it."""
    root = _root_of(path)
    if root != path.parent:  # a module of a package, whose imports may be relative
        module = importlib.import_module(".".join(path.relative_to(root).with_suffix("").parts))
        if not module.__file__ or not os.path.samefile(module.__file__, path):
            raise ModelError(
                f"Python finds another module of its name at {printable(module.__file__)}; rename a folder."
            )
        return module
    unique = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
    specification = importlib.util.spec_from_file_location(f"_resilient_heads_model_file_{unique}", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    try:
        specification.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(specification.name, None)
        raise
    return sys.modules.get(specification.name, module)


def _root_of(path: Path) -> Path:
    """Return the folder that holds a file's outermost package; for a file of no package, its folder."""
    folder = path.parent
    while (folder / "__init__.py").is_file() and folder.name.isidentifier() and folder.parent != folder:
        folder = folder.parent
    return folder


@contextlib.contextmanager
def _program_of(path: Path) -> Iterator[None]:
    """Let a file import the modules of its folder first, and keep the command's arguments from it.

    Afterwards its folders stand last in ``sys.path``, for imports inside ``forward``.
    """
    folders = list(dict.fromkeys([str(path.parent), str(path.resolve().parent), str(_root_of(path))]))
    arguments = sys.argv
    sys.path[:0] = folders
    sys.argv = [str(path)]
    try:
        yield
    finally:
        sys.argv = arguments
        for folder in folders:
            with contextlib.suppress(ValueError):
                sys.path.remove(folder)
        sys.path.extend(folder for folder in folders if folder not in sys.path)


def _named(module: ModuleType, name: str, path: Path) -> Any:
    """Return what a module calls ``name``; it can be called, or is a model."""
    found = getattr(module, name, None)
    if callable(found):
        return found
    if found is not None:
        raise ModelError(
            f"{name} in {printable(path)} is a {type(found).__name__}; expected a function without arguments that "
            "returns a model."
        )
    defined = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    names = [key for key in defined if callable(vars(module)[key])]
    close = get_close_matches(name, names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else f" It has: {', '.join(names[:10])}." if names else ""
    raise ModelError(f"{printable(path)} has no function {name!r}.{hint}")


def _check_call(made: Any, name: str, path: Path) -> None:
    """Raise ModelError if a function cannot be called without arguments."""
    try:
        parameters = inspect.signature(made).parameters.values()
    except (TypeError, ValueError):  # callables of other languages show no signature
        return
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is inspect.Parameter.empty and p.kind not in kinds]
    if needed:
        raise ModelError(
            f"{name}() in {printable(path)} needs the arguments {', '.join(needed)}, and the command passes none; add "
            "a function without arguments that returns the model."
        )


@contextlib.contextmanager
def _explained(path: Path, what: str) -> Iterator[None]:
    """Raise ModelError for every exception of the block, with the line of the file; let interrupts through."""
    try:
        yield
    except ResilientHeadsError:
        raise
    except SystemExit as cause:
        raise ModelError(
            f"{what}: it ended the program{_line(path, cause)}. Put code that parses arguments or calls sys.exit under "
            'if __name__ == "__main__".'
        ) from cause
    except Exception as cause:
        reason = printable(next(iter(str(cause).strip().splitlines()), ""))
        raise ModelError(f"{what}: {type(cause).__name__}: {reason}{_line(path, cause)}") from cause


def _line(path: Path, cause: BaseException) -> str:
    """Return the last line of the file that took part in an exception, as the end of a message."""
    if isinstance(cause, SyntaxError) and cause.filename:
        return f" ({Path(cause.filename).name}, line {cause.lineno})"
    frames = [frame for frame in traceback.extract_tb(cause.__traceback__) if frame.filename == str(path)]
    return f" ({path.name}, line {frames[-1].lineno})" if frames else ""
