"""The density, its moments and its divergences."""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import stats
from torch.distributions import kl_divergence

from lipcomp.distributions import VonMisesFisher
from lipcomp.distributions._bessel import log_sphere_area, mean_resultant_length
from lipcomp.distributions._divergence import (
    constant_floor,
    divergence_floor,
    divergence_from_uniform,
    half_chord_squared,
    vmf_divergence,
)
from lipcomp.distributions._von_mises_fisher import HypersphericalUniform


def wide(value):
    return torch.tensor(value, dtype=torch.float64)


def directions(*shape, seed=0, dtype=torch.float64):
    g = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (g / g.norm(dim=-1, keepdim=True)).to(dtype)


@pytest.fixture
def exact_floor(sixty_digits):
    """(2.4) at 60 digits."""

    def floor(d, k1, k2):
        with mpmath.workdps(60):
            p, q = sixty_digits(d, k1), sixty_digits(d, k2)
            return q.growth - p.growth + p.ratio * (mpmath.mpf(k1) - mpmath.mpf(k2))

    return floor


# The density.


@pytest.mark.parametrize(("d", "k"), [(2, 3.0), (3, 50.0), (16, 10.0), (64, 300.0)])
def test_log_prob_entropy_and_mean_are_scipys(d, k):
    mu = directions(d)
    z = directions(20, d, seed=1)
    ours, theirs = VonMisesFisher(mu, k), stats.vonmises_fisher(mu.numpy(), k)
    np.testing.assert_allclose(ours.log_prob(z).numpy(), theirs.logpdf(z.numpy()), rtol=1e-12)
    assert ours.entropy().item() == pytest.approx(theirs.entropy(), rel=1e-12)


@pytest.mark.parametrize("d", [2, 3])
def test_the_density_integrates_to_one(d):
    for k in (0.0, 0.1, 5.0, 400.0):
        theta = torch.linspace(0, math.pi, 400_001, dtype=torch.float64)
        z = torch.stack([torch.cos(theta), torch.sin(theta), *[torch.zeros_like(theta)] * (d - 2)], -1)
        density = VonMisesFisher(torch.eye(d, dtype=torch.float64)[0], k).log_prob(z).exp()
        ring = 2 if d == 2 else 2 * math.pi * torch.sin(theta)
        assert torch.trapezoid(density * ring, theta).item() == pytest.approx(1, abs=1e-8)


def test_entropy_of_the_reference_file(reference):
    with np.load(reference / "objectives.npz") as file:
        for i, d in enumerate(file["vmf/dims"]):
            mu = directions(int(d)).expand(len(file["vmf/kappas"]), -1)
            got = VonMisesFisher(mu, torch.tensor(file["vmf/kappas"])).entropy()
            torch.testing.assert_close(
                got, torch.tensor(file["vmf/entropy_mpmath"][i]), rtol=1e-13, atol=1e-13
            )


def test_moments_against_draws():
    d, k, n = 8, 20.0, 200_000
    vmf = VonMisesFisher(directions(d), k)
    z = vmf.sample((n,), generator=torch.Generator().manual_seed(0))
    spread = 5 / math.sqrt(n)
    assert (z.mean(0) - vmf.mean).abs().max() < spread
    assert ((z.T @ z) / n - vmf.second_moment).abs().max() < spread
    assert (torch.cov(z.T) - vmf.covariance_matrix).abs().max() < spread
    torch.testing.assert_close(vmf.variance, vmf.covariance_matrix.diagonal())
    torch.testing.assert_close(vmf.second_moment.trace(), wide(1.0), rtol=1e-14, atol=0)
    torch.testing.assert_close(
        vmf.second_moment, vmf.covariance_matrix + torch.outer(vmf.mean, vmf.mean), rtol=1e-13, atol=1e-15
    )
    uniform = VonMisesFisher(directions(d), 0.0)
    torch.testing.assert_close(uniform.second_moment, torch.eye(d, dtype=torch.float64) / d)


def test_log_prob_keeps_its_digits_in_single_precision():
    """kappa mu.z + log C is a difference of numbers near 16,384; it would be wrong by 1e-3."""
    mu = directions(50, 128)
    vmf = VonMisesFisher(mu, 16384.0)
    z = vmf.sample(generator=torch.Generator().manual_seed(0))
    single = VonMisesFisher(mu.float(), 16384.0).log_prob(z.float())
    exact = VonMisesFisher(mu.float().double(), 16384.0).log_prob(z.float().double())
    torch.testing.assert_close(single.double(), exact, rtol=3e-7, atol=1e-4)


def test_gradients_of_the_density_on_the_sphere():
    """Through a normalisation, the gradient is kappa z's tangential part, whichever way the density is written."""
    h = torch.randn(5, 16, dtype=torch.float64, requires_grad=True)
    z = directions(5, 16, seed=3)
    mu = torch.nn.functional.normalize(h, dim=-1)
    (got,) = torch.autograd.grad(VonMisesFisher(mu, 30.0).log_prob(z).sum(), h, retain_graph=True)
    (plain,) = torch.autograd.grad((30.0 * (mu * z).sum(-1)).sum(), h)
    torch.testing.assert_close(got, plain, rtol=1e-12, atol=1e-13)


