"""Say whose checkpoint it is, and which of its keys are backbone, projector and predictor."""

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from lipcomp.checkpoints import _dialects as dialects
from lipcomp.checkpoints._branches import FOLLOWERS, all_tensors, branch_of, choose, trained_of
from lipcomp.checkpoints._errors import CheckpointError
from lipcomp.checkpoints._folded import fold
from lipcomp.checkpoints._formats import (
    EXPORTED,
    FORMATS,
    HUGGINGFACE,
    NAMES,
    TENSORFLOW,
    Format,
    prefix_pattern,
    reason,
)
from lipcomp.checkpoints._index import is_loose
from lipcomp.checkpoints._names import (
    find_prefixes,
    join_heads,
    matching_prefixes,
    to_common,
    without_wrappers,
)
from lipcomp.checkpoints._sources import Source, State

# In heads of DINO, and of lightly's MSN.
GELU = re.compile(r"(.*\.)?(last_layer|anchor_projection_head)\.")


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
    label: str = ""  # where in the file, where it holds several
    notes: tuple[str, ...] = ()

    def part(self, names: Mapping[str, str]) -> State:
        """The tensors of a part, under its own names."""
        return {name: self.state[key] for name, key in names.items()}

    def whole(self) -> dict[str, Any]:
        """All that decides what the network computes."""
        parts = {"backbone": self.backbone, "projector": self.projector, "predictor": self.predictor}
        named = {
            f"{part}.{name}": self.state[key] for part, names in parts.items() for name, key in names.items()
        }
        return {**named, **self.conventions}

    def ignored(self, used: Mapping[str, str], source: Source) -> dict[str, str]:
        """Every other key of the file, and why it is not used."""
        here = {
            name: reason(key, self.branch)
            for key in self.state
            if key not in used
            for name in self.origin[key]
        }
        elsewhere = {} if source.keys else other_tensors(source, self.state, self.place, self.origin)
        return {**here, **elsewhere, **source.left_out}


def other_tensors(
    source: Source, state: State, place: tuple[str, ...], origin: Mapping[str, tuple[str, ...]]
) -> dict[str, str]:
    """The tensors of a file that are not in a state, nor parts of one there, and why they might not be used."""
    mine = {id(value) for value in state.values()}
    parts = {".".join((*place, old)) for behind in origin.values() if len(behind) > 1 for old in behind}
    return {
        name: why
        for name, value, why in all_tensors(source.tree)
        if id(value) not in mine and name not in parts
    }


def recognise(
    source: Source, name: str | None = None, branch: str | None = None, wanted: Collection[str] = ()
) -> Recognised:
    """Say whose checkpoint this is, and which keys are which part.

    ``name`` is the format to take, ``wanted`` are names of the weights of the architecture that the caller named;
    ``branch`` is "online", "momentum", or the place or prefix of the network, None for what the format's authors
    evaluate. A CheckpointError says that it is of no known format, not of the named one, or has no such branch, or
    several that could be meant.
    """
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
    states = [(place, *whole_weights(state)) for place, state in source.states()]
    real = [entry for entry in states if any(value.ndim > 1 for value in entry[1].values())]
    if not real and any(why == "optimiser state" for _, _, why in all_tensors(source.tree)):
        raise CheckpointError(
            f"checkpoint {str(source.path)!r} holds the state of an optimiser and no weights; give the file of the "
            f"network that was saved with it"
        )
    if states and not real:
        raise CheckpointError(
            f"checkpoint {str(source.path)!r} holds no weights of a network: none of its tensors "
            f"({', '.join(list(states[0][1])[:4])}) has more than one axis"
        )
    states = real  # a lone best_acc1 beside the weights is no network
    for row in forced or FORMATS:
        options = [
            option
            for place, state, origin, notes in states
            for option in _options(row, place, state, origin, branch, wanted, bool(forced), notes)
        ]
        if options:
            return _choose(options, branch, source)
    some = (
        ", ".join(list(states[0][1])[:4])
        if states
        else "no tensors by name (neither whole modules nor NumPy's arrays are read: save model.state_dict())"
    )
    told = f"is not of format {name!r}" if forced else "is of no known format"
    raise CheckpointError(
        f"checkpoint {str(source.path)!r} {told}: it has {some}. Name the format with format= "
        f"({', '.join(NAMES)}), or the network with arch=; give the folder with its config.json if "
        f"transformers or timm "
        f"wrote it; or build its network yourself (lipcomp.wrap)"
    )


