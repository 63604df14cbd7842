"""Networks built without their weights: nothing is drawn, and nothing larger than the checkpoint is allocated.

A few hundred bytes of a hostile file can name a network of many gigabytes. Here every parameter becomes a ``meta``
tensor as soon as its module registers it, so that initialisation costs nothing, and the construction stops when the
network grows past what the file holds. Buffers stay real: masks and tables that a constructor computes are right.
:func:`fill` then gives the network the file's own tensors, after names and shapes have been compared.
"""

import math
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode

from lipcomp.checkpoints._errors import CheckpointError

T = TypeVar("T")

SPARE_NUMBERS = 16 << 20  # what a network may hold besides its weights: masks, position tables (64 MiB)
SPARE_PARTS = 4096  # and modules, parameters, buffers beyond the file's
ALIGNED = 64  # bytes, as torch's own allocator
DRAWS = re.compile(
    r"(normal|uniform|clamp|erfinv|mul|add|fill|zeros?|ones|copy|constant|(trunc|kaiming|xavier)_.*)_"
)
FLOATS = re.compile(r"(.*\.)?(weight|bias|running_mean|running_var)")  # never whole numbers
FACTORIES = ("empty", "zeros", "ones", "full", "rand", "randn", "arange", "linspace", "eye", "tril", "triu")


@dataclass(frozen=True)
class Budget:
    """The most that a network may hold: numbers in all, and named parts."""

    numbers: int = 1 << 33
    parts: int = 1 << 17

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> "Budget":
        """For a network whose weights these are."""
        return cls(
            2 * sum(value.numel() for value in state.values()) + SPARE_NUMBERS, 8 * len(state) + SPARE_PARTS
        )


class _Allocations(TorchFunctionMode):
    """Refuses a single tensor that is larger than the budget before it is allocated, and draws no ``meta`` tensor."""

    def __init__(self, budget: Budget) -> None:
        super().__init__()
        self.budget = budget
        self.factories = {getattr(torch, name) for name in FACTORIES}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else kwargs.get("tensor")
        if isinstance(first, Tensor) and first.is_meta and DRAWS.fullmatch(getattr(func, "__name__", "")):
            return first
        if func in self.factories:
            sizes = kwargs.get("size", args[0] if args and not isinstance(args[0], int) else args)
            sizes = [size for size in _flat(sizes) if isinstance(size, int)]
            if math.prod(sizes) > self.budget.numbers:
                raise _too_large(self.budget, f"a tensor of size {tuple(sizes)}")
            if str(kwargs.get("device")) == "meta":  # a table made where the parameters are
                kwargs = {**kwargs, "device": "cpu"}
        return func(*args, **kwargs)


def _flat(sizes: Any) -> list[Any]:
    return list(sizes) if isinstance(sizes, list | tuple | torch.Size) else [sizes]


def _too_large(budget: Budget, what: str) -> CheckpointError:
    return CheckpointError(
        f"the named architecture has {what}, far more than the checkpoint holds (the limit for it is "
        f"{budget.numbers} numbers in {budget.parts} parts); it is another network, or the file is damaged "
        f"or made to harm"
    )


@contextmanager
def lean(budget: Budget, *, empty: bool = True) -> Iterator[None]:
    """Build modules without memory for their parameters, and no larger than ``budget``.

    ``empty=False`` leaves the parameters real, for a constructor that runs a part of the network.

    Raises
    ------
    CheckpointError
        From within a constructor, as soon as the network is larger.
    """
    counts = {"numbers": 0, "parts": 0}
    moved: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}  # a shared parameter stays shared

    def count(numbers: int) -> None:
        counts["numbers"] += numbers
        counts["parts"] += 1
        if counts["numbers"] > budget.numbers or counts["parts"] > budget.parts:
            raise _too_large(budget, f"{counts['numbers']} numbers in {counts['parts']} parts")

    def parameter(module: nn.Module, name: str, value: nn.Parameter | None) -> nn.Parameter | None:
        if value is None or value.is_meta:
            return None
        if id(value) not in moved:
            count(value.numel())
            there = torch.empty_like(value, device="meta") if empty else value
            moved[id(value)] = value, nn.Parameter(there, requires_grad=value.requires_grad)
        return moved[id(value)][1]

    def buffer(module: nn.Module, name: str, value: Tensor | None) -> None:
        if empty and value is not None and value.is_meta:
            raise RuntimeError(f"{name} was computed on the meta device, where its parameters are")
        count(0 if value is None else value.numel())

    def child(module: nn.Module, name: str, value: nn.Module | None) -> None:
        count(0)

    handles = (
        hooks.register_module_parameter_registration_hook(parameter),  # type: ignore[arg-type]
        hooks.register_module_buffer_registration_hook(buffer),
        hooks.register_module_module_registration_hook(child),
    )
    try:
        with torch.random.fork_rng(devices=[]), _Allocations(budget):
            yield
    finally:
        for handle in handles:
            handle.remove()


