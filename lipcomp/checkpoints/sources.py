"""A path -> the tensors in it, by name; nothing of the file is run.

==================  ==================================================================
what lies there     how it is read
==================  ==================================================================
``.safetensors``    by safetensors, whose header is checked first
a torch archive     by ``torch.load(weights_only=True)``, after its own check
==================  ==================================================================
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lipcomp.checkpoints.errors import CheckpointError

Tree = Mapping[str, Any]
State = dict[str, Tensor]

# Branches of a checkpoint that hold no weights of a network.
STRANGERS = (
    "optim",
    "sched",
    "callback",
    "loops",
    "scaler",
    "amp",
    "hyper_parameters",
    "config",
    "args",
    "loss",
)


@dataclass(frozen=True)
class Source:
    """What a path holds: nested dictionaries with tensors as leaves, its hash, and the files it is made of."""

    path: Path
    container: str
    tree: Tree
    sha256: str
    config: Mapping[str, Any] = field(default_factory=dict)

    def states(self) -> Iterator[tuple[tuple[str, ...], State]]:
        """Every dictionary with tensors of its own in it: (where, name -> tensor)."""
        yield from _states(self.tree, ())


def _states(tree: Tree, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], State]]:
    for pair in (("trunk", "heads"), ("resnet", "head")):
        if all(isinstance(tree.get(name), Mapping) for name in pair):
            merged = {f"{name}.{key}": value for name in pair for key, value in tree[name].items()}
            yield place, {key: value for key, value in merged.items() if isinstance(value, Tensor)}
            return
    here = {str(key): value for key, value in tree.items() if isinstance(value, Tensor)}
    if here:
        yield place, here
    for name, value in tree.items():
        stranger = any(word in str(name).lower() for word in STRANGERS)
        if isinstance(value, Mapping) and not stranger and len(place) < 6:
            yield from _states(value, (*place, str(name)))


def open_source(path: Path | str) -> Source:
    """Read what lies at a path.

    Raises
    ------
    CheckpointError
        If there is nothing, or nothing that can be read safely.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"checkpoint {str(path)!r} does not exist")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
                metadata = file.metadata() or {}
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(
                f"checkpoint {str(path)!r} cannot be read as safetensors ({error})"
            ) from error
        return Source(path, "safetensors", weights, digest, metadata)
    tree = torch.load(path, map_location="cpu", weights_only=True)
    return Source(path, "torch", tree, digest)
