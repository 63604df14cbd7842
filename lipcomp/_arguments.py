"""What the public functions and classes take, checked by name before any work.

The annotations say it already; :func:`checked` reads them. Only the kind of an argument is looked at (a tensor, a
number, a function), leniently: lists pass for tuples, NumPy's numbers and tensors of one number for numbers, what has
a path for paths, and become them. Shapes, types of numbers and ranges are the function's own to check, with what they
mean there. What is checked runs as under torch.no_grad where it is called under torch.inference_mode. A class keeps
what it is given, so True is no number there.
"""

import functools
import inspect
import math
import os
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from fractions import Fraction
from itertools import islice
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, TypeVar

import jaxtyping
import numpy as np
import torch
from torch import Tensor

C = TypeVar("C", bound=Callable[..., Any])
LOOKED_AT = 100  # items of a list


@contextmanager
def differentiable() -> Iterator[None]:
    """Outside of torch.inference_mode, inside of which nothing has a derivative: there as under torch.no_grad."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


@contextmanager
def estimating() -> Iterator[None]:
    """Differentiable, and tensors on the CPU where nothing else is said, whatever torch.set_default_device says."""
    with differentiable():
        if torch.get_default_device().type == "cpu":
            yield
            return
        with torch.device("cpu"):
            yield


def estimator(target: C) -> C:
    """:func:`checked`, for what estimates: its numbers are drawn and kept on the CPU."""
    return checked(target, within=estimating)


def checked(
    target: C, *, within: Callable[[], AbstractContextManager[None]] = differentiable, keeps: bool = False
) -> C:
    """The function or class, refusing arguments of another kind than their annotations.

    Raises
    ------
    ValueError
        If an argument is of another kind (not ``TypeError``: the package refuses in one way).
    """
    if inspect.isclass(target):
        target.__init__ = checked(target.__init__, within=within, keeps=True)  # type: ignore[method-assign]
        return target
    parameters = inspect.signature(target).parameters
    places = [name for name, each in parameters.items() if each.kind is not each.KEYWORD_ONLY]

    @functools.cache
    def kinds() -> dict[str, Any]:
        try:
            return typing.get_type_hints(target)
        except NameError:  # of a module that is imported for its types alone
            return {name: each.annotation for name, each in parameters.items()}

    def plain(name: str, value: Any) -> Any:
        kind = kinds().get(name, Any)
        if name not in parameters or kind is Any:
            return value
        return taken(name, value, kind, keeps=keeps)

    @functools.wraps(target)
    def wrapper(*arguments: Any, **named: Any) -> Any:
        if torch.compiler.is_compiling():  # the graph has tensors alone
            return target(*arguments, **named)
        given = [plain(name, value) for name, value in zip(places, arguments, strict=False)]
        named = {name: plain(name, value) for name, value in named.items()}
        with within():
            return target(*given, *arguments[len(given) :], **named)

    return typing.cast(C, wrapper)


def taken(name: str, value: Any, kind: Any, *, keeps: bool) -> Any:
    """The value as its annotation has it; one of another kind is refused by name, True for a kept number too."""
    if not _fits(value, kind) or (keeps and _is_truth_for_number(value, kind)):
        raise ValueError(f"{name} must be {_words(kind)}, got {_shown(value)}{_remedy(name, value)}")
    return _converted(value, kind)


@contextmanager
def taking(name: str, images: Tensor) -> Iterator[None]:
    """A network that does not take the images, by their type, device or shape, is refused in our words.

    Raises
    ------
    ValueError
        Naming what the images are, and the remedy.
    """
    try:
        yield
    except (RuntimeError, AssertionError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or [""]
        said = lines[-1 if "TorchScript" in lines[0] else 0]
        if re.search("dtype|should be the same|same device", str(error)):
            raise ValueError(
                f"{name} does not take images of {images.dtype} on {images.device} ({said}); bring the images to the "
                f"type and the device of its weights, as by images.to(weight)"
            ) from error
        if "TorchScript" in str(error) and "size" not in str(error):
            raise ValueError(
                f"{name} is TorchScript that was traced for another number of images, or whose operations cannot be "
                f"watched (of torch.jit.optimize_for_inference?); give the module that it was made from"
            ) from error
        if re.search("shape|size|channels|dimension", str(error)):
            raise ValueError(
                f"{name} does not take images of shape {tuple(images.shape[1:])} ({said}); give a batch (n, ...) of "
                f"images of the shape that it is made for, and a map that takes any number of them (of one image "
                f"at a time: lambda x: torch.cat([{name}(image[None]) for image in x]))"
            ) from error
        raise


def _choices(kind: Any) -> tuple[Any, ...]:
    """The members of a union; any other annotation alone."""
    return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


def _converted(value: Any, kind: Any) -> Any:
    """One number of NumPy or PyTorch as Python's, a list as a tuple, where the annotation names nothing else."""
    wanted = {typing.get_origin(each) or each for each in _choices(kind)}
    arrays = any(
        inspect.isclass(each) and issubclass(each, Tensor | np.ndarray | jaxtyping.AbstractArray)
        for each in wanted
    )
    if float in wanted:
        value = _finite_or_infinite(value)
    elif type(value) in (list, tuple) and any(float in typing.get_args(each) for each in _choices(kind)):
        value = type(value)(map(_finite_or_infinite, value))
    if arrays or value is None:
        return value
    if _is_single(value):
        value = value.item()
    if bool in wanted and isinstance(value, int):
        return value if wanted & {int, float} else bool(value)
    if isinstance(value, bool) and wanted & {int, float}:
        return int(value)  # the same number, whether it is compared, counted or hashed by its name
    if isinstance(value, Real) and not isinstance(value, int | float) and float in wanted:
        return float(value)  # a fraction, which tensors do not know
    if tuple in wanted and not wanted & {list, Sequence} and _is_sequence(value):
        items = value.tolist() if hasattr(value, "tolist") else value
        return tuple(item.item() if _is_single(item) else item for item in items)
    path = Path in wanted and isinstance(value, os.PathLike) and not isinstance(value, Path)
    return Path(value) if path else value


