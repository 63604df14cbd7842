"""Convolutions in chosen layouts, with batch norms in their weights, against the dense Jacobian."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lipcomp.jacobian import Linearisation, spectral_norm


class Blocks(nn.Module):
    """Batch norms that are not simply behind their convolution, and operations in place."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, (1, 1), bias=False)
        self.grouped, self.wide = (
            nn.Conv2d(8, 8, (3, 5), padding=(1, 2), groups=4),
            nn.Conv2d(8, 8, 3, dilation=2),
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))
        self.line, self.line_norm = nn.Conv1d(8, 4, 3), nn.BatchNorm1d(4)
        self.cube, self.cube_norm = nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2)
        for norm in (*self.norms, self.line_norm, self.cube_norm):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.5, 0.5)
            norm.running_var.uniform_(0.5, 2)
            norm.running_mean.uniform_(-0.5, 0.5)

    def forward(self, x):
        x = self.first(x)
        both = x + self.norms[0](x)  # the convolution's output goes two ways
        hidden = self.norms[1](both)  # a norm without a convolution
        F.relu_(hidden)  # in place
        # a convolution between another and its norm
        hidden, other = self.grouped(hidden), self.second(hidden)
        hidden = F.gelu(self.norms[2](hidden)).mul_(1.5) + other.sigmoid_()
        hidden = self.wide(hidden).flatten(2)
        line = self.line_norm(self.line(hidden))
        cube = self.cube_norm(self.cube(line.unflatten(2, (2, -1)).unsqueeze(1)))
        return cube.flatten(1)[:, :30]


class Standardised(nn.Conv2d):
    """A convolution whose weight is standardised by a batch norm of its own, as timm's."""

    def forward(self, x):
        weight = self.weight.reshape(1, len(self.weight), -1)
        return F.conv2d(x, F.batch_norm(weight, None, None, training=True).view_as(self.weight))


def test_a_batch_norm_of_a_weight_mixes_no_images(generator):
    layer, images = Standardised(2, 3, 2), torch.rand(2, 2, 3, 3, generator=generator)
    weight = layer.weight - layer.weight.mean((1, 2, 3), keepdim=True)
    weight = weight / (weight.square().mean((1, 2, 3), keepdim=True) + 1e-5).sqrt()
    found = spectral_norm(lambda x: layer(x).flatten(1), images).sigma
    torch.testing.assert_close(found, spectral_norm(lambda x: F.conv2d(x, weight).flatten(1), images).sigma)


def test_batch_norms_are_folded_only_where_they_belong(generator):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Blocks().eval().double()
    images = torch.rand(3, 3, 16, 16, generator=generator, dtype=torch.float64)
    for precision, rtol in ((torch.float64, 1e-7), (torch.float32, 1e-4)):
        network, images = network.to(precision), images.to(precision)
        at = Linearisation(network, images, method="reverse")
        dense = torch.func.vmap(torch.func.jacrev(lambda x: network(x[None])[0]))(images).flatten(2)  # noqa: B023
        u = torch.randn(at.output.shape, generator=generator, dtype=precision)
        v = torch.randn(images.shape, generator=generator, dtype=precision)
        pulled, pushed = torch.einsum("ndp,nd->np", dense, u), torch.einsum("ndp,np->nd", dense, v.flatten(1))
        assert (at.transposed(u).flatten(1) - pulled).norm() <= rtol * pulled.norm()
        assert (at.forward(v) - pushed).norm() <= rtol * pushed.norm()
        torch.testing.assert_close(at.output, network(images).detach())


def test_a_map_that_writes_into_a_view_is_refused_or_right(generator):
    """A view that had to be copied would leave the original as it was: seen before anything is measured."""
    convolution = nn.Conv2d(3, 8, 3, padding=1).requires_grad_(False)

    def fn(x):
        x = convolution(x)
        x.view(len(x), -1).mul_(3)
        return x.flatten(1)[:, :50]

    with pytest.raises(ValueError, match=r"another output .* replaced by lipcomp's"):
        spectral_norm(fn, torch.rand(3, 3, 16, 16, generator=generator))