def build_lean(build: Callable[[], T], budget: Budget) -> T:
    """What a constructor gives without memory for its weights, or with it where it runs a part of the network.

    Raises
    ------
    CheckpointError
        If it is larger than the budget.
    """
    try:
        with lean(budget):
            return build()
    except Exception as error:
        if "meta" not in f"{error} {error.__cause__}":
            raise
    with lean(budget, empty=False):
        return build()


def fill(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give a network built by :func:`lean` its weights, which must fit.

    They are held, not copied, where types agree and their memory is aligned and their own. Kernels round differently on
    memory that is not aligned, and deep networks magnify it: up to 3e-4 of the features was seen between a ``.pth`` and
    a ``.safetensors`` of the same weights.

    Raises
    ------
    CheckpointError
        If a parameter has no weight.
    """
    wanted = network.state_dict()
    buffers = {name for name, _ in network.named_buffers()}
    for name, value in weights.items():
        if name in wanted and wanted[name].is_floating_point() and not value.is_floating_point():
            raise CheckpointError(_codes(name, value))
    given = {
        name: _own(value.to(wanted[name].dtype).contiguous())
        for name, value in weights.items()
        if name in wanted and name not in buffers
    }
    given = OrderedDict(given)
    given._metadata = wanted._metadata  # type: ignore[attr-defined]  # its shapes are this version's
    network.load_state_dict(given, strict=False, assign=True)
    with torch.no_grad():
        for name, value in network.named_buffers():
            if name in weights:
                value.copy_(weights[name])
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(parameter.is_floating_point())
        if parameter.is_meta:
            raise CheckpointError(f"the checkpoint has no weights for {name}")


def _own(value: Tensor) -> Tensor:
    """The tensor in aligned memory that holds nothing else."""
    whole = value.untyped_storage().nbytes() == value.nbytes
    return value if whole and value.data_ptr() % ALIGNED == 0 else value.clone()


def _codes(name: str, value: Tensor) -> str:
    kind = str(value.dtype).removeprefix("torch.")
    return f"{name} holds {kind} codes, not weights; save the network before it is quantised"


def check_numbers(weights: Mapping[str, Tensor], path: Path) -> None:
    """Refuse what cannot be weights of a network: complex numbers, codes, NaN, negative variances.

    Raises
    ------
    CheckpointError
        With the first name.
    """
    for name, value in weights.items():
        bad = None
        if FLOATS.fullmatch(name) and not value.is_floating_point() and not value.is_complex():
            raise CheckpointError(f"checkpoint {str(path)!r}: {_codes(name, value)}")
        if value.is_complex():
            bad = "holds complex numbers"
        elif value.is_floating_point() and value.element_size() == 1:
            bad = "holds float8 codes, which mean nothing without their scales"
        elif value.is_floating_point() and not bool(torch.isfinite(value.sum(dtype=torch.float64))):
            bad = "holds NaN or infinite numbers"
        elif name.endswith("running_var") and bool((value < 0).any()):
            bad = "holds negative variances"
        if bad:
            raise CheckpointError(f"checkpoint {str(path)!r}: {name} {bad}; it is damaged, or no network's")
