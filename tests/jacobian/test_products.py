"""J v and Jᵀ u: adjoint, equal to differences, one convolution a layer; what cannot be measured is named."""

import warnings

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from lipcomp.bound import certified_bound
from lipcomp.encoders import EncoderSpec, build_encoder
from lipcomp.jacobian import Linearisation, spectral_norm
from lipcomp.jacobian._products import frozen


def small_vit():
    network = torchvision.models.VisionTransformer(16, 8, 2, 2, 16, 32, num_classes=10)
    nn.init.normal_(network.heads.head.weight, std=0.5)
    return network


class Attention(nn.Module):
    """nn.MultiheadAttention as users wire it, with its fast path."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3 * 16, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x):
        return self.layer(self.embed(x.flatten(2).reshape(len(x), 16, -1))).mean(1)


class Views(nn.Module):
    """What people write behind convolutions."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, stride=2, padding=1)
        self.last = nn.LazyLinear(10)

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = x.view(x.size(0), 2, 4, *x.shape[2:]).transpose(1, 2).reshape(x.shape)
        x = self.second(x)
        return self.last(x.view(-1, x.numel() // len(x)).view_as(x.flatten(1)))


NETWORKS = {
    "resnet18": lambda: build_encoder(EncoderSpec("resnet18_cifar", (3, 16, 16), projector=(16, 8))),
    "resnet18 with pool": lambda: build_encoder(EncoderSpec("resnet18", (3, 16, 16), projector=(16, 8))),
    "vit": small_vit,
    "attention": Attention,
    "convolutions": lambda: nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1, groups=3),
        nn.GELU(),
        nn.Conv2d(6, 4, 3, dilation=2, padding="same"),
        nn.GroupNorm(2, 4),
        nn.Hardswish(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, (2, 1), stride=(1, 2)),
        nn.Hardsigmoid(),
        nn.Flatten(),
        nn.LazyLinear(10),
    ),
    "mobilenet": lambda: torchvision.models.mobilenet_v3_small(num_classes=10),
    "shufflenet": lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=10),
    "views": Views,
}  # fmt: skip


@pytest.fixture(params=NETWORKS)
def network(request):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = NETWORKS[request.param]()
        built.eval()(torch.zeros(2, 3, 16, 16))
    return built.double()


def test_products_are_adjoint_and_equal_to_forward_mode(network, generator):
    images = torch.rand(3, 3, 16, 16, generator=generator, dtype=torch.float64)
    at = Linearisation(network, images)
    u = torch.randn(at.output.shape, generator=generator, dtype=torch.float64)
    v = torch.randn(images.shape, generator=generator, dtype=torch.float64)
    pushed, pulled = at.forward(v), at.transposed(u)
    scale = float((pushed * u).abs().sum(1).max())  # of the sum's terms, which may cancel
    torch.testing.assert_close(
        (pushed * u).sum(1), (pulled * v).flatten(1).sum(1), rtol=0, atol=1e-12 * scale
    )
    step = 1e-6
    with torch.no_grad(), frozen():
        difference = (network(images + step * v) - network(images - step * v)) / (2 * step)
    torch.testing.assert_close(pushed, difference, rtol=1e-4, atol=1e-6 * float(pushed.abs().max()))
    torch.testing.assert_close(at.transposed(2 * u), 2 * pulled)
    torch.testing.assert_close(at.forward(-v), -pushed)


def test_parameters_and_modes_are_left_as_they_were(network, generator):
    images = torch.rand(2, 3, 16, 16, generator=generator, dtype=torch.float64)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    fast = torch.backends.mha.get_fastpath_enabled()
    spectral_norm(network, images)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert images.grad is None
    assert not images.requires_grad


def test_a_product_runs_one_convolution_a_layer(generator):
    """The floor: three layers, three convolutions in either direction, once the graphs are recorded."""
    network = nn.Sequential(*[nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)], nn.Flatten())
    images = torch.rand(2, 4, 6, 6, generator=generator)
    at = Linearisation(network, images)
    u = at.transposed(torch.ones_like(at.output))
    with torch.profiler.profile() as forward:
        at.forward(u)
    with torch.profiler.profile() as back:
        at.transposed(torch.ones_like(at.output))

    def count(profile, name):
        return sum(event.count for event in profile.key_averages() if event.key == name)

    assert count(forward, "aten::convolution") == 3
    assert count(forward, "aten::convolution_backward") == 0
    assert count(back, "aten::convolution_backward") == 3
    assert count(back, "aten::convolution") == 0


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


def test_images_that_record_gradients_are_measured_without_a_warning():
    """Torch's own, about a tensor that becomes a number; it comes once in a process."""
    images, always = torch.rand(2, 3, requires_grad=True), torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Converting a tensor with requires_grad")
            assert not spectral_norm(lambda x: 2 * x, images).sigma.requires_grad
            certified_bound(lambda x: 2 * x, images)
    finally:
        torch.set_warn_always(always)


def test_float32_layouts_agree_with_float64(network, generator):
    """In float32 convolutions choose a memory layout, in float64 they do not."""
    images = torch.rand(3, 3, 16, 16, generator=generator, dtype=torch.float64)
    exact = Linearisation(network, images)
    u = torch.randn(exact.output.shape, generator=generator, dtype=torch.float64)
    v = torch.randn(images.shape, generator=generator, dtype=torch.float64)
    pulled, pushed = exact.transposed(u), exact.forward(v)
    at = Linearisation(network.float(), images.float())
    assert (at.transposed(u.float()) - pulled).norm() <= 1e-3 * pulled.norm()
    assert (at.forward(v.float()) - pushed).norm() <= 1e-3 * pushed.norm()


def test_products_keep_full_precision_and_the_settings(generator):
    images = torch.rand(4, 64, generator=generator)
    matrix = torch.randn(64, 32, generator=generator) * (1 + torch.arange(32))
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")  # bfloat16 on CPUs that have it, TF32 on GPUs
        sigma = spectral_norm(lambda x: x @ matrix, images).sigma
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(sigma, torch.linalg.matrix_norm(matrix, 2).expand(4), rtol=1e-5, atol=0)
