"""Every value and gradient in tests/reference/objectives.npz, which the official TensorFlow code computed.

objectives.md beside it says how. float64 to 1e-9, float32 to 1e-4, relative to the largest entry.
"""

import functools
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from lipcomp.distributions._bessel import log_normalizer
from lipcomp.objectives import BYOL, CBYOL, CSimCLR, SimCLR
from lipcomp.objectives._byol import regression
from lipcomp.objectives._residual import log_density, sampled_residual
from lipcomp.objectives._simclr import info_nce

FILE = Path(__file__).parents[1] / "reference" / "objectives.npz"
TOLERANCE = {"f64": 1e-9, "f32": 1e-4}
DTYPE = {"f64": torch.float64, "f32": torch.float32}


@functools.cache
def values() -> dict[str, np.ndarray]:
    with np.load(FILE) as file:
        return {name: file[name] for name in file.files}


def cases(kind):
    """The folders of one objective."""
    with np.load(FILE) as file:
        return sorted({name.rsplit("/", 1)[0] for name in file.files if name.startswith(f"{kind}/")})


def tensor(name, precision):
    return torch.tensor(values()[name], dtype=DTYPE[precision])


def unit(x):
    return x / x.norm(dim=1, keepdim=True)


class Checked:
    """Compares what is computed with a folder's values, and counts what it compared."""

    def __init__(self, folder):
        self.folder, self.count = folder, 0
        self.tolerance = TOLERANCE[folder.split("/")[1]]

    def __call__(self, name, got, extra=lambda x: x):
        want = values().get(f"{self.folder}/{name}")
        if want is None:
            return
        want = extra(torch.tensor(want, dtype=torch.float64))
        error = (got.detach().double() - want).abs().max() / want.abs().max().clamp_min(1e-300)
        assert error <= self.tolerance, (self.folder, name, error.item())
        self.count += 1

    def names(self):
        return {name[len(self.folder) + 1 :] for name in values() if name.rsplit("/", 1)[0] == self.folder}


def options(folder):
    bidirectional, double_batch = (x == "1" for x in re.search(r"bi(.)_dbt(.)", folder).groups())
    return {"bidirectional": bidirectional, "double_batch": double_batch}


def logits(query, other, own, kappa_b):
    """Against the other view, then against one's own for the double batch; oneself left out (0 here, -1e9 there)."""
    query = query.detach()
    parts = (
        [query @ other.T] if own is None else [query @ other.T, (query @ own.T).detach().fill_diagonal_(0)]
    )
    return kappa_b * torch.cat(parts, 1)


def unmasked(x):
    return torch.where(x < -1e8, 0, x)


@pytest.mark.parametrize("size", ["B8_D2", "B8_D3", "B8_D16", "B8_D64", "B32_D3", "B32_D16"])
def test_simclr(size):
    folders = [folder for folder in cases("simclr") if f"/{size}/" in folder]
    for folder in folders:
        _, precision, _, temperature, _ = folder.split("/")
        h = tensor(f"in/{size}/hidden", precision).requires_grad_()
        one, two = h.chunk(2)
        objective = SimCLR(float(temperature[1:]), **options(folder))
        loss = objective(one, two)
        check = Checked(folder)
        check("loss", loss.value)
        if "grad_hidden" in check.names():
            check("grad_hidden", torch.autograd.grad(loss.value, h)[0])
        mu = unit(one), unit(two)
        own = mu if objective.double_batch else (None, None)
        check("i_y_zx", info_nce(mu[0], mu[1], own[0], 1 / objective.temperature).mean())
        check("i_x_zy", info_nce(mu[1], mu[0], own[1], 1 / objective.temperature).mean())
        check("logits_ab", logits(mu[0], mu[1], own[0], 1 / objective.temperature), unmasked)
        assert check.count == len(check.names()) >= 2
    assert folders


def householder(prerot, mu):
    """The official rotation of the first axis onto mu."""
    first = torch.zeros_like(mu)
    first[:, 0] = 1
    u = torch.nn.functional.normalize(first - mu, dim=1)
    return torch.nn.functional.normalize(prerot - 2 * (prerot * u).sum(1, keepdim=True) * u, dim=1)


def one_by_one(draws, place=lambda draw, mu: draw):
    """A ``draw`` that hands out what was drawn there, view by view."""
    left = iter(draws)
    return lambda e: place(next(left), e.loc)


