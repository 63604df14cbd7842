"""What a pickle would build, read without building it.

A pickle is a program for a small stack machine, and two of its instructions import and call anything. Here the
program is read as data: containers and numbers become themselves, a name stays a name, a call of a known
constructor becomes a description of what it was given, and everything else is refused. Nothing is imported,
looked up or called.

What comes out is enough to check a checkpoint before torch sees it: which names it asks for, and for every tensor
its storage, type, offset, size and stride, so that no claim goes beyond the bytes that are there.
"""

import math
import pickletools
import re
from dataclasses import dataclass
from typing import Any

from lipcomp.checkpoints._errors import CheckpointError

LONGEST = 64 << 20  # bytes of a pickle; those of real checkpoints are below one MiB
MOST = 1_000_000  # instructions; a checkpoint of 5000 weights with Adam's state has so many
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
LITERALS = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING",
    "SHORT_BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES",
}  # fmt: skip
# Names that describe tensors that are no plain weights -> what they are.
OTHERS = {
    "torch._utils._rebuild_tensor_v3": "numbers of a type such as float8, which mean nothing without their scales",
    "torch._utils._rebuild_qtensor": "quantised tensors",
    "torch._utils._rebuild_sparse_tensor": "sparse tensors",
    "torch._utils._rebuild_nested_tensor": "nested tensors",
    "torch._tensor._rebuild_from_type_v2": "tensors of a class of their own",
    "torch.distributed.tensor.DTensor": "parts of tensors of a distributed run; save the full state dict",
    "torch.distributed._shard.sharded_tensor.api.ShardedTensor": "parts of tensors of a distributed run; "
    "save the full "
    "state dict",
}
STORAGE = re.compile(r"torch\.(?:storage\.)?(?:cuda\.)?(\w+)Storage")
DTYPE = re.compile(r"torch\.(?:float|bfloat|int|uint|complex|bool|half|double|long|short)\w*")

# Names that training frameworks leave in their files beside the weights: settings, paths, counters, enumerations.
# They are read as labels; lipcomp imports none of them and needs none of their values.
HARMLESS = re.compile(
    r"(omegaconf|pytorch_lightning|lightning|lightning_fabric|lightning_utilities|lightly|lightly_train|solo|hydra"
    r"|vissl|classy_vision|fvcore|yacs|addict|munch|easydict|ml_collections|mmcv|mmengine|mmcls|mmpretrain|mmselfsup"
    r"|stable_pretraining|timm|torchvision|torchmetrics|transformers|PIL\.Image|pathlib|argparse|datetime|uuid"
    r"|torch\.(optim|nn|amp|cuda\.amp|utils\.data|distributed))(\.\w+)*\.\w+"
    r"|collections\.(defaultdict|deque)|types\.SimpleNamespace|typing\.\w+|enum\.\w+|functools\.partial"
    r"|(__builtin__|builtins)\.(int|long|float|bool|str|unicode|bytes|bytearray|list|dict|tuple|set|frozenset|complex|slice|range|object)"
    r"|numpy(\.core|\._core)?(\.multiarray|\.numeric)?\.(scalar|dtype|ndarray|_reconstruct|_frombuffer|float64|float32|int64)"
    r"|numpy\.random\.\w+(\.\w+)?|numpy\.dtypes\.\w+|_codecs\.encode|copyreg\._reconstructor|copy_reg\._reconstructor"
)


@dataclass(frozen=True)
class Name:
    """A name that the pickle asks for; it is not looked up."""

    path: str


@dataclass(frozen=True, eq=False, slots=True)
class Made:
    """The result of a call that is not made."""

    name: str


@dataclass(frozen=True, eq=False)
class Storage:
    """Bytes of the file that a tensor lies in: so many numbers of a type."""

    key: str
    kind: str
    count: int

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.count * ITEM_SIZES[self.kind]


