"""Adversarial attacks on probe + encoder, in pixel units.

The classifier maps pixels in [0, 1] to logits, normalisation inside, so a radius is in pixels: 8/255 in L-inf, 0.5 in
L2 over all pixels. Every adversarial image lies in [0, 1], and in the ball up to the rounding of its pixels.

:func:`pgd` ascends by projected gradient steps: the margin from the image itself, cross-entropy from random starts,
then the margin against each of the nearest other classes, since the class that is nearest at the image need not be
the one that is reached first. On a linear probe it is within one point of the exact minimal distance.

A gradient of zero (a vote of one neighbour, a rounded input) makes any gradient attack report its images as robust.
Such images are counted (``Attack.blind``), and attacked by random search (:mod:`lipcomp.robustness._random_search`)
instead; a classifier with a differentiable stand-in (``classifier.surrogate``, as nearest neighbours have) is
ascended through it.

The number to report is that of :mod:`lipcomp.robustness._auto_attack`, since a weak attack flatters;
:mod:`lipcomp.robustness._embedding_attack` needs no probe.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from lipcomp._arguments import checked, taking
from lipcomp._norms import PlainNorms
from lipcomp._results import ResultMixin
from lipcomp.robustness._estimates import Estimate, proportion
from lipcomp.robustness._features import evaluating
from lipcomp.robustness._probes import class_indices
from lipcomp.robustness._random_search import into_ball, length, random_search, random_start, steepest

TARGETS = 9


@dataclass(frozen=True)
class Attack(ResultMixin):
    """What an attack found.

    Attributes
    ----------
    images
        The adversarial images (the original where it was wrong already, or the attack failed).
    clean, right
        Whether each image is right before, and after.
    distance
        How far each adversarial image is from its original, in ``norm``.
    norm, radius
        Of the ball, in pixels.
    blind
        Whether the loss has no gradient at the image, so that only random search could attack it.
    """

    images: Float[Tensor, "n channels height width"]
    clean: Bool[np.ndarray, " n"]
    right: Bool[np.ndarray, " n"]
    distance: Float[np.ndarray, " n"]
    norm: str
    radius: float | int
    blind: Bool[np.ndarray, " n"]

    @property
    def accuracy(self) -> Estimate:
        """Robust accuracy with its exact interval."""
        return proportion(self.right)


@checked
def pgd(
    classifier: nn.Module,
    images: Float[Tensor, "n channels height width"],
    labels: Int64[Tensor, " labels"],
    *,
    norm: str = "linf",
    radius: float | int,
    steps: int = 50,
    starts: int = 2,
    targets: int = TARGETS,
    queries: int = 500,
    generator: torch.Generator | None = None,
    batch_size: int = 128,
) -> Attack:
    """Projected gradient ascent from several starts (Madry et al. 2018), then against each near class.

    All points of the ascent count, not only the last one; images that are fooled are not attacked further.

    Parameters
    ----------
    classifier
        Pixels in [0, 1] -> logits. Its method ``surrogate``, if it has one, gives the scores whose gradient is used.
    images, labels
        The images to attack, and their classes.
    norm, radius
        Norm ("linf" or "l2") and radius of the ball, in pixels.
    steps
        Gradient steps from each start; they shrink from 4 radius / steps to 0.
    starts
        Untargeted starts: the first is the image itself, with the margin; the others are random, with cross-entropy.
    targets
        Number of near classes whose margin is then ascended, one after another.
    queries
        Queries of the random search on images without a gradient.
    generator
        Randomness of the starts (CPU); by default seeded with 0.
    batch_size
        Images per batch.

    Raises
    ------
    ValueError
        If norm, radius, images (pixels in [0, 1]) or labels are not valid, or the classifier returns NaN.

    Examples
    --------
    >>> import torch
    >>> from lipcomp.robustness import pgd
    >>> classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2)).eval()
    >>> images = torch.full((3, 1, 4, 4), 0.5)
    >>> labels = classifier(images).argmax(1)
    >>> pgd(classifier, images, labels, norm="linf", radius=0.0, steps=2).accuracy.value
    1.0
    """
    norm, reach = check_ball(images, norm, radius)
    check_counts(steps=steps, starts=starts, batch_size=batch_size)
    check_counts(0, targets=targets, queries=queries)
    images = images.detach()
    _, labels = check_labels(classifier, images, labels)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    scores = getattr(classifier, "surrogate", classifier)
    found, clean, right, blind = [], [], [], []
    with frozen(classifier):
        for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            best, before = x.clone(), is_right(classifier, x, y)
            fooled = ~before
            logits, gradient = ascent(scores, x, y, None)
            flat = gradient.flatten(1).abs().amax(1) == 0
            others = logits.scatter(1, y[:, None], -torch.inf).argsort(1, descending=True)
            rounds: list[int | None] = [None] * starts + list(range(min(targets, logits.shape[1] - 1)))
            for number, target in enumerate(rounds if reach > 0 else []):
                todo = (~fooled & ~flat).nonzero()[:, 0]
                if not len(todo):
                    break
                origin, truth = x[todo], y[todo]
                aim = None if target is None else others[todo, target]
                start = (
                    origin
                    if number == 0 or target is not None
                    else random_start(origin, norm, reach, generator)
                )
                entropy = target is None and number > 0
                end, hit = _ascend(classifier, scores, origin, start, truth, aim, entropy, norm, reach, steps)
                best[todo[hit]] = end[hit]
                fooled[todo[hit]] = True
            todo = (~fooled & flat).nonzero()[:, 0]
            if reach > 0 and len(todo):
                margins = partial(_margins, classifier, labels=y[todo])
                end, margin = random_search(margins, x[todo], norm, reach, queries, generator)
                hit = margin < 0
                best[todo[hit]] = end[hit]
                fooled[todo[hit]] = True
            found.append(best)
            clean.append(before)
            right.append(~fooled)
            blind.append(flat)
    joined = (torch.cat(parts) for parts in (found, clean, right, blind))
    return attack_of(images, *joined, norm=norm, radius=radius)


class Rounding(nn.Module):
    """A classifier in a precision of its own, of images of any."""

    def __init__(self, classifier: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.classifier, self.dtype = classifier, dtype

    def forward(self, images: Tensor) -> Tensor:
        """Class scores of images."""
        return self.classifier(images.to(self.dtype)).to(images.dtype)

    def surrogate(self, images: Tensor) -> Tensor:
        """The scores that attacks ascend."""
        scores = getattr(self.classifier, "surrogate", self.classifier)
        return scores(images.to(self.dtype)).to(images.dtype)


def _ascend(
    classifier: Callable[[Tensor], Tensor],
    scores: Callable[[Tensor], Tensor],
    origin: Tensor,
    candidate: Tensor,
    labels: Tensor,
    aim: Tensor | None,
    entropy: bool,
    norm: str,
    radius: float | int,
    steps: int,
) -> tuple[Tensor, Bool[Tensor, " batch"]]:
    """The first point on the way that is wrong, and whether there is one."""
    end, hit = candidate.clone(), torch.zeros(len(origin), dtype=torch.bool, device=origin.device)
    for step in range(steps + 1):
        logits, gradient = ascent(scores, candidate, labels, aim, entropy)
        if scores is not classifier:
            wrong = ~is_right(classifier, candidate, labels)
        else:
            wrong = _no_nan(logits).argmax(1) != labels
        new = wrong & ~hit
        end[new] = candidate[new]
        hit |= new
        if step == steps or hit.all():
            break
        size = 4 * radius / steps * (1 - step / steps)
        candidate = into_ball(candidate + size * steepest(gradient, norm), origin, norm, radius)
    return end, hit


def check_counts(least: int = 1, **counts: int) -> None:
    """Refuse counts below the least: an attack that takes no step finds every image robust."""
    for name, count in counts.items():
        if count < least:
            raise ValueError(f"{name} must be at least {least}, got {count}")


def check_ball(images: Tensor, norm: str, radius: float | int) -> tuple[str, float]:
    """Refuse a ball or images that do not fit; the norm in lower case, and how far the ball reaches within [0, 1]."""
    if norm.lower() not in ("l2", "linf"):
        raise ValueError(f'norm must be "l2" or "linf", got {norm!r}')
    if not radius >= 0:
        raise ValueError(f"radius must be 0 or more pixels, got {radius}")
    if norm.lower() == "linf" and radius > 1:
        raise ValueError(
            f"an L-inf radius of {radius} leaves [0, 1]; pixels are in [0, 1], so 8 levels are 8/255"
        )
    if images.ndim != 4 or not images.numel() or images.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"images must be a tensor (n, channels, height, width) of float32 or float64, n at least 1; got "
            f"{images.dtype} {tuple(images.shape)}. bfloat16 has steps of 1/256 near 1, an eighth of a radius of "
            f"8/255: let the classifier round the pixels that it is given"
        )
    low, high = images.aminmax()
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"images must hold pixels in [0, 1], got values from {low:.4g} to {high:.4g}; put the normalisation "
            f"into the classifier"
        )
    return norm.lower(), min(radius, 1 if norm.lower() == "linf" else images[0].numel() ** 0.5)


def check_labels(
    classifier: nn.Module, images: Tensor, labels: Tensor
) -> tuple[int, Int64[Tensor, " labels"]]:
    """Refuse labels that do not fit the classifier's classes; the count of these, and the labels."""
    labels = class_indices(labels)
    if labels.shape != (len(images),):
        raise ValueError(f"images and labels (n,) must agree, got {len(images)} and {tuple(labels.shape)}")
    with frozen(classifier), torch.no_grad(), taking("the classifier", images):
        found = classifier(images[:1])
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != 1 or not found.is_floating_point():
        got = type(found).__name__
        got = f"a tensor {tuple(found.shape)} of {found.dtype}" if isinstance(found, Tensor) else got
        raise ValueError(f"the classifier must give logits (n, classes), for one image it gave {got}")
    classes = found.shape[1]
    if classes < 2:
        raise ValueError(
            f"the classifier must give two logits or more, got {classes}; of one score z give (-z, z)"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"labels must lie between 0 and {classes - 1}, the classifier's classes; got {int(labels.min())} to "
            f"{int(labels.max())}"
        )
    return classes, labels


