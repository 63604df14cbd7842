"""The formulas of theory, section 3, against Monte Carlo values, closed forms and their own order."""

import copy
import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lipcomp.bound import lower_bounds, measure_pairs, random_pairs, search_ball
from lipcomp.jacobian import frobenius_norm, spectral_norm

ANGLE = 1.5


def test_the_published_example_of_the_theory():
    """theory, section 3: d = 128, kappa = 1024, angle 1.5 rad: 29.9, 894, 895, 1396."""
    mu = torch.zeros(1, 128, dtype=torch.float64)
    other = mu.clone()
    mu[0, 0], other[0, 0], other[0, 1] = 1, math.cos(ANGLE), math.sin(ANGLE)
    found = lower_bounds(mu, other, torch.ones(1), concentration=1024.0)
    expected = {"published": 29.9, "mean": 894, "second_moment": 895, "supremum": 1396}
    for name, value in expected.items():
        assert found[name].maximum == pytest.approx(value, rel=2e-3), name
    assert found["supremum"].maximum / found["published"].maximum == pytest.approx(46.7, abs=0.05)
    assert found["direction"].maximum == pytest.approx(2 * math.sin(ANGLE / 2), rel=1e-12)


@pytest.mark.parametrize("dim", [2, 16, 128, 2048])
@pytest.mark.parametrize("kappa", [1e-6, 1.0, 1024.0, 1e6])
def test_the_bounds_keep_their_order(dim, kappa, generator):
    mu = F.normalize(torch.randn(50, dim, generator=generator, dtype=torch.float64), dim=1)
    step = 10.0 ** torch.linspace(-8, 1, 50, dtype=torch.float64)[:, None]
    other = F.normalize(mu + step * torch.randn(mu.shape, generator=generator, dtype=torch.float64), dim=1)
    bounds = lower_bounds(
        mu, other, torch.rand(50, generator=generator, dtype=torch.float64) + 0.1, concentration=kappa
    ).bounds
    value = {name: bound.values for name, bound in bounds.items()}
    slack = 1 + 1e-12
    assert (value["published"] <= value["second_moment"] / math.sqrt(2) * slack).all()
    assert (value["mean"] <= value["second_moment"] * slack).all()
    assert (value["second_moment"] <= value["supremum"] * slack).all()


def test_a_concentration_out_of_range_is_refused():
    for kappa in (0.0, 1e300, math.nan):
        with pytest.raises(ValueError, match="concentration must be positive and at most 1e\\+12, got"):
            lower_bounds(torch.eye(2), torch.eye(2).flip(0), torch.ones(2), concentration=kappa)


def test_duplicates_are_counted_and_never_divided_by():
    mu = torch.eye(4)
    distance = torch.tensor([0.0, 1.0, 2.0, 2.0])
    found = lower_bounds(mu, mu.roll(1, 0), distance)
    assert found.excluded["zero distance"] == 1
    assert "not a number" not in found.excluded
    assert found["direction"].n == 3
    assert found["direction"].witness.position == 1
    assert found["direction"].maximum == pytest.approx(math.sqrt(2), rel=2e-6)
    assert found["direction"].maximum < math.sqrt(2)


