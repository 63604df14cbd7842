"""Stopping rule, Frobenius norm, mean value check, extreme values: against what is known exactly."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lipcomp.jacobian import (
    extreme_values,
    fit_reverse_weibull,
    frobenius_norm,
    jacobian,
    mean_value_check,
    spectral_norm,
)
from lipcomp.jacobian.extremes import random_points
from lipcomp.jacobian.lanczos import miss_probability, ritz_pairs


def diagonal(values):
    return lambda x: x * values


def test_the_stopping_rule_does_not_settle_at_the_second_value(generator):
    """A spectrum of a trained encoder's shape (gap 20%, then a slow decay) under 2,000 random starts."""
    values = torch.cat([torch.tensor([1.0, 0.8]), 0.78 * torch.linspace(1, 0.01, 62)]).double()
    images = torch.zeros(2000, 64, dtype=torch.float64)
    found = spectral_norm(
        diagonal(values), images, miss=1e-3, generator=generator, batch_size=2000, vectors=False
    )
    error = 1 - found.sigma
    assert found.converged.all()
    assert float(error.max()) < 1e-3
    assert float((error > 1e-4).double().mean()) < 2e-3  # twice what the rule promises
    assert (found.miss_probability <= 1e-3).all()


def test_the_residual_of_a_half_step_is_the_true_one(generator):
    """After Jᵀ q_k the reported residual is that of the right-hand Krylov space, computed here from its vectors."""
    matrix = torch.randn(9, 14, generator=generator, dtype=torch.float64)
    q, basis, alpha, beta = (
        F.normalize(torch.randn(9, generator=generator, dtype=torch.float64), dim=0),
        [],
        [],
        [],
    )
    for _ in range(5):
        basis.append(q)
        product = matrix @ (matrix.T @ q)
        alpha.append(float(q @ product))
        for vector in basis + basis:
            product = product - vector * (vector @ product)
        beta.append(float(product.norm()))
        q = product / product.norm()
    a, b = torch.tensor([alpha], dtype=torch.float64), torch.tensor([beta[:-1]], dtype=torch.float64)
    _, residual, _ = ritz_pairs(a, b, half=True)
    # Krylov space of Jᵀ J from Jᵀ q_1, of one dimension less.
    right = torch.linalg.qr(torch.stack([matrix.T @ vector for vector in basis[:-1]], 1)).Q
    left, singular, v = torch.linalg.svd(matrix @ right, full_matrices=False)
    difference = matrix.T @ left - (right @ v.T) * singular
    torch.testing.assert_close(residual[0, :4], difference.norm(dim=0) * singular, rtol=1e-6, atol=1e-9)


def test_the_miss_probability_bounds_how_often_a_value_is_missed(generator):
    """5 steps, one value 10% above the rest: how often the weight of its vector is small enough to hide."""
    values = torch.cat([torch.tensor([1.1]), torch.linspace(1, 0.1, 29)]).double().square()
    start = F.normalize(torch.randn(4000, 30, generator=generator, dtype=torch.float64), dim=1)
    basis, alpha, beta = [start], [], []
    for _ in range(5):
        product = values * basis[-1]
        alpha.append((basis[-1] * product).sum(1))
        for vector in basis + basis:
            product = product - vector * (vector * product).sum(1, keepdim=True)
        beta.append(product.norm(dim=1))
        basis.append(F.normalize(product, dim=1))
    a, b = torch.stack(alpha, 1), torch.stack(beta, 1)
    theta = ritz_pairs(a, b, half=False)[0][:, 0]
    bound = miss_probability(a, b, theta, 30, 1e-4, several=False)
    missed = theta.sqrt() < 1.1 / 1.01
    assert float(missed.double().mean()) > 0.2  # 5 steps are too few, so that there is something to bound
    for level in (0.3, 0.6, 0.9):  # stopping there, and having missed it
        assert float(((bound <= level) & missed).double().mean()) <= level / 2


@pytest.mark.parametrize("values", [[1.0] * 20, [2.0, 2.0, 2.0] + [1.0] * 17, [3.0] + [0.0] * 19, [0.0] * 20])
def test_equal_and_zero_singular_values(values, generator):
    matrix = torch.linalg.qr(torch.randn(20, 20, generator=generator, dtype=torch.float64)).Q
    scale = torch.tensor(values, dtype=torch.float64)
    fn = lambda x: (x @ matrix) * scale  # noqa: E731
    found = spectral_norm(fn, torch.rand(3, 20, generator=generator, dtype=torch.float64), k=3)
    torch.testing.assert_close(found.values, scale[:3].expand(3, 3), rtol=1e-6, atol=1e-6)
    assert found.converged.all()
    vectors = found.left_vectors
    if min(values[:3]) > 0:
        torch.testing.assert_close(
            vectors @ vectors.mT, torch.eye(3, dtype=torch.float64).expand(3, 3, 3), rtol=0, atol=1e-6
        )


def test_too_few_iterations_are_told_and_stay_below(generator):
    matrix = torch.randn(64, 80, generator=generator)
    found = spectral_norm(lambda x: x @ matrix.T, torch.rand(5, 80, generator=generator), max_iterations=3)
    assert not found.converged.any()
    assert (found.iterations == 3).all()
    assert (found.sigma <= torch.linalg.matrix_norm(matrix, 2) * (1 + 1e-5)).all()


