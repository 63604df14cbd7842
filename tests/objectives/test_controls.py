"""The controls of a study: what C-SimCLR is without its noise, and without its compression."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from lipcomp.distributions import VonMisesFisher
from lipcomp.objectives import CSimCLR, SimCLR
from lipcomp.objectives._simclr import NoisySimCLR, WeightedSimCLR, info_nce


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def unit(x):
    return x / x.norm(dim=1, keepdim=True)


def gradient(value, at, **keywords):
    return torch.cat(torch.autograd.grad(value, at, **keywords))


def close(one, other, tolerance=1e-11):
    assert (one - other).abs().max() <= tolerance * other.abs().max()


# The controls.


@pytest.mark.parametrize("double_batch", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_at_beta_zero_and_z_the_mean_direction_it_is_simclr(views, double_batch, bidirectional):
    """(2.5), to the constant log(2K - 1) or log K of each direction."""
    at = views()
    options = {"double_batch": double_batch, "bidirectional": bidirectional}
    plain = SimCLR(0.1, **options)(*at)
    ceb = CSimCLR(1024.0, 10.0, 0.0, sampling=False, **options)(*at)
    close(gradient(ceb.value, at), gradient(plain.value, at))
    constant = (2 if bidirectional else 1) * math.log(23 if double_batch else 12)
    assert (plain.value - ceb.value).item() == pytest.approx(constant, rel=1e-12)


@pytest.mark.parametrize("beta", [0.1, 1.0, 7.0])
def test_without_noise_compression_is_a_weight_of_one_plus_beta(views, beta):
    at = views()
    ceb = CSimCLR(1024.0, 10.0, beta, sampling=False)(*at).value
    weighted = WeightedSimCLR(beta, 0.1)(*at).value
    close(gradient(ceb, at), gradient(weighted, at))


@pytest.mark.parametrize("beta", [0.1, 1.0, 7.0])
@pytest.mark.parametrize("d", [2, 16, 128])
def test_with_noise_the_compression_term_pulls_on_the_positive_alone(views, d, beta):
    """grad(beta) - grad(0) is the gradient of -beta kappa_b E[z.mu_y], at the same draws and through them."""
    at = views(dim=d)
    compressed = CSimCLR(1024.0, 10.0, beta)(*at, generator=seeded(5)).value
    noise = NoisySimCLR(1024.0, 10.0)(*at, generator=seeded(5)).value
    mu, g = [unit(h) for h in at], seeded(5)
    z = [VonMisesFisher(direction, 1024.0).rsample(generator=g) for direction in mu]
    pull = -beta * 10.0 * ((z[0] * mu[1]).sum(1).mean() + (z[1] * mu[0]).sum(1).mean())
    close(gradient(compressed, at) - gradient(noise, at), gradient(pull, at), 1e-9)


def test_noise_alone_is_c_simclr_at_beta_zero(views):
    at = views()
    noise, ceb = (
        objective(*at, generator=seeded())
        for objective in (NoisySimCLR(300.0, 5.0), CSimCLR(300.0, 5.0, 0.0))
    )
    assert noise.value.item() == ceb.value.item()
    assert noise.metrics.keys() == ceb.metrics.keys()


def test_simclr_is_twice_the_usual_loss(views):
    """Written plainly: the mean over 2K rows of the cross entropy among 2K - 1."""
    one, two = views(rows=5)
    z = unit(torch.cat([one, two]))
    similarity = (z @ z.T / 0.2).fill_diagonal_(-math.inf)
    target = torch.tensor([5, 6, 7, 8, 9, 0, 1, 2, 3, 4])
    usual = torch.nn.functional.cross_entropy(similarity, target)
    assert SimCLR(0.2)(one, two).value.item() == pytest.approx(2 * usual.item(), rel=1e-13)


@settings(max_examples=40)
@given(st.integers(2, 20), st.integers(2, 40), st.floats(-1, 3), st.booleans())
def test_the_bound_never_exceeds_the_log_of_the_candidates(views, rows, dim, exponent, double):
    one, two = (unit(h.detach()) for h in views(rows, dim, closeness=0.1))
    bound = info_nce(one, two, one if double else None, 10.0**exponent)
    assert bound.mean() <= math.log(2 * rows - 1 if double else rows) + 1e-9
