"""Certificates of single operations: exact where the operation is linear, never below the largest local constant."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lipcomp.bound import certified_bound
from lipcomp.jacobian import spectral_norm

LINEAR = {
    "average": nn.AvgPool2d(3, 2, 1),
    "average of what is there": nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "average, last windows not whole": nn.AvgPool2d((2, 3), ceil_mode=True),
    "average in a row": nn.Sequential(nn.Flatten(2), nn.AvgPool1d(5, 3)),
    "overlapping average": nn.AvgPool2d(4, 1),
    "adaptive": nn.AdaptiveAvgPool2d((3, 2)),
    "adaptive to more": nn.AdaptiveAvgPool2d((11, 16)),
    "adaptive to one": nn.AdaptiveAvgPool2d(1),
    "circular": nn.CircularPad2d((3, 2, 1, 4)),
    "reflected": nn.ReflectionPad2d((2, 1, 3, 0)),
    "repeated": nn.ReplicationPad2d(2),
    "constant": nn.ConstantPad2d(2, 0.7),
    "nearest": nn.Upsample(size=(11, 5), mode="nearest-exact"),
    "nearest in a row": nn.Sequential(nn.Flatten(2), nn.Upsample(scale_factor=1.7, mode="nearest-exact")),
}


class Of(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def pasted(x):
    canvas = x.new_zeros(len(x), 3, 9, 12)
    canvas[:, :2, 1:8, 2:11] = x
    canvas[:, [0, 2]] = 2 * canvas[:, :2]
    return canvas


def turned(mode, padding):
    theta = torch.tensor([[[0.9, 0.3, 0.1], [-0.3, 1.2, -0.4]]])

    def fn(x):
        grid = F.affine_grid(theta.to(x).expand(len(x), -1, -1), x.shape, align_corners=False)
        return F.grid_sample(x, grid, mode, padding, align_corners=False)

    return Of(fn)


def blanked(x):
    x = x * 2
    x[..., 0], x[..., 1] = 0.3, x[..., 2]
    x[:, :, 3].zero_()
    x[:, :, 5:] = x[:, :, 3:-2]
    x[..., -4::2] *= 3
    return x


def mixed_spectrum(x):
    out = torch.zeros(len(x), 2, 7, 5, dtype=torch.complex128)
    out[..., :3] = (
        torch.einsum("bchw,cd->bdhw", torch.fft.rfft2(x)[..., :3], FILTER[:2, :2].to(out)) / 3 + 0.4
    )
    return torch.fft.irfft2(out, s=(7, 9))


FILTER = torch.polar(torch.linspace(0.5, 2, 35), torch.linspace(0, 9, 35)).view(7, 5)  # float32
PLACES = torch.tensor([4, 0, 4, 1, 8, 2, 6])
LINEAR |= {
    "pasted": Of(pasted),
    "filled": Of(lambda x: torch.empty_like(x).copy_(x.flip(1))),
    "repeated into place": Of(lambda x: torch.empty_like(x).copy_(x[:, :1])),
    "scattered": Of(lambda x: x.scatter(3, PLACES[3:].expand(len(x), 2, 7, 4), 3 * x[..., :4])),
    "sums by place": Of(lambda x: torch.zeros_like(x).index_add(3, PLACES, x[..., 2:], alpha=-2)),
    "scattered sums": Of(lambda x: x.scatter_add(3, PLACES.expand(len(x), 2, 7, 7), x[..., :7])),
    "reduced by place": Of(lambda x: x.scatter_reduce(3, PLACES.expand(len(x), 2, 7, 7), x[..., :7], "sum")),
    "crossed": Of(
        lambda x: torch.linalg.cross(x[..., :3], torch.tensor([2.0, -1, 5]).to(x).expand(x[..., :3].shape))
    ),
    "filled by place": Of(lambda x: x.index_fill(3, PLACES[:2], 0.3)),
    "turned by 90 degrees": Of(
        lambda x: torch.cat([torch.rot90(x, k, (2, 3)).flatten(1) for k in (-1, 1, 2, 4)], 1)
    ),
    "blanked": Of(blanked),
    "filtered": Of(lambda x: torch.fft.irfft2(torch.fft.rfft2(x, norm="ortho") * FILTER, s=(7, 9))),
    "parts of a spectrum": Of(lambda x: torch.fft.fft2(x).real - torch.fft.ihfft(x, 17).conj().imag),
    "some frequencies mixed": Of(mixed_spectrum),
    "rotary positions": Of(
        lambda x: torch.view_as_real(
            torch.view_as_complex(x[..., :8].contiguous().view(-1, 2, 7, 4, 2)) * FILTER[:, :4]
        )
    ),
    "diagonals": Of(lambda x: torch.diag_embed(x[..., :3])),
    "turned": turned("bilinear", "zeros"),
    "turned, cubic": turned("bicubic", "reflection"),
}


@pytest.mark.parametrize("name", LINEAR)
def test_linear_operations_are_exact(name, generator):
    network = nn.Sequential(LINEAR[name], nn.Flatten()).eval()
    images = torch.rand(2, 2, 7, 9, generator=generator, dtype=torch.float64)
    truth = float(spectral_norm(network, images, method="rows").sigma.max())
    assert float(certified_bound(network, images).bound.max()) == pytest.approx(truth, rel=1e-6)


class Sorted(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, x):
        x = x.flatten(1)
        if self.size == 2:
            pairs = x.unflatten(1, (-1, 2))
            low, high = (torch.min(pairs, 2, keepdim=True)[0], torch.max(pairs, 2, keepdim=True)[0])
            return torch.cat([low, high], 2).flatten(1)
        return torch.sort(x.unflatten(1, (-1, self.size)), dim=2)[0].flatten(1)


OTHERS = {
    "maximum": nn.MaxPool2d(3, 2, 1),
    "dilated maximum": nn.MaxPool2d(3, 2, 1, dilation=2),
    "maximum of overlapping windows": nn.MaxPool2d(3, 1),
    "maximum, last windows not whole": nn.MaxPool2d(2, ceil_mode=True),
    "adaptive maximum": nn.AdaptiveMaxPool2d((3, 4)),
    "adaptive maximum in a row": nn.Sequential(nn.Flatten(2), nn.AdaptiveMaxPool1d(10)),
    "largest": nn.AdaptiveMaxPool2d(1),
    "random slope at its mean": nn.RReLU(0.2, 3.0).eval(),
    "maximum with its place": nn.MaxPool2d(2, return_indices=True),
    "norm": nn.LPPool2d(2, 2),
    "1-norm": Of(lambda x: torch.linalg.vector_norm(x, 1, dim=3)),
    "largest size": Of(lambda x: x.norm(p=math.inf, dim=3)),
    "largest so far": Of(
        lambda x: torch.cat([x[:, :1, 0].cummax(2).values, x[:, 1:, 1].cummin(2).values], 1)
    ),
    "limits of its own for each number": Of(
        lambda x: x.clamp(torch.linspace(-0.4, 0.1, 9).to(x), x.new_full((7, 1), 0.2))
    ),
    "soft shrinkage": nn.Softshrink(0.2),
    "sorted for a quantile": Of(lambda x: x.quantile(0.3, 3)),
    "limit far out": Of(lambda x: (1e6 * x).clamp(min=2e4)),
    "soft and far out": nn.Sequential(Of(lambda x: 1e6 * x), nn.Softplus(beta=1e-5)),
    "threshold": nn.Threshold(0.1, 0.1),
    "overlapping norm": nn.LPPool2d(2, 3, 1),
    "steep elu": nn.ELU(2.5),
    "limit further out": nn.Hardtanh(-1e35, 1e33),
    "prelu": nn.PReLU(2, 1.7),
    "sorted pairs": Sorted(2),
    "sorted": Sorted(7),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_operations_are_never_below_the_local_constant(name, generator):
    operation = OTHERS[name].double().requires_grad_(False)

    def fn(x):
        found = operation(x - 0.5)
        return (found[0] if isinstance(found, tuple) else found).flatten(1)

    images = torch.rand(3, 2, 7, 9, generator=generator, dtype=torch.float64)
    if not name.startswith("sorted"):  # equal numbers have no derivative when sorted
        # a point that lies in many windows
        images[0] = torch.where(torch.arange(63).view(7, 9) == 31, 1.0, 0.5)
    truth = float(spectral_norm(fn, images, method="rows").sigma.max())
    certified = float(certified_bound(fn, images).bound.max())
    assert truth <= certified * (1 + 1e-13)
    assert certified <= truth * 2.01


def test_a_network_in_another_memory_layout_has_a_product(generator):
    """Its numbers of float64 lie in the same order, and are flattened in theirs."""
    network = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(105, 4)
    ).eval()
    images = torch.rand(2, 2, 7, 9, generator=generator)
    expected = certified_bound(network, images, method="product").bound
    network.to(memory_format=torch.channels_last)
    torch.testing.assert_close(certified_bound(network, images, method="product").bound, expected)


def test_batch_norms_count_with_their_weights(generator):
    """Alone the largest factor; after a convolution of single pixels the norm of both as one matrix."""
    conv, norm = nn.Conv2d(2, 3, 1).double(), nn.BatchNorm2d(3).double()
    for numbers in (norm.weight.data, norm.running_var):
        numbers.uniform_(0.3, 3.0, generator=generator)
    factor = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
    images = torch.rand(1, 3, 4, 4, generator=generator, dtype=torch.float64)
    alone = nn.Sequential(norm, nn.Flatten()).eval()
    assert float(certified_bound(alone, images, method="product").bound) == pytest.approx(float(factor.max()))
    both = nn.Sequential(conv, norm, nn.Flatten()).eval()
    truth = torch.linalg.matrix_norm(factor[:, None] * conv.weight.detach().flatten(1), 2)
    assert float(certified_bound(both, images[:, :2], method="product").bound) == pytest.approx(float(truth))


def test_sorting_costs_nothing(generator):
    images = torch.rand(3, 2, 7, 9, generator=generator)
    for size in (2, 7, 126):
        assert certified_bound(Sorted(size), images).bound.tolist() == pytest.approx([1.0] * 3)


def tok(x):
    z = x.flatten(2)
    return (z + nn_constant(z.mT, 3.0).mT).flatten(1)


def nn_constant(z, value):
    return z @ torch.full((z.shape[-1], z.shape[-1]), value, dtype=z.dtype)


def through_a_view(x):
    y = x.flatten(1) * 1.0
    y[:, :5].mul_(100.0)
    return y


def by_keyword(x):
    return torch.add(x.flatten(1), other=x.flatten(1), alpha=30)


def clamped_by_itself(x):
    x = x.flatten(1)
    return torch.clamp(x * 5, max=x.mean(1, keepdim=True) * 9)


def between(x):
    low = x.flatten(1).amin(1, keepdim=True)
    x = x * 1.0
    x.mul_(50.0)
    return torch.cat([low, x.flatten(1).amax(1, keepdim=True)], 1)


NORM_OF_A_VIEW = nn.BatchNorm1d(18).double().eval()
NORM_OF_A_VIEW.running_var.mul_(1e-4)
SMALL = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(inplace=True), nn.Flatten()).double().eval()
SCRIPTED = torch.jit.script(SMALL)
TRACED = torch.jit.trace(SMALL, torch.rand(1, 2, 3, 3).double())


@pytest.mark.parametrize(
    "fn",
    [
        tok, through_a_view, by_keyword, clamped_by_itself, between, SCRIPTED, TRACED,
        lambda x: NORM_OF_A_VIEW(x.flatten(1)), lambda x: x.mT.real.flatten(1) * 3 + x.flatten(1),
        lambda x: torch.minimum(x.flatten(1) * 20, x.flatten(1).sum(1, keepdim=True)),
    ],
)  # fmt: skip
def test_nothing_that_comes_from_the_images_is_constant(fn, generator):
    images = torch.rand(2, 2, 3, 3, generator=generator, dtype=torch.float64)
    rows = [torch.autograd.functional.jacobian(fn, x[None]).reshape(-1, 18) for x in images]
    truth = torch.linalg.matrix_norm(torch.stack(rows), 2)
    for method in ("product", "local", "least"):
        assert (certified_bound(fn, images, radius=1e-3, method=method).bound >= truth).all(), method
    assert (certified_bound(fn, images, radius=1e-6).bound <= truth * 1.001).all() or fn is clamped_by_itself


def squared_in_place(x):
    y = torch.empty_like(x)
    torch.mul(x, x, out=y)
    return y.mul_(y).flatten(1)


WITH_ITSELF = {
    "square": lambda x: (x * x).flatten(1),
    "of a layer": lambda x: (lambda h: (h * h).flatten(1))(F.relu(x @ torch.ones(3, 3).to(x) - 1)),
    "quotient": lambda x: (x / (x * x + 0.1)).flatten(1),
    "matrix": lambda x: torch.matmul(x, x).flatten(1),
    "cross": lambda x: torch.linalg.cross(x, x.flip(3), dim=2).flatten(1),
    "einsum": lambda x: torch.einsum("bchw,bchw->bch", x, x).flatten(1),
    "addcmul": lambda x: torch.addcmul(x, x, x).flatten(1),
    "maximum": lambda x: torch.maximum(x, x).flatten(1),
    "where": lambda x: torch.where(torch.ones(3, dtype=torch.bool), x, x).flatten(1),
    "sum": lambda x: (x + x).flatten(1),
    "cat": lambda x: torch.cat([x, x], 1).flatten(1),
    "norms of others": lambda x: (
        # (i, j, image): the norm over j meets j
        lambda h: (h / h.norm(dim=1)).permute(2, 0, 1).flatten(1)
    )(x[:, 0].permute(1, 2, 0) + 0.1),
    "bias": lambda x: torch.addmm(x[:, 0, 0], x[:, 0, 0], torch.eye(3).to(x)),
}


@pytest.mark.parametrize("name", WITH_ITSELF)
def test_a_tensor_that_meets_itself_counts_twice(name, generator):
    fn = WITH_ITSELF[name]
    images = torch.rand(2, 2, 3, 3, generator=generator, dtype=torch.float64)
    rows = torch.stack(
        [torch.autograd.functional.jacobian(fn, x[None]).flatten(0, 1).flatten(1) for x in images]
    )
    truth = torch.linalg.matrix_norm(rows.reshape(2, -1, 18), 2)
    for method in ("product", "local", "least"):
        assert (certified_bound(fn, images, radius=1e-3, method=method).bound >= truth).all(), method


def test_a_square_that_is_written_in_place_counts_as_one(generator):
    images = torch.rand(2, 2, 3, 3, generator=generator, dtype=torch.float64)
    truth = 4 * images.flatten(1).amax(1) ** 3
    for method in ("product", "local", "least"):
        assert (certified_bound(squared_in_place, images, radius=1e-3, method=method).bound >= truth).all()


def test_a_weight_that_is_normalised_on_the_way_is_so_in_float64(generator):
    """The certificate of float32's weight was a part in 1e8 below."""
    weight = 1 + torch.rand(5, 1, generator=generator)
    images = torch.rand(2, 5, generator=generator)
    certified = certified_bound(lambda x: x @ (weight / weight.norm()).to(x), images).bound
    truth = torch.linalg.matrix_norm(weight.double() / weight.double().norm(), 2)
    assert (certified >= truth).all()
    torch.testing.assert_close(certified, truth.expand(2), rtol=1e-8, atol=0)


