"""How far rounding reaches into a chord, and the same map in float64 (theory (3.8)).

An output of a float32 network is off by eta, about 1e-7 times the root of its depth, and a chord delta by as much:
its relative error is eta / delta, whatever the distance of the two images. So what is reported comes from chords that
are proved:

- above eta / :data:`RELATIVE` a float32 chord is right to 0.1%: good enough for a table of values;
- below it comes the chord of the same map in float64, and where rounding reaches that too, or there is no such map,
  ‖J v‖ along the pair's direction (4.3), which needs no difference;
- a *maximum* is taken over leading pairs that were computed again by the same map in float64.

The same map in float64 is the user's own function with every tensor that it touches made float64 on the way, casts to
half precision included. Where that is not possible (a scripted function, an operator without float64), maxima keep
their float32 values, right to 0.1%; a map that rounds to half precision there is refused.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lipcomp.jacobian._precision import doubled
from lipcomp.jacobian._products import Linearisation, Map, as_rows, narrowed

RELATIVE = 1e-3  # error of a chord that is accepted
SAMPLE = 2  # images from which eta is estimated
# eta if it cannot be estimated, relative to the output's norm
ASSUMED = {torch.float32: 1e-6, torch.float64: 1e-14}
AT_ONCE = 32


def in_float64(
    fn: Map, images: Float[Tensor, "n ..."], normalised: bool, wide: Map | None
) -> tuple[Map | None, float]:
    """The same map in float64, if there is one; and eta, of directions (``normalised``) or of outputs.

    ``wide`` is that map, where :func:`~lipcomp.jacobian._checks.check_map` has found it.
    One that rounds to fewer digits on the way is none: its chords of close pairs are rounding. Eta is twice the largest
    error at the first of the images.
    """
    few = images[:SAMPLE]
    found, exact = doubled(fn, few) if wide is None else (wide, wide(few.clone()).detach())
    with torch.no_grad():
        outputs = as_rows(fn(few.clone()), len(few))
    size = 1.0 if normalised else float(outputs.double().norm(dim=1).nan_to_num(0, 0, 0).amax())
    if exact is None:
        return None, ASSUMED[outputs.dtype] * size
    exact = as_rows(exact, len(few))
    if normalised:
        outputs, exact = unit(outputs), unit(exact)
    error = (outputs.double() - exact).norm(dim=1).nan_to_num(0, 0, 0).amax()
    found = None if found is None or narrowed(found, few[:1].double()) else found
    return found, max(2 * float(error), 4 * torch.finfo(images.dtype).eps * size)


def unit(outputs: Float[Tensor, "n dim"]) -> Float[Tensor, "n dim"]:
    """Outputs made unit vectors again in float64; zeros and what is not finite stay as they are."""
    outputs = outputs.double()
    norms = outputs.norm(dim=1, keepdim=True)
    return outputs / norms.where((norms > 0) & norms.isfinite(), torch.ones_like(norms))


def chords(
    fn: Map, first: Float[Tensor, "pairs ..."], second: Float[Tensor, "pairs ..."], normalised: bool
) -> Float[Tensor, " pairs"]:
    """Chords delta of all pairs, by a map in float64."""
    with torch.no_grad():
        both = torch.cat([first, second])
        outputs = as_rows(fn(both), len(both)).double() if len(both) else both.flatten(1).double()
    one, other = (unit(outputs) if normalised else outputs).chunk(2)
    return (one - other).norm(dim=1).cpu()


def proved_chords(
    fn: Map,
    wide: Map | None,
    eta: float,
    first: Float[Tensor, "pairs ..."],
    second: Float[Tensor, "pairs ..."],
    normalised: bool,
) -> tuple[Float[Tensor, " pairs"], Bool[Tensor, " pairs"]]:
    """Chords of all pairs by the map in float64 (``wide``), if there is one, and which came from the Jacobian.

    Those are the ones that rounding reaches; ``eta`` is that of ``fn``.
    """
    if wide is not None:
        eta *= torch.finfo(torch.float64).eps / torch.finfo(first.dtype).eps
        fn, first, second = wide, first.double(), second.double()
    parts = zip(first.split(AT_ONCE), second.split(AT_ONCE), strict=True)
    chord = torch.cat([chords(fn, *part, normalised) for part in parts])
    distance = (second.double() - first.double()).flatten(1).norm(dim=1).cpu()
    lost = (chord < eta / RELATIVE) & (distance > 0)
    if bool(lost.any()):
        chord[lost] = along(fn, first[lost], second[lost]) * distance[lost]
    return chord, lost


def along(
    fn: Map, first: Float[Tensor, "pairs ..."], second: Float[Tensor, "pairs ..."]
) -> Float[Tensor, " pairs"]:
    """‖J v‖ at the first image of every pair, v the unit direction to the second."""
    step = second.double() - first.double()
    step = step / step.flatten(1).norm(dim=1).view(-1, *[1] * (step.dim() - 1))
    moved = [
        Linearisation(fn, images).forward(directions.to(images)).double().norm(dim=1).cpu()
        for images, directions in zip(first.split(AT_ONCE), step.split(AT_ONCE), strict=True)
    ]
    return torch.cat(moved)
