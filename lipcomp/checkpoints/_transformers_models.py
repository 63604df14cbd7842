"""A transformers folder, or bare weights, whose network transformers itself builds (the extra ``transformers``).

Only classes of the installed library are built, from the folder's ``config.json`` or from what the weights show
(:mod:`lipcomp.checkpoints._transformers_bare`); code in a folder is never run, and weights are read as data before
they are handed over. The pooled feature is what the library's own evaluation uses:

=====================================  ===========================================================================
ViT, DeiT                              the class token after the last layer norm
a model with a pooler of its own       ``pooler_output`` (ConvNeXt, Swin, SigLIP, DINOv3 ...)
CLIP and other pairs                   of the vision tower; its projection is the projector
anything else that classifies images   what its classifier would read
=====================================  ===========================================================================
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lipcomp.checkpoints._branches import branch_of, choose
from lipcomp.checkpoints._errors import CheckpointError
from lipcomp.checkpoints._formats import reason
from lipcomp.checkpoints._index import is_loose
from lipcomp.checkpoints._inputs import check_images, run_once
from lipcomp.checkpoints._lean import Budget, check_numbers, lean
from lipcomp.checkpoints._names import below, without_wrappers
from lipcomp.checkpoints._native import Checkpoint, Metadata
from lipcomp.checkpoints._preprocessing import convention
from lipcomp.checkpoints._recognise import other_tensors, whole_weights
from lipcomp.checkpoints._report import KeyReport
from lipcomp.checkpoints._sources import Source
from lipcomp.checkpoints._transformers_bare import bare_config, find_kinds
from lipcomp.encoders._wrapped import WrappedEncoder

Numbers = Sequence[float | int]
Size = tuple[int, int]

TOKEN = ("vit", "deit")
SPARE = re.compile(
    r"(.*\.)?(classifier|cls_classifier|distillation_classifier|head|decoder|decode_head|pooler|lm_head|logit_scale|logit_bias"
    r"|mask_token|position_ids|relative_position_index)(\.\d+)?(\..*)?|(model\.)?(text_model|text_projection|text_embed)\w*\..*|fc\.(weight|bias)"
)
HEAD = r".*classifier|(dist_)?head"  # where a classifier stands
HELP = "or load it yourself (lipcomp.wrap)"


@dataclass(frozen=True)
class Tower:
    """A vision network of transformers."""

    name: str  # the class
    network: nn.Module  # normalised images -> pooled features
    projector: nn.Module | None  # what follows in a pair of towers, if anything
    image_shape: tuple[int, int, int]  # (channels, height, width) by its configuration
    unused: frozenset[str]  # keys of the file that it does not take
    note: str  # how its output is pooled


class Pooled(nn.Module):
    """Images -> one field of a transformers model's output, (batch, features)."""

    def __init__(self, model: nn.Module, field: str) -> None:
        super().__init__()
        self.model, self.field = model, field

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch features"]:
        """Pooled features."""
        out = getattr(self.model(pixel_values=images), self.field)
        return out[:, 0] if self.field == "last_hidden_state" else out.flatten(1)


def from_folder(
    source: Source, head: str, size: Size | None, mean: Numbers | None, std: Numbers | None
) -> Checkpoint:
    """An encoder of a folder whose network transformers builds."""
    weights = {name: value for name, value in source.tree.items() if isinstance(value, Tensor)}
    origin = without_wrappers(weights)
    weights = {name: weights[key] for name, key in origin.items() if not is_loose(name, weights[key])}
    check_numbers(weights, source.path)
    try:
        tower = build_tower(source.conventions["config"], weights)
    except CheckpointError as first:
        levels = zip(*(name.split(".") for name in weights), strict=False)
        shared = [level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels)]
        if not shared:
            raise
        outer = ".".join(shared) + "."  # of a module around the whole
        origin = {name.removeprefix(outer): key for name, key in origin.items()}
        weights = {name.removeprefix(outer): value for name, value in weights.items()}
        try:
            tower = build_tower(source.conventions["config"], weights)
        except CheckpointError:
            raise first from None
    used = {
        key: f"backbone.{name}"
        for name, key in origin.items()
        if name in weights and name not in tower.unused
    }
    ignored = dict.fromkeys(origin.values() - used.keys(), "classifier, head or counter")
    return _checkpoint(source, tower, KeyReport(used, ignored, (), source.notes), head, size, mean, std)