def test_whole_numbers_as_factors_have_signs(generator):
    factors = torch.tensor([-5, 1, 3, -2])
    images = torch.rand(2, 4, generator=generator, dtype=torch.float64)
    for method in ("product", "local", "least"):
        assert certified_bound(lambda x: x * factors, images, method=method).bound.tolist() == pytest.approx(
            [5, 5]
        )
        assert (certified_bound(lambda x: x / 0.1, images, method=method).bound >= 10).all()  # not float32's


def test_a_norm_over_an_axis_of_length_1_has_no_direction(generator):
    """x / |x| number by number jumps at 0."""

    def signs(x):
        x = (x - 0.5)[:, None]
        return (x / torch.linalg.vector_norm(x, dim=1, keepdim=True)).flatten(1)

    images = torch.tensor([[0.501, 0.9, 0.2]], dtype=torch.float64)
    assert certified_bound(signs, images, radius=1e-2).bound.isinf().all()
    assert certified_bound(signs, images, radius=1e-4).bound.isfinite().all()


WITH_CONSTANTS = {
    "filled": lambda x: x.masked_fill(torch.arange(3) == 1, 10.0),
    "filled with infinity": lambda x: x.masked_fill(torch.arange(3) == 1, -math.inf).softmax(-1),
    "padded": lambda x: F.pad(x, [1, 1, 1, 1], value=7.0),
    "whole numbers elsewhere": lambda x: torch.where(torch.arange(3) == 1, x, torch.tensor(5)),
    "whole numbers beside it": lambda x: torch.cat([x, torch.full_like(x, 5, dtype=torch.int64)], -1),
    "negative divisor": lambda x: F.avg_pool2d(x, 3, 1, 1, divisor_override=-4),
    "causal attention": lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
    "attention with a hidden row": lambda x: F.scaled_dot_product_attention(
        x, x, x, torch.ones(3, 3, dtype=torch.bool).tril(-1)
    ),
}


