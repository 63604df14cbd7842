"""Operators against the dense Jacobian: products, transposes, compositions, scipy."""

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import svds

from lipcomp.jacobian import Linearisation, spectral_norm
from lipcomp.jacobian._dense import jacobian


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


W1, W2 = draw(6, 8, seed=1) - 0.5, draw(4, 5, seed=2) - 0.5


def inner(x):
    """Images (batch, 2, 3) to maps (batch, 8)."""
    return torch.tanh(x.flatten(1) @ W1)


def outer(z):
    return torch.sin(z.flatten(1)[:, :4] @ W2)


@pytest.fixture
def images():
    return draw(3, 2, 3)


def block_diagonal(blocks):
    return torch.block_diag(*blocks).numpy()


def test_products_and_transposes_are_the_dense_ones(images):
    J, dense = Linearisation(inner, images), jacobian(inner, images).flatten(2)
    v, u = draw(3, 2, 3, seed=3), draw(3, 8, seed=4)
    assert torch.allclose(J @ v, torch.einsum("bij,bj->bi", dense, v.flatten(1)))
    assert torch.allclose((J.T @ u).flatten(1), torch.einsum("bij,bi->bj", dense, u))
    assert torch.equal(J.T.T @ v, J @ v)
    assert J.shape == (24, 18)
    assert J.T.shape == (18, 24)


def test_compositions_are_products_of_matrices(images):
    J = Linearisation(inner, images)
    K = Linearisation(outer, inner(images))
    dense = jacobian(inner, images).flatten(2)
    chained = jacobian(lambda x: outer(inner(x)), images).flatten(2)
    v, w = draw(3, 2, 3, seed=3), draw(3, 5, seed=5)
    gram = torch.einsum("bki,bkj->bij", dense, dense)
    assert torch.allclose(((J.T @ J) @ v).flatten(1), torch.einsum("bij,bj->bi", gram, v.flatten(1)))
    assert torch.allclose((K @ J) @ v, torch.einsum("bij,bj->bi", chained, v.flatten(1)))
    assert torch.allclose(((K @ J).T @ w).flatten(1), torch.einsum("bij,bi->bj", chained, w))


def test_scipy_gets_the_same_matrix(images):
    J, dense = Linearisation(inner, images), block_diagonal(jacobian(inner, images).flatten(2))
    ours = J.to_scipy()
    assert ours.shape == dense.shape
    assert ours.dtype == np.float64
    assert np.allclose(ours @ np.eye(18), dense)
    assert np.allclose(ours.H @ np.eye(24), dense.T)
    largest = svds(ours, k=1, return_singular_vectors=False)[0]
    assert largest == pytest.approx(float(spectral_norm(inner, images).sigma.max()), rel=1e-4)


def test_factors_that_do_not_fit_are_refused(images):
    J = Linearisation(inner, images)
    with pytest.raises(ValueError, match=r"\(3, 2, 3\) is needed on the right of @, got \(3, 5\)"):
        J @ draw(3, 5)
    with pytest.raises(ValueError, match="is needed on the right"):
        J @ J
