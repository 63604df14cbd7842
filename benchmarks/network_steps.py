"""Steps of random networks as people write them, those among them that work in place, through views, across dtypes.

What :mod:`benchmarks.random_networks` builds of.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn


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
