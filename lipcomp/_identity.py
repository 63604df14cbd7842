"""Identity by content: a hash of everything that can change a number, and of nothing else.

A record, a cached feature and a resumed stage are keyed by what was measured: the images (their bytes, labels and
preprocessing), the encoder (its weights, buffers and attributes), the probe, the condition and the estimator's
settings. Two things that give the same number have the same identity wherever they lie and whatever they are called.

=====================  ============================================================================================
:func:`digest`         of any values: settings, arrays, tensors, functions, dataclasses, modules, nested as you like
:func:`hash_module`    of a network: classes, attributes, weights, all buffers, forward hooks
=====================  ============================================================================================

The size of a file, its time and the ``repr`` of a module are no identity: networks of equal ``repr`` differ in
attributes that it does not show, and files of equal size differ in content.

>>> from lipcomp._identity import digest
>>> digest({"radius": 0.5, "norm": "l2"}) == digest({"norm": "l2", "radius": 0.5})
True
"""

import array
import collections
import enum
import functools
import hashlib
import re
import threading
import types
from collections.abc import Mapping, Set
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lipcomp._identity_code import TOLD_BY_REPR, is_installed, name_of, reached

LENGTH = 32  # hex digits of an identity: 128 bits

# Attributes of a module that do not change what it computes in evaluation mode, or that are hashed on their own.
_SKIPPED = {
    "training",
    "_parameters",
    "_buffers",
    "_modules",
    "_non_persistent_buffers_set",
    "_is_full_backward_hook",
}
# Where a Hugging Face configuration was read from.
_PLACES = {"_name_or_path", "name_or_path", "_commit_hash", "transformers_version"}
_HOOKS = {"_forward_hooks", "_forward_pre_hooks"}
_DURING = threading.local()  # what user code reaches, for as long as a digest is being made


def digest(*parts: Any) -> str:
    """A hash of values, 32 hex digits; equal for equal values, in every process and on every machine.

    Lists and tuples of equal members are equal, and so are mappings in any order; the device of a tensor does not
    count. A dataclass or another object may say what identifies it by a method ``__identity__()``.

    Parameters
    ----------
    parts
        None, booleans, numbers, strings, bytes, paths (as text), sequences, mappings, sets, enums, dtypes, tensors,
        arrays, dataclasses, functions (their code, defaults and closure), partials, classes, modules.

    Raises
    ------
    TypeError
        If a value has no content that could be hashed; the message names its type.
    """
    sha, outermost = hashlib.sha256(), not hasattr(_DURING, "memory")
    if outermost:
        _DURING.memory = {}
    try:
        _feed(sha, parts, frozenset())
    finally:
        if outermost:
            del _DURING.memory
    return sha.hexdigest()[:LENGTH]


def hash_module(module: nn.Module) -> str:
    """A hash of what a network computes in evaluation mode, 32 hex digits.

    Covers, module by module, its class (with the code, for classes outside installed packages), every attribute,
    parameter and buffer (also those that are not saved), and forward hooks. The training flag, ``requires_grad``, the
    device and batch norm's counter of batches do not change the function and do not count.

    Raises
    ------
    ValueError
        If a weight has no values (a meta or an uninitialised tensor).
    """
    return digest(module)


def _write(sha: Any, tag: str, content: bytes) -> None:
    """A tag of the kind, then content whose end is known, so that no two values run together."""
    sha.update(f"{tag}{len(content)}:".encode())
    sha.update(content)


def _tell(sha: Any, seen: frozenset[int], tag: str, *members: Any) -> None:
    """Several values under one tag."""
    sha.update(f"{tag}{len(members)}:".encode())
    for member in members:
        _feed(sha, member, seen)


def _inner(seen: frozenset[int], *parts: Any) -> bytes:
    """A hash of values on its own."""
    own = hashlib.sha256()
    for part in parts:
        _feed(own, part, seen)
    return own.digest()