# Divergences.


@settings(max_examples=25)
@given(st.integers(2, 4096), st.floats(-3, 6), st.floats(-3, 6))
def test_the_floor_against_sixty_digits(exact_floor, d, e1, e2):
    k1, k2 = 10.0**e1, 10.0**e2
    want = exact_floor(d, k1, k2)
    got = divergence_floor(d, wide(k1), wide(k2)).item()
    # 5e-13 at d = 2, 3 and large kappa, where A' has 6e-13
    assert abs(got - want) <= 2e-12 * abs(want) + 1e-300


@pytest.mark.parametrize("d", [2, 3, 128, 4096])
@pytest.mark.parametrize("kappa", [1e-3, 1.0, 100.0, 16384.0])
def test_the_floor_of_nearly_equal_concentrations(exact_floor, d, kappa):
    for relative in (1e-10, 1e-7, 1e-3, 0.45, -1e-7, -0.3):
        other = kappa * (1 + relative)
        want = exact_floor(d, kappa, other)
        error = abs(divergence_floor(d, wide(kappa), wide(other)).item() / want - 1)
        assert error < (2e-12 if d < 4 else 1e-12), relative
    assert divergence_floor(d, wide(kappa), wide(kappa)).item() == 0


def test_the_floor_of_the_paper():
    assert constant_floor(64, 1024.0, 10.0) == pytest.approx(80.19, abs=0.005)


def test_the_floors_gradient():
    """d/dk1 = A'(k1)(k1 - k2), d/dk2 = A(k2) - A(k1), on every branch."""
    k1 = torch.tensor([1.0, 1.0, 500.0, 1e4, 0.3, 2000.0], dtype=torch.float64, requires_grad=True)
    k2 = torch.tensor([1.1, 40.0, 501.0, 10.0, 1e-3, 9e5], dtype=torch.float64, requires_grad=True)
    for d in (2, 64, 1024):
        assert torch.autograd.gradcheck(
            lambda a, b, d=d: divergence_floor(d, a, b), (k1, k2), eps=1e-6, atol=1e-5
        )
        first, second = torch.autograd.grad(divergence_floor(d, k1, k2).sum(), (k1, k2))
        (slope,) = torch.autograd.grad(mean_resultant_length(d, k1).sum(), k1)
        torch.testing.assert_close(first, slope * (k1 - k2), rtol=1e-9, atol=1e-13)
        change = mean_resultant_length(d, k2) - mean_resultant_length(d, k1)
        torch.testing.assert_close(second, change, rtol=1e-9, atol=1e-13)


def test_equal_concentrations_are_symmetric_and_one_ulp_apart_counts():
    """(1.5): kappa A delta^2 / 2, where 1 - mu.mu' is zero or worse."""
    for dtype in (torch.float64, torch.float32):
        mu = directions(128, dtype=dtype)
        other = mu.clone()
        other[0] = torch.nextafter(other[0], torch.tensor(2.0, dtype=dtype))
        p, q = VonMisesFisher(mu, 1024.0), VonMisesFisher(other, 1024.0)
        ulp = (other[0] - mu[0]).double().item()
        a = mean_resultant_length(128, wide(1024.0)).item()
        want = 1024 * a * ulp**2 / 2
        assert kl_divergence(p, q).item() == pytest.approx(
            want, rel=1e-6 if dtype == torch.float32 else 1e-13
        )
        assert kl_divergence(q, p).item() == kl_divergence(p, q).item()
        assert kl_divergence(p, p).item() == 0


@pytest.mark.parametrize("angle", [1e-3, 1e-4])
def test_divergence_in_single_precision(angle):
    """With 1 - mu.mu' the error is 28% and 25 times; what is left is the rounding of mu itself."""
    mu = torch.zeros(128)
    mu[0] = 1
    other = torch.zeros(128)
    other[:2] = torch.tensor([math.cos(angle), math.sin(angle)])
    got = vmf_divergence(mu, torch.tensor(1024.0), other, torch.tensor(1024.0)).item()
    a = mean_resultant_length(128, wide(1024.0)).item()
    assert got == pytest.approx(1024 * a * (1 - math.cos(angle)), rel=1e-3)


@pytest.mark.parametrize(("d", "k1", "k2"), [(2, 3.0, 1.0), (16, 10.0, 1024.0), (128, 1024.0, 10.0)])
def test_divergence_against_draws(d, k1, k2):
    p, q = VonMisesFisher(directions(d), k1), VonMisesFisher(directions(d, seed=1), k2)
    z = p.sample((200_000,), generator=torch.Generator().manual_seed(0))
    gap = p.log_prob(z) - q.log_prob(z)
    error = gap.std() / math.sqrt(len(gap))
    assert abs(gap.mean() - kl_divergence(p, q)) < 5 * error


