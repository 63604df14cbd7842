"""Anybody's checkpoint -> an encoder: recognise the format, find the network, account for every key.

>>> import lipcomp
>>> checkpoint = lipcomp.load_encoder("resnet50.pth")  # doctest: +SKIP
>>> checkpoint.encoder(images)  # doctest: +SKIP

1. The file becomes names and tensors, without running anything of it (:mod:`lipcomp.checkpoints.sources`).
2. The names say whose it is and which are backbone, projector, predictor (:mod:`lipcomp.checkpoints.formats`).
3. The shapes say which network it is, or ``arch`` does (:mod:`lipcomp.checkpoints.architectures`).
4. Every weight finds its place, or the first that disagree are named.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from lipcomp.checkpoints.architectures import Backbone, build_backbone, infer_backbone
from lipcomp.checkpoints.errors import CheckpointError
from lipcomp.checkpoints.formats import FORMATS, NAMES, Format, prefix_pattern, reason
from lipcomp.checkpoints.heads import build_head
from lipcomp.checkpoints.names import to_common
from lipcomp.checkpoints.native import HEADER_KEY, Checkpoint, Metadata, load_checkpoint
from lipcomp.checkpoints.preprocessing import Preprocessing, convention
from lipcomp.checkpoints.report import KeyReport
from lipcomp.checkpoints.sources import Source, State, open_source
from lipcomp.encoders import WrappedEncoder

Head = Literal["auto", "none"]
SHOWN = 5  # disagreements named in an error


@dataclass
class Recognised:
    """The parts of a checkpoint, each with its keys as the file has them."""

    format: Format
    place: tuple[str, ...]
    backbone: dict[str, str]  # common name -> key in the file
    projector: dict[str, str] = field(default_factory=dict)  # name within the head -> key in the file
    predictor: dict[str, str] = field(default_factory=dict)
    state: State = field(default_factory=dict)
    conventions: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def part(self, names: Mapping[str, str]) -> State:
        """The tensors of a part, under its own names."""
        return {name: self.state[key] for name, key in names.items()}


def load_encoder(
    path: Path | str,
    arch: str | None = None,
    format: str | None = None,
    *,
    head: Head = "auto",
    branch: str | None = None,
    network: nn.Module | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> Checkpoint:
    """Load an encoder from a checkpoint of any known family.

    Parameters
    ----------
    path
        A file, a Hugging Face folder, or a TensorFlow checkpoint (its prefix or ``.index``).
    arch
        The backbone's name; read off the weights when not given.
    format
        One of ``lipcomp.checkpoints.formats.NAMES``; recognised when not given.
    head
        "auto" takes the projection and prediction heads where there are any, "none" the backbone alone.
    branch
        "online" or "momentum" (teacher, target), where the file holds both.
    network
        A network of one's own that the weights belong to, instead of ``arch``.
    mean, std
        The normalisation, where the file does not say it or says it wrongly.
    image_size
        Side, or (height, width), of the images to measure on.

    Returns
    -------
    Checkpoint
        The encoder in evaluation mode, with ``format``, ``report`` and ``preprocessing``.

    Raises
    ------
    CheckpointError
        If the file cannot be read safely, is not recognised, or does not fit the architecture.
    """
    if format is not None and format not in NAMES:
        near = difflib.get_close_matches(format, NAMES, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise CheckpointError(f"format {format!r} is unknown{hint} Known: {', '.join(NAMES)}")
    source = open_source(path)
    if format in (None, "lipcomp") and HEADER_KEY in source.config:
        return load_checkpoint(path)
    found = recognise(source, format, branch)
    backbone = choose_backbone(found, arch, network)
    return assemble(source, found, backbone, head, mean, std, image_size)


def recognise(source: Source, name: str | None = None, branch: str | None = None) -> Recognised:
    """Say whose checkpoint this is, and which keys are which part."""
    candidates = [(place, *unwrap(state)) for place, state in source.states()]
    forced = [row for row in FORMATS if row.name == name]
    rows = forced or [row for row in FORMATS if row.marks]
    for row in rows:
        for place, state, origin in candidates:
            if (forced and not row.marks) or row.fits(state):
                found = split(row, state, origin, branch)
                if found is not None:
                    found.place = place
                    return found
    some = ", ".join(list(next(iter(candidates), ((), {}, {}))[1])[:4]) or "no tensors"
    wanted = f"is not of format {name!r}" if forced else "is of no known format"
    raise CheckpointError(
        f"checkpoint {str(source.path)!r} {wanted}: it has {some}. Name the format with --format ({', '.join(NAMES)}), "
        f"or build its network with --factory package.module:function"
    )


def unwrap(state: State) -> tuple[State, dict[str, str]]:
    """Take off ``module.`` and ``_orig_mod.`` where every key has them; also say what each was called."""
    origin = {key: key for key in state}
    while True:
        for wrapper in ("module.", "_orig_mod."):
            if origin and all(key.startswith(wrapper) for key in origin):
                origin = {key.removeprefix(wrapper): old for key, old in origin.items()}
                break
        else:
            return {key: state[old] for key, old in origin.items()}, origin


def split(row: Format, state: State, origin: Mapping[str, str], branch: str | None) -> Recognised | None:
    """The parts of a state by a row of the table; None if the backbone's prefix does not occur."""
    chosen = branch or "online"
    if chosen not in row.branches:
        raise CheckpointError(
            f"branch {chosen!r}: a {row.name} checkpoint has {', '.join(row.branches)}; leave branch out or name one"
        )
    prefix, projector, predictor = row.branches[chosen]
    taken: dict[str, str] = {}

    def take(patterns: tuple[str, ...]) -> dict[str, str]:
        part: dict[str, str] = {}
        for pattern in map(prefix_pattern, patterns):
            for key in state:
                if key not in taken and (match := pattern.match(key)):
                    part[key[match.end() :]] = key
            if part:
                break
        taken.update({key: key for key in part.values()})
        return part

    heads = take(projector), take(predictor)
    backbone = take((prefix,))
    if not backbone:
        return None
    renamed, conventions = to_common(backbone)
    return Recognised(
        row,
        (),
        {renamed[name]: key for name, key in backbone.items()},
        *heads,
        state=state,
        conventions={**row.conventions, **conventions, "origin": origin},
    )


