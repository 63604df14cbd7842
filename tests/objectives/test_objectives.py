"""C-BYOL, the supervised pair, replicas; descriptions, precision, and what is refused."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from lipcomp.objectives import BYOL, CBYOL, CSimCLR, Objective, SimCLR
from lipcomp.objectives._objective import beta_factor
from lipcomp.objectives._residual import closed_residual
from lipcomp.objectives._simclr import NoisySimCLR, WeightedSimCLR
from lipcomp.objectives._supervised import ClassEncoder, CosineClassifier, SupervisedCEB


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def unit(x):
    return x / x.norm(dim=1, keepdim=True)


def gradient(value, at, **keywords):
    return torch.cat(torch.autograd.grad(value, at, **keywords))


def close(one, other, tolerance=1e-11):
    assert (one - other).abs().max() <= tolerance * other.abs().max()


# C-BYOL.


def test_the_pairing_says_which_view_b_is_made_from(views):
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


def test_the_decoder_and_the_backward_head_are_trained_and_the_target_is_not(views):
    at = views()
    targets = [h.detach().requires_grad_() for h in views(seed=7)]
    decoder, head = torch.nn.Linear(16, 16).double(), torch.nn.Linear(16, 16).double()
    loss = CBYOL(1024.0)(*at, *targets, decoder=decoder, backward_head=head, generator=seeded())
    loss.value.backward()
    assert all(t.grad is None for t in targets)
    for module in (decoder, head):
        assert all(p.grad.abs().max() > 0 for p in module.parameters())


# Supervised.


def test_supervised_ceb_and_its_twin(views):
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
        CSimCLR(500.0, 10.0, 0.3, double_batch=False, pair_normalised=True),
        NoisySimCLR(500.0, 10.0),
        CBYOL(500.0, 10.0, 0.3, pair_normalised=True),
    ],
    ids=lambda objective: type(objective).__name__,
)
@pytest.mark.parametrize("replicas", [2, 3])
def test_the_mean_over_replicas_is_the_whole_batch(views, replicated, objective, replicas):
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


def test_one_example_a_replica_is_enough_when_there_are_others(views, replicated):
    parts = replicated(SimCLR(), views(3), 3)
    assert all(torch.isfinite(part) for part in parts)


def test_the_first_of_all_replicas_is_the_one_that_is_meant(views):
    """Directions on a circle, gathered from one replica: without a rank it is the first."""
    first, second = (view[:, :2] for view in views(3))
    alone = SimCLR()(first, second).value
    assert torch.equal(SimCLR()(first, second, gather=lambda z: z).value, alone)


# Descriptions, schedules, precision.


@pytest.mark.parametrize("name", Objective.known)
def test_every_objective_survives_json_and_takes_a_batch(views, call, name):
    objective = Objective.known[name]()
    assert Objective.from_dict(json.loads(json.dumps(objective.to_dict()))) == objective
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


def test_autocast_does_not_touch_the_objective(views):
    one, two = (h.detach().float() for h in views())
    plain = CSimCLR()(one, two, generator=seeded())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = CSimCLR()(one, two, generator=seeded())
        half = CSimCLR()(one.bfloat16(), two.bfloat16(), generator=seeded())
    assert under.value.item() == plain.value.item()
    assert half.value.dtype == torch.float32
    assert half.value.item() == pytest.approx(plain.value.item(), rel=0.02)


def test_draws_come_from_the_generator_alone(views):
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
        ValueError, match=r"kappa_e of view 1 must have one value per example, shape \(4,\), got \(3,\)"
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
            lambda: Objective.from_dict({"name": "VICReg"}),
            "objective name must be one of .*SimCLR.*got 'VICReg'",
        ),
        (lambda: Objective.from_dict({"name": "SimCLR", "tau": 1}), "options of SimCLR do not fit.*tau"),
        (lambda: beta_factor("cosine", -1, 10), "step >= 0"),
    ],
)
def test_an_objective_that_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