def test_rounding_is_taken_off_and_norms_are_made_one(generator):
    """Two equal images with directions of norm 1 + 1e-3 and 1, or one ulp apart, prove nothing (3.8)."""
    mu = F.normalize(torch.randn(20, 32, generator=generator), dim=1)
    for other in (mu * (1 + 9e-4), mu + 1e-8 * torch.randn(mu.shape, generator=generator)):
        assert lower_bounds(mu, other, torch.full((20,), 1e-4))["direction"].maximum == 0
    with pytest.raises(ValueError, match="bfloat16"):
        lower_bounds(mu.bfloat16(), mu.bfloat16(), torch.ones(20))


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("radius", [1e-6, 0.5])
def test_chords_that_rounding_reaches_are_those_of_float64(radius, offset, generator, monkeypatch):
    """Of a map that moves little they were the derivative times any distance, up to six times too large."""
    matrix = 10 * torch.randn(6, 9, generator=generator)
    fn = lambda x: F.normalize(offset + torch.sin(x @ matrix.to(x).T), dim=1)  # noqa: E731
    images = torch.rand(5, 9, generator=generator) * 0.8 + 0.1
    ((first, second),) = ((pair.first, pair.second) for pair in random_pairs([images], radius))
    found = measure_pairs(fn, [(first, second)])
    truth = (fn(first.double()) - fn(second.double())).norm(dim=1)
    torch.testing.assert_close(found.chord, truth, rtol=1e-6 if offset or radius < 1e-3 else 1e-3, atol=0)
    assert found.jacobian == 0
    monkeypatch.setattr("lipcomp.bound._rounding.doubled", lambda fn, images: (None, None))
    assert measure_pairs(fn, [(first, second)]).jacobian == (5 if offset or radius < 1e-3 else 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_map_that_rounds_to_half_precision_is_measured_in_float64_or_not_at_all(dtype, generator):
    """Traced in bfloat16 its close pairs were up to 28 times too large; distant pairs were off by up to .5%."""
    matrix, images = (
        torch.randn(12, 30, generator=generator).to(dtype),
        torch.rand(6, 12, generator=generator),
    )
    fn = lambda x: F.normalize((x.to(dtype) @ matrix.to(dtype)).to(x.dtype), dim=1)  # noqa: E731
    exact = lambda x: F.normalize(x.double() @ matrix.double(), dim=1)  # noqa: E731
    for radius in (1e-3, 0.1, 1.0):
        block = next(random_pairs([images], radius))
        found = measure_pairs(fn, [(block.first, block.second)])["direction"]
        chord = (exact(block.first) - exact(block.second)).norm(dim=1)
        truth = chord / (block.first.double() - block.second.double()).flatten(1).norm(dim=1)
        torch.testing.assert_close(found.values, truth, rtol=1e-3, atol=0)
    for typed in (images, images.double()):
        rows = torch.autograd.functional.jacobian(lambda x: exact(x).sum(0), images.double()).movedim(1, 0)
        truth = torch.linalg.matrix_norm(rows, 2)
        sigma = spectral_norm(fn, typed).sigma
        assert sigma.dtype == typed.dtype
        torch.testing.assert_close(sigma.double(), truth, rtol=2e-4, atol=0)
        torch.testing.assert_close(
            frobenius_norm(fn, typed, probes=30).squared, rows.square().sum((1, 2)), rtol=1e-5, atol=0
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(fn, images)
    for measure in (spectral_norm, lambda f, x: measure_pairs(f, [(x, x.flip(0))])):
        with pytest.raises(ValueError, match="in float32, before it is traced"):
            measure(traced, images)


@pytest.mark.parametrize("scale", [1e6, 1e-9])
def test_a_map_that_is_another_in_float64_is_refused(scale, generator):
    """It overflows at 65504, or is 0, for the last image alone: sigma was that of float64, and converged."""
    images = torch.rand(3, 12, generator=generator)
    factors = torch.tensor([[1.0], [1.0], [scale]])
    fn = lambda x: torch.where(x[:, :1] > 0.9, scale * x, x).half().to(x.dtype)  # noqa: E731
    images[:, 0] = torch.tensor([0.1, 0.2, 0.95])
    assert torch.equal(fn(images), (factors * images).half().float())
    for measure in (
        spectral_norm,
        frobenius_norm,
        lambda f, x: measure_pairs(f, [(x, x.flip(0))], normalised=False),
    ):
        with pytest.raises(ValueError, match="over- or underflows"):
            measure(fn, images)


def test_weights_that_are_rounded_to_half_precision_stay_so(generator):
    """Sigma of the weights before their rounding was above the certificate."""
    weight, images = torch.randn(12, 8, generator=generator), torch.rand(3, 12, generator=generator)
    fn = lambda x: x @ weight.half().to(x.dtype)  # noqa: E731
    truth = torch.linalg.matrix_norm(weight.half().double(), 2).expand(3)
    torch.testing.assert_close(spectral_norm(fn, images.double()).sigma, truth, rtol=1e-6, atol=0)
    for kind in (images, images.double()):
        found = search_ball(fn, kind, radius=1e-3, starts=1, steps=5).chord_ratio.double()
        assert bool((found <= truth * (1 + 1e-6)).all()), found / truth - 1
        assert bool((found > 0.9 * truth).all()), found / truth


def deep(generator):
    layers = []
    for _ in range(8):
        layers += [nn.Linear(40, 40), nn.Tanh()]
    network = nn.Sequential(nn.Linear(30, 40), *layers)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 1.3 / parameter.shape[-1] ** 0.5
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("kind", ["module", "function", "traced"])
def test_no_maximum_exceeds_its_pair_in_float64_at_any_distance(kind, generator):
    """+33% at 3e-5 and +7% at 1e-4 before rounding was looked at."""
    network = deep(generator)
    exact = copy.deepcopy(network).double()
    images = torch.rand(40, 30, generator=generator) * 0.8 + 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(network, images)
    fn = {"module": network, "function": lambda x: torch.sin(network(x)), "traced": traced}[kind]
    outer = torch.sin if kind == "function" else lambda y: y
    for exponent in range(-7, 1):
        pairs = random_pairs([images], 10.0**exponent, generator=torch.Generator().manual_seed(1))
        found = measure_pairs(fn, pairs, normalised=False)["direction"]
        first, second = (image[None].double() for image in found.witness.images)
        step = second - first
        chord = (outer(exact(second)) - outer(exact(first))).norm() / step.norm()
        slope = torch.func.jvp(lambda x: outer(exact(x)), (first,), (step / step.norm(),))[1].norm()
        assert found.maximum <= float(torch.maximum(chord, slope)) * (1 + 1e-6)


def test_a_batch_is_not_taken_for_batches(generator, untyped):
    """The channels of an image were taken for images."""
    images = torch.rand(2, 3, 2, 2, generator=generator)
    with pytest.raises(ValueError, match=r"pass \[images\], not images"):
        next(random_pairs(images, 0.1))
    with pytest.raises(ValueError, match=r"pass \[\(a, b\)\], not \(a, b\)"):
        measure_pairs(nn.Flatten(), iter([images, images.flip(0)]))