@pytest.mark.parametrize("size", ["B8_D2", "B8_D3", "B8_D16", "B8_D64", "B32_D3", "B32_D16"])
def test_c_simclr(size):
    folders = [folder for folder in cases("csimclr") if f"/{size}/" in folder]
    for folder in folders:
        _, precision, _, kappas, beta, _, sampling = folder.split("/")
        kappa_e = float(kappas.split("_")[0][2:])
        h = tensor(f"in/{size}/hidden", precision).requires_grad_()
        one, two = h.chunk(2)
        objective = CSimCLR(kappa_e, 10.0, float(beta[4:]), sampling=sampling == "s1", **options(folder))
        check, mu = Checked(folder), (unit(one), unit(two))
        z = mu
        if objective.sampling:
            drawn = f"csimclr_z/{precision}/{size}/ke{kappa_e:.0f}"
            z = tensor(f"{drawn}/zx", precision), tensor(f"{drawn}/zy", precision)
            rotated = [tensor(f"{drawn}/{name}_prerot", precision) for name in ("zx", "zy")]
            loss = objective(one, two, draw=one_by_one(z))
            through = objective(one, two, draw=one_by_one(rotated, householder))
            check("loss", through.value)
            check.count -= "loss" in check.names()
            if "grad_hidden_zconst" in check.names():
                check("grad_hidden_zconst", torch.autograd.grad(loss.value, h, retain_graph=True)[0])
        else:
            loss = through = objective(one, two)
        check("loss", loss.value)
        if "grad_hidden" in check.names():
            check("grad_hidden", torch.autograd.grad(through.value, h)[0])
        own = mu if objective.double_batch else (None, None)
        check("i_y_zx", info_nce(z[0], mu[1], own[0], 10.0).mean())
        check("i_x_zy", info_nce(z[1], mu[0], own[1], 10.0).mean())
        check("i_xzx_y", sampled_residual(z[0], mu[0], kappa_e, mu[1], 10.0).mean())
        check("i_yzy_x", sampled_residual(z[1], mu[1], kappa_e, mu[0], 10.0).mean())
        check("h_e_zx_x", entropy(z[0], mu[0], kappa_e))
        check("h_b_zx_y", entropy(z[0], mu[1], 10.0))
        # theirs are whole log densities; the normaliser cancels in the softmax
        normaliser = log_normalizer(mu[0].shape[1], torch.tensor(10.0, dtype=torch.float64)).item()
        check("logits_ab", logits(z[0], mu[1], own[0], 10.0), lambda x, c=normaliser: unmasked(x - c))
        assert check.count == len(check.names()) >= 5
        directions = 2 if objective.bidirectional else 1
        by_metrics = directions * (
            objective.beta * loss.metrics["residual_information"] - loss.metrics["i_yz"]
        )
        scale = max(1.0, *(float(value.abs()) for value in loss.metrics.values()))
        torch.testing.assert_close(by_metrics, loss.value.detach(), rtol=0, atol=1e-5 * scale)
    assert folders


def entropy(z, mu, kappa):
    return -log_density(z, mu, kappa).mean()


def test_byol():
    folders = cases("byol")
    for folder in folders:
        _, precision, size, weight = folder.split("/")
        h = tensor(f"in_byol/{size}/hidden", precision).requires_grad_()
        online, target = h.chunk(2)
        # theirs is one direction of ours; the other is made zero by regressing a view onto itself
        loss = BYOL(float(weight[1:]))(online, target.detach(), target.detach(), target)
        check = Checked(folder)
        check("loss", loss.value)
        check("byol_loss", 2 * loss.metrics["byol"])
        if "grad_hidden" in check.names():
            (ours,) = torch.autograd.grad(loss.value, h, retain_graph=True)
            assert ours[len(online) :].abs().max() == 0  # the target gets no gradient
            (got,) = torch.autograd.grad(float(weight[1:]) * regression(online, target), h)
            torch.testing.assert_close(got[: len(online)], ours[: len(online)])
            check("grad_hidden", got)
        assert check.count == len(check.names()) >= 2
    assert folders


