"""Maps whose Lipschitz constant is known: every lower estimate below it, every certificate above it."""

import itertools
import math
import warnings

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional as F

from lipcomp.bound import (
    _layer_norms,
    certified_bound,
    lipschitz,
    lower_bounds,
    measure_pairs,
    random_pairs,
    search_ball,
)
from lipcomp.bound._layer_norms import convolution_norm, linear_norm
from lipcomp.bound._sandwich import sandwich
from lipcomp.bound._search import project
from lipcomp.encoders import EncoderSpec, build_encoder
from lipcomp.jacobian import spectral_norm
from lipcomp.jacobian._mean_value import mean_value_check


def orthogonal(n, generator):
    return torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q


def linear(generator):
    weight = torch.randn(14, 20, generator=generator, dtype=torch.float64)
    return nn_linear(weight), float(torch.linalg.matrix_norm(weight, 2))


def nn_linear(weight):
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False).double()
    layer.weight.data.copy_(weight)
    return layer.eval()


def rotation(generator):
    return nn_linear(orthogonal(20, generator)), 1.0


def scaled(generator):
    return nn.Sequential(nn_linear(orthogonal(20, generator)), nn_linear(3.5 * torch.eye(20).double())), 3.5


def convolution(generator):
    """A delta kernel with a stride: it picks pixels, norm 1."""
    layer = nn.Conv2d(1, 1, 3, stride=2, padding=1, bias=False).double()
    layer.weight.data.zero_()[0, 0, 1, 1] = 1.0
    return nn.Sequential(nn.Unflatten(1, (1, 4, 5)), layer, nn.Flatten()).eval(), 1.0


@pytest.mark.parametrize("build", [linear, rotation, scaled, convolution])
def test_estimates_hold_the_truth_between_them(build, generator):
    fn, truth = build(generator)
    images = torch.rand(6, 20, generator=generator, dtype=torch.float64)
    lower = measure_pairs(fn, random_pairs([images], 0.2, generator=generator), normalised=False)[
        "direction"
    ].maximum
    sigma = float(spectral_norm(fn, images).sigma.max())
    searched = float(search_ball(fn, images, 0.2, starts=1, steps=5).sigma.max())
    certificate = certified_bound(fn, images)
    assert lower <= truth * (1 + 1e-9)
    assert sigma == pytest.approx(truth, rel=1e-4)
    assert searched == pytest.approx(truth, rel=1e-4)
    assert certificate.radius == float("inf")
    assert truth <= float(certificate.bound.max()) <= truth * 1.05


def torchlip_network():
    from deel import torchlip

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torchlip.Sequential(
            torchlip.SpectralConv2d(1, 8, 3, padding=1),
            torchlip.GroupSort2(),
            torchlip.ScaledL2NormPool2d(2),
            nn.Flatten(),
            torchlip.SpectralLinear(8 * 9, 24),
            torchlip.FullSort(),
            torchlip.SpectralLinear(24, 16),
        )
    return network.eval()


def test_no_lower_bound_of_a_1_lipschitz_network_exceeds_1(generator):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = torchlip_network()
    images = torch.rand(12, 1, 6, 6, generator=generator)
    pairs = measure_pairs(network, random_pairs([images], 0.5, generator=generator), normalised=False)
    sigma = spectral_norm(network, images)
    found = search_ball(network, images[:4], 0.5, starts=2, steps=15)
    chord = search_ball(network, images[:4], 0.5, kind="chord", starts=1, steps=15)
    for estimate in (
        pairs["direction"].maximum, float(sigma.sigma.max()), float(found.sigma.max()), float(chord.chord_ratio.max())
    ):  # fmt: skip
        assert 0.05 < estimate <= 1 + 2e-4
    assert float(found.sigma.max()) >= float(sigma.sigma[:4].max())
    # reached, but for the norm of the convolution
    certificate = certified_bound(network, images[:4], radius=0.5)
    assert float(found.sigma.max()) <= float(certificate.bound.max()) <= 1.1


