"""Features of a set of images: what a probe reads."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from lipcomp.data._sets import ImageSet, as_indices

Transform = Callable[[Tensor, Tensor], Tensor]


def extract_features(
    encoder: nn.Module,
    images: ImageSet,
    *,
    indices: Int64[Tensor, " n"] | None = None,
    transform: Transform | None = None,
    batch_size: int = 512,
    advance: Callable[[int], object] = lambda n: None,
) -> Float[Tensor, "n features"]:
    """``encoder.features`` of a set, on the encoder's device.

    Parameters
    ----------
    encoder
        Any object with ``features(images)``; it is run in evaluation mode, and its mode is restored.
    images, indices
        The set, and the indices of its images (all, in order, if not given).
    transform
        Applied to each batch as ``transform(images, indices)``, for example a corruption.
    batch_size
        Images per batch.
    advance
        Progress callback, called with the number of finished images.

    Raises
    ------
    ValueError
        If an index is not one of the images, or they do not fit the encoder.

    Examples
    --------
    >>> import torch, lipcomp
    >>> from lipcomp.encoders import EncoderSpec, build_encoder
    >>> from lipcomp.robustness import extract_features
    >>> encoder = build_encoder(EncoderSpec("small_cnn", (1, 28, 28)))
    >>> extract_features(encoder, lipcomp.load_set("mnist5k"), indices=torch.arange(4)).shape[0]
    4
    """
    if not isinstance(images, ImageSet) or not isinstance(encoder, nn.Module):
        raise ValueError(  # noqa: TRY004  (the package's one kind of refusal)
            f"extract_features takes a network and an image set, got {type(encoder).__name__} and "
            f"{type(images).__name__}; give the .encoder of a checkpoint, and lipcomp.load_set(dataset)"
        )
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    chosen = torch.arange(len(images), device="cpu") if indices is None else as_indices(indices, len(images))
    if not len(chosen):
        raise ValueError(f"there is no image to take: {images.name} has {len(images)}, indices name none")
    device = next((p.device for p in encoder.parameters()), torch.device("cpu"))
    parts = []
    with evaluation_mode(encoder):
        for part in chosen.split(batch_size):
            batch = images.batch(part).to(device)
            if transform is not None:
                batch = transform(batch, part)
            parts.append(encoder.features(batch))  # type: ignore[operator]
            advance(len(part))
    return torch.cat(parts)


def unit_rows(rows: Float[Tensor, "n features"]) -> Float[Tensor, "n features"]:
    """Rows of length 1, in float32 or wider, also where their squares leave its range; a row of zeros stays."""
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    largest = rows.detach().abs().amax(1, keepdim=True)
    return nn.functional.normalize(rows / largest.where(largest > 0, 1.0), dim=1)


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module is in the mode it was in."""
    with evaluating(network), torch.no_grad():
        yield


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