def _feed(sha: Any, value: Any, seen: frozenset[int]) -> None:
    """Feed one value; no function is defined in here, since type checks of the tests would wrap it at every call."""
    kind = type(value)
    if kind is str:  # the most frequent ones first: the long way gives the same
        _write(sha, "s", value.encode("utf-8", "surrogatepass"))
        return
    if (kind is tuple or kind is list or kind is dict) and id(value) not in seen:
        _feed_compound(sha, value, seen | {id(value)})
        return
    if value is None or kind is bool:
        _write(sha, "c", repr(value).encode())
        return
    if isinstance(value, enum.Enum):
        _tell(sha, seen, "e", _name(type(value)), value.name)
        return
    if isinstance(value, np.generic) and not isinstance(value, np.void):
        value = value.item()
    if isinstance(value, int):
        _write(sha, "i", repr(int(value)).encode())
    elif isinstance(value, float | complex):
        _write(sha, "f", repr(complex(value) if isinstance(value, complex) else float(value)).encode())
    elif isinstance(value, str | PurePath):
        _write(sha, "s", str(value).encode("utf-8", "surrogatepass"))
    elif isinstance(value, bytes | bytearray | memoryview):
        _write(sha, "b", bytes(value))
    elif isinstance(value, Tensor):
        _feed_tensor(sha, value)
    elif isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            _tell(sha, seen, "o", value.shape, value.tolist())
        else:
            sha.update(f"a{value.dtype.str}{value.shape}:".encode())
            sha.update(np.ascontiguousarray(value).data if value.size else b"")
    elif isinstance(value, torch.dtype | torch.layout | torch.memory_format | np.dtype):
        _write(sha, "t", str(value).encode())
    elif isinstance(value, torch.Generator):
        _feed(sha, value.get_state(), seen)
    elif isinstance(value, torch.device):
        _write(sha, "d", value.type.encode())
    elif isinstance(value, TOLD_BY_REPR):
        _write(sha, "r", repr(value).encode())
    elif isinstance(value, re.Pattern):
        _tell(sha, seen, "P", value.pattern, value.flags)
    elif isinstance(value, array.array):
        _tell(sha, seen, "A", value.typecode, value.tobytes())
    elif id(value) in seen:
        _write(sha, "x", b"again")  # a cycle: its content is being hashed already
    else:
        _feed_compound(sha, value, seen | {id(value)})


def _feed_compound(sha: Any, value: Any, seen: frozenset[int]) -> None:
    own_words = getattr(value, "__identity__", None)
    if callable(own_words) and not isinstance(value, type):
        _tell(sha, seen, "O", _name(type(value)), _inner(seen, own_words()))
    elif isinstance(value, list | tuple | collections.deque):
        _tell(sha, seen, "l", *(_inner(seen, member) for member in value))
    elif isinstance(value, Mapping):
        _tell(sha, seen, "m", *sorted(_inner(seen, key, member) for key, member in value.items()))
    elif isinstance(value, Set):
        _tell(sha, seen, "S", *sorted(_inner(seen, member) for member in value))
    elif isinstance(value, nn.Module):
        _feed_module(sha, value, seen)
    elif isinstance(value, type):
        _tell(sha, seen, "C", _name(value), _class_code(value))
    elif isinstance(value, functools.partial):
        _tell(sha, seen, "p", *(_inner(seen, part) for part in (value.func, value.args, value.keywords)))
    elif isinstance(value, types.MethodType):
        _tell(sha, seen, "M", _inner(seen, value.__func__), _inner(seen, value.__self__))
    elif isinstance(value, types.FunctionType):
        _feed_function(sha, value, seen)
    elif isinstance(
        value,
        types.BuiltinFunctionType | types.MethodDescriptorType | types.WrapperDescriptorType | np.ufunc,
    ):
        name = getattr(value, "__qualname__", value.__name__)
        _tell(sha, seen, "B", str(getattr(value, "__module__", "")), name)
    elif is_dataclass(value):
        members = (x for f in fields(value) for x in (f.name, _inner(seen, getattr(value, f.name))))
        _tell(sha, seen, "D", _name(type(value)), *members)
    elif hasattr(value, "__dict__") or hasattr(type(value), "__slots__"):
        kind = type(value)
        _tell(sha, seen, "J", _name(kind), _class_code(kind), _inner(seen, _attributes(value)))
    else:
        raise TypeError(
            f"a {_name(type(value))} has no identity: it holds nothing that can be hashed; give it a method "
            f"__identity__() that returns what tells it from others"
        )


