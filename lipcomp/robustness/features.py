"""Features of a set, computed once: a cache by what was measured, on what.

A file's name is a hash of the network's weights and structure, the set's content hash, the indices and the variant
(a corruption, say); whatever changes, the name changes, so nothing stale is ever read. Files appear whole or not at
all. A damaged file is computed again.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from lipcomp.data import ImageSet
from lipcomp.robustness.probes import LinearProbe, fit_linear_probe

Transform = Callable[[Tensor, Tensor], Tensor]


def fingerprint(network: nn.Module) -> str:
    """A hash of a network's structure, weights and buffers, 16 hex digits."""
    digest = hashlib.sha256(str(network).encode())
    for name, value in sorted([*network.named_parameters(), *network.named_buffers()]):
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def extract_features(
    encoder: nn.Module,
    images: ImageSet,
    *,
    indices: Int64[Tensor, " n"] | None = None,
    transform: Transform | None = None,
    variant: str = "",
    batch_size: int = 512,
    cache: Path | str | None = None,
    advance: Callable[[int], None] = lambda n: None,
) -> Float[Tensor, "n features"]:
    """``encoder.features`` of a set, on the encoder's device, from the cache if they are there.

    Parameters
    ----------
    encoder
        Anything with ``features(images)``; it is left in the mode it was in, and run in evaluation mode.
    images, indices
        The set, and which of its images (all, in order, if not given).
    transform
        Applied to each batch as ``transform(images, indices)``; a corruption, say.
    variant
        Names the transform, for the cache.
    batch_size
        Images at a time.
    cache
        Folder of the cache; none if not given.
    advance
        Told how many images are done.

    Raises
    ------
    ValueError
        If a transform has no variant to tell it apart in the cache.
    """
    chosen = torch.arange(len(images)) if indices is None else indices
    if cache is not None and transform is not None and not variant:
        raise ValueError("a transform needs a variant, the name by which the cache tells it apart")
    device = next((p.device for p in encoder.parameters()), torch.device("cpu"))
    path = None
    if cache is not None:
        key = hashlib.sha256(f"{fingerprint(encoder)}/{images.content_hash()}/{variant}".encode())
        key.update(chosen.numpy().tobytes())
        path = Path(cache) / f"features-{key.hexdigest()[:24]}.npy"
        stored = load_array(path)
        if stored is not None and len(stored) == len(chosen):
            advance(len(chosen))
            return torch.from_numpy(stored).to(device)
    parts = []
    with evaluation_mode(encoder):
        for part in chosen.split(batch_size):
            batch = images.batch(part).to(device)
            if transform is not None:
                batch = transform(batch, part)
            parts.append(encoder.features(batch))  # type: ignore[operator]
            advance(len(part))
    features = torch.cat(parts)
    if path is not None:
        save_array(path, features.cpu().numpy())
    return features


def cached_linear_probe(
    features: Float[Tensor, "n features"],
    labels: Int64[Tensor, " n"],
    *,
    classes: int,
    seed: int = 0,
    cache: Path | str | None = None,
) -> LinearProbe:
    """:func:`~lipcomp.robustness.probes.fit_linear_probe` with its defaults, or what an earlier run fitted."""
    key = hashlib.sha256(f"{tuple(features.shape)}/{classes}/{seed}".encode())
    key.update(features.cpu().contiguous().numpy().tobytes())
    key.update(labels.cpu().numpy().tobytes())
    path = None if cache is None else Path(cache) / f"probe-{key.hexdigest()[:24]}.npy"
    stored = None if path is None else load_array(path)
    if stored is not None and stored.shape == (classes, features.shape[1] + 2):
        table = torch.from_numpy(stored).to(features.device)
        return LinearProbe(table[:, :-2].float(), table[:, -2].float(), float(stored[0, -1]))
    probe = fit_linear_probe(features, labels, classes=classes, seed=seed)
    if path is not None:
        penalty = torch.full((classes, 1), probe.penalty, dtype=torch.float64)
        parts = [probe.weight.cpu().double(), probe.bias.cpu().double()[:, None], penalty]
        save_array(path, torch.cat(parts, 1).numpy())
    return probe


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an array so that the file is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            np.save(file, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def load_array(path: Path) -> np.ndarray | None:
    """An array of the cache, or None if it is not there or damaged."""
    try:
        return np.load(path, allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError, OSError):
        return None