def is_right(classifier: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return _no_nan(classifier(images)).argmax(1) == labels


def _margins(classifier: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> Tensor:
    """The true class's score less the best other's."""
    with torch.no_grad():
        logits = _no_nan(classifier(images))
    true = logits.gather(1, labels[:, None])[:, 0]
    return true - logits.scatter(1, labels[:, None], -torch.inf).amax(1)


def _no_nan(logits: Tensor) -> Tensor:
    if torch.isnan(logits).any():
        raise ValueError(
            "the classifier gives NaN on an image in [0, 1], and NaN compares as wrong: an attack on it means nothing; "
            "is the checkpoint intact, or the precision too low?"
        )
    return logits


def ascent(
    scores: Callable[[Tensor], Tensor], x: Tensor, labels: Tensor, aim: Tensor | None, entropy: bool = False
) -> tuple[Float[Tensor, "batch classes"], Tensor]:
    """The scores, and the gradient of: a class's score (the best other's) less the true one's, or cross-entropy."""
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        logits = scores(x)
        if entropy:
            loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
        else:
            true = nn.functional.one_hot(labels, logits.shape[1]).bool()
            other = logits.masked_fill(true, -torch.inf).amax(1)
            if aim is not None:
                other = logits.gather(1, aim[:, None])[:, 0]
            loss = (other - logits[true]).sum()
        return logits.detach(), gradient_of(loss, x)


def gradient_of(loss: Tensor, x: Tensor) -> Tensor:
    """The gradient at x; zero where the loss does not depend on x, or not differentiably."""
    if not loss.requires_grad:
        return torch.zeros_like(x)
    with PlainNorms():
        (gradient,) = torch.autograd.grad(loss, x, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient.nan_to_num(0.0, 0.0, 0.0)


def attack_of(images: Tensor, *tensors: Tensor, norm: str, radius: float | int) -> Attack:
    found, clean, right, blind = tensors
    arrays = (t.cpu().numpy() for t in (clean, right, length(found - images, norm), blind))
    before, after, distance, flat = arrays
    return Attack(found.detach(), before, after, distance, norm, radius, flat)


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients of parameters, for as long as it lasts."""
    wanted = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    network.requires_grad_(False)
    try:
        with evaluating(network):
            yield
    finally:
        for parameter, required in wanted:
            parameter.requires_grad_(required)
