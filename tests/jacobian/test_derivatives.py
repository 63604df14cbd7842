"""What has no derivative, a wrong one, or one in one mode only: measured another way, or refused and named."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lipcomp.bound import certified_bound
from lipcomp.jacobian import Linearisation, spectral_norm
from lipcomp.jacobian._products import unlike


class NoSecondDerivative(torch.autograd.Function):
    """y = 2 x, with a first derivative that autograd cannot go through again."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 2 * g


def test_what_has_no_second_derivative_is_measured_by_forward_mode_or_named():
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    grid = torch.rand(2, 4, 4, 2, generator=torch.Generator().manual_seed(1)) * 2 - 1

    def cdist(x):  # an operator whose backward has no derivative of its own
        return torch.cdist(x.flatten(1).unsqueeze(1), torch.ones(1, 14, 48)).squeeze(1)

    truth = spectral_norm(cdist, images, method="rows").sigma
    torch.testing.assert_close(spectral_norm(cdist, images, method="lanczos").sigma, truth, rtol=1e-4, atol=0)

    def once(x):
        return NoSecondDerivative.apply(
            F.grid_sample(x, grid[:1].expand(len(x), -1, -1, -1), align_corners=False)
        ).flatten(1)

    with pytest.raises(ValueError, match="has no derivative for"):
        spectral_norm(once, images, method="lanczos")
    assert spectral_norm(once, images, method="rows").converged.all()


def of_three(x):
    assert x.size()[0] == 3, "Guard failed: x.size()[0] == 3"  # as what torch.export makes
    return x.flatten(1)


class OnceInNumPy(torch.autograd.Function):
    """A derivative, no second one, and none in forward mode."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.from_numpy(x.detach().numpy() ** 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 2 * g * ctx.saved_tensors[0]


def test_a_function_with_one_derivative_is_measured_by_rows():
    images = torch.rand(2, 30, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r'forward mode .*method="rows"'):
        spectral_norm(OnceInNumPy.apply, images)
    torch.testing.assert_close(
        spectral_norm(OnceInNumPy.apply, images, method="rows").sigma, 2 * images.amax(1)
    )


class OnceWithForward(OnceInNumPy):
    """One derivative, and one in forward mode that is it times a factor: right for 1."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        ctx.factor = factor
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 2 * g * ctx.saved_tensors[0], None

    @staticmethod
    def jvp(ctx, tangent, _):
        return 2 * ctx.factor * tangent * ctx.saved_tensors[0]


def test_without_a_second_derivative_forward_mode_serves_if_it_is_right():
    images = torch.rand(2, 30, generator=torch.Generator().manual_seed(0))
    found = spectral_norm(lambda x: OnceWithForward.apply(x, 1.0), images, method="lanczos")
    torch.testing.assert_close(found.sigma, 2 * images.amax(1), rtol=1e-4, atol=0)
    with pytest.raises(ValueError, match=r'a wrong one in forward mode.*method="rows"'):
        spectral_norm(lambda x: OnceWithForward.apply(x, 1.01), images, method="lanczos")


def test_a_sparse_weight_is_a_weight():
    weight = torch.diag(torch.arange(12.0)).to_sparse()
    found = spectral_norm(lambda x: torch.sparse.mm(weight, x.flatten(1).T).T, torch.rand(2, 3, 2, 2))
    assert found.sigma.tolist() == pytest.approx([11, 11])


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda x: x.clone().resize_(len(x), 12), "first derivative .*resize.*replace that layer"),
        (lambda x: torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,)).flatten(1), "operator cond"),
        (of_three, "images of shape .*any number"),
        (lambda x: x.flatten(1).round().detach(), "does not depend differentiably"),
        (lambda x: x.flatten(1)[:1], "one row per image"),
        (lambda x: x.flatten(1) - x.flatten(1).mean(0), "mixes the images"),
        (lambda x: x.flatten(1) + torch.rand(len(x), 1), "not deterministic"),
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8)).train(), "training mode"),
        (nn.Sequential(nn.Flatten(), nn.Dropout(0.5)).train(), "training mode"),
    ],
)
def test_a_map_that_cannot_be_measured_is_refused(fn, message):
    with pytest.raises(ValueError, match=message):
        spectral_norm(fn, torch.rand(4, 3, 2, 2))


