"""Exact draws: the marginal of mu.z by Kolmogorov-Smirnov, the tangent by its uniformity, the gradients by theirs."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import stats

from lipcomp.distributions import VonMisesFisher
from lipcomp.distributions._bessel import mean_resultant_length, mean_resultant_slope
from lipcomp.distributions._sampling import (
    _propose_gamma,
    _propose_wood,
    quantile_slope,
    sample_mode_distance,
)
from lipcomp.distributions._von_mises_fisher import HypersphericalUniform

DIMS = [2, 3, 4, 5, 8, 15, 16, 64, 128, 512, 2048]
KAPPAS = [0.0, 1e-3, 0.7, 4.0, 30.0, 250.0, 1024.0, 16384.0, 1e6]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def marginal_cdf(d, kappa):
    """The distribution function of theta = arccos mu.z, tabulated: the density is exp(kappa cos) sin^(d-2)."""
    mode = math.acos(2 * kappa / (d - 2 + math.hypot(d - 2, 2 * kappa))) if d > 2 else 0.0
    width = 14 / math.sqrt(
        max(kappa * math.cos(mode) + (d - 2) / max(math.sin(mode) ** 2, 1e-30) * (d > 2), 1e-30)
    )
    theta = np.linspace(max(0.0, mode - width), min(math.pi, mode + width), 200_001)
    with np.errstate(divide="ignore"):
        level = kappa * (np.cos(theta) - math.cos(mode)) + (
            (d - 2) * (np.log(np.sin(theta)) - math.log(math.sin(mode))) if d > 2 else 0.0
        )
    density = np.exp(level)
    total = np.concatenate([[0], np.cumsum(0.5 * (density[1:] + density[:-1]))])
    return lambda x: np.interp(x, theta, total / total[-1])


@pytest.mark.parametrize("d", DIMS)
def test_the_marginal_is_exact(d):
    n, worst = 20_000, 1.0
    for number, kappa in enumerate(KAPPAS):
        t = sample_mode_distance(d, torch.full((n,), kappa, dtype=torch.float64), seeded(number))
        theta = 2 * np.arcsin(np.sqrt(0.5 * t.numpy()))
        worst = min(worst, stats.kstest(theta, marginal_cdf(d, kappa)).pvalue)
    assert worst > 1e-4  # of nine tests; a marginal wrong by 3% of its width gives 1e-20


def test_one_batch_of_mixed_concentrations_is_exact_in_each():
    kappa = torch.tensor(KAPPAS, dtype=torch.float64).repeat(5000)
    t = sample_mode_distance(16, kappa, seeded())
    for value in KAPPAS:
        theta = 2 * np.arcsin(np.sqrt(0.5 * t[kappa == value].numpy()))
        assert stats.kstest(theta, marginal_cdf(16, value)).pvalue > 1e-4


@pytest.mark.parametrize("d", [2, 3, 5, 16, 64])
def test_the_tangent_is_uniform_and_independent_of_the_marginal(d):
    n = 20_000
    mu = torch.nn.functional.normalize(torch.randn(d, generator=seeded(1), dtype=torch.float64), dim=0)
    z = VonMisesFisher(mu, 20.0).sample((n,), seeded())
    w = z @ mu
    tangent = torch.nn.functional.normalize(z - w[:, None] * mu, dim=1)
    basis = torch.linalg.qr(torch.cat([mu[:, None], torch.eye(d, dtype=torch.float64)], 1)).Q[:, 1:d]
    coordinates = tangent @ basis
    assert (coordinates.norm(dim=1) - 1).abs().max() < 1e-12
    if d == 2:
        assert stats.binomtest(int((coordinates > 0).sum()), n).pvalue > 1e-4
        return
    # a coordinate of a uniform point on S^(d-2): (1 + x)/2 ~ Beta((d-2)/2, (d-2)/2)
    beta = stats.beta((d - 2) / 2, (d - 2) / 2)
    for axis in range(min(d - 1, 4)):
        assert stats.kstest((1 + coordinates[:, axis].numpy()) / 2, beta.cdf).pvalue > 1e-4
    moment = coordinates.T @ coordinates / n - torch.eye(d - 1, dtype=torch.float64) / (d - 1)
    assert moment.abs().max() < 6 / math.sqrt(n) / (d - 1) ** 0.5
    for axis in range(min(d - 1, 4)):
        assert stats.spearmanr(w.numpy(), coordinates[:, axis].numpy()).pvalue > 1e-4


@pytest.mark.parametrize("d", [2, 3, 8, 16, 128, 2048])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_length_one_at_the_poles_too(d, dtype):
    poles = torch.zeros(4, d, dtype=dtype)
    poles[0, 0], poles[1, 0], poles[2, -1] = 1, -1, 1
    tilt = torch.zeros(d, dtype=torch.float64)
    tilt[0], tilt[1] = 1.0, 1e-9
    poles[3] = (tilt / tilt.norm()).to(dtype)
    for kappa in (0.0, 10.0, 16384.0, 1e7):
        z = VonMisesFisher(poles, kappa).sample((200,), seeded())
        error = (z.double().norm(dim=-1) - 1).abs().max()
        assert error < 8 * torch.finfo(dtype).eps, (kappa, error)
        w = (z.double() * poles.double()).sum(-1)
        a = mean_resultant_length(d, torch.tensor(kappa, dtype=torch.float64))
        spread = mean_resultant_slope(d, torch.tensor(kappa, dtype=torch.float64)).sqrt() / math.sqrt(800)
        assert abs(w.mean() - a) < 5 * spread + 2 * torch.finfo(dtype).eps


@settings(max_examples=60)
@given(
    st.integers(2, 4096), st.one_of(st.just(0.0), st.floats(-6, 7).map(lambda e: 10.0**e)), st.integers(0, 99)
)
def test_draws_of_any_dimension_and_concentration(d, kappa, seed):
    mu = torch.nn.functional.normalize(torch.randn(3, d, generator=seeded(seed), dtype=torch.float64), dim=1)
    vmf = VonMisesFisher(mu, kappa)
    z = vmf.rsample((4,), seeded(seed))
    assert (z.norm(dim=-1) - 1).abs().max() < 4e-15
    assert torch.isfinite(vmf.log_prob(z)).all()


def test_a_tangent_drawn_almost_along_the_mean_direction_leaves_length_one():
    """Of 200,000 such vectors some lose four digits when they are projected once."""
    mu = torch.nn.functional.normalize(torch.randn(200_000, 3, generator=seeded()), dim=1)
    draws = VonMisesFisher(mu, torch.ones(200_000)).sample(generator=seeded(1))
    assert (draws.double().norm(dim=1) - 1).abs().max() < 8 * torch.finfo(torch.float32).eps


def test_a_generator_decides_the_draws_and_the_global_stream_is_left_alone():
    vmf = VonMisesFisher(torch.eye(5), 7.0)
    state = torch.get_rng_state()
    one, two = vmf.sample((3,), seeded(4)), vmf.sample((3,), seeded(4))
    assert torch.equal(one, two)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(one, vmf.sample((3,), seeded(5)))


def test_a_concentration_that_is_no_number_does_not_hang():
    t = sample_mode_distance(8, torch.tensor([math.nan, 10.0]))
    assert math.isnan(t[0])
    assert 0 <= t[1] <= 2


# Gradients.


def test_the_draw_is_differentiable_in_the_mean_direction():
    """E f(z) for f(z) = z.c + (z.c)^2 has a closed form, so has its gradient; and z.mu does not move with mu."""
    d, k, n = 6, 15.0, 200_000
    c = torch.randn(d, generator=seeded(2), dtype=torch.float64)
    h = torch.randn(d, generator=seeded(3), dtype=torch.float64, requires_grad=True)
    mu = torch.nn.functional.normalize(h, dim=0)
    vmf = VonMisesFisher(mu, k)
    z = vmf.rsample((n,), seeded())
    (got,) = torch.autograd.grad(((z @ c) + (z @ c) ** 2).mean(), h, retain_graph=True)
    (want,) = torch.autograd.grad(vmf.mean @ c + c @ vmf.second_moment @ c, h, retain_graph=True)
    assert (got - want).abs().max() < 0.02 * want.abs().max()
    (still,) = torch.autograd.grad((z @ mu).sum(), h)
    assert still.abs().max() < 1e-9


@pytest.mark.parametrize("d", [2, 3, 16, 300])
def test_the_draw_is_differentiable_in_mu_to_rounding(d):
    h = torch.randn(3, d, generator=seeded(), dtype=torch.float64, requires_grad=True)

    def draw(h):
        mu = torch.nn.functional.normalize(h, dim=1)
        return VonMisesFisher(mu, 50.0, validate_args=False).rsample((2,), seeded(9))

    assert torch.autograd.gradcheck(draw, h, eps=1e-6, atol=1e-6, fast_mode=d > 20)


@pytest.mark.parametrize("d", [2, 3, 4, 16, 128])
@pytest.mark.parametrize("kappa", [0.5, 10.0, 1000.0])
def test_the_quantiles_move_with_kappa_as_their_distribution_function_says(d, kappa):
    """d t / d kappa = -(dF/dkappa) / f, by central differences of the tabulated distribution function."""
    t = sample_mode_distance(d, torch.full((40,), kappa, dtype=torch.float64), seeded())
    got = quantile_slope(d, t, torch.full_like(t, kappa))
    theta, step = 2 * torch.asin(torch.sqrt(0.5 * t)).numpy(), 1e-3 * kappa
    change = (marginal_cdf(d, kappa + step)(theta) - marginal_cdf(d, kappa - step)(theta)) / (2 * step)
    width = 1e-3 * theta
    cdf = marginal_cdf(d, kappa)
    density = (cdf(theta + width) - cdf(theta - width)) / (2 * width)
    want = -np.sin(theta) * change / density
    np.testing.assert_allclose(got.numpy(), want, rtol=0.02, atol=0.01 * np.abs(want).max())
    assert (got <= 0).all()


@pytest.mark.parametrize("d", [2, 3, 128, 2048])
@pytest.mark.parametrize("kappa", [0.0, 50.0, 1e6])
def test_the_gradient_in_kappa_is_that_of_the_mean(d, kappa):
    """d/dkappa E mu.z = A'(kappa), by the mean of the pathwise gradients."""
    n = 20_000
    k = torch.full((n,), kappa, dtype=torch.float64, requires_grad=True)
    mu = torch.zeros(n, d, dtype=torch.float64)
    mu[:, 0] = 1
    if d > 200:
        n, k, mu = 1000, k[:1000], mu[:1000]
    z = VonMisesFisher(mu, k, validate_args=False).rsample(generator=seeded())
    (per_draw,) = torch.autograd.grad(z[:, 0].sum(), k)
    slope = mean_resultant_slope(d, torch.tensor(kappa, dtype=torch.float64))
    assert torch.isfinite(per_draw).all()
    assert abs(per_draw.mean() - slope) < 5 * per_draw.std() / math.sqrt(n) + 1e-12 * slope


def test_the_uniform_distribution():
    z = HypersphericalUniform(5, (3,)).sample((20_000,), seeded())
    assert z.shape == (20_000, 3, 5)
    assert (z.norm(dim=-1) - 1).abs().max() < 1e-6
    assert stats.kstest((1 + z[:, 0, 0].numpy()) / 2, stats.beta(2, 2).cdf).pvalue > 1e-4


@pytest.mark.parametrize("d", [4, 64, 2048])
def test_most_proposals_are_accepted_and_none_more_than_surely(d):
    """A worse envelope gives the same distribution, later; one that is not above the density another one."""
    for propose, ratio, least in (
        (_propose_gamma, 0.5, 0.9),
        (_propose_wood, 0.5, 0.9),
        (_propose_wood, 50.0, 0.69),
    ):
        _, level = propose(d, torch.full((4000,), ratio * d, dtype=torch.float64), seeded())
        assert level.max() <= 1e-12
        assert level.exp().mean() > least