def test_divergences_with_the_uniform(sixty_digits):
    for d in (2, 3, 64, 2048):
        uniform = HypersphericalUniform(d, dtype=torch.float64)
        assert uniform.log_prob(directions(d)).item() == pytest.approx(-log_sphere_area(d), rel=1e-15)
        for k in (1e-4, 0.3, 20.0, 5000.0, 1e6):
            vmf = VonMisesFisher(directions(d), k)
            with mpmath.workdps(60):
                growth = sixty_digits(d, k).growth
                to = mpmath.mpf(k) * sixty_digits(d, k).ratio - growth
            assert kl_divergence(vmf, uniform).item() == pytest.approx(float(to), rel=3e-12)
            assert kl_divergence(uniform, vmf).item() == pytest.approx(float(growth), rel=1e-13)
            entropy = uniform.entropy() - kl_divergence(vmf, uniform)
            torch.testing.assert_close(vmf.entropy(), entropy, rtol=1e-13, atol=1e-13)
        assert divergence_from_uniform(d, wide(0.0)).item() == 0
        # the uniform density is vMF at kappa = 0
        flat = VonMisesFisher(directions(d), 0.0)
        torch.testing.assert_close(kl_divergence(vmf, flat), kl_divergence(vmf, uniform), rtol=1e-13, atol=0)


def test_the_general_divergence_reduces_to_the_theory():
    """(1.4) as it is printed, where it does not cancel."""
    p, q = VonMisesFisher(directions(32), 80.0), VonMisesFisher(directions(32, seed=1), 9.0)
    cosine = (p.loc * q.loc).sum()
    a = mean_resultant_length(32, wide(80.0))
    printed = -p.entropy() - 80 * a - q.log_prob(q.loc) + 9 + a * (80 - 9 * cosine)
    torch.testing.assert_close(kl_divergence(p, q), printed, rtol=1e-13, atol=0)
    torch.testing.assert_close(half_chord_squared(p.loc, q.loc), 1 - cosine, rtol=1e-14, atol=0)


# The contract of torch.distributions.


def test_shapes_broadcast_and_expand():
    vmf = VonMisesFisher(directions(3, 1, 8), torch.rand(5, dtype=torch.float64))
    assert (vmf.batch_shape, vmf.event_shape, vmf.dim) == ((3, 5), (8,), 8)
    assert vmf.sample((2,)).shape == (2, 3, 5, 8)
    assert vmf.log_prob(vmf.sample((2,))).shape == (2, 3, 5)
    assert vmf.entropy().shape == (3, 5)
    assert vmf.mean.shape == vmf.variance.shape == vmf.mode.shape == (3, 5, 8)
    assert vmf.second_moment.shape == (3, 5, 8, 8)
    wider = vmf.expand((4, 3, 5))
    assert (wider.batch_shape, wider.event_shape) == ((4, 3, 5), (8,))
    assert kl_divergence(vmf, wider).shape == (4, 3, 5)
    assert kl_divergence(vmf, wider).abs().max() == 0
    assert isinstance(wider, VonMisesFisher)
    assert VonMisesFisher(directions(8), 3).log_prob(directions(7, 8)).shape == (7,)
    assert torch.distributions.Independent(vmf, 1).log_prob(vmf.sample()).shape == (3,)
    assert "VonMisesFisher" in repr(vmf)


@pytest.mark.parametrize(
    ("loc", "concentration", "message"),
    [
        (torch.ones(4, 3), 1.0, "loc must hold unit vectors.*4 of 4 are not.*1.73205.*normalize"),
        (torch.tensor([math.nan, 1.0]), 1.0, "loc must hold unit vectors"),
        (torch.zeros(3), 1.0, "loc must hold unit vectors.*length 0"),
        (torch.eye(3), -2.0, "concentration must be finite and not negative, got -2"),
        (torch.eye(3), math.nan, "concentration must be finite and not negative, got nan"),
        (torch.eye(3), torch.tensor([1.0, math.inf, 2.0]), "got inf .1 of 3"),
        (torch.ones(5, 1), 1.0, "dim must be an integer from 2"),
        (torch.eye(3), torch.ones(2), "does not broadcast"),
        (torch.ones(3, dtype=torch.int64), 1.0, "floating point unit vectors"),
        (torch.tensor(1.0), 1.0, "last axis"),
    ],
)
def test_what_is_no_distribution_is_refused(loc, concentration, message):
    with pytest.raises(ValueError, match=message):
        VonMisesFisher(loc, concentration)


def test_values_and_spheres_that_do_not_fit():
    vmf = VonMisesFisher(directions(3), 1.0)
    with pytest.raises(ValueError, match="value must hold unit vectors"):
        vmf.log_prob(torch.ones(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="dimension 3, got shape"):
        vmf.log_prob(directions(4))
    with pytest.raises(ValueError, match="one sphere, got dimensions 3 and 4"):
        kl_divergence(vmf, VonMisesFisher(directions(4), 1.0))
    with pytest.raises(ValueError, match="one sphere"):
        kl_divergence(vmf, HypersphericalUniform(4))
    with pytest.raises(ValueError, match="kappa_2 must be finite"):
        divergence_floor(3, wide(1.0), wide(-1.0))
