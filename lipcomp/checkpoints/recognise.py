"""Say whose checkpoint it is, and which of its keys are backbone, projector and predictor."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lipcomp.checkpoints.errors import CheckpointError
from lipcomp.checkpoints.formats import (
    EXPORTED,
    FORMATS,
    HUGGINGFACE,
    NAMES,
    TENSORFLOW,
    Format,
    prefix_pattern,
    reason,
)
from lipcomp.checkpoints.names import find_prefix, join_heads, to_common
from lipcomp.checkpoints.sources import Source, State

# State dicts that hold one branch each, by their place in the file. What the authors evaluate is the default.
PLACES = {
    "student": "online",
    "teacher": "momentum",
    "online_network_state_dict": "online",
    "target_network_state_dict": "momentum",
    "state_dict_ema": "momentum",
    "model_ema": "momentum",
}
EVALUATED = {"teacher": "momentum"}


@dataclass
class Recognised:
    """The parts of a checkpoint. Keys are without wrappers; ``origin`` says what the file calls them."""

    format: Format
    branch: str
    place: tuple[str, ...]
    state: State
    origin: Mapping[str, tuple[str, ...]]
    backbone: dict[str, str]  # name in the common dialect -> key
    projector: dict[str, str] = field(default_factory=dict)  # name within the head -> key
    predictor: dict[str, str] = field(default_factory=dict)
    conventions: dict[str, Any] = field(default_factory=dict)

    def part(self, names: Mapping[str, str]) -> State:
        """The tensors of a part, under its own names."""
        return {name: self.state[key] for name, key in names.items()}

    def ignored(self, used: Mapping[str, str], source: Source) -> dict[str, str]:
        """Every other key of the file, and why it is not used."""
        here = {
            name: reason(key, self.branch)
            for key in self.state
            if key not in used
            for name in self.origin[key]
        }
        mine = id_of(self.state)
        elsewhere = {name: why for name, value, why in all_tensors(source.tree) if id(value) not in mine}
        return {**here, **({} if source.keys else elsewhere), **source.left_out}


def id_of(state: State) -> set[int]:
    """The identities of a state's tensors."""
    return {id(value) for value in state.values()}


def all_tensors(tree: Mapping[str, Any]) -> Iterator[tuple[str, Tensor, str]]:
    """Every tensor of a file with its whole name and, by its place, why it might not be used."""
    seen: set[int] = set()

    def below(node: Any, place: tuple[str, ...]) -> Iterator[tuple[str, Tensor, str]]:
        if isinstance(node, Tensor):
            optimiser = any(word in part for part in place for word in ("optim", "scaler", "amp"))
            yield ".".join(place), node, "optimiser state" if optimiser else "another part of the file"
        elif isinstance(node, Mapping | list | tuple) and id(node) not in seen and len(place) < 12:
            seen.add(id(node))
            for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
                yield from below(value, (*place, str(key)))

    yield from below(tree, ())