def from_bare(
    source: Source,
    branch: str | None,
    head: str,
    size: Size | None,
    mean: Numbers | None,
    std: Numbers | None,
) -> Checkpoint | None:
    """An encoder of a bare state dict whose network transformers builds; None if it is of none of these."""
    found = [
        (".".join((*place, prefix)).strip("."), kind, prefix, state, origin, place, more)
        for place, wrapped in source.states()
        for state, origin, more in [whole_weights(wrapped)]
        for kind, prefix in find_kinds(state)
    ]
    if not found:
        return None
    labels = [entry[0] for entry in found]
    parts = [below(state, prefix) for _, _, prefix, state, *_ in found]
    number, notes = choose(labels, [branch_of(label, source) for label in labels], parts, branch, source)
    label, kind, prefix, state, origin, place, more = found[number]
    weights = parts[number]
    check_numbers(weights, source.path)
    config, assumed = bare_config(kind, weights)
    tower = build_tower(config, weights)
    taken = {prefix + name: f"backbone.{name}" for name in weights if name not in tower.unused}
    used = {old: name for key, name in taken.items() for old in origin[key]}
    ignored = {
        old: reason(key, branch_of(label, source))
        for key, behind in origin.items()
        if key not in taken
        for old in behind
    }
    ignored |= other_tensors(source, state, place, origin)
    report = KeyReport(used, ignored, (), (*notes, *more, *assumed))
    checkpoint = _checkpoint(source, tower, report, head, size, mean, std)
    return replace(checkpoint, branch=branch_of(label, source), place=label)


def _checkpoint(
    source: Source,
    tower: Tower,
    report: KeyReport,
    head: str,
    size: Size | None,
    mean: Numbers | None,
    std: Numbers | None,
) -> Checkpoint:
    channels, *native = tower.image_shape
    known = source.preprocessing
    if known is None and (mean is None or std is None):
        raise CheckpointError(
            f"ambiguous: {str(source.path)!r} has no preprocessor_config.json, which would say its normalisation; "
            f"pass mean= and std="
        )
    known = known or convention(channels, (native[0], native[1]), (0.0,), (1.0,), "")
    ready = known.with_given(size, mean, std)
    check_images(tower.network, (channels, *ready.size), tower.name, (native[0], native[1]))
    projector = tower.projector if head == "auto" else None
    encoder = WrappedEncoder(
        tower.network,
        ready.mean,
        ready.std,
        (channels, *ready.size),
        architecture=f"transformers/{tower.name}",
        projector=projector,
    ).eval()
    none = "the backbone's features; no projector was found"
    latent = f"latent: {none if projector is None else 'the output of the projection'}"
    report = replace(report, notes=(*report.notes, tower.note, latent))
    return Checkpoint(encoder, Metadata(), source.sha256, source.path, "huggingface", report, ready)


