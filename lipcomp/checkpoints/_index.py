"""Names and shapes of the weights -> the architectures of timm and torchvision that have exactly these.

The index is a table shipped beside this module, one line per architecture:

    digest of names and shapes   digest of the function   library/name   classifier

The first digest is over the sorted names and shapes of the network without its classifier, whose places are listed,
so that they can be left out of a file before it is looked up. The second is over everything that can change the
output at equal weights: classes, plain attributes, fixed buffers. Two architectures with equal names and shapes and
different functions (``efficientnet_b0`` pads like PyTorch, ``tf_efficientnet_b0`` like TensorFlow) cannot be told
apart by a file, and the caller has to name one.

``python -m lipcomp.checkpoints._index`` writes the table anew from the installed libraries (two minutes).
"""

import functools
import hashlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from lipcomp.checkpoints._architectures import build_backbone
from lipcomp.checkpoints._backbone import import_timm
from lipcomp.checkpoints._lean import Budget, lean

TABLE = Path(__file__).with_name("index.txt")
LARGEST = 10_000  # weights of an architecture
Shapes = Mapping[str, tuple[int, ...]]

# Attributes that do not change what a network computes in evaluation mode.
INERT = re.compile(
    r"training|_.*|call_super_init|p|drop.*|.*_drop|.*drop_(rate|prob|path).*|pretrained_cfg|default_cfg|grad_checkpointing|"
    r"num_classes|feature_info|inplace|weight_init|init_weights|init_values|momentum|stages_repeats|scale_by_keep|transforms|lr_scale"
)


@dataclass(frozen=True)
class Entry:
    """One architecture of the table."""

    shapes: str
    function: str
    name: str
    classifier: tuple[str, ...]


def digest_shapes(shapes: Shapes) -> str:
    """Of names and shapes, in any order; counters of batches are left out."""
    lines = sorted(
        f"{name} {'x'.join(map(str, shape))}"
        for name, shape in shapes.items()
        if not name.endswith("num_batches_tracked")
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def digest_function(network: nn.Module) -> str:
    """Of everything besides the weights that decides what a network computes in evaluation mode."""
    kept = set(network.state_dict())
    lines = []
    for place, module in network.named_modules():
        attributes = {
            name: _plain(value) for name, value in vars(module).items() if not INERT.fullmatch(name)
        }
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        if kind.startswith("torch.nn.modules.dropout") or kind.endswith(".DropPath"):
            kind, attributes = "identity", {}
        if kind == "torch.nn.modules.linear.Identity":
            kind = "identity"
        lines.append(f"{place} {kind} {sorted(attributes.items())}")
    for name, value in network.named_buffers():
        if name not in kept and not value.is_meta:
            lines.append(f"{name} {hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8]


def _plain(value: Any) -> Any:
    """A value as text that is equal in every process."""
    match value:
        case bool() | int() | float() | str() | None:
            return value
        case list() | tuple():
            return [_plain(part) for part in value]
        case dict():
            return sorted((str(key), _plain(part)) for key, part in value.items())
        case functools.partial():
            return [_plain(value.func), _plain(value.args), _plain(value.keywords)]
        case torch.Tensor():
            return hashlib.sha256(value.detach().contiguous().numpy().tobytes()).hexdigest()
        case type():
            return value.__qualname__
    return getattr(value, "__qualname__", type(value).__qualname__)


@functools.cache
def entries() -> tuple[Mapping[str, list[Entry]], tuple[tuple[str, ...], ...]]:
    """The table by its first digest, and the classifiers' places that occur."""
    table: dict[str, list[Entry]] = {}
    places = set()
    for line in TABLE.read_text().splitlines():
        if line.startswith("#"):
            continue
        shapes, function, name, *classifier = line.split()
        entry = Entry(shapes, function, name, tuple(classifier))
        table.setdefault(shapes, []).append(entry)
        places.add(entry.classifier)
    return table, tuple(sorted(places, key=lambda place: (len(place), place)))


def lookup(state: Mapping[str, Tensor]) -> list[Entry]:
    """The architectures whose names and shapes, classifier aside, these are; [] if none is known."""
    table, places = entries()
    if len(state) > LARGEST:
        return []
    shapes = {name: tuple(value.shape) for name, value in state.items() if not is_loose(name, value)}
    found: dict[str, Entry] = {}
    for place in ((), *places):
        prefixes = tuple(f"{part}." for part in place)
        rest = {
            name: shape for name, shape in shapes.items() if not prefixes or not name.startswith(prefixes)
        }
        for entry in table.get(digest_shapes(rest), ()):
            found.setdefault(entry.name, entry)
    return list(found.values())


def is_loose(name: str, value: Tensor) -> bool:
    """Whether a tensor is a number beside the weights: best_acc1, n_averaged, an epoch."""
    return "." not in name and value.numel() <= 1


@functools.cache
def classifier_of(name: str) -> tuple[str, ...]:
    """Where an architecture's classifier stands, by the table."""
    table, _ = entries()
    return next((entry.classifier for found in table.values() for entry in found if entry.name == name), ())


def write(names: Iterable[str]) -> Iterator[str]:
    """Lines of the table for these architectures; one that cannot be built is named on stderr."""
    for name in names:
        library, _, short = name.partition("/")
        try:
            network = build_backbone(name).network
            real = any(not value.is_meta for value in network.parameters())
            with lean(Budget(), empty=not real):
                full = (
                    torchvision.models.get_model(short)
                    if library == "torchvision"
                    else import_timm("the index of architectures").create_model(short)
                )
        except Exception as error:
            print(f"{name}: {(str(error) or repr(error)).splitlines()[0]}", file=sys.stderr)
            continue
        shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
        extra = [key for key in full.state_dict() if key not in shapes]
        places = sorted({key.rpartition(".")[0] or key for key in extra})
        yield f"{digest_shapes(shapes)} {digest_function(network)} {name} {' '.join(places)}".strip()


def main() -> None:
    """Write the table."""
    timm = import_timm("the index of architectures")
    names = [f"torchvision/{name}" for name in torchvision.models.list_models(torchvision.models)]
    names += [f"timm/{name}" for name in timm.list_models()]
    lines = sorted(write(names))
    vision = torchvision.__version__.partition("+")[0]
    head = f"# timm {timm.__version__}, torchvision {vision}; python -m lipcomp.checkpoints._index"
    TABLE.write_text("\n".join([head, *lines]) + "\n")


if __name__ == "__main__":
    main()
