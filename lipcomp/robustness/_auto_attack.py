"""AutoAttack (Croce & Hein 2020: two APGD, FAB, Square) through the package ``pyautoattack``.

The classifier is as for :func:`lipcomp.robustness.pgd`. This is the number to report, since a weak attack flatters.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from lipcomp._arguments import checked
from lipcomp._messages import needed
from lipcomp.jacobian._precision import in_float32
from lipcomp.robustness._attacks import (
    TARGETS,
    Attack,
    Rounding,
    ascent,
    attack_of,
    check_ball,
    check_counts,
    check_labels,
    frozen,
    is_right,
)
from lipcomp.robustness._random_search import into_ball

STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
STAND_IN = dict.fromkeys(("apgd-t", "apgd-dlr", "fab-t"), "fab")  # with fewer than four classes
KNOWN = (*STANDARD, "apgd-dlr", "fab")


@checked
def auto_attack(
    classifier: nn.Module,
    images: Float[Tensor, "n channels height width"],
    labels: Int64[Tensor, " labels"],
    *,
    norm: str = "linf",
    radius: float | int,
    generator: torch.Generator | None = None,
    batch_size: int = 128,
    attacks: tuple[str, ...] = STANDARD,
) -> Attack:
    """AutoAttack's standard version, through ``pyautoattack``; the global random state is not changed.

    With fewer than ten classes the targeted attacks aim at all others (the standard aims at nine), and with fewer
    than four the untargeted FAB stands in for APGD-T, whose loss needs four. Square in L2 refuses images on which its
    patches do not fit: below 5 x 5 pixels, 12, 14, 18, 19 or 24 pixels square, or 32 x 48.

    Parameters
    ----------
    classifier, images, labels, norm, radius, batch_size
        As for :func:`pgd`.
    generator
        Its seed is used as AutoAttack's; 0 by default.
    attacks
        The attacks, in this order: of apgd-ce, apgd-t, apgd-dlr, fab, fab-t and square.

    Raises
    ------
    ImportError
        If pyautoattack is not installed.
    ValueError
        As for :func:`pgd`.

    Examples
    --------
    >>> from lipcomp.robustness import auto_attack
    >>> auto_attack(classifier, images, labels, norm="linf", radius=8 / 255).accuracy  # doctest: +SKIP
    Estimate(value=0.31, interval=(0.28, 0.34), n=1000)
    """
    norm, reach = check_ball(images, norm, radius)
    check_counts(batch_size=batch_size)
    images = images.detach()
    classes, labels = check_labels(classifier, images, labels)
    chosen = _chosen(tuple(attacks), classes, norm, images)
    attack_class = load_autoattack()
    with frozen(classifier), torch.random.fork_rng(), torch.device(images.device), _quiet():
        pairs = [*zip(images.split(batch_size), labels.split(batch_size), strict=True)]
        before = torch.cat([is_right(classifier, *pair) for pair in pairs])
        gradients = [ascent(classifier, *pair, None)[1] for pair in pairs]
        blind = torch.cat([gradient.flatten(1).abs().amax(1) == 0 for gradient in gradients])
        found = images
        if reach > 0:  # else every image is its own ball
            adversary = attack_class(
                Rounding(classifier, images.dtype),
                norm={"l2": "L2", "linf": "Linf"}[norm],
                eps=reach,
                version="custom",
                attacks=chosen,
                device=images.device,
                seed=0 if generator is None else generator.initial_seed(),
            )
            adversary.apgd_targeted.n_target_classes = min(TARGETS, classes - 1)
            adversary.fab.n_target_classes = min(TARGETS, classes - 1)
            found, _ = adversary.run_standard_evaluation(images.float(), labels, batch_size=batch_size)
            found = into_ball(found.to(images.dtype), images, norm, reach)
        parts = zip(found.split(batch_size), labels.split(batch_size), strict=True)
        after = torch.cat([is_right(classifier, *part) for part in parts])
    right = after & before
    found = torch.where((before & ~after).view(-1, 1, 1, 1), found, images)
    return attack_of(images, found, before, right, blind, norm=norm, radius=radius)


def load_autoattack() -> Any:
    """Pyautoattack's class, or an ImportError that says how to install it."""
    with needed("AutoAttack", "lipcomp[attacks]"):
        from pyautoattack import AutoAttack
    return AutoAttack


def _chosen(attacks: tuple[str, ...], classes: int, norm: str, images: Tensor) -> list[str]:
    """The attacks to run: those asked for, if classes and images are enough for them."""
    unknown = [name for name in attacks if name not in KNOWN]
    if unknown or not attacks:
        raise ValueError(
            f"attacks must be one or more of {', '.join(KNOWN)}, got {', '.join(attacks) or 'none'}"
        )
    if classes < 4:
        attacks = tuple(dict.fromkeys(STAND_IN.get(name, name) for name in attacks))
    sides = tuple(images.shape[2:])
    patch, rest = divmod(sides[0], 5)  # Square in L2 begins with a grid of patches
    fits = patch == 1 or (patch > 1 and all(rest // 2 + side // patch * patch <= side for side in sides))
    if norm == "l2" and "square" in attacks and not fits:
        raise ValueError(
            f"attack square in l2 cannot lay its patches on images of {sides} pixels; give the other attacks, norm "
            f"linf, or pgd"
        )
    return list(attacks)


@contextmanager
def _quiet() -> Iterator[None]:
    """NumPy's random state, the logger and a debugger's trace as they were."""
    tracer = sys.gettrace()  # it counts the classifier's calls by a trace of its own, and leaves none
    state, logger = np.random.get_state(), logging.getLogger("auto-attack")  # noqa: NPY002
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with in_float32():
            yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
        logger.setLevel(level)
        sys.settrace(tracer)
