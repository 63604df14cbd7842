"""The residual information: closed form, excess, weights by distance, a concentration for each example."""

import dataclasses
import math

import pytest
import torch

from lipcomp.distributions import VonMisesFisher
from lipcomp.distributions._bessel import mean_resultant_length
from lipcomp.distributions._divergence import vmf_divergence
from lipcomp.objectives import CBYOL, CSimCLR
from lipcomp.objectives._residual import closed_residual, pair_weights, residual_floor, sampled_residual
from lipcomp.objectives._simclr import NoisySimCLR


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def unit(x):
    return x / x.norm(dim=1, keepdim=True)


def gradient(value, at, **keywords):
    return torch.cat(torch.autograd.grad(value, at, **keywords))


# The residual information.


@pytest.mark.parametrize(("kappa_e", "kappa_b", "d"), [(1024.0, 10.0, 64), (50.0, 50.0, 3), (5.0, 400.0, 16)])
def test_the_closed_form_is_the_samples_expectation(views, kappa_e, kappa_b, d):
    mu, other = (unit(h.detach()) for h in views(2, d))
    e = VonMisesFisher(mu, kappa_e)
    z = e.sample((40_000,), seeded())
    each = torch.stack(
        [sampled_residual(z[:, i], mu[i].expand(len(z), -1), kappa_e, other[i].expand(len(z), -1), kappa_b)
         for i in range(2)]
    )  # fmt: skip
    closed = closed_residual(mu, kappa_e, other, kappa_b)
    assert ((each.mean(1) - closed).abs() < 5 * each.std(1) / math.sqrt(40_000)).all()
    kappas = torch.tensor([kappa_e, kappa_b], dtype=torch.float64)
    torch.testing.assert_close(closed, vmf_divergence(mu, kappas[0], other, kappas[1]), rtol=1e-13, atol=0)
    same = closed_residual(mu, kappa_e, mu, kappa_b)
    torch.testing.assert_close(
        same, torch.full_like(same, residual_floor(d, kappa_e, kappa_b)), rtol=1e-13, atol=1e-13
    )


def test_the_excess_is_what_lies_above_the_floor(views):
    at = views(closeness=0.3)
    loss = CSimCLR(1024.0, 10.0, closed_form=True)(*at, generator=seeded())
    above = loss.metrics["residual_information"] - residual_floor(16, 1024.0, 10.0)
    assert loss.metrics["excess_residual"].item() == pytest.approx(above.item(), rel=1e-12)
    mu = [unit(h.detach()) for h in at]
    a = mean_resultant_length(16, torch.tensor(1024.0, dtype=torch.float64))
    want = a * 10 * (1 - (mu[0] * mu[1]).sum(1)).mean()
    assert loss.metrics["excess_residual"].item() == pytest.approx(want.item(), rel=1e-9)


@pytest.mark.parametrize("objective", [CSimCLR(256.0, 10.0), CBYOL(256.0, 10.0)])
def test_the_closed_form_lowers_the_gradients_variance_and_keeps_its_mean(views, call, objective):
    at = views(8, 32, closeness=0.5)
    both = {}
    for closed in (False, True):
        one = dataclasses.replace(objective, closed_form=closed)
        draws = 120
        grads = [gradient(call(one, at, generator=seeded(i)).value, at).flatten() for i in range(draws)]
        both[closed] = torch.stack(grads)
    mean = (both[True].mean(0) - both[False].mean(0)).abs()
    error = (both[True].var(0) + both[False].var(0)).div(draws).sqrt()
    assert (mean < 5.5 * error + 1e-12).all()
    assert both[True].var(0).sum() < 0.8 * both[False].var(0).sum()


# Weights by distance.