@dataclass(frozen=True, eq=False)
class Claim:
    """A tensor as the pickle describes it; it lies within its storage."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


SET = Made("set")  # all sets: nothing in them is needed


def read_inert(data: bytes, what: str) -> tuple[Any, set[str], dict[str, Storage], int]:
    """Read one pickle.

    Parameters
    ----------
    data
        Bytes that begin with a pickle; what follows its end is left alone.
    what
        What messages call it.

    Returns
    -------
    tuple
        The description, the names it asks for, its storages by key, and the length of the pickle.

    Raises
    ------
    CheckpointError
        If it is damaged, asks for a name that is neither a tensor's nor known to be harmless, or claims a tensor
        beyond its storage.
    """
    machine = _Machine(what)
    try:
        for number, (operation, argument, place) in enumerate(pickletools.genops(data[: LONGEST + 1])):
            if number > MOST:
                raise CheckpointError(
                    f"{what} has a pickle of more than {MOST} instructions; this is not a checkpoint"
                )
            if place is None or place >= LONGEST:
                raise CheckpointError(
                    f"{what} has a pickle of more than {LONGEST >> 20} MiB; this is not a checkpoint"
                )
            if operation.name == "STOP":
                return machine.pop(), machine.names, machine.storages, place + 1
            machine.step(operation.name, argument)
    except CheckpointError:
        raise
    except (
        ValueError,
        IndexError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        OverflowError,
    ) as error:
        raise CheckpointError(f"{what} has a damaged pickle ({error!r})") from error
    raise CheckpointError(f"{what} has a pickle without an end; the file is cut off")


class _Machine:
    """The stack, the memo, and one method that follows an instruction."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.names: set[str] = set()
        self.storages: dict[str, Storage] = {}

    def pop(self) -> Any:
        return self.stack.pop()

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        match name:
            case "PROTO" | "FRAME":
                return
            case "MARK":
                self.marks.append(stack)
                self.stack = []
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[name]())
            case "EMPTY_SET":
                stack.append(SET)
            case "FROZENSET":
                self.since_mark()
                self.stack.append(SET)
            case "TUPLE":
                items = self.since_mark()
                self.stack.append(tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                items = [stack.pop() for _ in range(count)][::-1]
                stack.append(tuple(items))
            case "APPEND":
                self._extend(stack[-2], [stack.pop()])
            case "APPENDS" | "ADDITEMS":
                items = self.since_mark()
                self._extend(self.stack[-1], items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                self._set(stack[-1], key, value)
            case "SETITEMS":
                items = self.since_mark()
                for key, value in zip(items[::2], items[1::2], strict=True):
                    self._set(self.stack[-1], key, value)
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "GLOBAL":
                self._name(".".join(argument.split(" ", 1)))
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                self._name(f"{module}.{attribute}")
            case "REDUCE" | "NEWOBJ":
                given, function = stack.pop(), stack.pop()
                stack.append(self._call(function, given))
            case "NEWOBJ_EX":
                _, given, function = stack.pop(), stack.pop(), stack.pop()
                stack.append(self._call(function, given))
            case "BUILD":
                stack.pop()
                if not isinstance(stack[-1], Made | dict):
                    raise CheckpointError(f"{self.what} sets the state of a {type(stack[-1]).__name__}")
            case "BINPERSID":
                stack.append(self._storage(stack.pop()))
            case _ if name in LITERALS:
                stack.append(argument)
            case _:
                raise CheckpointError(
                    f"{self.what} uses the pickle instruction {name}, which no file of torch.save has; it "
                    f"is not loaded"
                )

    def _set(self, target: Any, key: Any, value: Any) -> None:
        if isinstance(target, dict):
            target[key] = value
        elif not isinstance(target, Made):
            raise CheckpointError(f"{self.what} sets an item of a {type(target).__name__}")

    def _extend(self, target: Any, items: list[Any]) -> None:
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Made):
            raise CheckpointError(f"{self.what} adds to a {type(target).__name__}")

    def _name(self, path: str) -> None:
        known = path in TENSORS | PARAMETERS | PLAIN or STORAGE.fullmatch(path) or DTYPE.fullmatch(path)
        if path in OTHERS:
            raise CheckpointError(f"{self.what} holds {OTHERS[path]}; it has no weights that can be read")
        if not known and not HARMLESS.fullmatch(path):
            raise CheckpointError(
                f"{self.what} asks for {path}, which is code and not weights: loading it could run "
                f"anything, so it is "
                f"not loaded, and no option changes that. If you trust the file, load it where it was "
                f"written and save "
                f"the weights alone: torch.save(model.state_dict(), ...) or safetensors"
            )
        self.names.add(path)
        self.stack.append(Name(path))

    def _call(self, function: Any, given: Any) -> Any:
        if not isinstance(function, Name):
            raise CheckpointError(f"{self.what} calls something that is not a name")
        path = function.path
        if path in TENSORS:
            return self._tensor(given)
        if path in PARAMETERS:
            return given[0]
        if path == "collections.OrderedDict":
            return {}
        return Made(path)

    def _storage(self, given: Any) -> Storage:
        kind = (
            given[1].path
            if isinstance(given, tuple) and len(given) >= 5 and isinstance(given[1], Name)
            else ""
        )
        match = STORAGE.fullmatch(kind)
        if given[0] != "storage" or match is None or match[1] not in ITEM_SIZES:
            raise CheckpointError(f"{self.what} refers to storage of an unknown type {kind or given!r}")
        key, count = str(given[2]), given[4]
        if type(count) is not int or not 0 <= count < NUMBER:
            raise CheckpointError(f"{self.what} claims a storage of an impossible size")
        storage = Storage(key, match[1], count)
        if self.storages.setdefault(key, storage).size != storage.size:
            raise CheckpointError(f"{self.what} claims two sizes for storage {key!r}")
        return storage

    def _tensor(self, given: Any) -> Claim:
        storage, offset, size, stride = given[:4]
        if not (isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride) <= AXES):
            raise CheckpointError(
                f"{self.what} describes a tensor of {type(size).__name__} axes; it looks malicious"
            )
        numbers = (offset, *size, *stride)
        if not isinstance(storage, Storage) or not all(type(n) is int and 0 <= n < NUMBER for n in numbers):
            raise CheckpointError(f"{self.what} describes a tensor of impossible size or stride")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if math.prod(size) > 0 and max(last + 1, math.prod(size)) > storage.count:
            raise CheckpointError(
                f"{self.what} claims a tensor of size {tuple(size)} in a storage of {storage.count} numbers; it is "
                f"damaged or made to harm"
            )
        return Claim(storage, offset, tuple(size), tuple(stride))
