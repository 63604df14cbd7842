"""J v and Jᵀ u: adjoint, equal to differences, one convolution a layer; what cannot be measured is named."""

import warnings

import pytest
import torch
import torchvision
from torch import nn

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
