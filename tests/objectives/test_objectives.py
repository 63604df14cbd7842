"""What ties the objectives to each other, and what they refuse."""

import dataclasses
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipcomp.distributions import VonMisesFisher, mean_resultant_length, vmf_divergence
from lipcomp.encoders import ConcentrationHead
from lipcomp.objectives import (
    BYOL,
    CBYOL,
    OBJECTIVES,
    ClassEncoder,
    CosineClassifier,
    CSimCLR,
    NoisySimCLR,
    SimCLR,
    SupervisedCEB,
    WeightedSimCLR,
    beta_factor,
    closed_residual,
    info_nce,
    objective_from_dict,
    pair_weights,
    residual_floor,
    sampled_residual,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def views(rows=12, dim=16, seed=0, closeness=1.0):
    g = seeded(seed)
    one = torch.randn(rows, dim, generator=g, dtype=torch.float64)
    two = one + closeness * torch.randn(rows, dim, generator=g, dtype=torch.float64)
    return one.requires_grad_(), two.requires_grad_()


def unit(x):
    return x / x.norm(dim=1, keepdim=True)


def gradient(value, at, **keywords):
    return torch.cat(torch.autograd.grad(value, at, **keywords))


def close(one, other, tolerance=1e-11):
    assert (one - other).abs().max() <= tolerance * other.abs().max()


# The controls.


@pytest.mark.parametrize("double_batch", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_at_beta_zero_and_z_the_mean_direction_it_is_simclr(double_batch, bidirectional):
    """(2.5), to the constant log(2K - 1) or log K of each direction."""
    at = views()
    options = {"double_batch": double_batch, "bidirectional": bidirectional}
    plain = SimCLR(0.1, **options)(*at)
    ceb = CSimCLR(1024.0, 10.0, 0.0, sampling=False, **options)(*at)
    close(gradient(ceb.value, at), gradient(plain.value, at))
    constant = (2 if bidirectional else 1) * math.log(23 if double_batch else 12)
    assert (plain.value - ceb.value).item() == pytest.approx(constant, rel=1e-12)


@pytest.mark.parametrize("beta", [0.1, 1.0, 7.0])
def test_without_noise_compression_is_a_weight_of_one_plus_beta(beta):
    at = views()
    ceb = CSimCLR(1024.0, 10.0, beta, sampling=False)(*at).value
    weighted = WeightedSimCLR(beta, 0.1)(*at).value
    close(gradient(ceb, at), gradient(weighted, at))


@pytest.mark.parametrize("beta", [0.1, 1.0, 7.0])
@pytest.mark.parametrize("d", [2, 16, 128])
def test_with_noise_the_compression_term_pulls_on_the_positive_alone(d, beta):
    """grad(beta) - grad(0) is the gradient of -beta kappa_b E[z.mu_y], at the same draws and through them."""
    at = views(dim=d)
    compressed = CSimCLR(1024.0, 10.0, beta)(*at, generator=seeded(5)).value
    noise = NoisySimCLR(1024.0, 10.0)(*at, generator=seeded(5)).value
    mu, g = [unit(h) for h in at], seeded(5)
    z = [VonMisesFisher(direction, 1024.0).rsample(generator=g) for direction in mu]
    pull = -beta * 10.0 * ((z[0] * mu[1]).sum(1).mean() + (z[1] * mu[0]).sum(1).mean())
    close(gradient(compressed, at) - gradient(noise, at), gradient(pull, at), 1e-9)


def test_noise_alone_is_c_simclr_at_beta_zero():
    at = views()
    noise, ceb = (
        objective(*at, generator=seeded())
        for objective in (NoisySimCLR(300.0, 5.0), CSimCLR(300.0, 5.0, 0.0))
    )
    assert noise.value.item() == ceb.value.item()
    assert noise.metrics.keys() == ceb.metrics.keys()


def test_simclr_is_twice_the_usual_loss():
    """Written plainly: the mean over 2K rows of the cross entropy among 2K - 1."""
    one, two = views(rows=5)
    z = unit(torch.cat([one, two]))
    similarity = (z @ z.T / 0.2).fill_diagonal_(-math.inf)
    target = torch.tensor([5, 6, 7, 8, 9, 0, 1, 2, 3, 4])
    usual = torch.nn.functional.cross_entropy(similarity, target)
    assert SimCLR(0.2)(one, two).value.item() == pytest.approx(2 * usual.item(), rel=1e-13)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 20), st.integers(2, 40), st.floats(-1, 3), st.booleans())
