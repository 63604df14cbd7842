"""The networks of a run: how pairs start, and one optimisation step of each method against a plain implementation."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import ive
from torch import nn
from torch.nn import functional as F

from lipcomp.data import load_set
from lipcomp.distributions import VonMisesFisher
from lipcomp.encoders import EncoderSpec
from lipcomp.encoders._backbones import BACKBONES
from lipcomp.objectives._supervised import CosineClassifier
from train.data import order, stream, training_set
from train.networks import Trainee, draw_rows, variance_scaling_
from train.parallel import Ranks
from train.pretrain import Run
from train.recipe import compress
from train.recipes import mnist_byol
from train.settings import Settings

METHODS = ("simclr", "c_simclr", "byol", "c_byol")


@pytest.mark.parametrize(("one", "other"), [("simclr", "c_simclr"), ("byol", "c_byol"), ("simclr", "byol")])
@pytest.mark.parametrize("initialisation", ["torch", "paper"])
def test_two_methods_start_from_the_same_weights_where_they_share_a_part(recipes, one, other, initialisation):
    first, second = (Trainee(replace(recipes[n], initialisation=initialisation), 7, 3) for n in (one, other))
    mine, theirs = dict(first.named_parameters()), dict(second.named_parameters())
    shared = mine.keys() & theirs.keys()
    assert len(shared) >= len(mine) - (0 if one != "byol" else 1)
    assert all(torch.equal(mine[name], theirs[name]) for name in shared)
    elsewhere = dict(Trainee(replace(recipes[one], initialisation=initialisation), 8, 3).named_parameters())
    assert not torch.equal(mine["online.projector.0.weight"], elsewhere["online.projector.0.weight"])


def test_a_pair_sees_the_same_images_in_the_same_order_under_the_same_draws(recipes, tmp_path):
    """Every step's indices, numbers and views, as the two runs themselves make them."""
    seen = {}
    for name in ("byol", "c_byol"):
        images = training_set(recipes[name], Settings(), print)
        run = Run(recipes[name], 3, tmp_path / name, Settings(), Ranks(), images, print)
        seen[name] = [(b.step, b.views, b.labels) for b in run.batches(0)]
    assert len(seen["byol"]) == 36 * 4 // 8 + 1
    for one, two in zip(seen["byol"], seen["c_byol"], strict=True):
        assert one[0] == two[0]
        assert torch.equal(one[2], two[2])
        assert all(torch.equal(a, b) for a, b in zip(one[1], two[1], strict=True))


def test_the_order_is_a_permutation_an_epoch_whatever_the_batch_and_the_start(recipes):
    recipe = recipes["simclr"]
    whole = torch.cat([b for b, _ in zip(order(36, recipe, 5), range(18), strict=False)])
    for epoch in range(4):
        assert sorted(whole[36 * epoch : 36 * (epoch + 1)].tolist()) == list(range(36))
    assert not torch.equal(whole[:36], whole[36:72])
    for first in (1, 4, 9, 13):
        assert torch.equal(next(order(36, recipe, 5, first)), whole[8 * first : 8 * first + 8])


def test_the_papers_initialisation_has_variance_one_over_fan_in_within_two_deviations():
    layer = torch.nn.Linear(400, 500)
    variance_scaling_(layer, torch.Generator().manual_seed(0))
    scaled = layer.weight.detach() * 20
    assert scaled.var() == pytest.approx(1.0, abs=0.01)
    assert scaled.abs().max() <= 2 / 0.8796256
    assert layer.bias.abs().max() == 0


def test_the_target_is_a_copy_or_independent_and_gets_no_gradient(recipes):
    for start, equal in (("copy", True), ("independent", False)):
        trainee = Trainee(replace(recipes["byol"], target_start=start), 0, 3)
        online = dict(trainee.online.named_parameters())
        kernels = [(n, p) for n, p in trainee.target.named_parameters() if p.ndim > 1]
        assert all(torch.equal(p, online[n]) == equal for n, p in kernels)
        assert not any(p.requires_grad for p in trainee.target.parameters())


@pytest.mark.parametrize("whole", [8, 12])
def test_rows_of_noise_are_those_of_the_whole_batch(whole):
    mu = F.normalize(torch.randn(whole, 16, generator=torch.Generator().manual_seed(1)), dim=1)
    density = VonMisesFisher(mu, torch.full((whole,), 1024.0))
    z = density.rsample(generator=torch.Generator().manual_seed(2))
    for rows in (slice(0, 4), slice(4, 8), slice(5, 7)):
        part = VonMisesFisher(mu[rows], torch.full((rows.stop - rows.start,), 1024.0))
        torch.testing.assert_close(draw_rows(part, torch.Generator().manual_seed(2), rows, whole), z[rows])


