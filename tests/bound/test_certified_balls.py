"""Local certificates of operations on a ball: sigma at the image, never below on the ball; slopes, norms and kinks."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lipcomp.bound import certified_bound
from lipcomp.bound._slopes import _inflections
from lipcomp.jacobian import spectral_norm

with torch.random.fork_rng():
    torch.manual_seed(0)
    CELL, RECURRENT = nn.GRUCell(6, 3).double(), nn.LSTM(6, 3, batch_first=True).double()
POWERS = torch.tensor([1.5, 2.0, -1.0, 0.4])
ON_A_BALL = {
    "layer norm": lambda x: F.layer_norm(x.flatten(1), (36,)),
    "root mean square norm": lambda x: F.rms_norm(x.flatten(1), (36,), torch.arange(36.0).to(x) / 18, eps=1e-3),
    "cosine": lambda x: F.cosine_similarity(x.flatten(1)[:, None] - 0.3, torch.eye(36).to(x)[None], dim=2),
    "instance norm": lambda x: F.instance_norm(x).flatten(1),
    "group norm": lambda x: F.group_norm(x, 1).flatten(1),
    "group norm with weights": lambda x: F.group_norm(
        x.view(-1, 4, 3, 3), 2, torch.arange(4.0).to(x), torch.ones(4).to(x)
    ).flatten(1),
    "softmax": lambda x: torch.softmax(5 * x.flatten(1), 1),
    "logsumexp": lambda x: (5 * x).logsumexp((1, 3)),
    "log softmax": lambda x: F.log_softmax(5 * x.flatten(1), 1),
    "logaddexp": lambda x: torch.logaddexp(9 * x, 2 - 3 * x[..., :1]).flatten(1),
    "the largest": lambda x: x.flatten(1).topk(5, 1).values,
    "the smallest": lambda x: x.topk(2, 3, largest=False).values.flatten(1),
    "the largest of all": lambda x: torch.stack([y.amax((), keepdim=True).flatten() for y in 2 * x]),
    "median, third": lambda x: torch.cat([x.median(3).values, x.kthvalue(3, 2).values], 2).flatten(1),
    "sums of exponentials so far": lambda x: (5 * x).logcumsumexp(2).flatten(1),
    "recurrent cells": lambda x: torch.cat([CELL(x[:, 0, 0]), RECURRENT(x[:, 0, :2])[0][:, -1]], 1),
    "added products": lambda x: torch.stack([
        torch.stack([y[0].addmv(y, y[0], beta=2, alpha=-0.5), y.addr(y[1], y[2], alpha=3)[0], y.addbmm(
            y[None], y[None], beta=0.5, alpha=2)[4], y.median().expand(6)])
        for y in x[:, 0]
    ]).flatten(1),
    "products": lambda x: torch.cat([(x + 0.5).prod(3), (x[..., 3:] + 0.5).cumprod(2)[:, :, 2]], 2).flatten(1),
    "norms": lambda x: torch.cat([F.normalize(x[..., :2, :], p=p, dim=3) for p in (1.0, 3.0, math.inf)], 1).flatten(1),
    "distances": lambda x: torch.cat([
        torch.cdist(x[:, 0], x[:, 0, :2] + 1).flatten(1), torch.cdist(x.flatten(1), torch.eye(36)[:5].to(x), p=1),
        F.pairwise_distance(x[:, 0, 0], 1.2 * x[:, 0, 3])[:, None],
    ], 1),
    "bilinear": lambda x: F.bilinear(x[..., 0], x[..., 1], torch.arange(72.0).view(2, 6, 6).to(x) / 72).flatten(1),
    "range": lambda x: (lambda f, ends: f / (ends.max - ends.min)[:, None])(x[:, 0, 0], x[:, 0, 0].aminmax(dim=1)),
    "learned powers": lambda x: (x[..., :1] ** POWERS[:3].to(x)).mean(2).flatten(1) ** POWERS[3:].to(x),
    "other functions": lambda x: (lambda z: torch.cat([
        2.5**z, z.exp2(), z.expm1(), z.sinh(), z.cosh(), z.log2(), z.log10(), z.log1p(), z.logit(), z.asinh(),
        (z + 1.1).acosh(), torch.erfc(4 * z - 2), z.hypot(z.flip(1) - 1),
    ], 1))(x[:, 0, 0, :4]),
    "standard deviation": lambda x: torch.cat(torch.std_mean(x, (2, 3)), 1),
    "sizes of a spectrum": lambda x: torch.fft.rfft2(x[..., :3]).abs().flatten(1),
    "larger and smaller": lambda x: torch.fmax(
        x, torch.fmin(x.flip(2).nan_to_num(), x.new_tensor(0.6)) + 0.05 * x.sin()
    ).flatten(1),
    "waves": lambda x: torch.cat([torch.sin(30 * x - 99), torch.cos(7 * x)], 1).flatten(1),
    "attention": lambda x: F.scaled_dot_product_attention(*[3 * x.flatten(2)] * 3).flatten(1),
    "product": lambda x: x.flatten(1) * torch.sigmoid(x.mean((1, 2, 3))[:, None]),
    "direction": lambda x: F.normalize(x.flatten(1) - 0.3, dim=1),
    "exponential": lambda x: x.flatten(1).exp(),
    "logit between limits": lambda x: x.flatten(1).logit(0.3),
    "maximum": lambda x: F.max_pool2d(x, 3, 1, 1).flatten(1),
    "gelu": lambda x: F.gelu(3 * x.flatten(1) - 1),
    "mish, silu, hardswish": lambda x: F.mish(F.silu(F.hardswish(6 * x.flatten(1) - 3))),
    "transposed convolution": lambda x: F.conv_transpose2d(x, torch.ones(1, 2, 2, 2).to(x), stride=2).flatten(1),
    "einsum": lambda x: torch.einsum("bchw,hk->bckw", x, torch.ones(6, 4).to(x)).flatten(1),
    "shuffle": lambda x: F.pixel_unshuffle(F.relu(x - 0.4), 2).flatten(1),
}  # fmt: skip


@pytest.mark.parametrize("radius", [0.1, pytest.param(1e-2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ON_A_BALL)
def test_the_local_certificate_holds_on_its_ball_and_is_sigma_at_the_image(name, radius, generator):
    fn = ON_A_BALL[name]
    images = 0.25 + 0.5 * torch.rand(2, 1, 6, 6, generator=generator, dtype=torch.float64)
    here = spectral_norm(fn, images, method="rows").sigma
    for small, units in ((1e-9, 9000), (0.0, 1)):  # at a point a smooth map leaves nothing uncertain
        at_image = certified_bound(fn, images, radius=small, method="local", units=units).bound
        torch.testing.assert_close(at_image, here, rtol=1e-5 if small else 1e-7, atol=0)
    bound = certified_bound(fn, images, radius=radius, method="local").bound
    step = F.normalize(torch.randn(2, 36, generator=generator).double(), dim=1).view_as(images) * radius
    assert (spectral_norm(fn, images + step, method="rows").sigma <= bound).all()
    assert (here <= bound).all()


@pytest.mark.parametrize("name", ["elu", "selu", "hardswish"])
def test_the_slope_at_a_kink_counts_whole(name):
    """It was that 1e-9 beside the kink, so that the product lay as much below the truth."""
    at = torch.tensor([[0.5 - 1e-15], [0.5]], dtype=torch.float64)
    kink = 3.0 if name == "hardswish" else 0.0
    options = {"alpha": 3.0} if name == "elu" else {}

    def fn(x):
        return getattr(F, name)(8 * (x - 0.5) + kink, **options)

    truth = spectral_norm(fn, at, method="rows").sigma.max()
    assert (certified_bound(fn, at, method="product").bound >= truth * (1 - 1e-14)).all()


@pytest.mark.parametrize("norms", [1, 2])
def test_norms_that_vanish_at_the_image_do_not_in_the_ball(norms):
    """At 0 torch's derivative of |z| is 0; beside it, it is 1."""
    image = torch.full((1, norms, 1), 0.5, dtype=torch.float64)
    found = certified_bound(lambda x: 2 * (x - image).norm(dim=2), image, radius=0.1, method="local").bound
    assert 2 <= float(found) <= 3


