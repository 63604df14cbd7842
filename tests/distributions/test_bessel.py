"""log C, A and A' against mpmath at 60 digits, and by identities that tie them together."""

import math
from decimal import Decimal, localcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from lipcomp.distributions._bessel import (
    growth,
    log_normalizer,
    log_sphere_area,
    mean_resultant_deficit,
    mean_resultant_length,
    mean_resultant_slope,
    scaled_log_normalizer,
)
from lipcomp.distributions._extended import _log_gamma
from lipcomp.distributions._olver import debye_polynomials

FUNCTIONS = {
    "log_c": log_normalizer,
    "ratio": mean_resultant_length,
    "slope": mean_resultant_slope,
}
BOUNDS = {
    torch.float64: {"log_c": 1e-13, "ratio": 1e-13, "slope": 1e-11},
    torch.float32: {"log_c": 1e-6, "ratio": 1e-6, "slope": 2e-4},
}
DIMS = st.integers(2, 4096)
KAPPAS = st.one_of(st.just(0.0), st.floats(-7, 7).map(lambda e: 10.0**e))


def wide(kappa):
    return torch.tensor(kappa, dtype=torch.float64)


@pytest.fixture(scope="module")
def table():
    """tests/distributions/make_reference.py wrote it: a grid and 10,000 random points."""
    with np.load(Path(__file__).parents[1] / "reference" / "vmf_functions.npz") as file:
        return {name: file[name] for name in file.files}


@pytest.mark.parametrize(
    ("dtype", "step"),
    [(torch.float64, 5), (torch.float32, 5), pytest.param(torch.float64, 1, marks=pytest.mark.slow)],
)
def test_against_mpmath_at_a_grid_and_10_000_random_points(table, dtype, step):
    """At every fifth dimension, in float32 the same code rounded; at all of them if there is time."""
    worst = dict.fromkeys(FUNCTIONS, 0.0)
    for d in np.unique(table["dims"])[::step]:
        here = table["dims"] == d
        exact_kappa = torch.tensor(table["kappas"][here])
        kappa = exact_kappa.to(dtype)
        # rounding kappa to single precision moves the value to first order; that is not the function's error
        moved = (kappa.double() - exact_kappa).numpy()
        slopes = {
            "log_c": -table["ratio"][here],
            "ratio": table["slope"][here],
            "slope": 0 * table["slope"][here],
        }
        for name, function in FUNCTIONS.items():
            got = function(int(d), kappa).double().numpy()
            want = table[name][here] + slopes[name] * moved
            scale = np.maximum(1, np.abs(want)) if name == "log_c" else np.abs(want)
            worst[name] = max(worst[name], float((np.abs(got - want) / scale).max()))
    assert len(table["dims"]) > 11_000
    for name, error in worst.items():
        assert error <= BOUNDS[dtype][name], (name, error)
    if dtype == torch.float64:  # what it reaches, so that a loss of digits shows
        assert worst["log_c"] < 1e-14
        assert worst["ratio"] < 3e-15
        assert worst["slope"] < 2e-12


def test_where_it_is_hard_with_gradients(sixty_digits):
    for d, k in [(2, 1e7), (3, 1e7), (4096, 1e7), (4096, 1e-6), (2, 1e-6), (128, 10.0), (4096, 16213.66)]:
        want = sixty_digits(d, k)
        kappa = wide(k).requires_grad_()
        got = log_normalizer(d, kappa)
        (first,) = torch.autograd.grad(got, kappa, create_graph=True)
        (slope,) = torch.autograd.grad(first, kappa, create_graph=True)
        (curvature,) = torch.autograd.grad(slope, kappa)
        assert abs(got.item() - want.log_c) <= 1e-14 * max(1, abs(want.log_c))
        assert abs(-first.item() / want.ratio - 1) < 1e-14
        assert abs(-slope.item() / want.slope - 1) < 1e-11
        assert abs(-curvature.item() / want.curvature - 1) < 1e-11
        assert abs(mean_resultant_deficit(d, wide(k)).item() / (1 - want.ratio) - 1) < 1e-11
        assert abs(growth(d, wide(k)).item() / want.growth - 1) < 2e-15


