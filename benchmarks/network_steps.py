"""Steps of random networks as people write them, those among them that work in place, through views, across dtypes.

What :mod:`benchmarks.random_networks` builds of.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Apply(nn.Module):
    """A function of the features and of constants, which follow the module's dtype."""

    def __init__(self, function: Callable[..., Tensor], *constants: Tensor) -> None:
        super().__init__()
        self.function = function
        for i, constant in enumerate(constants):
            self.register_buffer(f"constant{i}", constant)

    def forward(self, x: Tensor) -> Tensor:
        """The features behind this step."""
        return self.function(x, *self.buffers())


class Branches(nn.Module):
    """Several modules on the same input, joined."""

    def __init__(self, join: Callable[..., Tensor], *branches: nn.Module) -> None:
        super().__init__()
        self.join, self.branches = join, nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """The features behind this step."""
        return self.join(*[branch(x) for branch in self.branches])


class InPlaceBeforeNorm(nn.Module):
    """The input of a convolution is changed in place before the batch norm behind it."""

    def __init__(self, conv: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm = conv, norm
        self.differentiable = False  # for PyTorch, whose convolution keeps its input

    def forward(self, x: Tensor) -> Tensor:
        """The features behind this step."""
        x = x * 1.5
        y = self.conv(x.clone() if self.differentiable else x)
        x.mul_(0.3)
        return self.norm(y) + x.mean((1, 2, 3), keepdim=True)


def through_view(x: Tensor) -> Tensor:
    x = x + 0.0
    x[:, :1].mul_(3.0)
    x[..., -1].add_(x[..., 0])
    return x


def clamp_by_data(x: Tensor) -> Tensor:
    return torch.clamp(x, max=x.flatten(1).mean(1).view(-1, *[1] * (x.dim() - 1)) + 0.2)


def in_place_between(x: Tensor) -> Tensor:
    low = x.flatten(1).amin(1)
    x = x * 1.0
    x.mul_(2.0)
    high = x.flatten(1).amax(1)
    return x * 0.5 + (high - low).view(-1, *[1] * (x.dim() - 1))


def first_in_place(x: Tensor) -> Tensor:
    return x.mul_(2.0).sub_(1.0)


def to_double_and_back(x: Tensor) -> Tensor:
    return (x.double() * 1.25).to(x.dtype)


def gram(x: Tensor) -> Tensor:
    """The products of all channels, h hT, as one map."""
    rows = x.flatten(2)
    return (rows @ rows.mT / rows.shape[2]).unsqueeze(1)


def whole_factors(x: Tensor) -> Tensor:
    """Signed whole numbers as factors, one of each channel or number."""
    factors = torch.arange(x.shape[1]) % 3 * 2 - 3
    return x * factors.view(-1, *[1] * (x.dim() - 2))


def squared_in_place(x: Tensor) -> Tensor:
    x = x * 1.0
    return x.mul_(x.clone())


def doubled_in_place(x: Tensor) -> Tensor:
    x = x * 0.7
    return x.add_(x)


def root_mean_square(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().flatten(1).mean(1).view(-1, *[1] * (x.dim() - 1)) + 0.1)


def times_own_length(x: Tensor) -> Tensor:
    return x * torch.linalg.vector_norm(x.flatten(1), dim=1).view(-1, *[1] * (x.dim() - 1))


# A tensor that meets itself, of any shape behind the first two axes.
MEETINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "x * x": lambda x: x * x,
    "x * x's view": lambda x: x * x.view(x.shape),
    "square": torch.square,
    "power 2": lambda x: 0.5 * x**2,
    "power 3": lambda x: 0.3 * x**3,
    "x / (1 + x x)": lambda x: x / (1 + x * x),
    "x / (1 + |x|)": F.softsign,
    "power 1/2": lambda x: (0.2 + x * x) ** 0.5,
    "inverse": lambda x: 1 / (0.3 + x.square()),
    "log": lambda x: (1 + x * x).log(),
    "addcmul": lambda x: torch.addcmul(x, x, x, value=-0.5),
    "addcdiv": lambda x: torch.addcdiv(x, x, 1 + x * x, value=0.5),
    "lerp": lambda x: torch.lerp(x, x * x, 0.3),
    "where": lambda x: torch.where(x > 0, x, x * 2),
    "where constant": lambda x: torch.where(torch.arange(x.shape[1]).view(-1, *[1] * (x.dim() - 2)) % 2 > 0, x, x * x),
    "mask": lambda x: x * (x > 0.1),
    "cat with itself": lambda x: torch.cat([x, 0.5 * x, x], 1),
    "stack with itself": lambda x: torch.stack([x, x], 1).flatten(1, 2),
    "own gate": lambda x: x * x.sigmoid(),
    "own mean's gate": lambda x: x * x.mean(1, keepdim=True).tanh(),
    "own softmax": lambda x: x * x.softmax(1),
    "glu": lambda x: F.glu(torch.cat([x, x], 1), 1),
    "neighbour": lambda x: x * x.roll(1, -1),
    "mirror image": lambda x: x - x.flip(1) * x,
    "larger of both": lambda x: torch.maximum(x, x * x),
    "largest": lambda x: x / (0.3 + x.abs().amax(1, keepdim=True)),
    "sum with itself": lambda x: torch.add(x, x, alpha=-3),
    "whole factors": whole_factors,
    "square in place": squared_in_place,
    "double in place": doubled_in_place,
    "root mean square": root_mean_square,
    "own length": times_own_length,
    "standard score": lambda x: (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, correction=0) + 0.1).sqrt(),
}  # fmt: skip


