"""Certified radius and accuracy of a probe's logits: no perturbation within the radius changes the class (5.8).

With c the predicted class, m_j = f_c - f_j its lead over class j at the image, and L_j a bound of how fast that lead
can change along any chord from the image in the ball of radius r, no point nearer than min(r, min_j m_j / L_j) has
another class. Chords are all that is needed here, and are about half as uncertain as tangents (`lipcomp.bound._local`).
"""

import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, fx

from lipcomp._arguments import estimator
from lipcomp.bound._capture import NoRule, capture
from lipcomp.bound._certified import UNITS, check_limits, chord_pass
from lipcomp.bound._local import Track
from lipcomp.jacobian._checks import check_images, check_map, check_pixels
from lipcomp.jacobian._precision import doubled, full_precision
from lipcomp.jacobian._products import Map, as_rows


@estimator
def certified_radius(
    fn: Map,
    images: Float[Tensor, "n ..."],
    radius: float,
    *,
    memory: float = 4.0,
    units: int = UNITS,
    advance: Callable[[int], object] | None = None,
) -> Float[Tensor, " n"]:
    """The L2 distance within which the predicted class of each image cannot change; 0 if nothing is certified.

    Where that is for an operation without a rule, or a limit, a warning says which.

    Parameters
    ----------
    fn
        A map of images to logits, in evaluation mode: an encoder with its linear probe.
    images
        Pixels.
    radius
        Radius of the ball that is examined, an upper limit of the result. A ball much larger than the result is loose.
    memory, units, advance
        As for :func:`~lipcomp.bound.certified_bound`.

    Raises
    ------
    ValueError
        If the radius is not positive, or images or map are not fit.

    Examples
    --------
    >>> import torch
    >>> from lipcomp.bound import certified_radius
    >>> logits = lambda x: torch.stack([x.flatten(1)[:, 0], x.flatten(1)[:, 1]], 1)
    >>> certified_radius(logits, torch.tensor([[0.7, 0.3]]), 1.0)
    tensor([0.2828], dtype=torch.float64)
    """
    if not 0 < radius < math.inf:
        raise ValueError(f"radius must be positive and finite, got {radius}")
    check_limits(memory, units)
    check_images(images, None)
    check_pixels(fn, images)
    check_map(fn, images)
    found = torch.zeros(len(images), dtype=torch.float64)
    reasons: list[str] = []
    try:
        graph = capture(fn, images)
    except NoRule as missing:
        reasons = [str(missing)] * len(images)
    for i in range(len(images) - len(reasons)):
        try:
            with torch.no_grad(), full_precision():
                found[i] = _radius(graph, images[i : i + 1], radius, memory * 2**30, units)
        except NoRule as missing:
            reasons.append(str(missing))
        if advance is not None:
            advance(1)
    if reasons:
        why = "; ".join(dict.fromkeys(reasons))
        warnings.warn(
            f"nothing is certified for {len(reasons)} of {len(images)} images, which get 0: {why}",
            stacklevel=3,
        )
    return found


def _radius(graph: fx.GraphModule, image: Tensor, radius: float, memory: float, units: int) -> float:
    track, ball = chord_pass(graph, image, radius, memory, units)
    logits = track.value.flatten()
    if len(logits) < 2:
        raise NoRule("one logit has no margin")
    leader = int(logits.argmax())
    others = [j for j in range(len(logits)) if j != leader]
    lead = (logits[leader] - logits[others]) * (1 - 1e-9)
    lead -= 1e-12 * float(logits.nan_to_num(math.nan, 0, 0).abs().max())  # a class may be masked by -inf
    ahead = Track(lead, track.flat[:, leader : leader + 1] - track.flat[:, others])
    speed = ball.rows(ahead, tight=False)
    if bool((lead < speed * radius).any()):
        speed = ball.rows(ahead)
    least = radius
    for m, bound, column in zip(lead.tolist(), speed.tolist(), ahead.columns.mT, strict=True):
        if not (m > 0 and math.isfinite(bound)):
            return 0.0
        if m < bound * least:
            bound = min(bound, ball.norm(column[None]))
        least = min(least, m / bound if bound > 0 else math.inf)
    return least * (1 - 1e-9)


@estimator
def certified_accuracy(
    fn: Map,
    images: Float[Tensor, "n ..."],
    labels: Int[Tensor, " n"],
    radii: Sequence[float],
    **settings: object,
) -> Float[Tensor, " radii"]:
    """The share of images classified correctly at the image and everywhere in the ball, for each L2 radius.

    A lower bound of the robust accuracy, as an attack's is an upper one.

    Parameters
    ----------
    fn, images
        As for :func:`certified_radius`.
    labels
        Class of each image.
    radii
        Radii of the balls; what holds in a ball counts in every smaller one. At 0 it is the accuracy at the images.
    settings
        Further options of :func:`certified_radius`.

    Raises
    ------
    ValueError
        If the labels are not one whole number per image, a radius is negative or not finite, or as
        :func:`certified_radius`.

    Examples
    --------
    >>> import torch
    >>> from lipcomp.bound import certified_accuracy
    >>> logits = lambda x: torch.stack([x.flatten(1)[:, 0], x.flatten(1)[:, 1]], 1)
    >>> images, labels = torch.tensor([[0.7, 0.3], [0.9, 0.1]]), torch.tensor([0, 0])
    >>> certified_accuracy(logits, images, labels, [0.2, 0.5])
    tensor([1.0000, 0.5000], dtype=torch.float64)
    """
    check_images(images, None)
    check_map(fn, images)
    radii = [float(r) for r in radii]  # in float32 a radius and one a little larger are the same number
    if not radii or not all(0 <= r < math.inf for r in radii):
        raise ValueError(f"radii must be finite and not negative, at least one, got {radii}")
    with torch.no_grad():
        logits = as_rows(fn(images.clone()), len(images))
        exact = doubled(fn, images)[1]  # what is certified; where logits are close float32 sees another class
    labels = torch.as_tensor(labels) if isinstance(labels, np.ndarray) else labels
    _check_labels(labels, len(images), logits.shape[1])
    right = logits.argmax(1) == labels.to(logits.device)
    if exact is not None:
        right &= as_rows(exact, len(images)).argmax(1) == labels.to(logits.device)
    right = right.cpu()
    held = torch.stack([
        certified_radius(fn, images, r * (1 + 1e-8), **settings).cpu() >= r if r else torch.ones_like(right)  # type: ignore[arg-type]
        for r in radii
    ])  # fmt: skip
    for k in reversed(range(len(radii))):
        wider = [j for j in range(len(radii)) if radii[j] >= radii[k]]
        held[k] = held[wider].any(0)
    return (held & right).double().mean(1)


def _check_labels(labels: Tensor, n: int, classes: int) -> None:
    if labels.is_floating_point() or labels.shape != (n,):
        raise ValueError(
            f"labels must be a tensor of one class per image, {n} whole numbers; got {labels.dtype} "
            f"{tuple(labels.shape)}"
        )
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(
            f"labels must lie between 0 and {classes - 1}, the classes of fn; got {int(labels.min())} to "
            f"{int(labels.max())}"
        )
