"""What a pickle would build, read without building it.

A pickle is a program for a small stack machine, and two of its instructions import and call anything. Python's own
unpickler runs it here with every name replaced by a stand-in of this module (:meth:`_Reader.find_class`), after a look
at its instructions: containers and numbers become themselves, a call of a known constructor becomes a description of
what it was given, a harmless name becomes a label that ignores what it is given, and everything else is refused.
Nothing is imported, looked up or called but these stand-ins.

Sixty tuples, each of the one before it twice, are a few hundred bytes and take years to hash, to compare or to print.
So only words and numbers become keys, sets stay empty (their content is no weight), and no message shows a value.

What comes out is enough to check a checkpoint before torch sees it: for every tensor its storage, type, offset, size
and stride, so that no claim goes beyond the bytes that are there.
"""

import io
import math
import pickle
import pickletools
import re
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from lipcomp._messages import is_of_machine
from lipcomp.checkpoints._errors import CheckpointError

LONGEST = 64 << 20  # bytes of a pickle; those of real checkpoints are below one MiB
MOST = 1_000_000  # instructions; a checkpoint of 5000 weights with Adam's state has so many
TUPLES = 100_000  # of these instructions; deeper nests of tuples break Python's own hash
NAMES = 10_000  # different ones
NUMBER, AXES = 1 << 62, 32  # beyond these nothing is a size

# Names that describe weights. torch.load(weights_only=True) knows how to build them.
TENSORS = {"torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"}
PARAMETERS = {"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"}
PLAIN = {
    "collections.OrderedDict",
    "collections.Counter",
    "torch.Size",
    "torch.device",
    "torch.serialization._get_layout",
}
ITEM_SIZES = {
    "Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1, "Bool": 1,
    "ComplexFloat": 8, "ComplexDouble": 16, "Untyped": 1,
}  # fmt: skip
INSTRUCTIONS = {
    "PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE",
    "EMPTY_SET", "FROZENSET", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "APPEND", "APPENDS", "ADDITEMS", "SETITEM",
    "SETITEMS", "BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GLOBAL", "STACK_GLOBAL", "REDUCE",
    "NEWOBJ", "NEWOBJ_EX", "BUILD", "BINPERSID", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE",
    "SHORT_BINSTRING", "SHORT_BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES",
}  # fmt: skip
# Names that describe tensors that are no plain weights -> what they are.
OTHERS = {
    "torch._utils._rebuild_tensor_v3": "numbers of a type such as float8, which mean nothing without their scales",
    "torch._utils._rebuild_qtensor": "quantised tensors",
    **dict.fromkeys(("torch.qint8", "torch.quint8", "torch.qint32"), "quantised tensors"),
    "torch._utils._rebuild_sparse_tensor": "sparse tensors",
    "torch._utils._rebuild_nested_tensor": "nested tensors",
    "torch._utils._rebuild_wrapper_subclass": (
        "tensors of a class of their own, as torchao's quantised ones (save the network before it is quantised) or "
        "those of a distributed run, of which it holds one rank's parts; save the full state dict: "
        "get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)) of "
        "torch.distributed.checkpoint.state_dict"
    ),
    "torch._utils._rebuild_meta_tensor_no_storage": "tensors of the meta device, which have no values",
    "torch.distributed.tensor.DTensor": "parts of tensors of a distributed run; save the full state dict",
    "torch.distributed._shard.sharded_tensor.api.ShardedTensor": (
        "parts of tensors of a distributed run; save the full state dict"
    ),
}
STORAGE = re.compile(r"torch\.(?:storage\.)?(?:cuda\.)?(\w+)Storage")
DTYPE = re.compile(r"torch\.(?:float|bfloat|int|uint|complex|bool|half|double|long|short)\w*")

# Names that training frameworks leave in their files beside the weights: settings, paths, counters, enumerations.
# They are read as labels; lipcomp imports none of them and needs none of their values.
HARMLESS = re.compile(
    r"(omegaconf|pytorch_lightning|lightning|lightning_fabric|lightning_utilities|lightly|lightly_train|solo|hydra"
    r"|vissl|classy_vision|fvcore|yacs|addict|munch|easydict|ml_collections|mmcv|mmengine|mmcls|mmpretrain|mmselfsup"
    r"|stable_pretraining|timm|torchvision|torchmetrics|transformers|PIL\.Image|pathlib|argparse|datetime|uuid"
    r"|torch\.(optim|nn|amp|cuda\.amp|utils\.data|distributed|torch_version))(\.\w+)*\.\w+"
    r"|collections\.(defaultdict|deque)|types\.SimpleNamespace|typing\.\w+|enum\.\w+|functools\.partial"
    r"|(__builtin__|builtins)\.(int|long|float|bool|str|unicode|bytes|bytearray|list|dict|tuple|set|frozenset|complex|slice|range|object)"
    r"|numpy(\.core|\._core)?(\.multiarray|\.numeric)?\.(scalar|dtype|ndarray|_reconstruct|_frombuffer|float64|float32|int64)"
    r"|numpy\.random\.\w+(\.\w+)?|numpy\.dtypes\.\w+|_codecs\.encode|copyreg\._reconstructor|copy_reg\._reconstructor"
)