def test_the_bound_never_exceeds_the_log_of_the_candidates(rows, dim, exponent, double):
    one, two = (unit(h.detach()) for h in views(rows, dim, closeness=0.1))
    bound = info_nce(one, two, one if double else None, 10.0**exponent)
    assert bound.mean() <= math.log(2 * rows - 1 if double else rows) + 1e-9


# The residual information.


@pytest.mark.parametrize(("kappa_e", "kappa_b", "d"), [(1024.0, 10.0, 64), (50.0, 50.0, 3), (5.0, 400.0, 16)])
def test_the_closed_form_is_the_samples_expectation(kappa_e, kappa_b, d):
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


def test_the_excess_is_what_lies_above_the_floor():
    at = views(closeness=0.3)
    loss = CSimCLR(1024.0, 10.0, closed_form=True)(*at, generator=seeded())
    above = loss.metrics["residual_information"] - residual_floor(16, 1024.0, 10.0)
    assert loss.metrics["excess_residual"].item() == pytest.approx(above.item(), rel=1e-12)
    mu = [unit(h.detach()) for h in at]
    a = mean_resultant_length(16, torch.tensor(1024.0, dtype=torch.float64))
    want = a * 10 * (1 - (mu[0] * mu[1]).sum(1)).mean()
    assert loss.metrics["excess_residual"].item() == pytest.approx(want.item(), rel=1e-9)


@pytest.mark.parametrize("objective", [CSimCLR(256.0, 10.0), CBYOL(256.0, 10.0)])
def test_the_closed_form_lowers_the_gradients_variance_and_keeps_its_mean(objective):
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


def call(objective, at, **keywords):
    if objective.family == "byol":
        targets = [h.detach().roll(1, 0) + 0.1 * h.detach() for h in at]
        return objective(*at, *targets, **keywords)
    if objective.family == "supervised":
        labels = torch.arange(len(at[0])) % 4
        return objective(at[0], labels, torch.eye(16, dtype=at[0].dtype)[:4] + 0.1, **keywords)
    return objective(*at, **keywords)


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
def test_the_residual_of_each_pair_is_weighted(make, closed):
    at, distances = views(6), torch.tensor([1.0, 1.0, 2.0, 3.0, 5.0, 8.0], dtype=torch.float64)
    weighted = make(1024.0, 10.0, 1.0, closed_form=closed, pair_normalized=True)
    plain = dataclasses.replace(weighted, pair_normalized=False)
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
    with pytest.raises(ValueError, match="distances must be given with pair_normalized=True"):
        call(weighted, at)
    with pytest.raises(ValueError, match=r"distances must have one value an example, shape .6,., got .3,."):
        call(weighted, at, distances=distances[:3])
    with pytest.raises(ValueError, match="distances must be finite and not negative"):
        call(weighted, at, distances=-distances)


# A concentration for each example.


@pytest.mark.parametrize("make", [CSimCLR, NoisySimCLR, CBYOL])
def test_a_constant_concentration_a_row_changes_nothing(make):
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


