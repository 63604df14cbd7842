"""A network of one's own: built by a function of the caller's, its weights found in a checkpoint.

The function is named ``package.module:function`` on the command line. It takes no arguments and returns a module
(normalised images -> embedding) or an encoder of :func:`lipcomp.encoders.wrap`. It is the caller's code and is
imported as any other; the checkpoint beside it is still only read as data.
"""

import hashlib
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from lipcomp.checkpoints.errors import CheckpointError
from lipcomp.checkpoints.native import Checkpoint, Metadata
from lipcomp.checkpoints.recognise import all_tensors, unwrap
from lipcomp.checkpoints.report import KeyReport
from lipcomp.checkpoints.sources import Source, State, open_source
from lipcomp.encoders import Encoder, Tap, wrap

SHOWN = 5  # disagreements named in an error


def build_own(factory: str) -> nn.Module:
    """What the function ``package.module:function`` returns.

    Raises
    ------
    CheckpointError
        If it is not found, fails, or does not return a module.
    """
    module_name, _, function = factory.partition(":")
    if not module_name or not function:
        raise CheckpointError(f"factory must be package.module:function, got {factory!r}")
    here = os.getcwd()  # noqa: PTH109  (as an entry of sys.path)
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module_name), function)
        network = found()
    except (ImportError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"factory {factory!r} cannot be used: {error}. It is imported from the current folder or an "
            f"installed package and called without arguments"
        ) from error
    finally:
        if added:
            sys.path.remove(here)
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

    Raises
    ------
    CheckpointError
        If the checkpoint does not hold the network's weights.
    """
    inner = network
    if isinstance(network, Encoder):
        if mean is not None or std is not None or image_size is not None:
            raise CheckpointError(
                "the network is an encoder already, with mean, std and image shape of its own"
            )
        inner = network.backbone.network if isinstance(network.backbone, Tap) else network
    report, digest = None, _hash_of(inner)
    if path is not None:
        source = open_source(path)
        report, digest = load_into(inner, source), source.sha256
    if isinstance(network, Encoder):
        encoder = network
    else:
        encoder = wrap(
            network, mean or (0.0,), std or (1.0,), None, _image_shape(network, image_size or (224,))
        )
    where = Path(path) if path is not None else Path(name or type(network).__name__)
    return Checkpoint(encoder.eval(), Metadata(), digest, where, "own", report)


def _image_shape(network: nn.Module, size: Sequence[int]) -> tuple[int, ...]:
    if len(size) == 3:
        return tuple(size)
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    return (3 if first is None else first.in_channels, size[0], size[-1])


def load_into(network: nn.Module, source: Source) -> KeyReport:
    """Load a network's weights from wherever they are in a checkpoint.

    Raises
    ------
    CheckpointError
        With the first names or shapes that disagree.
    """
    wanted = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    if not wanted:
        return KeyReport(
            ignored={name: "the network has no weights" for name, _, _ in all_tensors(source.tree)}
        )
    best: tuple[list[str], State, dict[str, str]] | None = None
    for _, state in source.states():
        plain, origin = unwrap(state)
        first = next(iter(wanted))
        prefixes = {key.removesuffix(first) for key in plain if key == first or key.endswith(f".{first}")}
        for prefix in sorted(prefixes, key=len):
            disagree = _disagreements(wanted, plain, prefix)
            if best is None or len(disagree) < len(best[0]):
                found = {key: plain[prefix + key] for key in wanted if prefix + key in plain}
                best = disagree, found, {origin[prefix + key]: key for key in found}
    if best is None:
        raise CheckpointError(
            f"checkpoint {str(source.path)!r} does not hold the network's weights: it has no key that ends in "
            f"{next(iter(wanted))!r}"
        )
    disagree, found, used = best
    if disagree:
        more = f"; and {len(disagree) - SHOWN} more" if len(disagree) > SHOWN else ""
        raise CheckpointError(
            f"checkpoint {str(source.path)!r} does not fit the network: {'; '.join(disagree[:SHOWN])}{more}"
        )
    network.load_state_dict(found, strict=False)
    mine = {id(value) for value in found.values()}
    ignored = {name: why for name, value, why in all_tensors(source.tree) if id(value) not in mine}
    return KeyReport(used, ignored, tuple(key for key in wanted if key not in found))


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
