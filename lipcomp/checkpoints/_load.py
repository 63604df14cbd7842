"""Any checkpoint -> an encoder: recognise the format, find the network, account for every key.

1. The file becomes names and tensors, without running anything of it (:mod:`lipcomp.checkpoints._sources`).
2. The names say whose it is and which are backbone, projector, predictor (:mod:`lipcomp.checkpoints._formats`).
3. The shapes say which network it is, or ``arch`` does (:mod:`lipcomp.checkpoints._architectures`).
4. Every weight finds its place, or the first that disagree are named.
"""

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from lipcomp._arguments import checked
from lipcomp._messages import is_of_machine
from lipcomp.checkpoints._architectures import build_backbone
from lipcomp.checkpoints._backbone import Backbone
from lipcomp.checkpoints._branches import NAMELESS, all_tensors
from lipcomp.checkpoints._errors import CheckpointError
from lipcomp.checkpoints._formats import NAMES
from lipcomp.checkpoints._heads import build_head
from lipcomp.checkpoints._index import classifier_of
from lipcomp.checkpoints._inputs import channels_of, check_images, inputs_of
from lipcomp.checkpoints._lean import Budget, check_numbers, fill
from lipcomp.checkpoints._native import HEADER_KEY, Checkpoint, Metadata, load_checkpoint
from lipcomp.checkpoints._recognise import Recognised, recognise
from lipcomp.checkpoints._report import KeyReport
from lipcomp.checkpoints._settings import settings_of, strides_of
from lipcomp.checkpoints._shapes import infer_backbone
from lipcomp.checkpoints._sources import Source, State, check_count, open_source
from lipcomp.checkpoints._transformers_models import from_bare, from_folder
from lipcomp.checkpoints._vits import heads_of, prepare_vit, resize_positions
from lipcomp.encoders._encoder import NormalisationError
from lipcomp.encoders._wrapped import WrappedEncoder, check_scale

Head = Literal["auto", "none"]
Numbers = Sequence[float | int]
SHOWN = 5  # disagreements named in an error
LORA = re.compile(r"(^|[._])lora_([AB]|embedding_[AB]|magnitude_vector)\b")
STORED = {  # keys of weights that are no plain tensors -> what they are, and the remedy
    r"\.parametrizations\.(?!weight\.original[01]$)": (
        "of a parametrization: torch.nn.utils.parametrize.remove_parametrizations(module, name) makes it a plain weight"
    ),
    r"(\.(qweight|qzeros|g_idx|SCB|absmax|quant_map|weight_format|_packed_params.*|zero_point|weight\._data|input_scale)"
    r"|activation_post_process.*)$": "of a quantised network: save the network before it is quantised",
    r"\.base_layer\.(weight|bias)$|^base_model\.model\.": (
        "as PEFT names it, whose changes are not applied: save the merged network, model.merge_and_unload()"
    ),
    NAMELESS.pattern: (
        "of an average without names, as torch_ema's: copy it into the network, and save that one's state_dict()"
    ),
    r"(^|\.)_?flat_param(_\d+)?$": (
        "of weights that FSDP has made flat: save the full state dict, or a folder of torch.distributed.checkpoint"
    ),
}
EXTRA = re.compile(  # whole names beside a backbone that belong to something else
    r"mask_token|masked_embed|normalize\.(mean|std)|(model\.)?(mu|sigma)|sub_block1\..*|n_averaged"
    r"|decoder_(embed|blocks|norm|pred|pos_embed)(\..*)?|head\.(mlp|last_layer)\..*"
)

# What stands beside usual ResNets: a projector's 1 x 1 convolutions, and all of torchvision's detectors.
POINTWISE = re.compile(
    r"(?!.*input_proj)(.*[._])?(mlp\d*|proj(ect\w*|etion|)|predict\w*|value_transform)\..*"
)
PYRAMID = "backbone.body"