@pytest.fixture(scope="module")
def encoder():
    spec = EncoderSpec("small_cnn", (1, 12, 12), mean=(0.13,), std=(0.31,), projector=(24, 16))
    return build_encoder(spec, seed=1).eval()


def test_the_sandwich_of_an_encoder_is_in_order(encoder, generator):
    found = lipschitz(encoder, torch.rand(3, 1, 12, 12, generator=generator), steps=8)
    assert found.in_order
    assert found.radius > 0
    assert 0 <= found.gap_decades < 0.1  # on the product's own ball
    assert "<= certified" in found.line()
    assert "gap" in found.line()
    for wrong in ((3.0, 1.0, 5.0), (1.0, 3.0, 2.0), (1.0, 3.0, 2.99)):
        assert sandwich(*wrong).startswith("OUT OF ORDER")
    assert sandwich(1.0005, 1.0, 0.9995).startswith("lower")
    assert sandwich(math.nan, 1.0, 1.0) == "lower unknown <= searched 1 <= certified 1  (gap 0.0 decades)"


@pytest.mark.parametrize(("norm", "radius"), [("l2", 0.5), ("linf", 0.05)])
@pytest.mark.parametrize("kind", ["pair", "chord"])
def test_search_stays_in_the_ball_and_finds_more_than_the_point(encoder, norm, radius, kind, generator):
    images = torch.rand(4, 1, 12, 12, generator=generator)
    images[0, 0, :6] = 0.0  # on the box's face
    found = search_ball(encoder, images, radius, norm=norm, kind=kind, starts=2, steps=12)
    order = 2 if norm == "l2" else float("inf")
    for points in (found.point, found.first, found.second):
        assert float((points - images).flatten(1).norm(p=order, dim=1).max()) <= radius * (1 + 1e-5)
        assert 0 <= float(points.min()) <= float(points.max()) <= 1
    assert (found.sigma >= found.sigma_at_image).all()
    again = spectral_norm(encoder, found.point).sigma
    torch.testing.assert_close(again, found.sigma, rtol=1e-3, atol=0)
    check = mean_value_check(encoder, found.first, found.second)
    torch.testing.assert_close(check.ratio.float(), found.chord_ratio, rtol=2e-2, atol=0)
    assert check.holds.all()


