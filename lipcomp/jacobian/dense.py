"""The whole Jacobian, a row an output: exact, the oracle of the matrix-free estimates, and quickest for few outputs.

    row j of J = Jᵀ e_j,      sigma² = eigenvalues of the Gram matrix J Jᵀ (d x d)

d products of one image each. The Gram matrix is small and its largest eigenvalues are exact to rounding; a singular
value decomposition of the d x pixels matrix itself is never taken.

>>> import torch
>>> from lipcomp.jacobian import jacobian
>>> jacobian(lambda x: x @ torch.diag(torch.tensor([2.0, 3.0])), torch.zeros(1, 2))
tensor([[[2., 0.],
         [0., 3.]]])
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from lipcomp.jacobian.batching import fitting_batch_size
from lipcomp.jacobian.checks import check_images, check_map, usable_outputs
from lipcomp.jacobian.products import Linearisation, Map
from lipcomp.jacobian.spectral_norm import SpectralNorm


def jacobian(fn: Map, images: Float[Tensor, "n ..."]) -> Float[Tensor, "n dim *shape"]:
    """J at every image, by one reverse product a row; n·d·pixels numbers are kept."""
    at = Linearisation(fn, images, "forward")  # no second graph is needed
    rows = []
    for j in range(at.output.shape[1]):
        unit = torch.zeros_like(at.output)
        unit[:, j] = 1
        rows.append(at.transposed(unit))
    return torch.stack(rows, 1)


def row_spectral_norm(
    fn: Map,
    images: Float[Tensor, "n ..."],
    *,
    k: int = 1,
    batch_size: int | None = None,
    vectors: bool = True,
    domain: tuple[float, float] | None = (0.0, 1.0),
    advance: Callable[[int], object] | None = None,
) -> SpectralNorm:
    """The largest singular values from all rows of J; arguments as :func:`~lipcomp.jacobian.spectral_norm`."""
    check_images(images, domain)
    dim = check_map(fn, images)
    if not 1 <= k <= dim:
        raise ValueError(f"k must lie between 1 and the output's dimension {dim}, got {k}")
    size = batch_size or fitting_batch_size(fn, images)
    n, excluded = len(images), {"non-finite output": 0, "zero-norm embedding": 0}
    values = images.new_full((n, k), torch.nan)
    left = images.new_full((n, k, dim), torch.nan) if vectors else None
    right = images.new_full((n, k, *images.shape[1:]), torch.nan) if vectors else None
    measured = torch.zeros(n, dtype=torch.bool)
    for index in torch.arange(n).split(size):
        with torch.no_grad():
            usable, left_out = usable_outputs(fn(images[index]).flatten(1))
        excluded = {reason: excluded[reason] + count for reason, count in left_out.items()}
        keep = index[usable]
        if len(keep):
            rows = jacobian(fn, images[keep]).flatten(2)
            squares, directions = torch.linalg.eigh((rows @ rows.mT).double())
            top = squares.flip(1)[:, :k].clamp(min=0).sqrt()
            values[keep], measured[keep] = top.to(values), True
            if left is not None and right is not None:
                u = directions.flip(2)[:, :, :k].mT.to(rows)
                pulled = torch.nn.functional.normalize(u @ rows, dim=-1, eps=torch.finfo(rows.dtype).tiny)
                left[keep], right[keep] = u, pulled.reshape(len(keep), k, *images.shape[1:])
        if advance is not None:
            advance(len(index))
    residual = torch.where(measured.to(values.device), torch.finfo(values.dtype).eps * dim, torch.nan).to(
        values
    )
    iterations = torch.where(measured, dim, 0)
    return SpectralNorm(
        values[:, 0], residual, iterations, measured, values, left, right, excluded, 0.0, "rows"
    )