@checked
def load_encoder(
    path: Path | str,
    *,
    arch: str | None = None,
    format: str | None = None,
    head: Head = "auto",
    branch: str | None = None,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    image_size: int | tuple[int, ...] | None = None,
) -> Checkpoint:
    """Load an encoder from a checkpoint of any known family.

    Parameters
    ----------
    path
        A file, a Hugging Face folder, or a TensorFlow checkpoint (its prefix or ``.index``).
    arch
        Name of the backbone; recognised from the weights if not given.
    format
        One of ``lipcomp.checkpoints._formats.NAMES``; recognised if not given.
    head
        "auto" uses the projection and prediction heads if there are any, "none" the backbone only.
    branch
        "online" or "momentum" (teacher, target, moving average), or the path or prefix of a network in the file; by
        default the one that its authors evaluate; a note names the others.
    mean, std
        The normalisation, if the file does not say it or says it wrongly.
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

    Examples
    --------
    >>> import tempfile, torchvision, torch, lipcomp
    >>> path = tempfile.mkdtemp() + "/resnet18.pth"
    >>> torch.save(torchvision.models.resnet18().state_dict(), path)
    >>> checkpoint = lipcomp.load_encoder(path, image_size=32)
    >>> checkpoint.encoder.architecture, checkpoint.encoder.image_shape
    ('resnet18', (3, 32, 32))
    """
    if format is not None and format not in NAMES:
        near = difflib.get_close_matches(format, NAMES, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise CheckpointError(f"format {format!r} is unknown{hint} Known: {', '.join(NAMES)}")
    if head not in ("auto", "none"):
        raise CheckpointError(f'head must be "auto" or "none", got {head!r}')
    check_scale(mean=mean, std=std)
    options = {"arch": arch, "branch": branch, "mean": mean, "std": std, "image_size": image_size}
    try:
        source = open_source(path)
        check_count(sum(len(state) for _, state in source.states()), source.path)
        if HEADER_KEY in source.metadata and format in (None, "lipcomp"):
            _refuse_options({**options, "head": None if head == "auto" else head}, source)
            return load_checkpoint(source.path)
        if format == "lipcomp":
            raise CheckpointError(
                f"checkpoint {str(path)!r} is not of lipcomp's own format; leave format= out"
            )
        if lora := next((name for name, _, _ in all_tensors(source.tree) if LORA.search(name)), ""):
            raise CheckpointError(
                f"checkpoint {str(source.path)!r} holds changes of its weights by LoRA ({lora}), which are not "
                f"applied; save the merged network: model.merge_and_unload()"
            )
        try:
            return _assemble(source, arch, format, branch, head, _size(image_size), mean, std)
        except CheckpointError as error:
            raise CheckpointError(f"{error}{_stored(source)}") from error
    except (CheckpointError, ImportError, OSError):
        raise
    except NormalisationError as error:  # not the file's fault
        raise CheckpointError(f"checkpoint {str(path)!r}: {error}") from error
    except Exception as error:  # what the checks did not foresee in a damaged file is still one clear error
        if is_of_machine(error):
            raise
        first = (str(error).strip() or repr(error)).splitlines()[0]
        raise CheckpointError(
            f"checkpoint {str(path)!r} cannot be loaded ({type(error).__name__}: {first}); it is damaged, or "
            f"needs arch= or format=, or to be built by you (lipcomp.wrap)"
        ) from error


def _stored(source: Source) -> str:
    """A hint on weights that are stored in a way that may be why they are not recognised."""
    if "DCP_SHARDING_INFO" in source.metadata:
        return (
            " (It may hold the parts of one rank alone: save with HuggingFaceStorageWriter(..., save_distributed=True, "
            "enable_consolidation=True).)"
        )
    for pattern, what in STORED.items():
        for name, _, _ in all_tensors(source.tree):
            if re.search(pattern, name):
                return f" (It holds {name}, {what}.)"
    return ""


def _refuse_options(options: Mapping[str, Any], source: Source) -> None:
    given = [f"{name}=" for name, value in options.items() if value is not None]
    if given:
        raise CheckpointError(
            f"checkpoint {str(source.path)!r} is lipcomp's own and says this itself; leave {', '.join(given)} out"
        )


def _assemble(
    source: Source,
    arch: str | None,
    format: str | None,
    branch: str | None,
    head: Head,
    size: tuple[int, int] | None,
    mean: Numbers | None,
    std: Numbers | None,
) -> Checkpoint:
    """Find the network, give every weight its place, and put the encoder together."""
    if source.container == "transformers":
        for option, value in (("arch", arch), ("format", format), ("branch", branch)):
            if value not in (None, "huggingface"):
                raise CheckpointError(
                    f"folder {str(source.path)!r} says its architecture in config.json; leave {option}={value!r} out"
                )
        return from_folder(source, head, size, mean, std)
    bare = arch is None and format in (None, "huggingface") and source.container in ("torch", "safetensors")
    if bare and (checkpoint := from_bare(source, branch, head, size, mean, std)) is not None:
        return checkpoint
    named = arch or source.arch
    if arch is None and source.container == "exported" and "/" not in (source.arch or ""):
        named = None  # a network that was read off its weights is read off them again
    budget = Budget.of({name: value for _, state in source.states() for name, value in state.items()})
    wanted: Collection[str] = ()
    if named is not None and not source.keys:
        wanted = build_backbone(named, 3, source.conventions, budget).network.state_dict().keys()
    found = recognise(source, format, branch, wanted)
    weights = prepare_vit(found.part(found.backbone))
    asked = size or (source.preprocessing.size if source.preprocessing else None)
    told = {**found.conventions, **source.conventions, "image_size": asked, "format": found.format.name}
    told["said"] = settings_of({**source.tree, "metadata": source.metadata})
    if found.format.name == "mmselfsup" and "meta" in source.tree:
        told["remedy"] = "OpenMMLab names it in a way of its own: build it there, and wrap it (lipcomp.wrap)"
    if named and (number := heads_of(told, weights)) is not None:  # as the format has them, not as the name
        told["model_args"] = {"num_heads": number, **told.get("model_args", {})}
    if "fc_norm.weight" in weights and "norm.weight" not in weights:
        told.setdefault("global_pool", "avg")  # only a mean over the patches is normalised there
    backbone = (
        infer_backbone(weights, told)
        if named is None
        else build_backbone(named, channels_of(weights), told, budget)
    )
    note = resize_positions(
        backbone.network,
        weights,
        antialias=told.get("antialias", source.container != "huggingface" or not source.keys),
    )
    notes = (*source.notes, *found.notes, *backbone.notes, *([note] if note else []))
    used, missing = _fit(backbone, found, weights, source, named is not None)
    if (
        named is None
        and sum(value.ndim == 4 and value.shape[2:].numel() > 1 for value in weights.values()) > 1
    ):
        _check_strides(found, used, backbone)
        if said := strides_of(source.tree):
            raise CheckpointError(
                f"ambiguous: the settings in the file say {said}, which the weights of a {backbone.name} do not show; "
                f"pass arch={backbone.name!r} if it is the usual one, or build it yourself (lipcomp.wrap)"
            )
    small = "conv1.weight" in weights and tuple(weights["conv1.weight"].shape[2:]) == (3, 3)
    if format is None and found.format.name == "solo-learn" and small:
        _check_stem(found, source.path)
    heads, told_of_heads = _heads(found, backbone, head, size, source.path)
    for part, names in (("projector", found.projector), ("predictor", found.predictor)):
        used |= {key: f"{part}.{name}" for name, key in names.items() if part in heads}
    ready = inputs_of(source, found, backbone, weights, size, mean, std)
    check_images(backbone.network, (channels_of(weights), *ready.size), backbone.name, backbone.image_size)
    encoder = WrappedEncoder(
        backbone.network,
        ready.mean,
        ready.std,
        (channels_of(weights), *ready.size),
        architecture=backbone.name,
        projector=heads.get("projector"),
        predictor=heads.get("predictor"),
    ).eval()
    report = KeyReport(
        {name: target for key, target in used.items() for name in found.origin[key]},
        found.ignored(used, source),
        tuple(missing),
        (*notes, told_of_heads),
    )
    return Checkpoint(
        encoder,
        Metadata(),
        source.sha256,
        source.path,
        found.format.name,
        report,
        ready,
        found.conventions,
        found.branch,
        found.label,
    )


def _size(given: int | tuple[int, ...] | None) -> tuple[int, int] | None:
    """(height, width) of what was given."""
    if given is None:
        return None
    sides = (given,) if isinstance(given, int) else given[-2:]
    if not sides or min(sides) < 1:
        raise CheckpointError(f"image_size must be a side or (height, width), positive; got {given}")
    return sides[0], sides[-1]


def _fit(
    backbone: Backbone, found: Recognised, weights: State, source: Source, named: bool
) -> tuple[dict[str, str], list[str]]:
    """Load the backbone's weights; returns where each key went, and what was missing without harm.

    Raises
    ------
    CheckpointError
        With the first names or shapes that disagree, or numbers that no network has.
    """
    wanted = {name: tuple(value.shape) for name, value in backbone.network.state_dict().items()}
    spare = (
        *(f"{place}." for place in (*backbone.classifier, *classifier_of(backbone.name))),
        "fc.",
        "linear.",
        "head.",
        "classifier.",
        "pooler.",
    )
    disagree = []
    for name, shape in wanted.items():
        have = tuple(weights[name].shape) if name in weights else None
        if have is None and not name.endswith("num_batches_tracked"):
            disagree.append(f"{name} is not in the file, {backbone.name} has {shape}")
        elif have is not None and have != shape:
            disagree.append(f"{name} is {have} in the file, {shape} in {backbone.name}")
    for name, value in weights.items():
        if name not in wanted and not name.startswith(spare) and not EXTRA.fullmatch(name):
            disagree.append(f"{name} is {tuple(value.shape)} in the file, {backbone.name} has no such weight")
    if disagree:
        more = f"; and {len(disagree) - SHOWN} more" if len(disagree) > SHOWN else ""
        raise CheckpointError(
            f"the weights do not fit architecture {backbone.name!r}: {'; '.join(disagree[:SHOWN])}{more}. "
            f"{'Leave arch= out to have it read off the weights, name' if named else 'With arch= name'} another, or "
            f"build the network yourself (lipcomp.wrap)"
        )
    fitting = {name: value for name, value in weights.items() if name in wanted}
    check_numbers(fitting, source.path)
    fill(backbone.network, fitting)
    used = {}
    for name, key in found.backbone.items():
        target = {"register_tokens": "reg_token"}.get(name, name)
        if target in wanted:
            used[key] = f"backbone.{target}"
    return used, [f"backbone.{name}" for name in wanted if name not in weights]


def _check_stem(found: Recognised, path: Path) -> None:
    """Refuse to take any ``backbone`` and ``classifier`` for solo-learn's, whose small stem has a padding of 2.

    Raises
    ------
    CheckpointError
        If nothing else in the file is solo-learn's.
    """
    if not found.projector and not any(key.startswith("momentum_") for key in found.state):
        raise CheckpointError(
            f"ambiguous: checkpoint {str(path)!r} holds a backbone with a 3 x 3 stem and a classifier: solo-learn's, "
            f'whose stem has a padding of 2, or another\'s; pass format="solo-learn" or format="plain" (padding 1)'
        )


def _check_strides(found: Recognised, used: Collection[str], backbone: Backbone) -> None:
    """Refuse to guess the strides of convolutions with a head over whole maps beside it.

    Segmentation dilates the last stages, detectors of Caffe's style stride elsewhere, at equal names and shapes.

    Raises
    ------
    CheckpointError
        If there is such a head, of a kind whose networks are not all alike.
    """
    first = "layer1.0.conv1.weight"
    if first not in found.backbone:
        first = next(
            name for name, key in found.backbone.items() if key in used and found.state[key].ndim == 4
        )
    prefix = ".".join(("", *found.backbone[first].split(".")[: -len(first.split("."))]))
    own = tuple(f"{prefix}.{place}." for place in (*backbone.classifier, *classifier_of(backbone.name)))
    alike = tuple(f".{key}".removeprefix(prefix) for key in used if found.state[key].ndim == 4)
    for key, value in found.state.items():
        if key in used or value.ndim != 4 or EXTRA.fullmatch(key) or found.label.endswith(PYRAMID):
            continue
        if f".{key}".startswith(own):
            continue
        if f".{key}".endswith(alike) or re.search(r"\blayer\d\.", key):  # of another network like it
            continue
        if value.shape[2:].numel() == 1 and POINTWISE.fullmatch(key):
            continue
        raise CheckpointError(
            f"ambiguous: the {backbone.name} stands beside {key}, a part of a network for segmentation or detection, "
            f"whose backbones may have dilations or strides of their own, which weights do not show; pass "
            f"arch={backbone.name!r} if "
            f"it is the usual one, or build it yourself (lipcomp.wrap)"
        )


def _heads(
    found: Recognised, backbone: Backbone, head: Head, size: tuple[int, int] | None, path: Path
) -> tuple[dict[str, nn.Sequential], str]:
    """Projection and prediction heads with their weights, and a line on what the latent is."""
    if head == "none" and found.projector:
        return {}, 'latent: the backbone\'s features, as asked (head="none")'
    if not found.projector:
        return {}, "latent: the backbone's features; no projector was found"
    for part in (found.projector, found.predictor):
        check_numbers(found.part(part), path)
    activation = found.conventions["activation"]
    width = _width(backbone, found, size)
    heads = {"projector": build_head(found.part(found.projector), width, "projection head", activation)}
    if found.predictor:
        width = [layer.out_features for layer in heads["projector"] if isinstance(layer, nn.Linear)][-1]
        heads["predictor"] = build_head(found.part(found.predictor), width, "prediction head", activation)
    between = (
        f", {activation} between its layers as {found.format.name} has it"
        if len(heads["projector"]) > 1
        else ""
    )
    return heads, f"latent: the output of the {[*heads][-1]}{between}"


def _width(backbone: Backbone, found: Recognised, size: tuple[int, int] | None) -> int:
    """How many features the backbone gives."""
    if isinstance(width := getattr(backbone.network, "out_features", None), int):
        return width  # embed_dim is that of the first stage, where there are several
    usual = backbone.preprocessing.size if backbone.preprocessing else backbone.image_size
    height, across = size or usual or (224, 224)
    with torch.no_grad():
        images = torch.zeros(1, channels_of(found.part(found.backbone)), height, across)
        return int(backbone.network.eval()(images).shape[1])