@pytest.mark.parametrize(
    "name",
    [
        "logsumexp",
        "log softmax",
        "logaddexp",
        "the largest",
        "median, third",
        "waves",
        "logit between limits",
    ],
)
def test_the_product_holds_everywhere(name, generator):
    fn = ON_A_BALL[name]
    images = torch.rand(9, 1, 6, 6, generator=generator, dtype=torch.float64)
    images[3:] *= torch.rand(6, 1, 1, 6, generator=generator).double() ** 9  # a few numbers stand out
    found = certified_bound(fn, images, method="product")
    assert found.radius == math.inf
    assert (spectral_norm(fn, images, method="rows").sigma <= found.bound).all()


def relu_network(generator):
    weights = [
        torch.randn(a, b, generator=generator).double() / a**0.5 for a, b in ((12, 24), (24, 24), (24, 6))
    ]
    return lambda x: torch.relu(torch.relu(x @ weights[0] + 0.1) @ weights[1] - 0.1) @ weights[2]


def test_the_relaxation_is_above_every_choice_of_slopes_and_near_the_largest(generator):
    """(5.4): all slopes of the units that may change state, drawn at random, against the certificate."""
    fn = relu_network(generator)
    images = 0.25 + 0.5 * torch.rand(1, 12, generator=generator, dtype=torch.float64)
    found = certified_bound(fn, images, radius=0.1, method="local").bound
    steps = F.normalize(torch.randn(200, 12, generator=generator).double(), dim=1) * 0.1
    best = float(spectral_norm(fn, images + steps, method="rows").sigma.max())
    assert best <= float(found) <= 1.5 * best


