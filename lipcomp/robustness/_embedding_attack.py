"""Robustness without a probe: how far an attack can move the embedding itself.

With mu(x) the mean direction, the attack maximises the chord ||mu(x') - mu(x)|| over the ball around x, cut with [0,
1]: the numerator of the searched Lipschitz constant, without labels and without a classifier. chord / ||x' - x||_2 is
a lower bound of the constant of mu on the segment (theory, 3.5). Two numbers come of it: the chord, from 0 to 2, and
the share of images that are still *found*: whose attacked embedding lies nearer to their own clean embedding than to
that of any other image of the set.

Where the encoder has no gradient (rounded pixels), the chord is searched at random; ``EmbeddingAttack.blind`` says so.

>>> attack = embedding_attack(encoder, images, norm="linf", radius=4 / 255)  # doctest: +SKIP
>>> attack.chord.mean(), found_again(encoder(images), encoder(attack.images))  # doctest: +SKIP
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lipcomp._arguments import checked
from lipcomp.jacobian._precision import doubled
from lipcomp.robustness._attacks import check_ball, check_counts, frozen, gradient_of
from lipcomp.robustness._estimates import Estimate, proportion
from lipcomp.robustness._random_search import into_ball, length, random_search, random_start, steepest

Encode = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class EmbeddingAttack:
    """What was found."""

    images: Float[Tensor, "n channels height width"] = field(repr=False)  # the attacked images
    # ||mu(x') - mu(x)|| of each, from 0 to 2, evaluated in float64 at the attacked images
    chord: Float[np.ndarray, " n"] = field(repr=False)
    distance: Float[np.ndarray, " n"] = field(repr=False)  # ||x' - x||_2 of each, in pixels
    norm: str  # of the ball
    radius: float | int  # of the ball, in pixels
    # whether the chord has no gradient at random points of the ball, so that only random search could enlarge it
    blind: Bool[np.ndarray, " n"] = field(repr=False)


@checked
def embedding_attack(
    encode: Encode,
    images: Float[Tensor, "n channels height width"],
    *,
    norm: str = "linf",
    radius: float | int,
    steps: int = 50,
    starts: int = 2,
    queries: int = 500,
    seed: int = 0,
    batch_size: int = 128,
) -> EmbeddingAttack:
    """Projected ascent of the chord from random starts (at x itself its gradient is zero); the best point counts.

    Its chord is evaluated again in float64: that of float32 is up to twice too large at a radius of 1e-6.

    Parameters
    ----------
    encode
        Pixels in [0, 1] -> embeddings (n, dim); they are normalised here. A module runs in evaluation mode.
    images
        The images to attack.
    norm, radius
        Norm ("linf" or "l2") and radius of the ball, in pixels.
    steps, starts
        Gradient steps from each start (at least two: half of them go to the border, half from the best point on), and
        random starts. An image that has settled at a corner of the cube starts again, anew or near the best.
    queries
        Queries of the random search on images without a gradient.
    seed
        Of the starts.
    batch_size
        Images per batch.

    Raises
    ------
    ValueError
        If norm, radius or images (pixels in [0, 1]) do not fit, or an embedding is not finite.
    """
    norm, reach = check_ball(images, norm, radius)
    check_counts(2, steps=steps)
    check_counts(starts=starts, batch_size=batch_size)
    check_counts(0, queries=queries)
    images = images.detach()
    generator = torch.Generator().manual_seed(seed)
    found, chords, blind = [], [], []
    with frozen(encode if isinstance(encode, nn.Module) else nn.Module()):
        for x in images.split(batch_size):
            with torch.no_grad():
                clean = _directions(encode, x)
            best, chord = x.clone(), torch.zeros(len(x), dtype=clean.dtype, device=x.device)
            flat = torch.ones(len(x), dtype=torch.bool, device=x.device)
            for _ in range(starts if reach > 0 else 0):
                candidate = random_start(x, norm, reach, generator)
                power = torch.ones_like(flat)  # by the power method, as where the chord is nearly linear
                for step in range(steps + 1):
                    if step == steps // 2:  # from the best point on, by steps that shrink to 0
                        candidate, power = best.clone(), torch.zeros_like(flat)
                    candidate.requires_grad_(True)
                    with torch.enable_grad():
                        squared = (_directions(encode, candidate) - clean).square().sum(1)
                        gradient = gradient_of(squared.sum(), candidate)
                    if step == 0:
                        flat &= gradient.flatten(1).abs().amax(1) == 0
                    candidate, reached = candidate.detach(), squared.detach().sqrt()
                    further = reached > chord
                    best[further], chord[further] = candidate[further], reached[further]
                    uphill = steepest(gradient, norm)
                    size, last = 8 * reach / steps * (1 - step / steps), candidate
                    ends = x + reach * uphill, candidate + size * uphill
                    candidate = into_ball(torch.where(power.view(-1, 1, 1, 1), *ends), x, norm, reach)
                    settled = (candidate == last).flatten(1).all(1)  # at a corner
                    if settled.any():
                        # another start, or the best point with a quarter of its pixels drawn anew
                        kept = torch.rand(
                            x.shape, generator=generator, device=generator.device, dtype=torch.float32
                        )
                        kept = kept.to(x.device) < 0.75
                        start = random_start(x, norm, reach, generator)
                        candidate[settled] = torch.where(kept & (step % 2 > 0), best, start)[settled]
                        power |= settled
            if reach > 0 and len(todo := flat.nonzero()[:, 0]):
                nearness = partial(_nearness, encode, clean[todo])
                end, least = random_search(
                    nearness, x[todo], norm, reach, queries, generator, enough=-torch.inf
                )
                further = -least > chord[todo]
                best[todo[further]], chord[todo[further]] = end[further], -least[further]
            found.append(best)
            chords.append(_proved(encode, x, best, chord))
            blind.append(flat)
    moved = torch.cat(found)
    distance = length(moved - images, "l2").cpu().double().numpy()
    return EmbeddingAttack(
        moved, torch.cat(chords).numpy(), distance, norm, radius, torch.cat(blind).cpu().numpy()
    )


def found_again(clean: Float[np.ndarray, "n dim"], moved: Float[np.ndarray, "n dim"]) -> Estimate:
    """The share of attacked images whose nearest clean direction is their own."""
    return proportion((moved @ clean.T).argmax(1) == np.arange(len(clean)))


def _proved(encode: Encode, x: Tensor, moved: Tensor, chord: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The chords again in float64; where the encoder has no such version, less what rounding may add (theory, 3.8)."""
    wide, _ = doubled(encode, x[:2])
    if wide is None:
        return (chord.double().cpu() - 8 * torch.finfo(chord.dtype).eps).clamp_min(0)
    with torch.no_grad():
        return (_directions(wide, moved) - _directions(wide, x)).norm(dim=1).cpu()


def _nearness(encode: Encode, clean: Tensor, x: Tensor) -> Float[Tensor, " n"]:
    """Minus the chord."""
    with torch.no_grad():
        return -(_directions(encode, x) - clean).norm(dim=1)


def _directions(encode: Encode, x: Tensor) -> Float[Tensor, "n dim"]:
    directions = nn.functional.normalize(encode(x).flatten(1), dim=1)
    if not torch.isfinite(directions).all():
        raise ValueError("the encoder gives NaN or infinity on an image in [0, 1]; is the checkpoint intact?")
    return directions