def recognise(source: Source, name: str | None = None, branch: str | None = None) -> Recognised:
    """Say whose checkpoint this is, and which keys are which part.

    Parameters
    ----------
    source
        The opened checkpoint.
    name
        The format to take; None to recognise it.
    branch
        "online" or "momentum"; None for what the format's authors evaluate.

    Raises
    ------
    CheckpointError
        If it is of no known format, not of the named one, or has no such branch.
    """
    states = list(source.states())
    if source.keys:  # already under our names
        row = {"tensorflow": TENSORFLOW, "exported": EXPORTED}.get(source.container, HUGGINGFACE)
        if name not in (None, row.name, "timm"):
            raise CheckpointError(f"checkpoint {str(source.path)!r} is of format {row.name!r}, not {name!r}")
        origin = {key: source.keys[key] for key in source.tree}
        found = split(row, dict(source.tree), origin, branch)
        if found is None:
            raise CheckpointError(f"checkpoint {str(source.path)!r} has no {branch or 'online'} branch")
        found.conventions |= source.conventions
        return found
    name = {"torchvision": "plain", "timm": "plain", "huggingface": "plain"}.get(name or "", name)
    forced = [row for row in FORMATS if row.name == name]
    if name is not None and not forced:
        raise CheckpointError(f"checkpoint {str(source.path)!r} is not of format {name!r}")
    chosen = _branch_of_places([place for place, _ in states], branch)
    for row in forced or [row for row in FORMATS if row.marks]:
        for place, state in states:
            told = PLACES.get(place[-1]) if place else None
            if told is not None and chosen is not None and told != chosen:
                continue
            plain, names = unwrap(state)
            if (forced and not row.marks) or row.fits(plain):
                origin = {key: (old,) for key, old in names.items()}
                found = split(row, plain, origin, None if told is not None else branch)
                if found is not None:
                    found.place = place
                    found.branch = told or found.branch
                    return found
    some = (
        ", ".join(list(states[0][1])[:4])
        if states
        else "no tensors by name (whole pickled modules are not read)"
    )
    wanted = f"is not of format {name!r}" if forced else "is of no known format"
    raise CheckpointError(
        f"checkpoint {str(source.path)!r} {wanted}: it has {some}. Name the format with --format "
        f"({', '.join(NAMES)}), or build its network with --factory package.module:function"
    )


def _branch_of_places(places: list[tuple[str, ...]], branch: str | None) -> str | None:
    names = {place[-1] for place in places if place}
    if branch is not None:
        return branch if names & PLACES.keys() else None
    for name, usual in EVALUATED.items():
        if name in names:
            return usual
    return "online" if any(PLACES.get(name) == "online" for name in names) else None


def unwrap(state: State) -> tuple[State, dict[str, str]]:
    """Take off ``module.`` and ``_orig_mod.`` where every key has them; also say what each was called."""
    origin = {key: key for key in state}
    for _ in range(8):
        for wrapper in ("module.", "_orig_mod."):
            if origin and all(key.startswith(wrapper) for key in origin):
                origin = {key.removeprefix(wrapper): old for key, old in origin.items()}
                break
        else:
            break
    return {key: state[old] for key, old in origin.items()}, origin


def split(
    row: Format, state: State, origin: Mapping[str, tuple[str, ...]], branch: str | None
) -> Recognised | None:
    """The parts of a state by a row of the table; None if the backbone's prefix does not occur."""
    chosen = branch or "online"
    if chosen not in row.branches:
        raise CheckpointError(
            f"branch {chosen!r}: a {row.name} checkpoint has {', '.join(row.branches)}; leave --branch out or name one"
        )
    prefix, projector, predictor = row.branches[chosen]
    if row.name == "plain":
        prefix = find_prefix(state) or ""
    taken: set[str] = set()

    def take(patterns: tuple[str, ...]) -> dict[str, str]:
        part: dict[str, str] = {}
        for pattern in map(prefix_pattern, patterns):
            for key in state:
                if key not in taken and (match := pattern.match(key)):
                    part[key[match.end() :]] = key
            if part:
                break
        taken.update(part.values())
        return part

    project, predict = take(projector), take(predictor)
    backbone = take((prefix,))
    if not backbone or (chosen == "momentum" and all(state[key].ndim != 4 for key in backbone.values())):
        return None
    if prefix == "":  # bare names: only what can belong to a backbone is looked at
        backbone = {
            name: key
            for name, key in backbone.items()
            if not re.match(r"prototypes|queue|projection_head", name)
        }
    renamed, conventions = to_common(backbone)
    if row.name == "vissl":
        project = join_heads(project)
    activation = {"activation": "gelu"} if any(".last_layer." in f".{key}" for key in state) else {}
    return Recognised(
        row,
        chosen,
        (),
        state,
        origin,
        {renamed[name]: key for name, key in backbone.items()},
        project,
        predict,
        conventions={"activation": row.activation, **row.conventions, **conventions, **activation},
    )