def test_a_concentration_head_learns_how_blurred_an_image_is():
    """Half the examples have views that agree, half do not: compression's optimum is kappa_e = kappa_b cos."""
    head = ConcentrationHead(2, minimum=1.0, maximum=2000.0, initial=40.0)
    features = torch.cat(
        [torch.tensor([[1.0, 0.0]]).expand(16, -1), torch.tensor([[0.0, 1.0]]).expand(16, -1)]
    )
    optimizer = torch.optim.Adam(head.parameters(), lr=0.2)
    g = seeded()
    directions = torch.randn(32, 16, generator=g)
    noise = torch.cat([torch.full((16, 1), 0.05), torch.full((16, 1), 0.8)])
    objective = CSimCLR(kappa_b=40.0, beta=30.0, closed_form=True)
    for _ in range(20):
        at = [directions + noise * torch.randn(32, 16, generator=g) for _ in range(2)]
        kappa = head(features)
        loss = objective(*at, generator=g, kappa_e=(kappa, kappa))
        optimizer.zero_grad()
        loss.value.backward()
        assert all(torch.isfinite(p.grad).all() for p in head.parameters())
        optimizer.step()
    sure, blurred = head(features)[0], head(features)[-1]
    assert 34 < sure < 46
    assert 16 < blurred < 0.85 * sure  # the cosine of the blurred pairs is near 0.6
    # safe whatever the features do
    wild = head(torch.tensor([[1e30, -1e30], [-1e30, 1e30]]))
    wild_loss = objective(torch.randn(2, 16), torch.randn(2, 16), kappa_e=(wild, wild))
    assert torch.isfinite(wild_loss.value)


# C-BYOL.


def test_the_pairing_says_which_view_b_is_made_from():
    at = views()
    targets = [h.detach() for h in views(seed=7)]
    mu, b = [unit(h) for h in at], [unit(t) for t in targets]
    base = BYOL(5.0)(*at, *targets).value
    for pairing, pairs in (("same", (0, 1)), ("cross", (1, 0))):
        objective = CBYOL(1024.0, 10.0, 0.5, 5.0, pairing=pairing, sampling=False, closed_form=True)
        want = base + 0.5 * sum(
            closed_residual(mu[view], 1024.0, b[pairs[view]], 10.0).mean() for view in (0, 1)
        )
        assert objective(*at, *targets).value.item() == pytest.approx(want.item(), rel=1e-12)
    assert CBYOL().pairing == "same"


def test_the_decoder_and_the_backward_head_are_trained_and_the_target_is_not():
    at = views()
    targets = [h.detach().requires_grad_() for h in views(seed=7)]
    decoder, head = torch.nn.Linear(16, 16).double(), torch.nn.Linear(16, 16).double()
    loss = CBYOL(1024.0)(*at, *targets, decoder=decoder, backward_head=head, generator=seeded())
    loss.value.backward()
    assert all(t.grad is None for t in targets)
    for module in (decoder, head):
        assert all(p.grad.abs().max() > 0 for p in module.parameters())


# Supervised.


def test_supervised_ceb_and_its_twin():
    h, _ = views(20, 8)
    labels = torch.arange(20) % 5
    classes = ClassEncoder(5, 8).double()
    twin = CosineClassifier(0.1)(h, labels, classes.directions)
    plain = SupervisedCEB(1024.0, 10.0, 0.0, sampling=False)(h, labels, classes.directions)
    close(gradient(twin.value, [h], retain_graph=True), gradient(plain.value, [h]))
    logits = 10 * unit(h) @ unit(classes.directions).T
    want = torch.nn.functional.cross_entropy(logits, labels)
    assert twin.value.item() == pytest.approx(want.item(), rel=1e-13)
    assert twin.metrics["i_yz"].item() == pytest.approx(math.log(5) - want.item(), rel=1e-12)
    beta = SupervisedCEB(1024.0, 10.0, 0.5, sampling=False, closed_form=True)(h, labels, classes.directions)
    residual = closed_residual(unit(h), 1024.0, classes(labels), 10.0).mean()
    assert beta.value.item() == pytest.approx((want + 0.5 * residual).item(), rel=1e-12)


def test_supervised_ceb_learns_to_classify():
    torch.manual_seed(0)
    x = torch.randn(200, 10)
    labels = (x[:, :3].argmax(1)).long()
    layer, classes = torch.nn.Linear(10, 8), ClassEncoder(3, 8)
    optimizer = torch.optim.Adam([*layer.parameters(), *classes.parameters()], lr=0.05)
    objective = SupervisedCEB(256.0, 10.0, beta=0.1)
    for step in range(80):
        loss = objective(layer(x), labels, classes.directions, generator=seeded(step))
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()
    assert loss.metrics["accuracy"] > 0.85