# One optimisation step, written out.


def log_constant(dim, kappa):
    """Log C_d(kappa), theory (1.1), by scipy."""
    nu = dim / 2 - 1
    return nu * math.log(kappa) - dim / 2 * math.log(2 * math.pi) - math.log(ive(nu, kappa)) - kappa


def log_density(z, mu, kappa):
    return kappa * (z * mu).sum(1) + log_constant(z.shape[1], kappa)


def slow_nt_xent(z, mu, t):
    """Two directions, negatives from both views, row by row."""
    total = 0.0
    for a, b in ((0, 1), (1, 0)):
        rows = []
        for i in range(len(z[a])):
            others = [z[a][i] @ mu[b][k] / t for k in range(len(z[a]))]
            others += [z[a][i] @ mu[a][k] / t for k in range(len(z[a])) if k != i]
            rows.append(torch.logsumexp(torch.stack(others), 0) - others[i])
        total = total + torch.stack(rows).mean()
    return total


def plain_loss(recipe, networks, views, noise):
    """The method's loss from its definition; the noise's draws are the only thing taken from the code under test."""
    online, target, backward_head = networks
    objective = recipe.objective
    if recipe.objective.family == "simclr":
        both = online.projector(online.backbone((torch.cat(views) - online.mean) / online.std))
        mu = F.normalize(both, dim=1).chunk(2)
        if not hasattr(objective, "kappa_e"):
            return slow_nt_xent(mu, mu, objective.temperature)
        z = [VonMisesFisher(m, torch.tensor(objective.kappa_e)).rsample(generator=noise) for m in mu]
        residual = sum(
            (log_density(z[a], mu[a], objective.kappa_e) - log_density(z[a], mu[b], objective.kappa_b)).mean()
            for a, b in ((0, 1), (1, 0))
        )
        k = len(mu[0])
        return (
            objective.beta * residual + slow_nt_xent(z, mu, 1 / objective.kappa_b) - 2 * math.log(2 * k - 1)
        )
    latent = [
        online.predictor(online.projector(online.backbone((v - online.mean) / online.std))) for v in views
    ]
    with torch.no_grad():
        slow = [target.projector(target.backbone((v - target.mean) / target.std)) for v in views]
    mu = [F.normalize(h, dim=1) for h in latent]
    aims = [F.normalize(t, dim=1) for t in slow]
    prediction, residual = mu, 0.0
    if hasattr(objective, "kappa_e"):
        z = [VonMisesFisher(m, torch.tensor(objective.kappa_e)).rsample(generator=noise) for m in mu]
        prediction = [F.normalize(z_ @ online.decoder.weight.T, dim=1) for z_ in z]
        # the normalised projection, as the official code
        b = [F.normalize(backward_head(a), dim=1) for a in aims]
        residual = sum(
            (log_density(z[v], mu[v], objective.kappa_e) - log_density(z[v], b[v], objective.kappa_b)).mean()
            for v in (0, 1)  # the official code's pairing: the same view
        )
        residual = objective.beta * residual
    return residual + objective.weight * sum(
        ((prediction[a] - aims[b]) ** 2).sum(1).mean() for a, b in ((0, 1), (1, 0))
    )