def of_image(value: Tensor, x: Tensor) -> Tensor:
    """Numbers of each image, beside those of its features."""
    return value.flatten(1).mean(1).view(-1, *[1] * (x.dim() - 1))


def bilinear(x: Tensor) -> Tensor:
    rows = x.flatten(1)
    size = rows.shape[1]
    weight = torch.linspace(-1, 1, 3 * size * size).view(3, size, size).sin() / size
    return x + of_image(torch.nn.functional.bilinear(rows, rows, weight.to(x)), x)


def distances(order: float) -> Callable[[Tensor], Tensor]:
    def step(x: Tensor) -> Tensor:
        rows = x.flatten(1)[:, None]
        places = torch.linspace(-1, 1, 3 * rows.shape[2]).view(1, 3, -1).to(x)
        return x * of_image(torch.cdist(rows, places.expand(len(x), -1, -1), p=order), x) / rows.shape[2]

    return step


def learned_mean(x: Tensor) -> Tensor:
    power = torch.tensor([2.5]).to(x)
    return x + ((x.square() + 0.1) ** power).mean(-1, keepdim=True) ** (1 / power)


def between_ends(x: Tensor) -> Tensor:
    ends = x.aminmax(dim=1, keepdim=True)
    return (x - ends.min) / (ends.max - ends.min + 0.3)


def own_limits(x: Tensor) -> Tensor:
    limits = torch.linspace(-0.5, 0.2, x.shape[-1]).to(x)
    return x.clamp(limits, limits + 0.4) + x.clamp(max=x.mean(1, keepdim=True))


# More of them, for networks of seeds from MORE_FROM on: tests name those of lower seeds.
MORE_FROM = 200_000
MORE: dict[str, Callable[[Tensor], Tensor]] = {
    "cumulative product": lambda x: (0.5 + x.sigmoid()).cumprod(1),
    "product": lambda x: x * (0.5 + x.sigmoid()).prod(-1, keepdim=True),
    "largest so far": lambda x: x.cummax(1).values - 0.5 * x.cummin(-1).values,
    "1-norm": lambda x: F.normalize(x, p=1.0, dim=1) + x,
    "3-norm": lambda x: x / (0.3 + torch.linalg.vector_norm(x, 3, dim=1, keepdim=True)),
    "norm of order 1.5": lambda x: x * (0.1 + x.square()).norm(p=1.5, dim=1, keepdim=True),
    "norm of the largest": lambda x: x / (0.3 + x.norm(p=float("inf"), dim=1, keepdim=True)),
    "distances": distances(2.0),
    "distances of order 1": distances(1.0),
    "bilinear": bilinear,
    "learned mean": learned_mean,
    "between its ends": between_ends,
    "own limits": own_limits,
    "powers of each number": lambda x: (0.3 + x.square()) ** torch.linspace(-1, 2, x.shape[-1]).to(x),
    "soft shrinkage": lambda x: F.softshrink(x, 0.2),
    "threshold": lambda x: F.threshold(x, 0.1, 0.1),
    "logit": lambda x: x.sigmoid().mul(0.9).add(0.05).logit() + x.sigmoid().logit(eps=0.3),
    "exponentials": lambda x: x.tanh().exp2() + x.tanh().expm1() + 1.7 ** x.tanh(),
    "hyperbolic": lambda x: x.tanh().sinh() + (0.5 * x).tanh().cosh() + x.asinh() + (1.1 + x.square()).acosh(),
    "logarithms": lambda x: x.square().log1p() + (0.2 + x.square()).log2() - (0.2 + x.square()).log10(),
    "error function": lambda x: torch.erfc(x - 0.2) + torch.erf(2 * x),
    "hypotenuse": lambda x: torch.hypot(x, x.roll(1, -1)),
    "spread": lambda x: torch.std_mean(x, 1, correction=0, keepdim=True)[0] * x + x.std(-1, correction=0, keepdim=True),
}  # fmt: skip
ON_MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "gram": gram,
    "einsum square": lambda x: torch.einsum("nchw,nchw->nch", x, x)[..., None],
    "einsum of channels": lambda x: torch.einsum("nchw,ndhw->ncd", x, x)[:, None],
    "own attention": lambda x: F.scaled_dot_product_attention(x, x, x),
}
ON_VECTORS: dict[str, Callable[[Tensor], Tensor]] = {
    "outer": lambda x: torch.einsum("ni,nj->nij", x[:, :4], x).flatten(1),
    "einsum cube": lambda x: torch.einsum("ni,ni,ni->ni", x, x, x),
    "own direction": lambda x: x + F.normalize(x, dim=1),
    "inner product": lambda x: torch.cat([x, (x[:, None] @ x[:, :, None]).flatten(1)], 1),
}
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu in place": lambda: nn.ReLU(inplace=True),
    "leaky relu": lambda: nn.LeakyReLU(0.2),
    "relu6": nn.ReLU6,
    "gelu": nn.GELU,
    "gelu tanh": lambda: nn.GELU("tanh"),
    "silu": nn.SiLU,
    "silu in place": lambda: nn.SiLU(inplace=True),
    "mish": nn.Mish,
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "elu": nn.ELU,
    "hardtanh": nn.Hardtanh,
    "softmax": lambda: nn.Softmax(1),
}
