"""Linear evaluation with augmentations, as the paper reports it.

A linear classifier on the frozen, pooled features of *augmented* images, by SGD: 90 epochs, random crop and flip (no
colour jitter), Nesterov momentum 0.9, rate 0.1 x batch / 256 falling to 0 by a cosine, no weight decay (Chen et al.
2020, appendix B.6, which Lee et al. 2021 follow). The encoder stays in evaluation mode throughout.

It costs a forward pass of every image in every epoch, and its result depends on the seed. To compare models use
:func:`~lipcomp.robustness._probes.fit_linear_probe`; this one is for comparing with published numbers.

>>> from dataclasses import replace
>>> from lipcomp.robustness._linear_evaluation import PAPER, linear_evaluation
>>> probe = linear_evaluation(encoder, images, replace(PAPER, epochs=30), seed=0)  # doctest: +SKIP
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn import functional

from lipcomp.data._crops import crop_and_resize, random_boxes
from lipcomp.data._folders import FolderImages, read_crops
from lipcomp.data._sets import ImageSet
from lipcomp.data._views import PhotoViews
from lipcomp.robustness._features import evaluation_mode, extract_features
from lipcomp.robustness._probes import LinearProbe


@dataclass(frozen=True)
class LinearEvaluation:
    """The recipe."""

    epochs: int = 90
    batch_size: int = 4096  # images per step
    learning_rate: float = 0.1  # for a batch of 256; proportional to the batch
    momentum: float = 0.9  # Nesterov's
    area: tuple[float, float] = (0.08, 1.0)  # bounds of the crop's share of the image
    flip: bool = True  # whether half of the crops are mirrored (not for digits)
    # bring each feature to mean 0 and spread 1 over the training images first. The paper does not, and relies on
    # the scale of a trained ResNet's features; other encoders need it for the same learning rate to mean the same
    standardise: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(
                f"epochs and batch_size must be at least 1, got {self.epochs} and {self.batch_size}"
            )
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"area must be two shares 0 < low <= high <= 1, got {self.area}")


PAPER = LinearEvaluation()
DIGITS = LinearEvaluation(epochs=20, batch_size=256, area=(0.6, 1.0), flip=False, standardise=True)


def linear_evaluation(
    encoder: nn.Module,
    images: ImageSet,
    recipe: LinearEvaluation = PAPER,
    *,
    seed: int = 0,
    advance: Callable[[int], object] = lambda n: None,
) -> LinearProbe:
    """Train the classifier on ``encoder.features`` and return it as a probe; ``seed`` draws order and crops.

    ``advance`` is called with the number of finished images, of epochs x images in all.
    """
    generator = torch.Generator().manual_seed(seed)
    device = next((p.device for p in encoder.parameters()), torch.device("cpu"))
    n, size = len(images), min(recipe.batch_size, len(images))
    steps = recipe.epochs * math.ceil(n / size)
    mean, spread = torch.zeros(1, device=device), torch.ones(1, device=device)
    if recipe.standardise:
        features = extract_features(encoder, images, batch_size=min(size, 512))
        mean, spread = features.mean(0), features.std(0, unbiased=False)
        spread = torch.where(spread > 1e-6 * spread.max(), spread, 1.0)  # a dead feature stays as it is
    weight = bias = momenta = None
    step = 0
    for _ in range(recipe.epochs):
        for part in torch.randperm(n, generator=generator).split(size):
            with evaluation_mode(encoder):
                crops = _augmented(images, part, recipe, generator, device)
                features = (encoder.features(crops) - mean) / spread  # type: ignore[operator]
            if weight is None or bias is None or momenta is None:
                weight = torch.zeros(len(images.classes), features.shape[1], device=device)
                bias = torch.zeros(len(images.classes), device=device)
                momenta = (torch.zeros_like(weight), torch.zeros_like(bias))
            rate = recipe.learning_rate * size / 256 * 0.5 * (1 + math.cos(math.pi * step / steps))
            residual = torch.softmax(features @ weight.T + bias, 1)
            residual[torch.arange(len(part), device=device), images.labels[part].to(device)] -= 1
            residual /= len(part)
            for parameter, gradient, momentum in zip(
                (weight, bias), (residual.T @ features, residual.sum(0)), momenta, strict=True
            ):
                momentum.mul_(recipe.momentum).add_(gradient)
                parameter.sub_(gradient + recipe.momentum * momentum, alpha=rate)
            step += 1
            advance(len(part))
        assert weight is not None
        if not torch.isfinite(weight).all():
            raise ValueError(
                "the linear evaluation came to NaN or infinity: features that are not finite, or too large for its "
                "learning rate; is the encoder's checkpoint intact?"
            )
    assert weight is not None
    assert bias is not None
    weight = weight / spread
    return LinearProbe(weight, bias - weight @ mean.expand(weight.shape[1]))


def _augmented(
    images: ImageSet, part: Tensor, recipe: LinearEvaluation, generator: Generator, device: torch.device
) -> Float[Tensor, "batch channels height width"]:
    """Random crops of some images; of files from their own pixels, as in the official code, not from a centre crop."""
    numbers = torch.rand(len(part), 5, generator=generator, dtype=torch.float32)
    if isinstance(images, FolderImages):
        views = PhotoViews(area=recipe.area, flip=0.5 * recipe.flip)
        rows = functional.pad(numbers, (0, views.numbers // 2 - 5)).split(1)
        files = [images.files[i] for i in part.tolist()]
        with ThreadPoolExecutor() as pool:
            crops = list(pool.map(lambda file, row: read_crops(file, images, views, [row])[0], files, rows))
        return torch.cat(crops).to(device)
    whole = images.batch(part).to(device)
    numbers, (height, width) = numbers.to(device), whole.shape[2:]
    boxes = random_boxes(numbers[:, :4], height, width, recipe.area)
    return crop_and_resize(whole, boxes, (height, width), (numbers[:, 4] < 0.5) & recipe.flip)