@pytest.fixture
def in_double(doubles):
    with doubles():
        yield


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize("method", METHODS)
def test_one_step_equals_a_plain_implementation(recipes, method, tmp_path):
    """Loss, every gradient, the LARS update with its exclusions, and the target's move, in the second step of a run."""
    recipe = replace(
        recipes[method],
        optimizer="lars",
        learning_rate=0.5,
        weight_decay=1e-3,
        initialisation="paper",
        target_start="independent",
        probe=None,
    )
    images = load_set(recipe.data, "train", image_shape=(1, 16, 16))
    run = Run(recipe, 0, tmp_path, Settings(channels_last=False), Ranks(), images, print)
    batches = run.batches(0)
    run.step(run.trainee, next(batches))
    batch = next(batches)

    trainee = copy.deepcopy(run.trainee)
    momentum = {
        name: run.optimizer.state[p]["momentum"].clone()
        for name, p in run.trainee.named_parameters()
        if p.requires_grad
    }
    loss = plain_loss(
        recipe, (trainee.online, trainee.target, trainee.backward_head), batch.views, stream(0, "noise", 1)
    )
    trainee.zero_grad()
    loss.backward()

    logged = run.step(run.trainee, batch)
    np.testing.assert_allclose(logged["loss"].item(), loss.item(), rtol=1e-6)
    total, warmup = 36 * 4 // 8 + 1, round(36 / 8)
    rate = 0.5 * 8 / 256 * (1 / warmup)
    assert logged["learning_rate"] == pytest.approx(rate)
    after = dict(run.trainee.named_parameters())
    for name, w in trainee.named_parameters():
        if not w.requires_grad:
            continue
        gradient, trust = w.grad, 1.0
        if w.ndim > 1:
            gradient = gradient + 1e-3 * w
            trust = 0.001 * w.norm() / gradient.norm()
        with torch.no_grad():
            w -= 0.9 * momentum[name] + rate * trust * gradient
        torch.testing.assert_close(after[name], w, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
    if trainee.target is not None:
        decay = 1 - 0.1 * 0.5 * (1 + math.cos(math.pi * 1 / total))
        moved = dict(trainee.online.named_parameters())
        for name, slow in trainee.target.named_parameters():
            expected = decay * slow + (1 - decay) * moved[name]
            torch.testing.assert_close(after[f"target.{name}"], expected, rtol=1e-9, atol=1e-9)
    if method == "c_byol":
        assert not torch.equal(after["backward_head.0.weight"], Trainee(recipe, 0, 3).backward_head[0].weight)


@pytest.mark.parametrize("name", ["supervised", "ceb"])
def test_the_supervised_pair_minimises_what_it_says(recipes, name):
    """-log softmax of the cosine over the class encoders, plus beta times the residual information."""
    plain = replace(recipes["simclr"], name="supervised", objective=CosineClassifier(0.1), probe=None)
    recipe = plain if name == "supervised" else compress(plain, "ceb", beta=0.5)
    views = torch.rand(2, 8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(8) % 3
    trainee = Trainee(recipe, 0, 3).train()
    result = trainee(recipe.objective, tuple(views), labels, stream(0, "noise"), Ranks(), slice(0, 8), 8)
    mu = F.normalize(trainee.online.embedding(views[0]), dim=1)
    classes = F.normalize(trainee.class_encoder.directions, dim=1)
    z, residual = mu, 0.0
    if name == "ceb":
        z = VonMisesFisher(mu, torch.tensor(1024.0)).rsample(generator=stream(0, "noise"))
        residual = (log_density(z, mu, 1024.0) - log_density(z, classes[labels], 10.0)).mean()
    expected = F.cross_entropy(10 * z @ classes.T, labels) + 0.5 * residual
    torch.testing.assert_close(result.value, expected, rtol=1e-5, atol=1e-5)
    result.value.backward()
    assert all(p.grad is not None for p in trainee.parameters())


def test_the_concurrent_head_reads_features_behind_a_stop_gradient(recipes):
    """With and without the head, the other parts get the same gradients, bit for bit."""
    images = torch.rand(2, 8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    gradients = []
    for probe in ("backbone", "projection", None):
        trainee = Trainee(replace(recipes["c_byol"], probe=probe), 0, 3).train()
        result = trainee(
            recipes["c_byol"].objective,
            tuple(images),
            torch.arange(8) % 3,
            stream(0, "noise"),
            Ranks(),
            slice(0, 8),
            8,
        )
        result.value.backward()
        gradients.append({n: p.grad for n, p in trainee.online.named_parameters()})
        assert ("probe_accuracy" in result.metrics) == (probe is not None)
    for other in gradients[1:]:
        assert all(torch.equal(gradients[0][n], other[n]) for n in other)


def test_a_function_that_gives_one_network_twice_is_refused(monkeypatch):
    """BYOL's target was the online network itself, which was then not trained."""
    network = nn.Conv2d(1, 8, 3)
    monkeypatch.setitem(BACKBONES, "mine:shared", lambda channels: network)
    encoder = EncoderSpec("mine:shared", (1, 28, 28), projector=(16, 8), predictor=16)
    with pytest.raises(ValueError, match="'mine:shared' returned the same network twice"):
        Trainee(replace(mnist_byol(), encoder=encoder), 0, 10)
