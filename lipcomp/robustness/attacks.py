"""Adversarial attacks on probe + encoder, in pixel units.

The classifier maps pixels in [0, 1] to logits, normalisation inside, so a radius is in pixels: 8/255 in L-inf, 0.5 in
L2 over all pixels. Every adversarial image lies in the ball and in [0, 1].

:func:`pgd` ascends two losses by projected gradient steps, from several random starts. :func:`auto_attack` runs
AutoAttack (Croce & Hein 2020: two APGD, FAB, Square) through the package ``pyautoattack``; it is the number to report,
since a weak attack flatters.

>>> classifier = probe.on(encoder)  # doctest: +SKIP
>>> pgd(classifier, images, labels, norm="Linf", radius=8 / 255).accuracy  # doctest: +SKIP
Estimate(value=0.31, interval=(0.28, 0.34), n=1000)
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from lipcomp.robustness.estimates import Estimate, bootstrap


@dataclass(frozen=True)
class Attack:
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
    """

    images: Float[Tensor, "n channels height width"] = field(repr=False)
    clean: Bool[np.ndarray, " n"] = field(repr=False)
    right: Bool[np.ndarray, " n"] = field(repr=False)
    distance: Float[np.ndarray, " n"] = field(repr=False)
    norm: str
    radius: float | int

    @property
    def accuracy(self) -> Estimate:
        """Robust accuracy with its interval over images."""
        return bootstrap(self.right[None])


def pgd(
    classifier: nn.Module,
    images: Float[Tensor, "n channels height width"],
    labels: Int64[Tensor, " labels"],
    *,
    norm: str = "Linf",
    radius: float | int,
    steps: int = 50,
    step_size: float | None = None,
    starts: int = 2,
    seed: int = 0,
    batch_size: int = 128,
) -> Attack:
    """Projected gradient ascent from random starts (Madry et al. 2018).

    The loss is the margin (the best other logit less the true one) from every other start, beginning with the image
    itself, and the cross-entropy from the rest: which of the two finds more differs between classifiers. Every point on
    the way counts, not the last alone.

    Parameters
    ----------
    classifier
        Pixels in [0, 1] -> logits.
    images, labels
        What to attack.
    norm, radius
        The ball, in pixels.
    steps, step_size
        Gradient steps from each start; a step of 2.5 radius / steps if not given.
    starts
        Random starts in the ball; the first is the image itself.
    seed
        Of the starts.
    batch_size
        Images at a time.

    Raises
    ------
    ValueError
        If the radius is negative, the norm does not exist, or images and labels do not fit.
    """
    _check(images, labels, norm, radius)
    generator = torch.Generator().manual_seed(seed)
    size = 2.5 * radius / steps if step_size is None else step_size
    found, clean, right = [], [], []
    with _frozen(classifier):
        for x, y in _parts(images, labels, batch_size):
            best = x.clone()
            before = _is_right(classifier, x, y)
            fooled = ~before
            for start in range(starts):
                candidate = x if start == 0 else _random_start(x, norm, radius, generator)
                for step in range(steps + 1):
                    wrong, gradient = _ascent(classifier, candidate, y, margin=start % 2 == 0)
                    new = wrong & ~fooled
                    best[new] = candidate[new]
                    fooled |= new
                    if step == steps or fooled.all():
                        break
                    candidate = _into_ball(candidate + size * _unit(gradient, norm), x, norm, radius)
            found.append(best)
            clean.append(before)
            right.append(~fooled)
    return _attack(images, torch.cat(found), torch.cat(clean), torch.cat(right), norm, radius)


def auto_attack(
    classifier: nn.Module,
    images: Float[Tensor, "n channels height width"],
    labels: Int64[Tensor, " labels"],
    *,
    norm: str = "Linf",
    radius: float | int,
    seed: int = 0,
    batch_size: int = 128,
    attacks: tuple[str, ...] = ("apgd-ce", "apgd-t", "fab-t", "square"),
) -> Attack:
    """AutoAttack's standard version, through ``pyautoattack``; the global random state is left as it was.

    With fewer than ten classes the targeted attacks aim at all others (the standard aims at nine), and with fewer
    than four the untargeted FAB stands in for APGD-T, whose loss needs four. Square in L2 needs images of at least
    5 x 5 pixels.

    Raises
    ------
    ImportError
        If pyautoattack is not installed.
    ValueError
        As for :func:`pgd`.
    """
    _check(images, labels, norm, radius)
    attack_class = load_autoattack()
    with _frozen(classifier), torch.random.fork_rng(), _quiet():
        before = torch.cat([_is_right(classifier, *part) for part in _parts(images, labels, batch_size)])
        with torch.no_grad():
            classes = classifier(images[:1]).shape[1]
        chosen = attacks if classes >= 4 else ("apgd-ce", "fab", "square")
        adversary = attack_class(
            classifier,
            norm=norm,
            eps=radius,
            version="custom",
            attacks=list(chosen),
            device=images.device,
            seed=seed,
        )
        adversary.apgd_targeted.n_target_classes = min(9, classes - 1)
        adversary.fab.n_target_classes = min(9, classes - 1)
        found, _ = adversary.run_standard_evaluation(images, labels, batch_size=batch_size)
        found = _into_ball(found, images, norm, radius)
        after = torch.cat([_is_right(classifier, *part) for part in _parts(found, labels, batch_size)])
    right = after & before
    found = torch.where((before & ~after).view(-1, 1, 1, 1), found, images)
    return _attack(images, found, before, right, norm, radius)