def _attributes(value: Any) -> dict[str, Any]:
    found = {k: v for k, v in getattr(value, "__dict__", {}).items() if k not in _PLACES}
    for base in type(value).__mro__:
        slots = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                found[name] = getattr(value, name)
    if (
        not found
        and type(value).__reduce_ex__ is object.__reduce_ex__
        and type(value).__module__ == "builtins"
    ):
        raise TypeError(f"a {_name(type(value))} has no identity: it has no attribute that can be hashed")
    return found


def _feed_tensor(sha: Any, tensor: Tensor) -> None:
    if tensor.is_meta or nn.parameter.is_lazy(tensor):
        raise ValueError(
            "a weight has no values yet (a meta or uninitialised tensor); load the weights first"
        )
    plain = tensor.detach()
    if plain.layout is not torch.strided:
        plain = plain.to_dense()
    if plain.is_quantized:
        sha.update(f"q{plain.qscheme()}:".encode())
        plain = plain.dequantize()
    plain = plain.cpu().resolve_conj().resolve_neg().contiguous()
    if plain.is_complex():
        plain = torch.view_as_real(plain)
    sha.update(f"T{tensor.dtype}{tuple(tensor.shape)}:".encode())
    if plain.numel():
        sha.update(plain.reshape(-1).view(torch.uint8).numpy().data)


def _put(sha: Any, seen: frozenset[int], kind: str, name: str, value: Any) -> None:
    """A named part of a module."""
    sha.update(f"{kind}{len(name)}:{name}".encode())
    _feed(sha, value, seen)


def _feed_module(sha: Any, module: nn.Module, seen: frozenset[int]) -> None:
    _put(sha, seen, "C", "class", type(module))
    for_people = getattr(type(module), "not_identity", ())
    for name in sorted(vars(module)):
        value = vars(module)[name]
        other_hooks = name.startswith("_") and name.endswith("_hooks") and name not in _HOOKS
        if name in _SKIPPED or name in for_people or other_hooks:
            continue
        if name in _HOOKS or name.endswith("_hooks_with_kwargs") or name.endswith("_hooks_always_called"):
            if value:
                _put(sha, seen, "h", name, list(value.values()))
        elif _is_content(value):
            _put(sha, seen, "a", name, value)
    for name, value in sorted(module._parameters.items()):
        _put(sha, seen, "w", name, value)
    for name, value in sorted(module._buffers.items()):
        if name != "num_batches_tracked":
            _put(sha, seen, "w", name, value)
    for name, child in module._modules.items():  # the order of a Sequential is its function
        _put(sha, seen, "m", name, child)


def _is_content(value: Any) -> bool:
    """Whether an attribute can be hashed; a lock, a logger or an open file says nothing of the function."""
    try:
        digest(value)
    except (TypeError, RecursionError):
        return False
    return True


def _is_place(value: Any) -> bool:
    """Whether it is a place on this machine, as the folder of the code's own file: another one on the next."""
    return isinstance(value, PurePath) and value.is_absolute()


def _feed_function(sha: Any, function: types.FunctionType, seen: frozenset[int]) -> None:
    if is_installed(function.__module__):
        cells = [_cell(cell) for cell in function.__closure__ or ()]
        _tell(sha, seen, "F", function.__module__, function.__qualname__, cells)
    else:
        _tell(sha, seen, "f", _own_code(function))


def _cell(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _name(cls: type) -> str:
    return f"{name_of(cls.__module__)}.{cls.__qualname__}"


def _class_code(cls: type) -> str:
    """A hash of what a class runs, as far as it is not installed; empty if all of it is."""
    return "" if all(is_installed(base.__module__) for base in cls.__mro__) else _own_code(cls)


def _own_code(thing: Any) -> str:
    """A hash of the code and constants that a function or class reaches (:mod:`lipcomp._identity_code`)."""
    memory: dict[int, tuple[Any, str]] = _DURING.memory
    if id(thing) not in memory:
        memory[id(thing)] = thing, "again"  # for constants that hold it
        code, constants = reached(thing)
        parts = [
            _inner(frozenset(), name, value)
            for name, value in constants
            if _is_content(value) and not _is_place(value)
        ]
        memory[id(thing)] = thing, _inner(frozenset(), code, sorted(parts)).hex()
    return memory[id(thing)][1]