class Made:
    """The result of a call that is not made; it ignores whatever it is given."""

    name = ""

    def __new__(cls, *given: Any, **named: Any) -> Any:
        """Nothing of what was given is kept."""
        return object.__new__(cls)

    def _ignore(self, *given: Any) -> None:
        """Neither a state nor items."""

    __setstate__ = __setitem__ = append = extend = add = _ignore


class Kept(Made):
    """An object of a description that is needed: its state, by name, and nothing of its class."""

    state: dict[str, Any]

    def __new__(cls, *given: Any, **named: Any) -> Any:
        """Nothing of what was given is kept."""
        made = object.__new__(cls)
        made.state = {}
        return made

    def __setstate__(self, state: Any) -> None:
        """The state as it is."""
        if isinstance(state, dict):
            self.state = state


class Storage(NamedTuple):
    """Bytes of the file that a tensor lies in: so many numbers of a type."""

    key: str
    kind: str
    length: int

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.length * ITEM_SIZES[self.kind]


class Claim(NamedTuple):
    """A tensor as the pickle describes it; it lies within its storage."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


# Classes of tensors that are tensors like any other.
ORDINARY = {"torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer", "torch.nn.Buffer"}


class _Refusal(Exception):  # noqa: N818 - what a message says of the file
    """Why a pickle is not read on."""


class _Dict(dict[Any, Any]):
    """An ordered dictionary, without the attributes that its state would set."""

    def __init__(self, pairs: Any = ()) -> None:  # as Python 2 wrote it
        super().__init__(pair for pair in pairs if _is_plain(pair[0]))

    __setstate__ = Made._ignore


def _is_plain(key: Any) -> bool:
    """Whether a key is cheap to hash and to compare."""
    if isinstance(key, int | float):  # larger numbers all have one hash, if they are chosen so
        return abs(key) < NUMBER >> 2
    return key is None or isinstance(key, str | bytes | Made)


class _Parameter(Made):
    def __new__(cls, tensor: Any, *given: Any) -> Any:
        """The tensor within."""
        return tensor


class _Tensor(Made):
    def __new__(cls, storage: Any, offset: Any, size: Any, stride: Any, *given: Any) -> Any:
        """The claim, if it lies within its storage and is stored as it is."""
        if any(isinstance(told, dict) and any(told.values()) for told in given[2:]):  # bits: neg, conj
            raise _Refusal(
                "holds a tensor that is stored as its negative or conjugate; save tensor.resolve_neg().resolve_conj()"
            )
        if not (isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride) <= AXES):
            raise _Refusal(f"describes a tensor of {type(size).__name__} axes; it is made to harm")
        numbers = (offset, *size, *stride)
        if not isinstance(storage, Storage) or not all(type(n) is int and 0 <= n < NUMBER for n in numbers):
            raise _Refusal("describes a tensor of impossible size or stride")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if math.prod(size) > 0 and max(last + 1, math.prod(size)) > storage.length:
            raise _Refusal(
                f"claims a tensor of size {tuple(size)} in a storage of {storage.length} numbers; it is damaged, made "
                f"to harm, or of an expanded tensor, of which to save tensor.contiguous()"
            )
        return Claim(storage, offset, tuple(size), tuple(stride))


class _Typed(Made):
    def __new__(cls, build: Any = None, kind: Any = None, given: Any = (), *state: Any) -> Any:
        """The tensor, if its class means nothing."""
        name = str(getattr(kind, "name", kind))
        if name not in ORDINARY or build not in (_Tensor, _Parameter) or not isinstance(given, tuple):
            raise _Refusal(
                f"holds tensors of the class {name}, whose numbers only its own code explains; save plain tensors: "
                f"{{name: value.as_subclass(torch.Tensor) for name, value in model.state_dict().items()}}"
            )
        return build(*given)


class _Attribute(Made):
    def __new__(cls, owner: Any = None, *given: Any) -> Any:
        """A label like that of which it is a part, as MMEngine's files name the methods of its classes."""
        if not (isinstance(owner, Made) or (isinstance(owner, type) and issubclass(owner, Made))):
            raise _Refusal(
                "asks for an attribute of what is no class of a known framework, so it is not loaded"
            )
        return object.__new__(cls)


STAND_INS: dict[str, type] = {
    **dict.fromkeys(TENSORS, _Tensor),
    **dict.fromkeys(PARAMETERS, _Parameter),
    "torch._tensor._rebuild_from_type_v2": _Typed,
    "argparse.Namespace": Kept,
    **dict.fromkeys(("builtins.getattr", "__builtin__.getattr"), _Attribute),
    "collections.OrderedDict": _Dict,
}