# Replicas.


@pytest.mark.parametrize(
    "objective",
    [
        SimCLR(),
        WeightedSimCLR(2.0),
        CSimCLR(500.0, 10.0, 0.3, bidirectional=False),
        CSimCLR(500.0, 10.0, 0.3, double_batch=False, pair_normalized=True),
        NoisySimCLR(500.0, 10.0),
        CBYOL(500.0, 10.0, 0.3, pair_normalized=True),
    ],
    ids=lambda objective: type(objective).__name__,
)
@pytest.mark.parametrize("replicas", [2, 3])
def test_the_mean_over_replicas_is_the_whole_batch(replicated, objective, replicas):
    at = views(12)
    targets = [h.detach() for h in views(12, seed=3)] if objective.family == "byol" else []
    distances = torch.rand(12, generator=seeded()) + 0.1
    z = [
        torch.nn.functional.normalize(torch.randn(12, 16, generator=seeded(i), dtype=torch.float64))
        for i in (1, 2)
    ]
    keywords = {"distances": distances}
    by_row = {"distances": distances.chunk(replicas)}
    if not isinstance(objective, SimCLR | WeightedSimCLR):
        keywords["draw"] = handing_out(z)
        chunks = zip(*(x.chunk(replicas) for x in z), strict=True)
        by_row["draw"] = [handing_out(chunk) for chunk in chunks]
    whole = objective(*at, *targets, **keywords).value
    parts = replicated(objective, (*at, *targets), replicas, **by_row)
    mean = sum(parts) / replicas
    assert mean.item() == pytest.approx(whole.item(), rel=1e-12)
    close(gradient(mean, at), gradient(whole, at))


def handing_out(draws):
    left = iter(draws)
    return lambda e: next(left)


def test_one_example_a_replica_is_enough_when_there_are_others(replicated):
    parts = replicated(SimCLR(), views(3), 3)
    assert all(torch.isfinite(part) for part in parts)


# Descriptions, schedules, precision.


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_survives_json_and_takes_a_batch(name):
    objective = OBJECTIVES[name]()
    assert objective_from_dict(json.loads(json.dumps(objective.to_dict()))) == objective
    assert hash(objective) == hash(dataclasses.replace(objective))
    loss = call(objective, views(), generator=seeded())
    assert loss.value.ndim == 0
    assert all(value.ndim == 0 and not value.requires_grad for value in loss.metrics.values())
    assert objective.to_dict()["name"] == name
    with pytest.raises(dataclasses.FrozenInstanceError):
        objective.beta = 3.0


def test_whole_numbers_are_numbers():
    assert CSimCLR(1024, 10, 1) == CSimCLR(1024.0, 10.0, 1.0)
    assert CSimCLR(1024, 10, 1).to_dict() == CSimCLR(1024.0, 10.0, 1.0).to_dict()