def test_c_byol():
    folders = cases("cbyol")
    for folder in folders:
        _, precision, size, kappas, beta, weight, sampling = folder.split("/")
        kappa_e = float(kappas.split("_")[0][2:])

        def leaf(name, precision=precision, size=size):
            return tensor(f"in_byol/{size}/{name}", precision).requires_grad_()

        hidden, hidden2, mu1, mu2 = leaf("hidden"), leaf("hidden2"), leaf("mu1"), leaf("mu2")
        b_of_view2, b_of_view1 = leaf("target_proj_output"), leaf("target_proj_output2")
        place = f"cbyol_z/{precision}/{size}/ke{kappa_e:.0f}/{sampling}"
        drawn = [tensor(f"{place}/z{view}", precision).requires_grad_() for view in (1, 2)]
        (decoded1, target2), (decoded2, target1) = hidden.chunk(2), hidden2.chunk(2)
        decoded, heads = iter((decoded1, decoded2)), iter((b_of_view2, b_of_view1))
        # z is a leaf here, at the mean direction too (s0), so that its gradient can be compared
        objective = CBYOL(kappa_e, 10.0, float(beta[4:]), float(weight[1:]))
        loss = objective(
            mu1,
            mu2,
            target1,
            target2,
            decoder=lambda z, decoded=decoded: next(decoded),
            backward_head=lambda target, heads=heads: next(heads),
            draw=one_by_one(drawn),
        )
        check = Checked(folder)
        check("loss", loss.value)
        z1 = drawn[0]
        check("byol_loss", regression(decoded1, target2))
        check("h_e_zx_x", entropy(z1, unit(mu1), kappa_e))
        check("h_b_zx_y", entropy(z1, unit(b_of_view1), 10.0))
        check("i_xzx_y", sampled_residual(z1, unit(mu1), kappa_e, unit(b_of_view1), 10.0).mean())
        if "grad_hidden" in check.names():
            leaves = (hidden, hidden2, b_of_view2, b_of_view1)
            grads = torch.autograd.grad(loss.value, leaves, retain_graph=True)
            rows = len(mu1)
            check("grad_hidden", grads[0][:rows], lambda x, rows=rows: x[:rows])
            check("grad_hidden2", grads[1][:rows], lambda x, rows=rows: x[:rows])
            # the target gets no gradient
            assert grads[0][rows:].abs().max() == grads[1][rows:].abs().max() == 0
            check("grad_target_proj_output", grads[2])
            check("grad_target_proj_output2", grads[3])
            # their layer emits [z, mu]; on the sphere, the tangential parts are the gradient
            for name, z, mu in (("grad_z_mu", drawn[0], mu1), ("grad_z_mu2", drawn[1], mu2)):
                got = torch.autograd.grad(loss.value, (z, mu), retain_graph=True)
                check(
                    name,
                    on_the_sphere(torch.cat(got, 1), z, mu),
                    lambda x, z=z, mu=mu: on_the_sphere(x, z, mu),
                )
        assert check.count == len(check.names()) >= 5, (check.count, check.names())
    assert folders


def on_the_sphere(gradient, *points):
    """The tangential part of a gradient that is stored point beside point."""
    parts = []
    for part, point in zip(gradient.double().chunk(len(points), 1), points, strict=True):
        at = unit(point.detach().double())
        parts.append(part - (part * at).sum(1, keepdim=True) * at)
    return torch.cat(parts, 1)


# Two replicas.


@pytest.mark.parametrize("kind", ["simclr", "csimclr"])
@pytest.mark.parametrize("double_batch", [False, True])
def test_two_replicas(replicated, kind, double_batch):
    folder = f"dist2/f32/{kind}/dbt{int(double_batch)}"
    views = tensor("in/B8_D16/hidden", "f32").requires_grad_()
    one, two = views.chunk(2)
    if kind == "simclr":
        objective = SimCLR(0.1, double_batch=double_batch)
    else:
        objective = CSimCLR(1024.0, 10.0, 0.1, double_batch=double_batch, sampling=False)
    check = Checked(folder)
    single = objective(one, two).value
    check("loss_single", single)
    check("grad_single", torch.autograd.grad(single, views, retain_graph=True)[0])

    replicas = replicated(objective, (one, two), 2)
    check("loss_per_replica", torch.stack(replicas))
    (gradient,) = torch.autograd.grad(sum(replicas) / 2, views)
    for rank in (0, 1):
        rows = torch.cat([gradient[4 * rank : 4 * rank + 4], gradient[8 + 4 * rank : 12 + 4 * rank]])
        check(f"grad_hidden_replica{rank}", rows)
    assert check.count == len(check.names()) == 5