def build_tower(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Tower:
    """The network of a folder with its weights.

    Raises
    ------
    CheckpointError
        If transformers is not installed or does not know the model, or the weights do not fit it.
    """
    kind = str(config.get("model_type"))
    try:
        import transformers
        from transformers.models.auto import configuration_auto, modeling_auto
    except ImportError as error:
        raise CheckpointError(
            f"the folder holds a transformers model of type {kind!r}, which needs transformers itself: pip install "
            f"'lipcomp[transformers]', {HELP}"
        ) from error
    if kind not in configuration_auto.CONFIG_MAPPING:
        raise CheckpointError(
            f"the folder holds a transformers model of type {kind!r}, which transformers {transformers.__version__} "
            f"does not know; install a version that does, {HELP}"
        )
    settings = configuration_auto.CONFIG_MAPPING[kind].from_dict(dict(config))
    vision = getattr(settings, "vision_config", None) or settings
    shape = _image_shape(vision)
    if vision is not settings or kind.endswith("_vision_model"):
        return _pair(kind, settings, vision, weights, shape, transformers)
    body = modeling_auto.MODEL_MAPPING.get(type(settings), None)
    classifier = modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING.get(type(settings), None)
    classes = ((body, "last_hidden_state" if kind in TOKEN else "pooler_output"), (classifier, "logits"))
    reasons: list[str] = []
    for model, field in classes:
        if model is None or isinstance(model, tuple):
            continue
        found, unused, reason = _load(model, settings, weights, field)
        reason = reason if found is None else _trial(found, field, shape)
        if found is not None and not reason:
            note = {"last_hidden_state": "the class token", "logits": "what its classifier reads"}.get(
                field, field
            )
            return Tower(
                model.__name__,
                Pooled(found, field),
                None,
                shape,
                unused,
                f"pooled by {note}, as transformers does",
            )
        reasons.append(f"{model.__name__}: {reason}")
    told = "; ".join(reasons) or "it has no model that takes images"
    raise CheckpointError(
        f"the folder's transformers model of type {kind!r} gives no features of images ({told}); wrap it in "
        f"Python, {HELP}"
    )


def _pair(
    kind: str,
    pair: Any,
    vision: Any,
    weights: Mapping[str, Tensor],
    shape: tuple[int, int, int],
    transformers: Any,
) -> Tower:
    """The vision tower of a pair, with its projection where there is one."""
    if hasattr(vision, "projection_dim") and getattr(pair, "projection_dim", None):
        vision.projection_dim = pair.projection_dim  # the pair's own outranks its tower's
    name = type(vision).__name__.removesuffix("VisionConfig")
    model = getattr(transformers, f"{name}VisionModelWithProjection", None) or getattr(
        transformers, f"{name}VisionModel", None
    )
    if model is None:
        raise CheckpointError(
            f"the folder's transformers model of type {kind!r} has no separate vision model; wrap it in "
            f"Python, {HELP}"
        )
    found, unused, reason = _load(model, vision, weights, "pooler_output")
    if found is None and hasattr(transformers, f"{name}VisionModel"):
        model = getattr(transformers, f"{name}VisionModel")
        found, unused, reason = _load(model, vision, weights, "pooler_output")
    if found is None:
        raise CheckpointError(f"the folder's {model.__name__}: {reason}; wrap it in Python, {HELP}")
    projection: Any = getattr(found, "visual_projection", None)
    tower: Any = found.vision_model if projection is not None else found
    if reason := _trial(tower, "pooler_output", shape):
        raise CheckpointError(f"the folder's {model.__name__}: {reason}; wrap it in Python, {HELP}")
    head = None if projection is None else nn.Sequential(projection)
    return Tower(
        model.__name__,
        Pooled(tower, "pooler_output"),
        head,
        shape,
        unused,
        "pooled by pooler_output, as transformers does",
    )


def _load(
    model: Any, settings: Any, weights: Mapping[str, Tensor], field: str
) -> tuple[nn.Module | None, frozenset[str], str]:
    """The model with its weights, the keys it left, and why not where it is None."""
    import transformers

    with lean(Budget.of(weights)):  # to see that it is no larger than the file
        weights = _own_names(weights, model._from_config(settings).state_dict())
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    try:
        with torch.random.fork_rng(devices=[]):
            found, told = model.from_pretrained(
                None, config=settings, state_dict=weights, output_loading_info=True, dtype=torch.float32
            )
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = (str(error).strip() or repr(error)).splitlines()[0]
        if "ignore_mismatched_sizes" in why:  # says no more than that
            why = "config.json gives other sizes than the weights have"
        return None, frozenset(), why
    finally:
        transformers.logging.set_verbosity(level)
        transformers.logging.enable_progress_bar()
    missing = [
        key
        for key in sorted(told["missing_keys"])
        if not (field == "logits" and re.match(rf"({HEAD})\.", key))
        and not (field == "last_hidden_state" and "pooler" in key)  # a classifier may read it, as BEiT's
    ]
    strangers = [key for key in told["unexpected_keys"] if not SPARE.fullmatch(key)]
    bad = [*missing, *strangers, *(str(key) for key in told.get("mismatched_keys", ()))]
    if bad:
        what = "is not in the file" if missing else "in the file does not fit"
        return None, frozenset(), f"{bad[0]} {what}"
    if field == "logits":
        places = [name for name, _ in found.named_modules() if re.fullmatch(HEAD, name)]
        if not places:
            return None, frozenset(), "its classifier stands at an unknown place"
        for place in places:
            parent, _, child = place.rpartition(".")
            setattr(found.get_submodule(parent), child, nn.Flatten(1))
    return found.eval(), frozenset(told["unexpected_keys"]), ""


def _own_names(weights: Mapping[str, Tensor], own: Iterable[str]) -> dict[str, Tensor]:
    """The weights by the names of the model, some of which have a part like a wrapper's (``module`` in LeViT).

    Either may have the name of the body in front, as transformers allows.
    """
    whole = {plain: name for plain, name in without_wrappers(own).items() if plain != name}
    inner = {plain.partition(".")[2]: name.partition(".")[2] for plain, name in whole.items()}
    named = {}
    for key, value in weights.items():
        body, _, tail = key.partition(".")
        outer = f"{body}.{whole[tail]}" if tail in whole else key
        named[whole.get(key) or inner.get(key) or outer] = value
    return named


def _trial(model: nn.Module, field: str, shape: tuple[int, int, int]) -> str:
    """Why the model does not give features of an image; "" if it does."""
    try:
        out = run_once(model, shape, "pixel_values")
    except Exception as error:  # whatever a model raises
        return (str(error).strip() or repr(error)).splitlines()[0]
    value = getattr(out, field, None)
    if out is None:
        return ""
    if not isinstance(value, Tensor):
        return f"its output has no {field}"
    if field != "last_hidden_state" and value.flatten(1).shape[1] != value.shape[1]:
        return f"its {field} has shape {tuple(value.shape)}"
    return ""


def _image_shape(settings: Any) -> tuple[int, int, int]:
    size = getattr(settings, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[-1]))
    return int(getattr(settings, "num_channels", 3) or 3), height, width
