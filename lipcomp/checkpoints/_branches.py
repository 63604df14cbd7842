"""Which of the networks in a file is meant: the trained one, its moving average, or one that the caller names."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from lipcomp.checkpoints._errors import CheckpointError
from lipcomp.checkpoints._sources import Source, is_moment

# A moving average, by a part of a place or of a prefix; and those whose authors evaluate it.
FOLLOWERS = re.compile(
    r"(.*[._])?(momentum|teacher|target|ema|avg|averaged|swa|shadow|key|encoder_k)([._].*)?"
)
EVALUATED = re.compile(r"(.*\.)?(teacher(_\w+)?|target_encoder)(\..*)?")
NAMELESS = re.compile(r"(^|\.)shadow_params\.\d+$")  # torch_ema's
BRANCHES = ("online", "momentum")
# Where Lightning's WeightAveraging and MMEngine's EMAHook keep the trained weights, whose average (which they evaluate)
# stands at the usual place, and what stands beside.
TRAINED = {"current_model_state": "averaging_state", "ema_state_dict": "meta"}


def choose(
    labels: Sequence[str],
    branches: Sequence[str],
    parts: Sequence[Mapping[str, Any]],
    branch: str | None,
    source: Source,
) -> tuple[int, tuple[str, ...]]:
    """Which of several networks is meant, and a note that names the others.

    ``labels`` say where each stands in the file ("" is the top), ``branches`` whether it is the "online" or the
    "momentum" one, ``parts`` what decides what each computes; ``branch`` is what the caller asked for: one of the two,
    or a label, or its last part. A CheckpointError says that several could be meant, or none is.
    """
    path = source.path
    names = [label or "the top" for label in labels]
    everything = range(len(labels))
    if branch is None:
        byol = any(re.match(r"(.*\.)?online_", label) for label in labels)  # whose authors evaluate that one
        chosen = [i for i in everything if EVALUATED.fullmatch(labels[i]) and not byol]
        usual = "momentum" if trained_of(source) else "online"
        chosen = chosen or [i for i in everything if branches[i] == usual] or [*everything]
    elif branch in BRANCHES:
        chosen = [i for i in everything if branches[i] == branch]
    else:
        chosen = [i for i in everything if branch == names[i]]
        chosen = chosen or [i for i in everything if branch == labels[i].split(".")[-1]]
    if not chosen:
        raise CheckpointError(
            f"branch {branch!r} is not in checkpoint {str(path)!r}, which holds "
            f"{' and '.join(names) if any(labels) else 'one network, at the top'}; leave branch= out"
            f"{' or name one' if any(labels) else ''}"
        )
    if not all(_same(parts[chosen[0]], parts[i]) for i in chosen[1:]):
        several = " or ".join(names[i] for i in chosen)
        raise CheckpointError(
            f"ambiguous: checkpoint {str(path)!r} holds the networks {several}; pass branch= with one of these"
        )
    others = [name for i, name in enumerate(names) if i != chosen[0]]
    note = f"took {names[chosen[0]]} ({branches[chosen[0]]}); the file also holds {', '.join(others)}: see branch="
    nameless = next((name for name, _, _ in all_tensors(source.tree) if NAMELESS.search(name)), "")
    shadow = f"the file also holds an average without names ({nameless} and on), which is not read"
    return chosen[0], (*([note] if others else []), *([shadow] if nameless else []))


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two networks are one module under two names: the file holds its weights once."""

    def place(value: Any) -> Any:
        stored = isinstance(value, Tensor)
        return (value.data_ptr(), value.dtype, value.shape, value.stride()) if stored else value

    return {name: place(value) for name, value in one.items()} == {k: place(v) for k, v in other.items()}


def branch_of(label: str, source: Source | None = None) -> str:
    """Whether a network at that place is a moving average."""
    if source is not None and (trained := trained_of(source)):
        return "online" if label.split(".")[0] == trained else "momentum"
    return "momentum" if FOLLOWERS.fullmatch(label) else "online"


def trained_of(source: Source) -> str:
    """Where the trained weights are in a file whose usual place holds their average; "" in any other."""
    return next((place for place, sign in TRAINED.items() if {place, sign} <= source.tree.keys()), "")


def all_tensors(tree: Mapping[str, Any]) -> Iterator[tuple[str, Tensor, str]]:
    """Every tensor of a file with its whole name and, by its place, why it might not be used."""
    seen: set[int] = set()

    def below(node: Any, place: tuple[str, ...]) -> Iterator[tuple[str, Tensor, str]]:
        if isinstance(node, Tensor):
            optimiser = any(word in part for part in place for word in ("optim", "scaler", "amp"))
            optimiser |= "param_groups" in tree or is_moment(".".join(place))
            yield ".".join(place), node, "optimiser state" if optimiser else "another part of the file"
        elif isinstance(node, Mapping | list | tuple) and id(node) not in seen and len(place) < 12:
            seen.add(id(node))
            for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
                yield from below(value, (*place, str(key)))

    yield from below(tree, ())