def _finite_or_infinite(value: Any) -> Any:
    """A whole number or a fraction beyond all floats as infinity, which no rule takes for another number."""
    if not isinstance(value, int | Fraction):
        return value
    try:
        float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    return value


def _is_single(value: Any) -> bool:
    """One number of NumPy or PyTorch."""
    return isinstance(value, np.generic) or (isinstance(value, Tensor | np.ndarray) and value.ndim == 0)


def _is_truth_for_number(value: Any, kind: Any) -> bool:
    """Whether a truth value is, or is among, what must be numbers."""
    items = value if isinstance(value, list | tuple) else (value,)
    wanted = [inner for each in _choices(kind) for inner in (each, *typing.get_args(each))]
    truths = any(isinstance(item, bool | np.bool_) for item in items)
    return truths and bool not in wanted and (int in wanted or float in wanted)


def _fits(value: Any, kind: Any) -> bool:
    return any(_fits_one(value, each) for each in _choices(kind))


def _fits_one(value: Any, kind: Any) -> bool:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is None or kind is type(None):
        return value is None
    if origin is Literal:
        return any(isinstance(value, type(each)) and value == each for each in inner)
    kind = origin or kind
    if not inspect.isclass(kind) or kind in (Any, inspect.Parameter.empty):
        return True
    if getattr(kind, "_is_protocol", False) and kind.__module__.startswith("lipcomp"):
        return all(hasattr(value, name) for name in dir(kind) if not name.startswith("_"))
    if issubclass(kind, jaxtyping.AbstractArray):
        return isinstance(value, kind.array_type)
    if kind in (float, int, bool):
        if _is_single(value):  # of a tensor the type is enough: its value may lie on another device
            value = (torch.zeros((), dtype=value.dtype) if isinstance(value, Tensor) else value).item()
        return isinstance(value, Real if kind is float else Integral) and (
            kind is not bool or value in (0, 1)
        )
    if kind is Path:
        return isinstance(value, os.PathLike)
    if kind is Callable:
        return callable(value)
    if kind in (tuple, list, Sequence):
        return _is_sequence(value) and _items_fit(value, kind, inner)
    if kind is Iterable:
        several = hasattr(value, "__iter__") or hasattr(value, "__getitem__")
        return several and not isinstance(value, str | bytes) and _items_fit(value, kind, inner)
    return isinstance(value, kind)


def _is_sequence(value: Any) -> bool:
    several = hasattr(value, "__len__") and hasattr(value, "__getitem__") and not _is_single(value)
    return several and not isinstance(value, str | bytes | Mapping)


def _items_fit(value: Any, kind: Any, inner: tuple[Any, ...]) -> bool:
    """Whether the items of a list or tuple, the first of many, fit; arrays and series have their own types."""
    if not isinstance(value, list | tuple) or not inner:
        return True
    if kind is tuple and Ellipsis not in inner:
        return len(value) == len(inner) and all(map(_fits, value, inner))
    return all(_fits(item, inner[0]) for item in islice(value, LOOKED_AT))


def _words(kind: Any) -> str:
    """An annotation in words: ``a tensor (n ...) or None``."""
    kinds = _choices(kind)
    return " or ".join(dict.fromkeys(_words_of_one(k) for k in kinds if not (k is int and float in kinds)))


def _words_of_one(kind: Any) -> str:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is None or kind is type(None):
        return "None"
    if origin is Literal:
        return "one of " + ", ".join(map(repr, inner))
    kind = origin or kind
    if not inspect.isclass(kind):
        return str(kind)
    if issubclass(kind, jaxtyping.AbstractArray):
        return f"a tensor ({kind.dim_str})" if kind.array_type is Tensor else "an array"
    if kind in (tuple, list, Sequence, Iterable) and inner:
        if kind is tuple and Ellipsis not in inner:
            return f"({', '.join(map(_words, inner))})"
        return "a sequence" + ("" if inner[0] is Any else f" (each {_words(inner[0])})")
    known: dict[Any, str] = {float: "a number", int: "a whole number", str: "text", bool: "True or False"}
    known |= {Callable: "a function", object: "anything", Path: "a path", Mapping: "a dictionary"}
    known |= {np.ndarray: "an array", Tensor: "a tensor"}
    return known.get(kind) or _owned(kind)


def _owned(kind: type) -> str:
    return f"a {kind.__module__.partition('.')[0]} {kind.__name__}"


def _remedy(name: str, value: Any) -> str:
    if isinstance(value, np.ndarray):
        return "; convert it with torch.as_tensor"
    if name == "records" and isinstance(value, str | Path):
        return "; read the file with lipcomp.read_records"
    if hasattr(value, name):
        return f"; give its .{name}"
    for name, what in (
        ("_orig_mod", "compiled module"),
        ("encoder", "checkpoint"),
        ("batch", "set of images"),
    ):
        if hasattr(value, name):
            return f"; of a {what} give its .{name}"
    return ""


def _shown(value: Any) -> str:
    text = repr(value)
    telling = len(text) <= 60 and "\n" not in text and " at 0x" not in text
    kind = type(value)
    common = kind.__module__ in ("builtins", "__main__") or isinstance(value, Tensor | np.ndarray)
    return (kind.__name__ if common else _owned(kind)) + (f" {text}" if telling else "")