@pytest.mark.parametrize("run", ["in300", "in1000", "toy", "toysqrt", "nowarm"])
def test_the_schedules_of_beta_are_the_official_ones(reference, run):
    import numpy as np

    with np.load(reference / "objectives.npz") as file:
        total, warmup = int(file[f"sched/{run}/total_steps"]), int(file[f"sched/{run}/warmup_steps"])
        for schedule in ("cosine", "linear_warmup"):
            want = file[f"sched/{run}/beta_{schedule}"]
            got = [beta_factor(schedule, int(step), total, warmup) for step in file[f"sched/{run}/steps"]]
            np.testing.assert_allclose(got, want, atol=2e-7)  # theirs is float32
    objective = CSimCLR(beta=3.0, beta_schedule="cosine")
    assert objective.at(total // 2, total).beta == pytest.approx(1.5, rel=0.01)
    assert objective.at(total, total) == CSimCLR(beta=3.0)
    assert SimCLR().at(5, 10) == SimCLR()


def test_autocast_does_not_touch_the_objective():
    one, two = (h.detach().float() for h in views())
    plain = CSimCLR()(one, two, generator=seeded())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = CSimCLR()(one, two, generator=seeded())
        half = CSimCLR()(one.bfloat16(), two.bfloat16(), generator=seeded())
    assert under.value.item() == plain.value.item()
    assert half.value.dtype == torch.float32
    assert half.value.item() == pytest.approx(plain.value.item(), rel=0.02)


def test_draws_come_from_the_generator_alone():
    at = views()
    state = torch.get_rng_state()
    one, two = (CSimCLR()(*at, generator=seeded(3)).value.item() for _ in range(2))
    assert one == two
    assert torch.equal(torch.get_rng_state(), state)
    assert one != CSimCLR()(*at, generator=seeded(4)).value.item()


# What is refused.


@pytest.mark.parametrize("objective", [SimCLR(), WeightedSimCLR(), CSimCLR(), NoisySimCLR()])
def test_a_batch_of_one_has_nothing_to_contrast(objective):
    with pytest.raises(ValueError, match="at least two examples"):
        objective(torch.randn(1, 8), torch.randn(1, 8))


@pytest.mark.parametrize("objective", [SimCLR(), CSimCLR(), BYOL(), CBYOL()])
def test_views_that_do_not_fit(objective):
    more = (torch.randn(4, 8), torch.randn(4, 8)) if objective.family == "byol" else ()
    with pytest.raises(ValueError, match=r"one shape \(batch, d\), got \(4, 8\), \(5, 8\)"):
        objective(torch.randn(4, 8), torch.randn(5, 8), *more)
    one = torch.randn(4, 1)
    more = (one, one) if objective.family == "byol" else ()
    with pytest.raises(ValueError, match="d >= 2"):
        objective(one, one, *more)


def test_concentrations_that_do_not_fit():
    h = torch.randn(4, 8)
    with pytest.raises(
        ValueError, match=r"kappa_e of view 1 must have one value an example, shape \(4,\), got \(3,\)"
    ):
        CSimCLR()(h, h, kappa_e=(torch.ones(3), torch.ones(4)))
    with pytest.raises(ValueError, match="kappa_e of view 2 must be finite and not negative, got -1"):
        CSimCLR()(h, h, kappa_e=(torch.ones(4), -torch.ones(4)))
    with pytest.raises(ValueError, match=r"labels must have shape \(4,\)"):
        SupervisedCEB()(h, torch.zeros(3, dtype=torch.long), torch.eye(8)[:2])
    with pytest.raises(ValueError, match="class_directions must have shape"):
        SupervisedCEB()(h, torch.zeros(4, dtype=torch.long), torch.eye(7)[:2])
    with pytest.raises(ValueError, match="rank does not fit gather"):
        SimCLR()(h, h, gather=lambda x: x, rank=1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SimCLR(0.0), "temperature must be positive and finite, got 0"),
        (lambda: SimCLR(math.nan), "temperature must be positive"),
        (lambda: CSimCLR(kappa_e=-1.0), "kappa_e must be positive"),
        (lambda: CSimCLR(kappa_b=math.inf), "kappa_b must be positive"),
        (lambda: WeightedSimCLR(-0.1), "beta must be finite and not negative"),
        (lambda: CBYOL(beta=math.nan), "beta must be finite"),
        (lambda: BYOL(0.0), "weight must be positive"),
        (lambda: CBYOL(pairing="other"), "pairing must be same or cross, got 'other'"),
        (lambda: CSimCLR(beta_schedule="step"), "beta_schedule must be one of constant, cosine"),
        (lambda: ClassEncoder(1, 8), "at least 2 classes"),
        (
            lambda: objective_from_dict({"name": "VICReg"}),
            "objective name must be one of SimCLR.*got 'VICReg'",
        ),
        (lambda: objective_from_dict({"name": "SimCLR", "tau": 1}), "options of SimCLR do not fit.*tau"),
        (lambda: beta_factor("cosine", -1, 10), "step >= 0"),
    ],
)
def test_an_objective_that_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
