"""The whole Jacobian, one row per output: exact, the reference of the matrix-free estimates, fastest for few outputs.

    row j of J = Jᵀ e_j,      sigma² = eigenvalues of the Gram matrix J Jᵀ (d x d)

d products of one image each. The Gram matrix is small and its largest eigenvalues are exact to rounding; a singular
value decomposition of the d x pixels matrix itself is never taken.

>>> import torch
>>> from lipcomp.jacobian._dense import jacobian
>>> jacobian(lambda x: x @ torch.diag(torch.tensor([2.0, 3.0])), torch.zeros(1, 2))
tensor([[[2., 0.],
         [0., 3.]]])
"""

import torch
from jaxtyping import Float
from torch import Tensor

from lipcomp.jacobian._checks import usable_outputs
from lipcomp.jacobian._lanczos import Part
from lipcomp.jacobian._precision import power_of_two
from lipcomp.jacobian._products import Linearisation, Map


def jacobian(fn: Map, images: Float[Tensor, "n ..."]) -> Float[Tensor, "n dim ..."]:
    """J at every image, by one reverse product per row; memory for n x d x pixels numbers."""
    return _rows(Linearisation(fn, images, method="forward"))  # without a second graph


def _rows(at: Linearisation) -> Tensor:
    rows = []
    for j in range(at.output.shape[1]):
        axis = torch.zeros_like(at.output)
        axis[:, j] = 1
        rows.append(at.transposed(axis))
    return torch.stack(rows, 1)


def row_values(fn: Map, images: Float[Tensor, "n ..."], *, k: int, directions: bool = False) -> Part:
    """The k largest singular values of a batch from all rows of its Jacobians."""
    at = Linearisation(fn, images, method="forward", verify=False)
    at.verify_hidden()
    usable, excluded = usable_outputs(at.output, directions)
    dim = at.output.shape[1]
    found = Part.empty(at, images, k, excluded)
    keep = usable.nonzero().squeeze(1)
    if not len(keep):
        return found
    rows = _rows(at)[keep].flatten(2)
    finite = rows.isfinite().all(2).all(1).cpu()
    excluded["non-finite derivative"] += int((~finite).sum())
    keep, rows = keep[finite], rows[finite]
    if not len(keep):
        return found
    scale = power_of_two(rows.abs().amax((1, 2), keepdim=True))  # no square under- or overflows
    rows = rows / scale
    squares, axes = torch.linalg.eigh((rows @ rows.mT).cpu().double())
    sigma = squares.flip(1)[:, :k].clamp(min=0).sqrt()
    found.values[keep] = (sigma * scale.squeeze(2).cpu().double()).to(found.values)
    found.residual[keep] = dim * torch.finfo(rows.dtype).eps  # rounding
    found.steps[keep], found.converged[keep] = dim, True
    assert found.right is not None
    found.left[keep] = u = axes.flip(2)[:, :, :k].mT.to(rows)
    pulled = torch.nn.functional.normalize(u @ rows, dim=-1, eps=torch.finfo(rows.dtype).tiny)
    found.right[keep] = pulled.reshape(len(keep), k, *images.shape[1:])
    return found
