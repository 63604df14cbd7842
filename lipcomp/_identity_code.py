"""The code that a function or a class of the user's own runs, and the values that it reads.

The source of a class says nothing of the functions and constants that its methods use by name, in the same file or
in others. They are followed from name to name through everything that is not an installed package, whose version is
in the records. What is found only while the code runs (an import inside a function, ``getattr``) is not seen.
"""

import argparse
import array
import ast
import collections
import datetime
import decimal
import enum
import fractions
import functools
import inspect
import operator
import re
import sys
import sysconfig
import textwrap
import types
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import is_dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# Values whose repr is all that they are.
TOLD_BY_REPR = (
    *(range, slice, types.EllipsisType, decimal.Decimal, fractions.Fraction),
    *(datetime.date, datetime.time, datetime.timedelta, operator.itemgetter, operator.attrgetter),
)
_VALUES = (
    *(bool, int, float, complex, str, bytes, list, tuple, Mapping, Set, enum.Enum, PurePath),
    *(Tensor, np.ndarray, np.generic, torch.dtype, nn.Module),
    *(functools.partial, types.SimpleNamespace, argparse.Namespace),
    *(bytearray, array.array, collections.deque, re.Pattern, torch.distributions.Distribution),
    *TOLD_BY_REPR,
)
_LIKE_311: dict[str, Any] = {"show_empty": True} if sys.version_info >= (3, 13) else {}  # what ast.dump tells


def reached(start: Any) -> tuple[list[str], list[tuple[str, Any]]]:
    """The code that a function or class reaches, itself first, and (name, value) of the constants on the way."""
    waiting, done = [start], set()
    code: list[str] = []
    constants: list[tuple[str, Any]] = []
    while waiting:
        thing = waiting.pop()
        if id(thing) in done:
            continue
        done.add(id(thing))
        for name, value in ((name, _inside(value)) for name, value in _reads(thing, code)):
            if isinstance(value, types.FunctionType | type) and not is_installed(value.__module__):
                waiting.append(value)
            elif _is_value(value):
                constants.append((name, value))
    return [*code[:1], *sorted(code[1:])], sorted(constants, key=lambda pair: pair[0])


def _reads(thing: Any, code: list[str]) -> Iterator[tuple[str, Any]]:
    """What a function or class uses, by name; its own source is added to ``code``."""
    if isinstance(thing, type):
        for base in thing.__mro__:
            if is_installed(base.__module__):
                continue
            code.append(_code(base))
            for name, member in vars(base).items():
                if not _is_made(name, member):
                    yield from ((f"{base.__qualname__}.{name}", part) for part in _unwrapped(member))
        return
    code.append(_code(thing))
    module = name_of(thing.__module__)
    where = f"{module}.{thing.__qualname__}"
    yield from ((f"{where} default", value) for value in thing.__defaults__ or ())
    yield from ((f"{where} default {name}", value) for name, value in (thing.__kwdefaults__ or {}).items())
    for name, cell in zip(thing.__code__.co_freevars, thing.__closure__ or (), strict=True):
        try:
            yield f"{where} closure {name}", cell.cell_contents
        except ValueError:  # not filled yet
            continue
    if not _of_decorator(thing):
        yield from _named(_names(thing.__code__), thing.__globals__, module, {thing.__module__})


def _of_decorator(function: types.FunctionType) -> bool:
    """Whether an installed decorator made a function, around one of yours that its closure holds."""
    return _lies_installed(function.__code__.co_filename)


def _inside(value: Any) -> Any:
    """The function of yours that an object of an installed class calls (lru_cache, np.vectorize, numba)."""
    own = getattr(value, "__dict__", {}) if not isinstance(value, types.FunctionType | type) else {}
    found = (own.get(name) for name in ("__wrapped__", "pyfunc", "py_func"))
    return next((part for part in found if isinstance(part, types.FunctionType)), value)