def _options(
    row: Format,
    place: tuple[str, ...],
    state: State,
    origin: Mapping[str, tuple[str, ...]],
    branch: str | None,
    wanted: Collection[str],
    forced: bool,
    notes: tuple[str, ...],
) -> Iterator[Recognised]:
    """The networks in one state dict that a row of the table finds there."""
    where = ".".join(place)
    follows = FOLLOWERS.fullmatch(where) is not None
    if row.name != "plain" and (row.fits(state) or (forced and not row.marks)):
        inner = None if follows or branch not in row.branches else branch
        found = split(row, state, origin, inner)
        mine = found is not None and (
            _share(found.backbone, wanted) > 0.5
            if wanted
            else not dialects.prefixes_of(found.part(found.backbone))  # which the plain row translates
        )
        if found is not None and (mine or forced):
            found.place, found.label = place, where
            found.notes = (*found.notes, *notes)
            found.branch = "momentum" if follows else found.branch
            yield found
    if row.name != "plain":
        return
    translated = dialects.prefixes_of(state)
    for dialect, prefix in translated:
        yield _translated(dialect, prefix, state, origin, place)
    last = [""] if (forced or wanted) and not translated else []
    prefixes = matching_prefixes(state, wanted) or find_prefixes(state) or last
    for prefix in prefixes:
        below = tuple(p for p in prefixes if p != prefix and p.startswith(prefix))  # networks of their own
        own = {key: value for key, value in state.items() if not (below and key.startswith(below))}
        found = split(replace(row, branches={"online": (re.escape(prefix), (), ())}), own, origin, None)
        if found is not None:
            found.place, found.label = place, ".".join((*place, prefix.removesuffix(".")))
            found.label = found.label.strip(".")
            found.notes = (*found.notes, *notes)
            found.branch = branch_of(found.label)
            yield found


def _share(have: Collection[str], wanted: Collection[str]) -> float:
    """The share of wanted names that are there."""
    return sum(name in have for name in wanted) / len(wanted)


def _translated(
    dialect: dialects.Dialect,
    prefix: str,
    state: State,
    origin: Mapping[str, tuple[str, ...]],
    place: tuple[str, ...],
) -> Recognised:
    """A vision transformer in another library's names."""
    done = dialects.translate(state, dialect, prefix)
    positions = done.weights.get("pos_embed", torch.empty(0)).shape
    if (
        dialect is dialects.MMPRETRAIN
        and len(positions) == 3
        and math.isqrt(positions[1]) ** 2 == positions[1] > 1
    ):
        raise CheckpointError(
            "the weights are of mmpretrain's DeiT-III, which applies the first norm of a block in place of the second; "
            "load it there, and wrap it (lipcomp.wrap)"
        )
    weights = {name: name for name in done.weights}
    everything = dict(done.weights)
    sources = {name: tuple(old for key in keys for old in origin[key]) for name, keys in done.keys.items()}
    project = {}
    if dialect.projector in state and dialect.projector not in done.weights:
        everything[dialect.projector], sources[dialect.projector] = (
            state[dialect.projector],
            origin[dialect.projector],
        )
        project = {"weight": dialect.projector}
    elif dialect.projector in done.weights:  # OpenCLIP's, which is applied from the right
        everything[dialect.projector] = done.weights[dialect.projector].T.contiguous()
        project = {"weight": dialect.projector}
        weights.pop(dialect.projector)
    for key in state:
        if not key.startswith(prefix) and key not in everything:
            everything[key], sources[key] = state[key], origin[key]
    conventions = {"activation": "relu", **dialect.conventions}
    if dialect is dialects.TRANSFORMERS and "blocks.0.ls1.gamma" not in weights:  # not DINOv2
        conventions |= {"normalisation": None, "layer_norm_eps": 1e-12}
    label = ".".join((*place, prefix.removesuffix("."))).strip(".")
    return Recognised(
        replace(HUGGINGFACE, name=dialect.format),
        branch_of(label),
        place,
        everything,
        sources,
        weights,
        project,
        conventions=conventions,
        label=label,
        notes=dialect.notes,
    )