def test_the_values_of_the_reference_file(reference):
    with np.load(reference / "objectives.npz") as file:
        for i, d in enumerate(file["vmf/dims"]):
            kappa = torch.tensor(file["vmf/kappas"])
            log_c = torch.tensor(file["vmf/logC_mpmath"][i])
            torch.testing.assert_close(log_normalizer(int(d), kappa), log_c, rtol=1e-14, atol=1e-14)
            torch.testing.assert_close(
                mean_resultant_length(int(d), kappa),
                torch.tensor(file["vmf/A_mpmath"][i]),
                rtol=1e-14,
                atol=0,
            )


@settings(max_examples=100)
@given(DIMS, KAPPAS)
def test_properties_over_the_whole_domain(d, k):
    kappa = wide(k)
    a, slope = mean_resultant_length(d, kappa), mean_resultant_slope(d, kappa)
    above = mean_resultant_length(d + 2, kappa)
    assert 0 <= a < 1
    assert 0 < slope <= 1 / d * (1 + 1e-14)
    # A_d (d + kappa A_{d+2}) = kappa, the recurrence; and Amos' bounds on the ratio
    torch.testing.assert_close(a * (d + kappa * above), kappa, rtol=1e-13, atol=0)
    nu = d / 2 - 1
    lower = k / (nu + 0.5 + math.hypot(k, nu + 1.5))
    upper = k / (nu + 0.5 + math.hypot(k, nu + 0.5))
    assert lower * (1 - 1e-14) <= a.item() <= upper * (1 + 1e-14)
    # log C, its growth from the uniform density and its scaled form say the same
    log_c = log_normalizer(d, kappa)
    size = max(1.0, abs(log_c.item()), k, abs(log_sphere_area(d)))
    assert abs(log_c + growth(d, kappa) + log_sphere_area(d)) <= 1e-14 * size
    assert abs(scaled_log_normalizer(d, kappa) - kappa - log_c) <= 1e-14 * size
    # 1 - A without the subtraction
    assert abs(mean_resultant_deficit(d, kappa) + a - 1) <= 2e-15


@settings(max_examples=60)
@given(DIMS, st.floats(-6, 7).map(lambda e: 10.0**e))
def test_the_area_under_the_normaliser(d, k):
    """C_{d+2} = C_d kappa / (2 pi A_d): two normalisers and a ratio, from three different evaluations."""
    kappa = wide(k)
    left = log_normalizer(d + 2, kappa) - log_normalizer(d, kappa)
    right = torch.log(kappa / (2 * math.pi * mean_resultant_length(d, kappa)))
    assert abs(left - right) < 1e-14 * max(1.0, abs(log_normalizer(d, kappa).item()), k)


def test_closed_forms():
    kappa = torch.logspace(-3, 2, 40, dtype=torch.float64)
    coth = 1 / torch.tanh(kappa) - 1 / kappa  # d = 3, the Langevin function; it cancels at small kappa
    torch.testing.assert_close(mean_resultant_length(3, kappa), coth, rtol=1e-9, atol=0)
    sinh = torch.log(kappa / (4 * math.pi * torch.sinh(kappa)))
    torch.testing.assert_close(log_normalizer(3, kappa), sinh, rtol=1e-13, atol=1e-13)
    circle = -torch.log(2 * math.pi * torch.special.i0(kappa))
    torch.testing.assert_close(log_normalizer(2, kappa), circle, rtol=1e-13, atol=1e-13)
    assert log_normalizer(3, wide(0.0)).item() == pytest.approx(-math.log(4 * math.pi), rel=1e-15)
    assert mean_resultant_slope(17, wide(0.0)).item() == pytest.approx(1 / 17, rel=1e-15)


@pytest.mark.parametrize("d", [2, 3, 24, 49, 50, 128, 4096])
def test_gradients_twice(d):
    kappa = torch.tensor([1e-3, 0.5, 3.0, 40.0, 900.0], dtype=torch.float64, requires_grad=True)
    for function in (log_normalizer, mean_resultant_length, mean_resultant_deficit, growth):
        assert torch.autograd.gradcheck(lambda x, f=function: f(d, x), kappa, eps=1e-5, atol=1e-6)
        assert torch.autograd.gradgradcheck(lambda x, f=function: f(d, x), kappa, eps=1e-5, atol=1e-6)