def load_autoattack() -> Any:
    """Pyautoattack's class, or an ImportError that says how to install it."""
    try:
        from pyautoattack import AutoAttack
    except ImportError as error:
        raise ImportError(
            f"AutoAttack runs through pyautoattack, which is not installed ({error}); install it with: "
            f'pip install "lipcomp[attacks]"'
        ) from error
    return AutoAttack


def _check(images: Tensor, labels: Tensor, norm: str, radius: float | int) -> None:
    if norm not in ("L2", "Linf"):
        raise ValueError(f'norm must be "L2" or "Linf", got {norm!r}')
    if not radius >= 0:
        raise ValueError(f"radius must be 0 or more pixels, got {radius}")
    if norm == "Linf" and radius > 1:
        raise ValueError(
            f"an L-inf radius of {radius} leaves [0, 1]; pixels are in [0, 1], so 8 levels are 8/255"
        )
    if images.ndim != 4 or labels.shape != (len(images),) or not len(images):
        raise ValueError(
            f"images must be (n, channels, height, width) and labels (n,), n at least 1; got {tuple(images.shape)} "
            f"and {tuple(labels.shape)}"
        )


def _parts(images: Tensor, labels: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(images.split(size), labels.split(size), strict=True)


def _is_right(classifier: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return classifier(images).argmax(1) == labels


def _ascent(
    classifier: nn.Module, x: Tensor, labels: Tensor, *, margin: bool
) -> tuple[Bool[Tensor, " batch"], Tensor]:
    """Which images are wrong, and the loss's gradient: of the best other logit less the true one, or cross-entropy."""
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        logits = classifier(x)
        if margin:
            true = nn.functional.one_hot(labels, logits.shape[1]).bool()
            loss = (logits.masked_fill(true, -torch.inf).amax(1) - logits[true]).sum()
        else:
            loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
    return logits.argmax(1) != labels, gradient


def _unit(gradient: Tensor, norm: str) -> Tensor:
    """The direction of steepest ascent of length one in the norm."""
    if norm == "Linf":
        return gradient.sign()
    return gradient / gradient.flatten(1).norm(dim=1).clamp_min(1e-20).view(-1, 1, 1, 1)


def _into_ball(x: Tensor, origin: Tensor, norm: str, radius: float | int) -> Tensor:
    """Project on the ball, then on [0, 1]: the second step brings no pixel further from the origin."""
    delta = x - origin
    if norm == "Linf":
        delta = delta.clamp(-radius, radius)
    else:
        length = delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        delta = delta * (radius / length.clamp_min(1e-20)).clamp(max=1)
    return (origin + delta).clamp(0, 1)


def _random_start(x: Tensor, norm: str, radius: float | int, generator: torch.Generator) -> Tensor:
    """Uniform in the cube, or a random direction with the radius of a uniform draw in the ball."""
    draw = torch.rand if norm == "Linf" else torch.randn
    noise = draw(x.shape, generator=generator).to(x)
    if norm == "Linf":
        return _into_ball(x + (2 * noise - 1) * radius, x, norm, radius)
    length = noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    share = torch.rand(len(x), generator=generator).pow(1 / x[0].numel()).to(x).view(-1, 1, 1, 1)
    return _into_ball(x + noise / length * radius * share, x, norm, radius)


def _attack(
    images: Tensor, found: Tensor, clean: Tensor, right: Tensor, norm: str, radius: float | int
) -> Attack:
    delta = (found - images).flatten(1)
    distance = delta.abs().amax(1) if norm == "Linf" else delta.norm(dim=1)
    return Attack(
        found.detach(), clean.cpu().numpy(), right.cpu().numpy(), distance.cpu().numpy(), norm, radius
    )


@contextmanager
def _frozen(classifier: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients of parameters, for as long as it lasts."""
    modes = [(module, module.training) for module in classifier.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in classifier.parameters()]
    classifier.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, required in wanted:
            parameter.requires_grad_(required)


@contextmanager
def _quiet() -> Iterator[None]:
    """NumPy's random state and the attack's logger, as they were."""
    state, logger = np.random.get_state(), logging.getLogger("auto-attack")  # noqa: NPY002
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
        logger.setLevel(level)