def _choose(options: list[Recognised], branch: str | None, source: Source) -> Recognised:
    """The network that is meant, with a note where the file holds others."""
    if trained_of(source):
        for option in options:
            option.branch = branch_of(option.label, source)
    labels = [option.label for option in options]
    parts = [option.whole() for option in options]
    number, note = choose(labels, [option.branch for option in options], parts, branch, source)
    options[number].notes = (*options[number].notes, *note)
    return options[number]


def unwrap(state: State) -> tuple[State, dict[str, str]]:
    """Take off what wrappers added to the keys, wherever it stands; also say what each was called."""
    origin = without_wrappers(state)
    return {key: state[old] for key, old in origin.items()}, origin


def whole_weights(state: State) -> tuple[State, dict[str, tuple[str, ...]], tuple[str, ...]]:
    """The same with weights put together from their parts, what the file calls each, and notes."""
    plain, origin = unwrap(state)
    whole, behind, notes = fold(plain)
    parts = {key: behind.get(key, (key,)) for key in whole}
    return whole, {key: tuple(origin[part] for part in names) for key, names in parts.items()}, notes


def _strangers(state: State, backbone: Mapping[str, str]) -> tuple[str, ...]:
    """A note on networks like the backbone that its format knows nothing of, such as a moving average."""
    name, key = next(((name, key) for name, key in backbone.items() if state[key].ndim == 4), ("", ""))
    alike = [
        other.removesuffix(f".{name}")
        for other in state
        if name and other != key and other.endswith(f".{name}") and state[other].shape == state[key].shape
    ]
    places = ", ".join(alike)
    return (f'the file also holds {places}, which format="plain" and branch= choose',) if alike else ()


def split(
    row: Format, state: State, origin: Mapping[str, tuple[str, ...]], branch: str | None
) -> Recognised | None:
    """The parts of a state by a row of the table; None if the backbone's prefix does not occur."""
    chosen = branch or row.usual(state)
    notes: tuple[str, ...] = ()
    if chosen not in row.branches:
        raise CheckpointError(
            f"branch {chosen!r}: a {row.name} checkpoint has {', '.join(row.branches)}; leave branch= out "
            f"or name one"
        )
    taken: set[str] = set()

    def take(patterns: tuple[str, ...], without: tuple[str, ...] = ()) -> dict[str, str]:
        part: dict[str, str] = {}
        for pattern in patterns:
            if pattern in without:
                continue
            for key in state:
                if key not in taken and (match := prefix_pattern(pattern).match(key)):
                    name = key[match.end() :]
                    if name in part:
                        raise CheckpointError(
                            f"ambiguous: {part[name]} or {key} could be the backbone of this {row.name} checkpoint; "
                            f'pass format="plain" and branch= with the prefix of one'
                        )
                    part[name] = key
            if part:
                break
        taken.update(part.values())
        return part

    prefixes, projector, predictor = row.branches[chosen]
    online = row.prefix_of("online", state) if chosen != "online" else None
    project, predict = take(projector), take(predictor)
    backbone = take(prefixes if isinstance(prefixes, tuple) else (prefixes,), (online,) if online else ())
    if not backbone or (chosen == "momentum" and all(state[key].ndim != 4 for key in backbone.values())):
        return None
    if prefixes == "":  # bare names: only what can belong to a backbone is looked at
        backbone = {
            name: key
            for name, key in backbone.items()
            if not re.match(r"prototypes|queue|projection_head", name) and not is_loose(name, state[key])
        }
    if branch is None and len(row.branches) > 1:
        other = next(name for name in row.branches if name != chosen)
        if (prefix := row.prefix_of(other, state)) and prefix != row.prefix_of(chosen, state):
            notes = (f"took the {chosen} network; the file also holds the {other} one: branch={other!r}",)
    if not notes and row.name != "plain" and row.marks:
        notes = _strangers(state, backbone)
    renamed, conventions = to_common(backbone)
    if row.name == "vissl":
        project = join_heads(project)
    activation = {"activation": "gelu"} if any(map(GELU.match, state)) else {}
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
        notes=notes,
    )