class _Reader(pickle._Unpickler):
    """Python's unpickler (that in Python), for which every name is one of our stand-ins, and few things are keys."""

    stack: list[Any]

    def __init__(self, data: bytes, more: Mapping[str, type]) -> None:
        super().__init__(io.BytesIO(data), fix_imports=False, encoding="latin-1")
        self.storages: dict[str, Storage] = {}
        self.names: dict[str, type] = {**STAND_INS, **more}

    def find_class(self, module: str, name: str) -> type:
        """The stand-in of a name; it is not looked up."""
        path = f"{module}.{name}"
        if path in OTHERS:
            raise _Refusal(f"holds {OTHERS[path]}; it has no weights that can be read")
        known = (
            path in self.names
            or path in PLAIN
            or path in ORDINARY
            or STORAGE.fullmatch(path)
            or DTYPE.fullmatch(path)
        )
        if not known and not HARMLESS.fullmatch(path):
            raise _Refusal(
                f"asks for {path}, which is code and not weights: loading it could run anything, so it is not loaded, "
                f"and no option changes that. If you trust the file, load it where it was written and save the weights "
                f"alone: torch.save(model.state_dict(), ...) or safetensors"
            )
        if len(self.names) > NAMES:
            raise _Refusal(f"asks for more than {NAMES} names; that is no checkpoint")
        if path not in self.names:
            self.names[path] = type("Label", (Made,), {"name": path})
        return self.names[path]

    def persistent_load(self, given: Any) -> Storage:
        """A storage, as torch refers to it."""
        kind = str(getattr(given[1], "name", "")) if isinstance(given, tuple) and len(given) >= 5 else ""
        match = STORAGE.fullmatch(kind)
        if match is None or match[1] not in ITEM_SIZES or not isinstance(given[2], str | int):
            raise _Refusal(f"refers to storage of an unknown type{kind and f' {kind}'}")
        if given[5:] not in ((), (None,)):
            raise _Refusal(
                "refers to a part of a storage, as torch before 0.4 did; load and save it again with torch"
            )
        key, count = str(given[2]), given[4]
        if type(count) is not int or not 0 <= count < NUMBER:
            raise _Refusal("claims a storage of an impossible size")
        storage = Storage(key, match[1], count)
        if self.storages.setdefault(key, storage).size != storage.size:
            raise _Refusal(f"claims two sizes for storage {key!r}")
        return storage

    def _set_items(self, items: list[Any]) -> None:
        for key, value in zip(items[::2], items[1::2], strict=True):
            if _is_plain(key):
                self.stack[-1][key] = value

    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,
        pickle.SETITEM[0]: lambda self: self._set_items([*reversed((self.stack.pop(), self.stack.pop()))]),
        pickle.SETITEMS[0]: lambda self: self._set_items(self.pop_mark()),
        pickle.ADDITEMS[0]: lambda self: self.pop_mark(),
        pickle.FROZENSET[0]: lambda self: (self.pop_mark(), self.append(frozenset())),
    }


def read_inert(
    data: bytes, what: str, more: Mapping[str, type] | None = None
) -> tuple[Any, dict[str, Storage], int]:
    """Read one pickle at the beginning of ``data``: the description, its storages by key, and the pickle's length.

    ``what`` is what messages call it, ``more`` are stand-ins of this module for further names. Refused with a
    CheckpointError: damage, a name that is neither a tensor's nor known to be harmless, a tensor beyond its storage.
    """
    try:
        length = _length(data)
        reader = _Reader(data[:length], more or {})
        return reader.load(), reader.storages, length
    except _Refusal as refusal:
        raise CheckpointError(f"{what} {refusal}") from None
    except Exception as error:  # whatever an unpickler makes of a damaged program
        if is_of_machine(error):
            raise
        raise CheckpointError(f"{what} has a damaged pickle ({error!r})") from error


def _length(data: bytes) -> int:
    """Where the program ends; it has no instruction that ``torch.save`` does not write, and asks for little memory."""
    tuples = 0
    for number, (operation, argument, place) in enumerate(pickletools.genops(data[: LONGEST + 1])):
        tuples += operation.name.startswith("TUPLE")
        memo = argument if operation.name in ("BINPUT", "LONG_BINPUT") else 0
        if tuples > TUPLES or max(number, memo or 0) > MOST:
            raise _Refusal(f"has a pickle of more than {MOST} instructions; that is no checkpoint")
        if place is None or place >= LONGEST:
            raise _Refusal(f"has a pickle of more than {LONGEST >> 20} MiB; that is no checkpoint")
        if operation.name not in INSTRUCTIONS:
            raise _Refusal(
                f"uses the pickle instruction {operation.name}, which no file of torch.save has; it is not loaded"
            )
        if operation.name == "STOP":
            return place + 1
    raise _Refusal("has a pickle without an end; the file is cut off")