def test_pair_ascent_beats_random_points(encoder, generator):
    """theory (4.5): measured at radius 0.5, 68%, 12% and 5% above sigma(x)."""
    images = torch.rand(4, 1, 12, 12, generator=generator)
    pair = search_ball(encoder, images, 0.5, starts=2, steps=25)
    random = torch.stack(
        [
            spectral_norm(encoder, (image + 0.5 * F.normalize(torch.randn(16, 144, generator=generator), dim=1)
                .reshape(16, 1, 12, 12)).clamp(0, 1)).sigma.max()
            for image in images
        ]
    )  # fmt: skip
    assert (pair.sigma > random).all()
    assert float((pair.sigma / pair.sigma_at_image).mean()) > 1.15


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**31),
    dim=st.integers(2, 24),
    log_kappa=st.floats(-3, 5),
    log_distance=st.floats(-4, 0),
    depth=st.integers(0, 2),
)
def test_orders_over_random_encoders_and_pairs(seed, dim, log_kappa, log_distance, depth):
    """(3.1) <= (3.3)/√2, (3.2) <= (3.3) <= (3.4) = kappa (3.5), and (4.4), for networks and pairs drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [12] + [16] * depth + [dim]
    weights = [torch.randn(b, a, generator=generator).double() for a, b in itertools.pairwise(sizes)]

    def fn(x):
        for weight in weights[:-1]:
            x = torch.relu(x @ weight.T + 0.1)
        return F.normalize(x @ weights[-1].T + 0.01, dim=1)

    first = torch.rand(6, 12, generator=generator).double()
    step = F.normalize(torch.randn(6, 12, generator=generator).double(), dim=1) * 10**log_distance
    second = (first + step).clamp(0, 1)
    distance = (second - first).norm(dim=1)
    kappa = 10**log_kappa
    value = {
        name: bound.values
        for name, bound in lower_bounds(fn(first), fn(second), distance, concentration=kappa).bounds.items()
    }
    slack = 1 + 1e-9
    assert (value["published"] <= value["second_moment"] / 2**0.5 * slack).all()
    assert (value["mean"] <= value["second_moment"] * slack).all()
    assert (value["second_moment"] <= value["supremum"] * slack).all()
    torch.testing.assert_close(value["supremum"], kappa * value["direction"])
    assert mean_value_check(fn, first, second).holds.all()


def test_certified_norms_are_above_and_near_the_true_ones(generator):
    for stride, kernel, inner, out, dilation, groups in (
        (1, 3, 3, 4, 1, 1), (2, 3, 3, 4, 1, 1), (2, 2, 3, 5, 1, 1), (1, 3, 4, 4, 2, 1), (1, 3, 4, 4, 1, 2),
        (3, 5, 2, 3, 1, 1), (2, 1, 3, 3, 1, 1),
    ):  # fmt: skip
        weight = torch.randn(out, inner // groups, kernel, kernel, generator=generator, dtype=torch.float64)
        image = torch.zeros(1, inner, 16, 16, dtype=torch.float64)

        def fn(x, weight=weight, stride=stride, pad=kernel // 2 * dilation, dilation=dilation, groups=groups):
            return F.conv2d(x, weight, None, stride, pad, dilation, groups).flatten(1)

        truth = float(spectral_norm(fn, image, rtol=1e-6).sigma)
        bound = convolution_norm(weight, (stride, stride), (dilation, dilation), groups)
        assert truth <= bound <= truth * 1.15, (stride, kernel, dilation, groups)
    weight = torch.randn(4, 3, 3, 3, generator=generator)  # a stride that only drops outputs
    both = convolution_norm(weight, (2, 2), (2, 2), 1)
    assert both == convolution_norm(weight, (1, 1), (2, 2), 1) == convolution_norm(weight, (1, 1), (1, 1), 1)
    weight = torch.randn(7, 9, generator=generator)
    assert linear_norm(weight) == pytest.approx(float(torch.linalg.matrix_norm(weight.double(), 2)), rel=1e-8)


def test_every_rule_is_above_the_largest_sigma(generator):
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.GELU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(4, 4, 3),
        nn.LeakyReLU(0.2), nn.AvgPool2d(2), nn.SiLU(), nn.Flatten(), nn.LazyLinear(8), nn.Tanh(), nn.Linear(8, 6),
    )  # fmt: skip
    network(torch.rand(8, 1, 8, 8, generator=generator))
    network.eval()

    def fn(x):
        h = network((x - 0.5) / 0.25)
        return torch.cat([h * 2.0, h + 0.5 * h, h.relu()], 1)

    images = torch.rand(3, 1, 8, 8, generator=generator)
    bound = certified_bound(fn, images)
    assert bound.reason == ""
    assert (spectral_norm(fn, images).sigma.double() <= bound.bound * (1 + 1e-6)).all()  # sigma in float32
    assert (
        spectral_norm(fn, images).sigma.double() <= certified_bound(fn, images, method="product").bound
    ).all()


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("radius", [1e-8, 1e-7, 1e-5, 0.3])
def test_no_projection_is_rounded_out_of_the_ball(norm, radius, generator):
    centres = torch.rand(50, 20, generator=generator)
    found = project(centres + torch.randn(50, 20, generator=generator), centres, radius, norm)
    length = (found.double() - centres.double()).norm(p=2 if norm == "l2" else torch.inf, dim=1)
    assert (length <= radius * (1 + 1e-6)).all()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_projection_is_the_nearest_point(norm, generator):
    """Against many points of the set: none is nearer."""
    centre = torch.rand(1, 3, generator=generator, dtype=torch.float64).expand(20, 3)
    points = centre + torch.randn(20, 3, generator=generator, dtype=torch.float64)
    found = project(points, centre, 0.4, norm)
    others = torch.rand(20000, 3, generator=generator, dtype=torch.float64)
    order = 2 if norm == "l2" else float("inf")
    others = others[(others - centre[0]).norm(p=order, dim=1) <= 0.4]
    nearest = torch.cdist(points, others).amin(1)
    assert ((points - found).norm(dim=1) <= nearest + 1e-9).all()
    assert float((found - centre).norm(p=order, dim=1).max()) <= 0.4 + 1e-9


@pytest.mark.parametrize("kind", ["pair", "chord"])
def test_a_search_does_not_depend_on_the_scale_of_the_map(kind, generator):
    weight, other = torch.randn(48, 32, generator=generator), torch.randn(32, 10, generator=generator)
    images = torch.rand(3, 3, 4, 4, generator=generator)

    def found(factor):
        def fn(x):
            return (torch.relu((x - 0.5).flatten(1) @ weight) @ other) * factor

        return search_ball(fn, images, 0.5, kind=kind, starts=2, steps=8)

    one, small = found(1.0), found(1e-12)
    torch.testing.assert_close(small.sigma * 1e12, one.sigma, rtol=1e-3, atol=0)
    torch.testing.assert_close(small.chord_ratio * 1e12, one.chord_ratio, rtol=1e-3, atol=0)
    assert (one.chord_ratio > 0).all()


@pytest.mark.parametrize("kind", ["pair", "chord"])
def test_rounding_in_float64_makes_no_chord_longer(kind, generator):
    """x + 1000 has slope 1; its numbers are 1e-13 apart, so chords of 1e-14 are rounding alone."""
    images = torch.rand(6, 1, 4, 4, generator=generator, dtype=torch.float64)
    found = search_ball(lambda x: x.flatten(1) + 1e3, images, 1e-14, kind=kind, starts=1, steps=3)
    assert float(found.chord_ratio.max()) <= 1 + 1e-9


@pytest.mark.parametrize("radius", [0.01, 0.1, 0.3])
def test_the_sandwich_of_a_curved_map_holds_the_truth_at_every_radius(radius):
    """x |-> x^2 on one pixel: the constant of a ball is 2 (x + r); a search stays among pixels, so at most 2."""
    images = torch.tensor([[0.2], [0.5], [0.9]], dtype=torch.float64)
    found = lipschitz(torch.square, images, radius=radius, normalised=False)
    truth = 2 * (images.squeeze(1) + radius)
    assert (found.lower <= truth.clamp(max=2) * (1 + 1e-9)).all()
    assert (found.searched <= truth.clamp(max=2) * (1 + 1e-9)).all()
    torch.testing.assert_close(found.searched, truth.clamp(max=2), rtol=3e-2, atol=0)
    torch.testing.assert_close(found.certified, truth, rtol=1e-6, atol=0)


def test_a_norm_is_computed_once_for_a_weight_and_anew_for_a_changed_one(generator, monkeypatch):
    weight = torch.randn(3, 2, 3, 3, generator=generator)
    options = (1, 1), (1, 1), 1
    first = convolution_norm(weight, *options)
    with monkeypatch.context() as patch:
        patch.setattr(_layer_norms, "_symbol_norm", None)
        assert convolution_norm(weight.clone(), *options) == first
    assert convolution_norm(weight.mul_(2), *options) == pytest.approx(2 * first)
    assert convolution_norm(weight, (2, 2), (1, 1), 1) != convolution_norm(weight, *options)


@pytest.mark.parametrize("dims", [1, 2])
def test_the_factor_of_the_grid_is_pfister_and_breslers(dims):
    """A positive kernel's symbol peaks at frequency 0, a point of every grid: what is above it is the factor alone."""
    line = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)
    kernel = line if dims == 1 else line[:, None] * line
    for channels, grid in ((1, 128), (64, 128 if dims == 1 else 64)):
        weight = torch.eye(channels).double().view(channels, channels, *[1] * dims) * kernel
        found = convolution_norm(weight, (1,) * dims, (1,) * dims, 1)
        assert found == pytest.approx(4**dims / (1 - 2 / grid) ** (dims / 2), rel=1e-8)