@pytest.mark.parametrize("name", ["gelu", "silu", "mish"])
def test_slopes_turn_where_the_second_derivative_vanishes(name):
    """Of GELU at ±√2; of the others by automatic differentiation."""
    function = getattr(torch.nn.functional, name)
    # further out slopes are 1 but for rounding
    found = [turn for turn in _inflections(name, False) if abs(turn) < 10]
    turns = torch.tensor(found, dtype=torch.float64, requires_grad=True)
    assert len(turns) == 2
    (slope,) = torch.autograd.grad(function(turns).sum(), turns, create_graph=True)
    (second,) = torch.autograd.grad(slope.sum(), turns)
    assert second.abs().max() < 1e-5
    if name == "gelu":
        torch.testing.assert_close(turns.detach().abs(), torch.full((2,), 2**0.5).double(), rtol=1e-5, atol=0)


def test_memory_that_does_not_suffice_leaves_the_product(generator):
    fn = relu_network(generator)
    images = torch.rand(1, 12, generator=generator, dtype=torch.float64)
    few = certified_bound(fn, images, radius=0.1, memory=1e-6)
    assert few.methods == ["product"]
    assert "GiB" in certified_bound(fn, images, radius=0.1, memory=1e-6, method="local").reason


def scores(z):
    """Three numbers of slopes 1, 4 and 2, at the middle .8, .45 and .1: within .1 the second may be the largest."""
    return z.flatten(1) * torch.tensor([1.0, 4.0, 2.0]).to(z) + torch.tensor([0.3, -1.55, -0.9]).to(z)


@pytest.mark.parametrize(
    "largest",
    [
        lambda y: y.sort(1).values[:, -1:],
        lambda y: y.sort(1, descending=True).values[:, :1],
        lambda y: (-y).sort(1).values[:, :1],
        lambda y: y.topk(1, 1).values,
        lambda y: y.amax(1, keepdim=True),
        lambda y: y.max(1, keepdim=True).values,
        lambda y: (-y).amin(1, keepdim=True),
    ],
)
def test_the_largest_number_may_be_any_that_reaches_it(largest):
    """Its constant is the steepest slope of those: 4, though that number is the third at the middle."""
    middle = torch.full((1, 1, 1, 3), 0.5, dtype=torch.float64)
    assert float(certified_bound(lambda z: largest(scores(z)), middle, radius=0.1).bound) == pytest.approx(
        4, rel=1e-6
    )


@pytest.mark.parametrize("radius", [0.1, 0.3])
@pytest.mark.parametrize("direction", [False, True])
def test_a_norm_of_stretched_pixels_turns_within_the_ball(radius, direction, generator):
    """Of A x, A = diag(1, 4, 2), and A x / |A x|: slopes are 1 and 8 at the middle and grow as A x turns."""

    def fn(z):
        y = (z.flatten(1) - torch.tensor([0.0, 0.5, 0.5]).to(z)) * torch.tensor([1.0, 4.0, 2.0]).to(z)
        return y / y.norm(dim=1, keepdim=True) if direction else y.norm(dim=1, keepdim=True)

    middle = torch.full((1, 1, 1, 3), 0.5, dtype=torch.float64)
    steps = torch.randn(5000, 1, 1, 3, generator=generator, dtype=torch.float64)
    steps = radius * steps / steps.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    truth = float(
        spectral_norm(fn, middle + torch.cat([steps, steps / 2]), method="rows", domain=None).sigma.max()
    )
    assert (
        truth
        <= float(certified_bound(fn, middle, radius=radius).bound)
        <= (1.2 * truth if direction else 4.001)
    )


def test_images_too_large_for_the_local_certificate_leave_the_product():
    """Their pixels alone would take 18 GiB of columns, which were allocated before anything was asked."""
    network = nn.Sequential(nn.Conv2d(3, 2, 3, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    image = torch.full((1, 3, 128, 128), 0.5)
    assert certified_bound(network.eval(), image).methods == ["product"]
    assert "36.1 GiB" in certified_bound(network, image, method="local", memory=8.0).reason