def test_pair_weights_are_one_over_the_squared_distance_with_mean_one():
    distances = torch.tensor([1.0, 2.0, 4.0, 3.0])
    weights = pair_weights(distances)
    assert weights.mean().item() == pytest.approx(1)
    torch.testing.assert_close(weights / weights[0], 1 / distances.square())
    assert torch.equal(pair_weights(torch.full((5,), 0.3)), torch.ones(5))
    torch.testing.assert_close(pair_weights(torch.zeros(3)), torch.ones(3))
    equal_views = pair_weights(torch.tensor([0.0, 5.0, 5.0, 5.0, 5.0]))
    assert equal_views[0] / equal_views[1] == pytest.approx(100)


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("make", [CSimCLR, CBYOL])
def test_the_residual_of_each_pair_is_weighted(views, call, make, closed):
    at, distances = views(6), torch.tensor([1.0, 1.0, 2.0, 3.0, 5.0, 8.0], dtype=torch.float64)
    weighted = make(1024.0, 10.0, 1.0, closed_form=closed, pair_normalised=True)
    plain = dataclasses.replace(weighted, pair_normalised=False)
    assert weighted.needs_distances
    assert not plain.needs_distances
    keywords = {"generator": seeded(), "distances": torch.full((6,), 2.0, dtype=torch.float64)}
    same = call(weighted, at, **keywords).value
    keywords["generator"] = seeded()
    assert same.item() == pytest.approx(call(plain, at, **keywords).value.item(), rel=1e-13)
    if make is CSimCLR and closed:
        got = call(weighted, at, generator=seeded(), distances=distances).value
        mu = [unit(h) for h in at]
        residual = closed_residual(mu[0], 1024.0, mu[1], 10.0)
        change = 2 * ((pair_weights(distances) - 1) * residual).mean()
        want = call(plain, at, generator=seeded()).value + change
        assert got.item() == pytest.approx(want.item(), rel=1e-12)
    with pytest.raises(ValueError, match="distances must be given with pair_normalised=True"):
        call(weighted, at)
    with pytest.raises(ValueError, match=r"distances must have one value per example, shape .6,., got .3,."):
        call(weighted, at, distances=distances[:3])
    with pytest.raises(ValueError, match="distances must be finite and not negative"):
        call(weighted, at, distances=-distances)


# A concentration for each example.


@pytest.mark.parametrize("make", [CSimCLR, NoisySimCLR, CBYOL])
def test_a_constant_concentration_a_row_changes_nothing(views, call, make):
    at = views()
    kappas = torch.full((12,), 700.0, dtype=torch.float64)
    objective = make(kappa_e=700.0, kappa_b=10.0)
    plain = call(objective, at, generator=seeded())
    by_row = call(objective, at, generator=seeded(), kappa_e=(kappas, kappas))
    assert by_row.value.item() == pytest.approx(plain.value.item(), rel=1e-12)
    for name, value in plain.metrics.items():
        torch.testing.assert_close(by_row.metrics[name], value, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("closed", [True, False])
def test_the_gradient_in_the_concentration_is_that_of_the_expectation(closed):
    """d/dkappa of E[log e - log b] = A'(kappa)(kappa - kappa_b cos): the score alone would give zero."""
    rows = 2000
    mu = unit(torch.ones(1, 8, dtype=torch.float64)).expand(rows, -1)
    other = unit(torch.arange(1.0, 9.0, dtype=torch.float64)[None]).expand(rows, -1)
    kappa = torch.full((rows,), 40.0, dtype=torch.float64, requires_grad=True)
    if closed:
        residual = closed_residual(mu, kappa, other, 10.0)
    else:
        z = VonMisesFisher(mu, kappa).rsample(generator=seeded())
        residual = sampled_residual(z, mu, kappa, other, 10.0)
    (each,) = torch.autograd.grad(residual.sum(), kappa)
    k = kappa.detach()[:1].requires_grad_()
    (slope,) = torch.autograd.grad(mean_resultant_length(8, k).sum(), k)
    want = slope * (k - 10 * (mu[0] * other[0]).sum())
    assert abs(each.mean() - want.item()) < 5 * each.std() / math.sqrt(rows) + 1e-12


def test_a_concentration_learns_how_blurred_an_image_is():
    """Half the examples have views that agree, half do not: compression's optimum is kappa_e = kappa_b cos."""
    log_kappa = torch.full((2,), math.log(40.0), requires_grad=True)
    optimizer = torch.optim.Adam([log_kappa], lr=0.1)
    g = seeded()
    directions = torch.randn(32, 16, generator=g)
    noise = torch.cat([torch.full((16, 1), 0.05), torch.full((16, 1), 0.8)])
    objective = CSimCLR(kappa_b=40.0, beta=30.0, closed_form=True)
    for _ in range(20):
        at = [directions + noise * torch.randn(32, 16, generator=g) for _ in range(2)]
        kappa = log_kappa.exp().repeat_interleave(16)
        loss = objective(*at, generator=g, kappa_e=(kappa, kappa))
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()
    sure, blurred = log_kappa.exp()
    assert 34 < sure < 46
    assert 16 < blurred < 0.85 * sure  # the cosine of the blurred pairs is near 0.6