def test_gradients_are_finite_at_the_ends():
    for d in (2, 3, 128, 4096):
        kappa = torch.tensor([0.0, 1e-300, 1e7], dtype=torch.float64, requires_grad=True)
        (first,) = torch.autograd.grad(log_normalizer(d, kappa).sum(), kappa, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), kappa)
        assert first[0] == 0
        assert second[0].item() == pytest.approx(-1 / d, rel=1e-14)
        assert torch.isfinite(first).all()
        assert torch.isfinite(second).all()


def test_under_torch_func_and_batched():
    kappa = torch.rand(4, 5, dtype=torch.float64) * 100
    by_hand = torch.stack([mean_resultant_length(16, row) for row in kappa.flatten()]).reshape(4, 5)
    assert torch.equal(mean_resultant_length(16, kappa), by_hand)
    mapped = torch.func.vmap(lambda k: mean_resultant_length(16, k))(kappa)
    torch.testing.assert_close(mapped, by_hand, rtol=1e-15, atol=0)
    slopes = torch.func.vmap(torch.func.grad(lambda k: mean_resultant_length(16, k)))(kappa.flatten())
    torch.testing.assert_close(slopes, mean_resultant_slope(16, kappa.flatten()), rtol=1e-14, atol=0)
    _, tangent = torch.func.jvp(lambda k: log_normalizer(16, k), (kappa,), (torch.ones_like(kappa),))
    torch.testing.assert_close(tangent, -by_hand, rtol=1e-14, atol=0)


def test_dtypes_and_shapes_come_back():
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        for shape in ((), (3,), (2, 0), (2, 3)):
            kappa = torch.ones(shape, dtype=dtype)
            for function in (log_normalizer, mean_resultant_length, mean_resultant_slope):
                assert function(8, kappa).shape == shape
                assert function(8, kappa).dtype == dtype


def test_debye_polynomials_are_dlmfs():
    """DLMF 10.41.10."""
    u = debye_polynomials()
    assert [float(x) for x in u[1][:4]] == [0, 3 / 24, 0, -5 / 24]
    assert [float(x) for x in u[2][:7]] == pytest.approx([0, 0, 81 / 1152, 0, -462 / 1152, 0, 385 / 1152])


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf, -1e-30, 1.1e12])
def test_a_concentration_outside_the_domain_is_named(bad):
    for function in (log_normalizer, mean_resultant_length, mean_resultant_slope, growth):
        with pytest.raises(ValueError, match="concentration must be finite and not negative, got"):
            function(8, torch.tensor([1.0, bad]))


def test_other_bad_input_is_named():
    for dim in (1, 0, -3):
        with pytest.raises(ValueError, match="dim must be an integer from 2"):
            log_normalizer(dim, torch.tensor(1.0))
    with pytest.raises(ValueError, match="floating point"):
        log_normalizer(3, torch.tensor(1))


def test_one_number_expanded_is_one_evaluation():
    kappa = wide(30.0).expand(1000, 7)
    value = log_normalizer(16, kappa)
    assert value.shape == (1000, 7)
    assert not any(value.stride())
    assert torch.equal(value, log_normalizer(16, kappa.contiguous()))
    leaf = wide(30.0).requires_grad_()
    (gradient,) = torch.autograd.grad(log_normalizer(16, leaf.expand(1000)).sum(), leaf)
    assert gradient.item() == pytest.approx(-1000 * mean_resultant_length(16, leaf).item(), rel=1e-13)


@pytest.mark.parametrize("x", [0.5, 1.5, 12.0, 99.5, 100.0, 2048.5])
def test_the_log_gamma_of_the_extended_sums_has_thirty_digits(x):
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(60), localcontext(prec=60):
        truth = Decimal(mpmath.nstr(mpmath.loggamma(x), 50))
        assert abs(_log_gamma(Decimal(x)) - truth) < Decimal("1e-29") * max(1, abs(truth))