@pytest.mark.parametrize("name", WITH_CONSTANTS)
@pytest.mark.parametrize("after", ["nothing", "differences", "products"])
def test_constants_among_the_numbers_have_their_value_and_no_derivative(name, after, generator):
    def fn(x):
        x = WITH_CONSTANTS[name](x)
        x = {"nothing": x, "differences": x - x.roll(1, -1), "products": x * x.roll(1, -1)}[after]
        return x.flatten(1)

    images = torch.rand(2, 2, 3, 3, generator=generator, dtype=torch.float64)
    truth = spectral_norm(fn, images, method="rows").sigma
    local = certified_bound(fn, images, radius=1e-9, method="local").bound
    torch.testing.assert_close(local, truth, rtol=1e-5, atol=0)
    assert (certified_bound(fn, images, method="product").bound >= truth * (1 - 1e-9)).all()


@pytest.mark.parametrize(
    ("fn", "reason"),
    [
        (lambda x: x.flatten(1).floor(), "floor"),
        (lambda x: (9 * x).sum(-1, dtype=torch.int64).to(x.dtype).flatten(1), "int64"),
        (lambda x: (9 * x).cumsum(-1, dtype=torch.int32).to(x.dtype).flatten(1), "int32"),
        (lambda x: x.view(torch.int32).to(x.dtype).flatten(1), "int32"),
        (lambda x: x.to(torch.float8_e4m3fn).to(x.dtype).flatten(1), "float8"),
        (lambda x: (2 * x.half()).to(x.dtype).flatten(1), "float16"),
        (lambda x: x.flatten(1) * x.bfloat16().to(x.dtype).mean((1, 2, 3))[:, None], "bfloat16"),
        (lambda x: (x * 255).to(torch.uint8).flatten(1) / 255.0, "step function"),
        (lambda x: torch.from_numpy(x.detach().numpy() * 2).flatten(1), "numpy"),
        (lambda x: x.flatten(1) * x.max().item(), "item"),
        (lambda x: torch.tensor(x.tolist(), dtype=x.dtype).flatten(1), "tolist"),
        (lambda x: torch.fft.fft(x.flatten(1)).angle(), "angle"),
        (lambda x: torch.fft.fft(x.flatten(1)).square().real, "complex numbers have no rule but for linear"),
        (lambda x: x.flatten(1) * 2 if x.sum() > 3 else x.flatten(1), "bool"),
        (lambda x: F.lp_pool2d(x, 3.0, 2).flatten(1), "sign"),
        (lambda x: x.flatten(1).norm(p=0.5, dim=1, keepdim=True), "order below 1"),
        (lambda x: F.threshold(x, 0.5, 0.2).flatten(1), "threshold"),  # jumps there
        (lambda x: x.flatten(1) * x.flatten(1).cummax(1).indices, "eq: "),
        (lambda x: x.flatten(1).clone().apply_(lambda value: 2 * value), "apply_"),
        (
            lambda x: x.flatten(1) * math.nan,
            "product: the numbers are not finite; local: the derivative is not finite",
        ),
        (lambda x: x.flatten(1).topk(3, sorted=False).values, "topk"),  # in any order
        (
            lambda x: x.scatter(3, torch.zeros(len(x), 2, 7, 1).long(), 3.0, reduce="multiply").flatten(1),
            "combine",
        ),
        (lambda x: F.softplus(x - 0.5, beta=200.0, threshold=0.01).flatten(1), "softplus"),  # jumps there
    ],
)
def test_what_has_no_rule_says_so(fn, reason, generator):
    found = certified_bound(fn, torch.rand(2, 2, 7, 9, generator=generator))
    assert reason in found.reason
    assert found.bound.isinf().all()
    assert found.methods == ["", ""]