def test_images_without_direction_or_number_are_counted_out():
    def fn(x):
        h = F.normalize(x.flatten(1) @ torch.eye(20), dim=1)
        return h * torch.where(x[:, :1] > 0.9, torch.nan, 1.0)

    images = torch.rand(6, 20, generator=torch.Generator().manual_seed(0)) * 0.8
    images[1], images[4, 0] = 0.0, 1.0
    for method in ("lanczos", "rows"):
        found = spectral_norm(fn, images, method=method)
        assert found.excluded == {
            "non-finite output": 1,
            "zero-norm embedding": 1,
            "non-finite derivative": 0,
        }
        assert found.sigma.isnan().nonzero().flatten().tolist() == [1, 4]
        assert found.witness not in (1, 4)
    norm = frobenius_norm(fn, images)
    assert norm.squared.isnan().nonzero().flatten().tolist() == [1, 4]


def test_images_without_a_derivative_are_counted_out(generator):
    images = torch.rand(3, 20, generator=generator)
    images[1, 5] = 0.0
    for method in ("lanczos", "rows"):
        found = spectral_norm(torch.sqrt, images, method=method)
        assert found.excluded["non-finite derivative"] == 1
        assert found.sigma.isnan().tolist() == [False, True, False]
        truth = 0.5 / images[[0, 2]].amin(1).sqrt()
        torch.testing.assert_close(found.sigma[[0, 2]], truth, rtol=1e-4, atol=0)


def test_the_frobenius_norm_and_its_standard_error(generator):
    matrix = torch.randn(40, 60, generator=generator)
    fn = lambda x: torch.tanh(x @ matrix.T)  # noqa: E731
    images = torch.rand(300, 60, generator=generator)
    truth = jacobian(fn, images).square().sum((1, 2))
    exact = frobenius_norm(fn, images, probes=40)
    assert exact.exact
    torch.testing.assert_close(exact.squared, truth)
    found = frobenius_norm(fn, images, probes=24, generator=generator)
    scores = (found.squared - truth) / found.standard_error
    assert abs(float(scores.mean())) < 0.25  # 300 images: standard error of the mean score 0.06
    assert 0.85 < float(scores.std()) < 1.3
    with pytest.raises(ValueError, match="at least 2"):
        frobenius_norm(fn, images, probes=1)


def test_a_chord_never_exceeds_sigma_on_its_segment(generator):
    weight, more = torch.randn(30, 8, generator=generator), torch.randn(14, 30, generator=generator)
    fn = lambda x: F.normalize(torch.relu(x @ weight.T) @ more.T, dim=1)  # noqa: E731
    first, second = torch.rand(40, 8, generator=generator), torch.rand(40, 8, generator=generator)
    second[0] = first[0]
    check = mean_value_check(fn, first, second)
    assert check.holds.all()
    assert check.ratio[0] == 0
    assert ((check.position[1:] >= 0) & (check.position[1:] <= 1)).all()
    wrong = mean_value_check(lambda x: fn(x) if len(x) == 40 else 0.2 * fn(x) + fn(x).detach(), first, second)
    assert not wrong.holds.all()


def test_extreme_values_of_a_known_distribution():
    generator = np.random.default_rng(1)
    found = [
        fit_reverse_weibull(2 - 0.3 * generator.weibull(3, 200), bootstrap=60, generator=generator)
        for _ in range(8)
    ]
    located = [fit.location for fit in found if fit.location is not None]
    assert len(located) >= 7
    assert np.median(located) == pytest.approx(2, abs=0.02)
    assert np.mean([fit.p_value for fit in found if fit.p_value]) > 0.2
    for fit in found:
        if fit.location is not None:
            assert fit.maximum <= fit.interval[0] <= fit.interval[1]


def test_extreme_values_say_nothing_rather_than_something_wrong():
    generator = np.random.default_rng(0)
    assert fit_reverse_weibull(np.ones(20)).location is None
    unbounded = fit_reverse_weibull(generator.exponential(size=60), bootstrap=40)
    assert unbounded.location is None
    assert "edge" in unbounded.reason
    with pytest.raises(ValueError, match="at least 8"):
        fit_reverse_weibull(np.ones(3))


def test_extreme_values_of_a_map_stay_a_diagnostic(generator):
    fn = lambda x: torch.sin(3 * x)  # noqa: E731
    images = torch.full((1, 10), 0.5)
    found = extreme_values(fn, images, 0.3, blocks=10, block_size=4, bootstrap=20)
    assert found.maxima.shape == (1, 10)
    assert float(found.largest) <= 3 + 1e-6
    assert found.fits[0].maximum == pytest.approx(float(found.largest))


@pytest.mark.parametrize(("norm", "order"), [("l2", 2), ("linf", float("inf"))])
def test_random_points_lie_in_ball_and_box(norm, order, generator):
    image = torch.tensor([0.05, 0.5, 0.99])
    points = random_points(image, 0.2, norm, 500, generator)
    assert float((points - image).norm(p=order, dim=1).max()) <= 0.2 + 1e-6
    assert 0 <= float(points.min()) <= float(points.max()) <= 1
