"""Functions of the user's own, named on a command line: ``FILE.py:NAME`` or ``package.module:NAME``."""

import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from lipcomp._messages import nearest

FUNCTION = re.compile(r"(.+\.py|[A-Za-z_][\w.]*):[A-Za-z_]\w*")


def load_function(place: str) -> Callable[..., Any]:
    """A function of a file or of an importable module, looked for in the current folder too.

    Raises
    ------
    ImportError
        If it is not there or does not import; the message says why.
    """
    if not FUNCTION.fullmatch(place):
        raise ImportError(f"{place!r} names no function; write FILE.py:FUNCTION or package.module:FUNCTION")
    source, _, name = place.rpartition(":")
    here = os.getcwd()  # noqa: PTH109  (as an entry of sys.path)
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        module = import_file(Path(source)) if source.endswith(".py") else importlib.import_module(source)
    except Exception as error:
        raise ImportError(
            f"{source!r} cannot be imported ({type(error).__name__}: {error}); it is looked for in the current folder "
            f"and among installed packages"
        ) from error
    finally:
        if added:
            sys.path.remove(here)
    function = getattr(module, name, None)
    if not callable(function):
        known = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise ImportError(f"{source!r} has no function {name!r}{nearest(name, known)}")  # noqa: TRY004
    found: Callable[..., Any] = function
    return found


def call_function(place: str, *arguments: Any) -> Any:
    """What a function of the user's returns.

    Raises
    ------
    ImportError
        If it is not there or does not import.
    ValueError
        If it raises anything; the message names it and the reason.
    """
    return called(place, load_function(place), *arguments)


def called(place: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns that the user gave as ``place``; whatever it raises is a ValueError that names it."""
    try:
        return function(*arguments)
    except Exception as error:
        raise ValueError(
            f"{place!r} failed, called with {arguments or 'no arguments'} ({type(error).__name__}: {error}); correct it"
        ) from error


def import_file(path: Path) -> ModuleType:
    """Import a file as a module of its stem, once; classes of it can then be pickled and found again."""
    path = path.resolve()
    known = sys.modules.get(path.stem)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return known
    if known is not None:
        raise ImportError(f"a module {path.stem!r} is loaded already ({known}); rename {path.name}")
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r} does not exist")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
    return module
