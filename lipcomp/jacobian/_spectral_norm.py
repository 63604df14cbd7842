"""sigma_max(J), the local Lipschitz constant of a map at every image of a batch, matrix-free.

The local constant of mu at x is the largest singular value of J = dmu/dx (theory (4.1), (4.4)). It comes from
Lanczos on J Jᵀ (:mod:`lipcomp.jacobian._lanczos`) with products at one forward pass each
(:mod:`lipcomp.jacobian._products`): 7 to 27 products per image for encoders of dimension 64 to 128, where the row loop
takes as many as there are outputs. Every value is a lower bound of sigma_max, converged or not.

A float32 derivative is off by a part of the map's own scale ‖fn(x)‖ / ‖x‖, and by far more where a layer divides by
a variance that is rounding alone, or a later layer enlarges rounding. So a value below WEAK of that scale is no
evidence, nor is one STRONG times as large, nor zero, which may be a product of factors too small for float32: such
images are measured again by the same map in float64. A network that loses digits does so for most images: the smallest
value s beside its scale is held against ‖Jᵀ u‖ in float64, u its left vector, and if that differs by more than
``rtol`` all are. Where the map has no float64 version or float32 cannot hold the result they are not converged; a zero
stays one. A map that rounds to half precision inside is measured in float64 alone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Generator, Tensor

from lipcomp._arguments import estimator
from lipcomp._norms import PlainNorms
from lipcomp._results import ResultMixin
from lipcomp.jacobian._batching import chosen_batch_size
from lipcomp.jacobian._checks import check_images, check_map
from lipcomp.jacobian._dense import row_values
from lipcomp.jacobian._frozen import frozen
from lipcomp.jacobian._lanczos import WHOLE, Lanczos, Part
from lipcomp.jacobian._precision import doubled
from lipcomp.jacobian._products import Linearisation, Map, as_rows, unlike
from lipcomp.jacobian._sharing import SharedStart, pilot_count

WEAK, STRONG = 1e-2, 1e4  # of the map's own scale: float32 values below and above are not trusted
# Of that scale too: float64 values below may be rounding, in which products with J and Jᵀ disagree.
ROUNDED = 1e-6


@dataclass(frozen=True)
class SpectralNorm(ResultMixin):
    """The largest singular values of the Jacobian at every image.

    Attributes
    ----------
    sigma
        sigma_max(J) at every image, per pixel L2; NaN for an image that was left out.
    residual
        ‖Jᵀ u - sigma v‖ / sigma (or ‖J v - sigma u‖ / sigma), from the vectors of the product before the last: a
        singular value lies within half of it of sigma (relative). The worst of the k, if several were asked for.
    iterations
        Lanczos steps that an image took, each of one product in either direction; rows for the row loop.
    converged
        Whether sigma is within ``rtol`` of sigma_max, near-equal top values included. It rests on a random start: on
        the hardest spectra tried (values 3e-4 to 1e-2 apart) 1 in 100 converged values was further below, on others
        none (:mod:`lipcomp.jacobian._lanczos`). An unconverged sigma is still a lower bound.
    left, right
        Unit singular vectors of sigma: J right = sigma left. Right has the image's shape. None if not asked for.
    values
        The k largest, in falling order.
    left_vectors, right_vectors
        All k of the vectors, (n, k, ...); None if not asked for.
    excluded
        How many images were left out, by reason.
    rtol
        The relative tolerance asked for.
    method
        "lanczos" or "rows".
    """

    picture: ClassVar[str] = "local_constants"
    constants: ClassVar[dict[str, str]] = {"sigma": ""}

    sigma: Float[Tensor, " n"]
    residual: Float[Tensor, " n"]
    iterations: Int64[Tensor, " n"]
    converged: Bool[Tensor, " n"]
    values: Float[Tensor, "n k"]
    left_vectors: Float[Tensor, "n k dim"] | None
    right_vectors: Float[Tensor, "n k ..."] | None
    excluded: dict[str, int]
    rtol: float
    method: str

    @property
    def left(self) -> Float[Tensor, "n dim"] | None:
        """Left singular vector of the largest value."""
        return None if self.left_vectors is None else self.left_vectors[:, 0]

    @property
    def right(self) -> Float[Tensor, "n ..."] | None:
        """Right singular vector of the largest value: the image direction that moves the output most."""
        return None if self.right_vectors is None else self.right_vectors[:, 0]

    @property
    def witness(self) -> int:
        """Index of the image with the largest sigma.

        Raises
        ------
        ValueError
            If every image was left out.
        """
        if bool(self.sigma.isnan().all()):
            raise ValueError(f"no image was measured; left out: {self.excluded}")
        return int(self.sigma.nan_to_num(-math.inf).argmax())


@estimator
def spectral_norm(
    fn: Map,
    images: Float[Tensor, "n ..."],
    *,
    k: int = 1,
    rtol: float = 1e-4,
    max_iterations: int | None = None,
    batch_size: int | None = None,
    method: str = "auto",
    vectors: bool = True,
    share: bool = True,
    domain: tuple[float, float] | None = (0.0, 1.0),
    generator: Generator | list[int] | None = None,
    advance: Callable[[int], object] | None = None,
) -> SpectralNorm:
    """The largest singular values of the Jacobian of ``fn`` at every image, matrix-free.

    Parameters
    ----------
    fn
        A differentiable map of a batch of images to one vector per image, in evaluation mode.
    images
        Pixels in [0, 1], all on the device of ``fn``.
    k
        Number of singular values.
    rtol
        Relative tolerance of every value. Float32 adds its rounding, about 1e-6 times the condition of the network.
    max_iterations
        Maximum number of Lanczos steps; by default the dimension, at most 200. Images that need more are unconverged.
    batch_size
        Images per batch; by default as many as fit into a quarter of the free memory, at most 64.
    method
        "lanczos", "rows" (the exact row loop), or "auto": rows for outputs of at most 24 dimensions.
    vectors
        Whether to return singular vectors.
    share
        From 24 images on, some random images may find a starting vector for the others, if that saves steps
        (:mod:`lipcomp.jacobian._sharing`). False gives every image a random start.
    domain
        Range of valid pixels; None for inputs that are not pixels.
    generator
        Randomness of the starting vectors (CPU), by default seeded with 0; or one seed per image. The numbers of an
        image do not depend on how the set is split into batches.
    advance
        Progress callback, called with the number of finished images.

    Raises
    ------
    ValueError
        If an argument is not valid, the images leave the domain, the map is in training mode, mixes images, keeps a
        state or is not deterministic, or an operator lacks a derivative; the message names it.

    Examples
    --------
    >>> import torch
    >>> from lipcomp.jacobian import spectral_norm
    >>> matrix = torch.diag(torch.tensor([5.0, 2.0, 1.0]))
    >>> found = spectral_norm(lambda x: x @ matrix, torch.rand(4, 3))
    >>> found.sigma.round(decimals=3)
    tensor([5., 5., 5., 5.])
    """
    if method not in ("auto", "lanczos", "rows"):
        raise ValueError(f'method must be "auto", "lanczos" or "rows", got {method!r}')
    if not 0 < rtol < 1:
        raise ValueError(f"rtol must lie in (0, 1), got {rtol}")
    if max_iterations is not None and max_iterations < 1:
        raise ValueError(f"max_iterations must be at least 1, got {max_iterations}")
    check_images(images, domain)
    dim, directions, halves = check_map(fn, images)
    dtype = images.dtype
    if halves is not None:
        fn, images = halves, images.double()
    if not 1 <= k <= dim:
        raise ValueError(f"k must lie between 1 and the output's dimension {dim}, got {k}")
    if method == "auto":
        method = "rows" if dim <= WHOLE else "lanczos"
    seeds = draw_seeds(len(images), generator)
    start = normal((dim,), seeds)
    limit = max(k, min(dim, 200 if max_iterations is None else max_iterations))
    size = chosen_batch_size(batch_size, fn, images)
    pilots = pilot_count(len(images)) if share and k == 1 and method == "lanczos" else 0
    order = (
        torch.randperm(len(images), generator=torch.Generator().manual_seed(seeds[0]))
        if pilots
        else torch.arange(len(images))
    )

    Linearisation(fn, unlike(images))  # refuses a map whose derivative is not that of its values

    def measure(index: Tensor, *, keep: bool = vectors) -> Part:
        if method == "rows":
            part = row_values(fn, images[index], k=k, directions=directions)
        else:
            at, doubt = start[index].to(images), 1.0
            if shared is not None:
                at, doubt = shared.starts(at), shared.doubt
            part = Lanczos(fn, images[index], at, k=k, rtol=rtol, directions=directions, doubt=doubt).run(
                limit
            )
        if not keep:
            part.right = None
        if advance is not None:
            advance(len(index))
        return part

    parts: list[Part] = []
    shared = None
    if pilots:
        parts = [measure(index, keep=True) for index in order[:pilots].split(size)]
        shared = SharedStart.of(parts)
    parts += [measure(index) for index in order[pilots:].split(size)]
    found = _joined(parts, order.argsort(), rtol, method, vectors=vectors)
    scale, left = (
        torch.cat([getattr(p, name) for p in parts])[order.argsort()] for name in ("scale", "left")
    )
    digits, ratio = torch.finfo(images.dtype), found.sigma / scale
    if images.dtype == torch.float64:
        known = pulled_norms(fn, images, left, (ratio < ROUNDED).nonzero().squeeze(1), size)
        off = _apart(found.values, known, rtol)
        found.values[off], found.converged[off.cpu()] = known[off], False
        numbers: dict[str, Any] = {
            n: v.to(dtype) for n, v in vars(found).items() if isinstance(v, Tensor) and v.is_floating_point()
        }
        return replace(found, **numbers)
    lost = torch.maximum(found.sigma, scale) < digits.tiny / digits.eps
    doubtful = (found.sigma > 0) & (ratio < WEAK) | (ratio > STRONG) | lost
    wide, _ = doubled(fn, images[:1])
    if wide is None:  # a zero may well be one: the region of a dead layer
        found.converged[doubtful.cpu()] = False
        return found
    zero = found.sigma == 0
    sound = (~(doubtful | zero) & ratio.isfinite()).nonzero().squeeze(1)
    smallest = sound[ratio[sound].argmin()].unsqueeze(0) if len(sound) else sound
    if _apart(found.values, pulled_norms(wide, images, left, smallest, size), rtol).any():
        doubtful = doubtful | _apart(found.values, pulled_norms(wide, images, left, sound, size), rtol)
    weak = (doubtful | zero).nonzero().squeeze(1).cpu()
    if len(weak):
        again = spectral_norm(
            wide, images[weak].double(), k=k, rtol=rtol, max_iterations=max_iterations, batch_size=batch_size,
            method=method, vectors=vectors, share=False, domain=domain, generator=[seeds[i] for i in weak.tolist()],
        )  # fmt: skip
        for name in ("values", "residual", "iterations", "converged", "left_vectors", "right_vectors"):
            into, new = getattr(found, name), getattr(again, name)
            if into is not None:
                into[weak] = new.to(into)
        found.converged[weak] &= ((again.sigma == 0) | (again.sigma >= digits.tiny)).cpu()
    return found


def pulled_norms(
    fn: Map,
    images: Float[Tensor, "n ..."],
    left: Float[Tensor, "n k dim"],
    which: Int64[Tensor, " m"],
    size: int,
) -> Float[Tensor, "n k"]:
    """‖Jᵀ u‖ in float64 for every left vector of some images, a lower bound of sigma; NaN where it is not known."""
    found = left.new_full(left.shape[:2], math.nan, dtype=torch.float64)
    for index in which.split(size) if len(which) else ():
        point = images[index].detach().double().requires_grad_()
        try:
            with torch.enable_grad(), frozen():
                output = as_rows(fn(point * 1), len(index))
            for j, u in enumerate(left[index].double().unbind(1)):
                with PlainNorms():
                    (pulled,) = torch.autograd.grad(
                        output, point, u, retain_graph=True, materialize_grads=True
                    )
                found[index, j] = pulled.flatten(1).norm(dim=1)
        except RuntimeError:  # an operator that has no derivative in float64
            break
    return found


def _apart(values: Float[Tensor, "n k"], known: Float[Tensor, "n k"], rtol: float) -> Bool[Tensor, " n"]:
    values = values.double()
    return ((values - known).abs() > rtol * torch.maximum(values, known)).any(1)


def draw_seeds(count: int, generator: Generator | list[int] | None) -> list[int]:
    """A seed for each of a stream of images: the same however the stream is cut into batches."""
    if isinstance(generator, list):
        if len(generator) != count:
            raise ValueError(
                f"generator must be one, or a seed for each of {count} images; got {len(generator)}"
            )
        return generator
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    return [int(torch.randint(2**62, (), generator=generator, device="cpu")) for _ in range(count)]


def normal(shape: tuple[int, ...], seeds: list[int]) -> Float[Tensor, "count ..."]:
    """Normal numbers for each seed."""
    return torch.stack([
        torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32, device="cpu")
        for seed in seeds
    ])  # fmt: skip


def _joined(parts: list[Part], order: Tensor, rtol: float, method: str, *, vectors: bool) -> SpectralNorm:
    def joined(tensors: list[Tensor]) -> Tensor:
        return torch.cat(tensors)[order]

    values = joined([part.values for part in parts])
    return SpectralNorm(
        values[:, 0],
        joined([part.residual for part in parts]),
        joined([part.steps for part in parts]),
        joined([part.converged for part in parts]),
        values,
        joined([part.left for part in parts]) if vectors else None,
        joined([part.right for part in parts if part.right is not None]) if vectors else None,
        {reason: sum(part.excluded[reason] for part in parts) for reason in parts[0].excluded},
        rtol,
        method,
    )
