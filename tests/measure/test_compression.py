"""Compression against the densities themselves, and what it says of encoders that give no direction."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from lipcomp.data._sets import TensorImages
from lipcomp.distributions import VonMisesFisher
from lipcomp.distributions._divergence import divergence_from_uniform
from lipcomp.measure._compression import Compression, effective_rank


def directions(n, dim, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(n, dim, generator=generator, dtype=torch.float64), dim=1)


@pytest.fixture
def compression(monkeypatch, classifier_bench):
    """The function that measures given mean directions of two views, a draw after the other."""
    images = TensorImages("none", torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.zeros(1).long(), ("0",))
    bench = classifier_bench(nn.Flatten(), images)

    def measure(*draws, kappa_e, kappa_b):
        monkeypatch.setattr(Compression, "_directions", lambda *_: iter(draws))
        told = {"kappa_e": kappa_e, "kappa_b": kappa_b}
        found = Compression(draws=len(draws))._findings(bench, told, lambda n: None)
        return {one.quantity.removeprefix("compression."): one for one in found}

    return measure


@pytest.mark.parametrize("dim", [2, 16])
@pytest.mark.parametrize(("kappa_e", "kappa_b"), [(0.5, 40.0), (30.0, 5.0), (1e4, 1e4)])
def test_residual_information_is_the_mean_difference_of_log_densities(compression, dim, kappa_e, kappa_b):
    x = directions(5, dim)
    y = normalize(x + 0.2 * directions(5, dim, 1), dim=1)
    found = compression((x, y), kappa_e=kappa_e, kappa_b=kappa_b)
    e, b = (VonMisesFisher(mu, kappa) for mu, kappa in ((x, kappa_e), (y, kappa_b)))
    z = e.sample((20000,), generator=torch.Generator().manual_seed(2))
    log_ratio = e.log_prob(z) - b.log_prob(z)
    error = float(log_ratio.std(0).norm()) / 5 / math.sqrt(20000)
    assert found["residual_information"].value == pytest.approx(float(log_ratio.mean()), abs=5 * error)
    excess = found["residual_excess"]
    assert found["residual_information"].value - excess.value == pytest.approx(excess.settings["floor"])


def test_what_z_does_not_hold_is_no_lower_bound_of_its_information(compression):
    """At kappa_e = 0.1 no latent can tell more than its own divergence from the uniform density."""
    mu, kappa_e = directions(64, 8), 0.1
    most = float(divergence_from_uniform(8, torch.tensor(kappa_e, dtype=torch.float64)))
    found = compression(*[(mu, mu)] * 8, kappa_e=kappa_e, kappa_b=kappa_e)
    assert found["i_yz"].interval[0] < most < 1e-3
    assert compression(*[(mu, mu)] * 8, kappa_e=kappa_e, kappa_b=50.0)["i_yz"].value < most
    assert compression((mu, mu), kappa_e=1e6, kappa_b=1e6)["i_yz"].value == pytest.approx(math.log(64))


def test_intervals_are_those_of_nats(compression):
    """Values of zero on every image are no wrong answers, and one image shows no spread."""
    mu = directions(1, 8).repeat(6, 1)
    found = compression((mu, mu), kappa_e=4.0, kappa_b=4.0)
    for one in found.values():
        assert (one.value, *one.interval) == pytest.approx((0, 0, 0), abs=1e-12)
    assert all(
        one.interval is None for one in compression((mu[:1], mu[:1]), kappa_e=4.0, kappa_b=2.0).values()
    )


def test_the_rounding_of_directions_does_not_count(compression):
    x, y = directions(6, 8), directions(6, 8, 1)
    exact = compression((x, y), kappa_e=1024.0, kappa_b=10.0)
    rounded = compression((1.003 * x, 0.997 * y), kappa_e=1024.0, kappa_b=10.0)
    for name, one in rounded.items():
        assert one.value == pytest.approx(exact[name].value, rel=1e-9)


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_an_image_without_direction_gives_no_number(compression, value):
    x, y = directions(6, 8), directions(6, 8, 1)
    x[2] = value
    found = compression((x, y), kappa_e=1024.0, kappa_b=10.0).values()
    assert all(math.isnan(one.value) and one.interval is None for one in found)


@pytest.mark.parametrize("name", ["pairs", "draws"])
@pytest.mark.parametrize("value", [0, -1])
def test_numbers_of_pairs_and_draws_are_positive(name, value):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got {value}"):
        Compression(**{name: value})


def test_effective_rank_of_what_varies_and_of_what_does_not():
    eps = torch.finfo(torch.float32).eps
    corners = torch.cat([torch.eye(4), -torch.eye(4)])
    assert effective_rank(corners + 3, eps) == pytest.approx(4)
    for n in (1, 6, 1000):
        assert effective_rank(torch.full((n, 8), 0.1), eps) == 0
    noise = torch.rand(50, 8, generator=torch.Generator().manual_seed(0))
    assert effective_rank(5 + 1e-7 * noise, eps) == 0
    assert math.isnan(effective_rank(torch.full((4, 8), torch.inf), eps))