class Scaled(torch.autograd.Function):
    """The exponential with a derivative that is it times a factor: right for 1."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.save_for_backward(factor * x.exp())
        return x.exp()

    @staticmethod
    def backward(ctx, cotangent):
        return cotangent * ctx.saved_tensors[0], None


def written(x):
    x = x.flatten(1) * 1.0
    x.data.mul_(4)
    return x


def without_gradient(x):
    with torch.no_grad():
        mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean).flatten(1)


def hooked(x):
    x = x.flatten(1).tanh()
    if x.requires_grad:
        x.register_hook(lambda cotangent: 1.3 * cotangent)
    return x


def node_hooked(x):
    x = x.flatten(1).tanh()
    if x.requires_grad:
        x.grad_fn.register_hook(lambda inputs, outputs: (0.5 * inputs[0],))
    return x


def to_float(x):
    return x.float()


@torch.jit.script
def scripted(x):
    return (x * x.detach()).flatten(1)


@pytest.mark.parametrize(
    "fn",
    [
        written,
        without_gradient,
        hooked,
        node_hooked,
        scripted,
        lambda x: (x + (x.round(decimals=1) - x).detach()).flatten(1),
        lambda x: x.flatten(1) / x.flatten(1).norm(dim=1, keepdim=True).detach(),
        lambda x: Scaled.apply(x, -1.0).flatten(1),
        lambda x: (x + 1e-3 * x.mean((1, 2, 3), keepdim=True).detach()).flatten(1),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_derivative_that_is_not_that_of_the_values_is_refused(fn, dtype, generator):
    images = torch.rand(3, 2, 3, 3, generator=generator, dtype=dtype)
    for method in ("lanczos", "rows"):
        with pytest.raises(ValueError, match="not that of its values"):
            spectral_norm(fn, images, method=method)


def on_the_third(fn):
    """Something else for one of the images, which is neither the first nor the furthest from it."""
    return lambda x: torch.cat([(fn if 0.6 < image.max() < 0.9 else to_rows)(image[None]) for image in x])


def to_rows(x):
    return x.flatten(1) * 1.0


@pytest.mark.parametrize(
    "fn",
    [
        *map(on_the_third, (written, without_gradient, node_hooked)),
        on_the_third(lambda x: to_rows(x) / x.norm().item()),
        on_the_third(lambda x: Scaled.apply(x, 0.9).flatten(1)),
        lambda x: (
            x + 1e-3 * torch.where((x - 0.75).abs() < 0.15, x, 0).mean((1, 2, 3), keepdim=True).detach()
        ).flatten(1),
    ],
)
def test_a_derivative_that_is_wrong_at_another_image_is_refused(fn, generator):
    images = (
        torch.rand(4, 2, 3, 3, generator=generator) * torch.tensor([0.2, 0.3, 0.85, 0.1])[:, None, None, None]
    )
    images[:, 0, 0, 0] = images.flatten(1).amax(1)
    images = torch.cat([images, torch.ones(1, 2, 3, 3)])  # furthest from the first
    Linearisation(fn, images[[0, 4]])
    with pytest.raises(ValueError, match="not that of its values"):
        spectral_norm(fn, images)


@torch.jit.script
def detached_in_float32(x):
    y = x.float()
    return (y + 0.03 * y.mean((1, 2, 3), keepdim=True).detach()).to(x.dtype).flatten(1)


def test_differences_of_what_holds_float32_inside_are_wider(generator):
    """In float64 it told float64 of all that it made, so that differences too close for float32 saw nothing."""
    with pytest.raises(ValueError, match="not that of its values"):
        spectral_norm(detached_in_float32, torch.rand(3, 2, 3, 3, generator=generator))


def stable_softmax(x):
    powers = (x - x.amax(1, keepdim=True).detach()).exp()  # takes nothing from the derivative
    return powers / powers.sum(1, keepdim=True)


@torch.jit.script
def through_float32(x):  # in float64 a step function, which differences must not look at closely
    return x + 0.3 * x.float().to(x.dtype)


@pytest.mark.parametrize(
    ("fn", "plain"), [(stable_softmax, lambda x: x.softmax(1)), (through_float32, lambda x: 1.3 * x)]
)
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_a_derivative_that_is_that_of_the_values_is_not_refused(fn, plain, scale, generator):
    images = torch.rand(3, 30, generator=generator)
    found = spectral_norm(lambda x: fn(x / scale), images * scale, domain=None).sigma
    torch.testing.assert_close(found * scale, spectral_norm(plain, images).sigma)


def test_what_is_compiled_is_measured_as_it_was_written(generator):
    images = torch.rand(3, 2, 3, 3, generator=generator)
    network = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Tanh(), nn.Flatten()).eval()
    compiled = torch.compile(network, backend="aot_eager")
    torch.testing.assert_close(spectral_norm(compiled, images).sigma, spectral_norm(network, images).sigma)
    found, truth = (certified_bound(fn, images, radius=0.01).bound for fn in (compiled, network))
    assert found.equal(truth)


def test_a_buffer_that_is_replaced_is_named(generator):
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls = self.calls + 1
            return x.flatten(1)

    with pytest.raises(ValueError, match=r"updates a tensor that it keeps \(Counts.calls\)"):
        spectral_norm(Counts(), torch.rand(3, 4, generator=generator))


def test_a_lazy_layer_is_refused_before_it_is_touched(generator):
    images = torch.rand(3, 4, generator=generator)
    lazy = nn.LazyLinear(3)
    for _ in range(2):
        with pytest.raises(ValueError, match="no weights before its first call"):
            spectral_norm(lambda x: lazy(x), images)
    lazy(images)
    truth = torch.linalg.matrix_norm(lazy.weight.detach(), 2)
    torch.testing.assert_close(spectral_norm(lambda x: lazy(x), images).sigma, truth.expand(3))


@pytest.mark.parametrize(
    "cast", [lambda x: x.float(), lambda x: x.to(torch.float32), torch.jit.script(to_float)]
)
def test_a_cast_to_float32_is_none_in_the_same_map_in_float64(cast, generator):
    images = torch.rand(3, 4, generator=generator)
    weight = torch.randn(4, 30, generator=generator)
    found = spectral_norm(lambda x: (cast(x) @ weight).tanh(), images)
    torch.testing.assert_close(found.sigma, spectral_norm(lambda x: (x @ weight).tanh(), images).sigma)


def test_a_derivative_of_its_own_that_is_right_is_taken(generator):
    images = torch.rand(3, 2, 3, 3, generator=generator)

    def stable(x):  # a constant that cancels
        x = x.flatten(1)
        x = Scaled.apply(x - x.amax(1, keepdim=True).detach(), 1.0)
        return x / x.sum(1, keepdim=True)

    truth = spectral_norm(lambda x: x.flatten(1).softmax(1), images).sigma
    torch.testing.assert_close(spectral_norm(stable, images).sigma, truth, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(4, 3, 2, 2) * 2, r"pixels in \[0, 1\].*divide"),
        (torch.full((2, 3), torch.nan), "finite"),
        (torch.zeros(0, 3), "at least 1 image"),
        (torch.ones(4, 3).to_sparse(), "to_dense"),
    ],
)
def test_images_that_are_no_pixels_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        spectral_norm(lambda x: x.flatten(1), images)


@pytest.mark.parametrize(
    ("values", "furthest"), [([3.0], [3.0]), ([3.0, 1.0], [3.0, 1.0]), ([1.0, 2, 9, 4], [1.0, 9])]
)
def test_a_map_is_tried_at_the_first_image_and_the_one_furthest_from_it(values, furthest):
    assert unlike(torch.tensor(values).view(-1, 1, 1)).flatten().tolist() == furthest
