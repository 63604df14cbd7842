"""Your own network: built by a function that you name, with its weights read from a checkpoint.

The function is named ``FILE.py:NAME`` or ``package.module:NAME`` on the command line. It takes no arguments and returns
a module (normalised images -> embedding) or an encoder of :func:`lipcomp.encoders.wrap`. It is the caller's code and is
imported as any other; the checkpoint beside it is still only read as data.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from lipcomp._functions import load_function
from lipcomp.checkpoints._branches import all_tensors, branch_of, choose
from lipcomp.checkpoints._errors import CheckpointError
from lipcomp.checkpoints._lean import check_numbers
from lipcomp.checkpoints._names import without_wrappers
from lipcomp.checkpoints._native import Checkpoint, Metadata
from lipcomp.checkpoints._recognise import unwrap
from lipcomp.checkpoints._report import KeyReport
from lipcomp.checkpoints._sources import Source, State, open_source
from lipcomp.encoders import wrap
from lipcomp.encoders._encoder import Encoder
from lipcomp.encoders._wrapped import Tap

SHOWN = 5  # disagreements named in an error


def build_own(factory: str) -> nn.Module:
    """What the function ``FILE.py:NAME`` or ``package.module:NAME`` returns.

    Raises
    ------
    CheckpointError
        If it is not found, fails, or does not return a module.
    """
    try:
        network = load_function(factory)()
    except (Exception, SystemExit) as error:
        reason = str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        raise CheckpointError(
            f"factory {factory!r} cannot be used, called without arguments: {reason}"
        ) from error
    if not isinstance(network, nn.Module):
        raise CheckpointError(
            f"factory {factory!r} returned a {type(network).__name__}, not a torch.nn.Module"
        )
    return network


def load_own(
    network: nn.Module,
    path: Path | str | None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: Sequence[int] | None = None,
    name: str | None = None,
    branch: str | None = None,
) -> Checkpoint:
    """A network with the weights of a checkpoint, or with its own if there is none, as an encoder.

    Parameters
    ----------
    network
        A module, or an encoder of :func:`lipcomp.encoders.wrap`; the weights go into the module within.
    path
        The checkpoint. Its state dict is found by the network's own names, behind any prefix.
    mean, std, image_size
        For a module that is not yet an encoder; (0,), (1,) and (224, 224) by default. The size is (side,),
        (height, width) or (channels, height, width); channels are otherwise those of the first convolution, or 3.
    name
        What records call a network without a checkpoint.
    branch
        Which of several places in the checkpoint: "online", "momentum", or the place or prefix itself.

    Raises
    ------
    CheckpointError
        If the checkpoint does not hold the network's weights.
    """
    inner = network
    if isinstance(network, Encoder):
        if mean is not None or std is not None or image_size is not None:
            raise CheckpointError(
                "the network is an encoder already and has its own mean, std and image shape"
            )
        inner = network.backbone.network if isinstance(network.backbone, Tap) else network
    report, digest = None, _hash_of(inner)
    if path is not None:
        source = open_source(path, alone=True)
        report, digest = load_into(inner, source, branch), source.sha256
    if isinstance(network, Encoder):
        encoder = network
    else:
        encoder = wrap(
            network,
            mean=mean or (0.0,),
            std=std or (1.0,),
            layer=None,
            image_shape=_image_shape(network, image_size or (224,)),
        )
    if notes := _of_logits(encoder):
        report = replace(report or KeyReport(), notes=(*(report.notes if report else ()), *notes))
    where = Path(path) if path is not None else Path(name or type(network).__name__)
    return Checkpoint(encoder.eval(), Metadata(), digest, where, "own", report)


def _image_shape(network: nn.Module, size: Sequence[int]) -> tuple[int, ...]:
    if len(size) == 3:
        return tuple(size)
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    return (3 if first is None else first.in_channels, size[0], size[-1])


def load_into(network: nn.Module, source: Source, branch: str | None = None) -> KeyReport:
    """Load a network's weights from wherever they are in a checkpoint.

    Raises
    ------
    CheckpointError
        With the first names or shapes that disagree, or the places if the weights are there several times.
    """
    theirs = without_wrappers(network.state_dict())  # a network may be wrapped as its checkpoint is, or not
    wanted = {name: tuple(network.state_dict()[key].shape) for name, key in theirs.items()}
    if not wanted:
        return KeyReport(
            ignored={name: "the network has no weights" for name, _, _ in all_tensors(source.tree)}
        )
    first, found = next(iter(wanted)), []
    for place, state in source.states():
        plain, origin = unwrap(state)
        prefixes = {key.removesuffix(first) for key in plain if key == first or key.endswith(f".{first}")}
        for prefix in sorted(prefixes):
            label = ".".join((*place, prefix.removesuffix("."))).strip(".")
            found.append((_disagreements(wanted, plain, prefix), label, prefix, plain, origin))
    if not found:
        raise CheckpointError(
            f"checkpoint {str(source.path)!r} does not hold the network's weights: it has no key that ends "
            f"in {first!r}"
        )
    disagree = min((entry[0] for entry in found), key=len)
    if disagree:
        more = f"; and {len(disagree) - SHOWN} more" if len(disagree) > SHOWN else ""
        raise CheckpointError(
            f"checkpoint {str(source.path)!r} does not fit the network: {'; '.join(disagree[:SHOWN])}{more}"
        )
    fitting = [entry for entry in found if not entry[0]]
    labels = [entry[1] for entry in fitting]
    parts = [
        {name: plain[prefix + name] for name in wanted if prefix + name in plain}
        for *_, prefix, plain, _ in fitting
    ]
    number, note = choose(labels, [branch_of(label, source) for label in labels], parts, branch, source)
    _, _, prefix, plain, origin = fitting[number]
    weights = parts[number]
    check_numbers(weights, source.path)
    network.load_state_dict({theirs[name]: value for name, value in weights.items()}, strict=False)
    mine = {id(value) for value in weights.values()}
    ignored = {name: why for name, value, why in all_tensors(source.tree) if id(value) not in mine}
    used = {origin[prefix + name]: theirs[name] for name in weights}
    return KeyReport(used, ignored, tuple(theirs[name] for name in wanted if name not in weights), note)


def _of_logits(encoder: Encoder) -> tuple[str, ...]:
    """A note where the measured layer looks like a classifier's logits."""
    network = encoder.backbone.network if isinstance(encoder.backbone, Tap) else encoder.backbone
    linears = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if getattr(encoder.backbone, "layer", None) is not None or not linears:
        return ()
    name, last = linears[-1]
    if not re.search(r"(^|\.)(fc|head|classifier|linear|logits)\w*(\.\d+)?$", name):
        return ()
    return (
        f"latent: the output of {name}, {last.out_features} numbers: by its name a classifier's logits, not "
        "features; wrap the network with layer= to measure an earlier layer",
    )


def _disagreements(wanted: dict[str, tuple[int, ...]], state: State, prefix: str) -> list[str]:
    disagree = []
    for key, shape in wanted.items():
        have = tuple(state[prefix + key].shape) if prefix + key in state else None
        if have is None and not key.endswith("num_batches_tracked"):
            disagree.append(f"{key} is not in the file, the network has {shape}")
        elif have is not None and have != shape:
            disagree.append(f"{key} is {have} in the file, {shape} in the network")
    return disagree


def _hash_of(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for key, value in network.state_dict().items():
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