def _named(
    names: set[str], place: Mapping[str, Any], where: str, seen: set[str]
) -> Iterator[tuple[str, Any]]:
    """Those of some names that a module has; the names of its modules too."""
    for name in sorted(names & place.keys()):
        value = place[name]
        if not isinstance(value, types.ModuleType):
            yield f"{where}.{name}", value
        elif value.__name__ not in seen and not is_installed(value.__name__):
            yield from _named(names, vars(value), value.__name__, seen | {value.__name__})


def _unwrapped(member: Any) -> Iterable[Any]:
    """The functions of a property, a class method or a cached property; else the member itself."""
    if isinstance(member, property):
        return [part for part in (member.fget, member.fset) if part is not None]
    if isinstance(member, staticmethod | classmethod):
        return [member.__func__]
    return [getattr(member, "func", member)]


def _is_made(name: str, member: Any) -> bool:
    """Whether Python or @dataclass made a member of a class from its source, as this version of Python does it."""
    if not (name.startswith("__") and name.endswith("__")):
        return False
    function = inspect.unwrap(member) if callable(member) else None
    by_dataclass = isinstance(function, types.FunctionType) and (
        "__create_fn__" in function.__code__.co_qualname or function.__module__ == "dataclasses"
    )
    plain = not callable(member) and not isinstance(member, property | classmethod | staticmethod)
    return plain or by_dataclass or name == "__annotate_func__"


def _is_value(value: Any) -> bool:
    """Whether a global that code uses is content: a value, or an installed function under this name."""
    if value is None or isinstance(value, _VALUES) or is_dataclass(value):
        return True
    callables = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, type, np.ufunc)
    return isinstance(value, callables) or not is_installed(type(value).__module__)


def _names(code: types.CodeType) -> set[str]:
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return set(code.co_names).union(*(_names(c) for c in inner))


@functools.cache
def _installed_folders() -> tuple[str, ...]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    return tuple({str(Path(sysconfig.get_path(name)).resolve()) for name in names})


def _lies_installed(file: str) -> bool:
    return str(Path(file).resolve()).startswith(_installed_folders())


@functools.cache
def is_installed(module: str | None) -> bool:
    """Whether a module belongs to an installed package (whose version is in the records) or to lipcomp itself."""
    if module is None or module.split(".")[0] in ("lipcomp", "builtins"):
        return True
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        return module != "__main__" and module in sys.builtin_module_names
    return _lies_installed(file)


def name_of(module: str) -> str:
    """The name of a module as others import it, also where it runs as a script or in a worker of one."""
    if module not in ("__main__", "__mp_main__"):
        return module
    main = sys.modules.get(module)
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    return str(spec.name) if spec is not None else Path(file).stem if file else "__main__"


@functools.cache
def _code(thing: Any) -> str:
    """Source without comments, layout and docstrings, as Python 3.11 dumps it; bytecode where there is none."""
    if not isinstance(thing, type) and _of_decorator(thing):
        return ""
    try:  # of its own code: inspect would go through functools.wraps to what it wraps
        source = inspect.getsource(thing if isinstance(thing, type) else thing.__code__)
        tree: ast.AST = ast.parse(textwrap.dedent(source))
    except (OSError, TypeError, SyntaxError):
        return "" if isinstance(thing, type) else _bytecode(thing.__code__)  # a class has its functions
    if getattr(thing, "__name__", "") == "<lambda>":
        found = [node for node in ast.walk(tree) if isinstance(node, ast.Lambda)]
        if len(found) != 1:
            return _bytecode(thing.__code__)
        tree = found[0]
    for node in ast.walk(tree):
        if not getattr(node, "type_params", True):
            del node.type_params  # type: ignore[attr-defined]  # since Python 3.12
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            first = body[0].value
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                del body[0]
    return ast.dump(tree, **_LIKE_311)


def _bytecode(code: types.CodeType) -> str:
    constants = [_constant(c) for c in code.co_consts]
    return f"{code.co_name}{code.co_code.hex()}{constants}{code.co_names}{code.co_varnames}"


def _constant(value: Any) -> str:
    if isinstance(value, types.CodeType):
        return _bytecode(value)
    return repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value)