def choose_backbone(found: Recognised, arch: str | None, network: nn.Module | None) -> Backbone:
    """The network for the weights: the caller's, the named one, or the one that the shapes say."""
    weights = found.part(found.backbone)
    if network is not None:
        return Backbone(type(network).__name__, network, ())
    if arch is None:
        return infer_backbone(weights, found.conventions)
    first = next(
        (value for key, value in weights.items() if value.ndim == 4 and value.shape[1] in (1, 3)), None
    )
    return build_backbone(arch, 3 if first is None else int(first.shape[1]))


def assemble(
    source: Source,
    found: Recognised,
    backbone: Backbone,
    head: Head,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    image_size: int | tuple[int, int] | None,
) -> Checkpoint:
    """Fit the weights into the network and its heads, and account for every key."""
    origin = found.conventions["origin"]
    used: dict[str, str] = {}
    missing = fit(backbone, found, used)
    notes = [*found.notes, *backbone.notes]
    projector = predictor = None
    probe = _width(backbone.network, found, backbone)
    if head == "auto" and found.projector:
        projector = build_head(found.part(found.projector), probe, "projection head", found.format.activation)
        used |= {key: f"projector.{name}" for name, key in found.projector.items()}
        if found.predictor:
            width = [layer.out_features for layer in projector if isinstance(layer, nn.Linear)][-1]
            predictor = build_head(
                found.part(found.predictor), width, "prediction head", found.format.activation
            )
            used |= {key: f"predictor.{name}" for name, key in found.predictor.items()}
    report = KeyReport(
        {origin[key]: target for key, target in used.items()},
        {origin[key]: reason(key, "online") for key in found.state if key not in used},
        tuple(missing),
        tuple(notes),
    )
    channels, size, ready = _preprocessing(found, backbone, image_size, mean, std)
    encoder = WrappedEncoder(
        backbone.network,
        ready.mean,
        ready.std,
        (channels, *size),
        projector=projector,
        predictor=predictor,
        architecture=backbone.name,
    ).eval()
    return Checkpoint(encoder, Metadata(), source.sha256, source.path, found.format.name, report, ready)


def fit(backbone: Backbone, found: Recognised, used: dict[str, str]) -> list[str]:
    """Load the backbone's weights; returns what was missing without harm.

    Raises
    ------
    CheckpointError
        With the first names or shapes that disagree.
    """
    weights = found.part(found.backbone)
    wanted = {name: tuple(value.shape) for name, value in backbone.network.state_dict().items()}
    classifier = tuple(f"{place}." for place in backbone.classifier)
    disagree = []
    for name in sorted(wanted.keys() | weights.keys()):
        have = tuple(weights[name].shape) if name in weights else None
        if name not in wanted:
            if not name.startswith((*classifier, "fc.", "linear.", "head.", "classifier.")):
                disagree.append(f"{name}: file has {have}, {backbone.name} has no such weight")
        elif have is None and not name.endswith("num_batches_tracked"):
            disagree.append(f"{name}: not in the file, {backbone.name} has {wanted[name]}")
        elif have is not None and have != wanted[name]:
            disagree.append(f"{name}: file has {have}, {backbone.name} has {wanted[name]}")
    if disagree:
        more = f" and {len(disagree) - SHOWN} more" if len(disagree) > SHOWN else ""
        raise CheckpointError(
            f"the weights do not fit architecture {backbone.name!r}: {'; '.join(disagree[:SHOWN])}{more}. Leave --arch "
            f"out to have it read off the weights, or name another"
        )
    backbone.network.load_state_dict(
        {name: value for name, value in weights.items() if name in wanted}, strict=False
    )
    used |= {key: f"backbone.{name}" for name, key in found.backbone.items() if name in wanted}
    return [f"backbone.{name}" for name in wanted if name not in weights]


def _width(network: nn.Module, found: Recognised, backbone: Backbone) -> int:
    if isinstance(width := getattr(network, "out_features", None), int):
        return width
    return int(getattr(network, "num_features", 0))


def _preprocessing(
    found: Recognised,
    backbone: Backbone,
    image_size: int | tuple[int, int] | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
) -> tuple[int, tuple[int, int], Preprocessing]:
    first = next((value for value in found.part(found.backbone).values() if value.ndim == 4), None)
    channels = 3 if first is None else int(first.shape[1])
    known = backbone.preprocessing
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if size is None:
        size = (known.size if known else None) or backbone.image_size or (224, 224)
    if known is None:
        small = max(size) < 96
        usual = found.format.small if small else found.format.normalisation
        known = convention(
            channels,
            size,
            *usual,
            f"assumed: {found.format.name} files hold weights alone; --mean and --std overrule",
        )
    if size != known.size:
        known = replace(known, size=size, origin=f"{known.origin}; size given")
    if mean is not None or std is not None:
        known = replace(
            known, mean=mean or known.mean, std=std or known.std, origin=f"{known.origin}; mean/std given"
        )
    return channels, size, known
