"""Networks with weights that show every mistake: no statistic at its initial value, no batch norm at zero."""

import copy

import pytest
import torch
import torchvision
from torch import nn


@pytest.fixture(scope="session")
def shaken():
    """A function that gives a module weights and running statistics drawn at random, in evaluation mode."""

    def shake(module, seed=0):
        draw, kept = torch.Generator().manual_seed(seed), module.state_dict().keys()
        for name, value in [*module.named_parameters(), *module.named_buffers()]:
            if name not in kept:  # a table that the network computes
                continue
            with torch.no_grad():
                if name.endswith("running_var"):
                    value.copy_(0.5 + torch.rand(value.shape, generator=draw))
                elif value.is_floating_point() and value.ndim <= 1:
                    value.copy_(
                        (1.0 if name.endswith("weight") else 0.0)
                        + 0.3 * torch.randn(value.shape, generator=draw)
                    )
                elif value.is_floating_point():
                    value.copy_(torch.randn(value.shape, generator=draw) / max(1, value[0].numel()) ** 0.5)
        return module.eval().requires_grad_(False)

    return shake


@pytest.fixture(scope="session")
def _resnet18(shaken):
    network = torchvision.models.resnet18(weights=None)
    network.fc = nn.Identity()
    return shaken(network)


@pytest.fixture
def resnet18(_resnet18):
    """torchvision's ResNet-18 without its classifier, and the features it gives; a copy for each test."""
    return copy.deepcopy(_resnet18)


@pytest.fixture
def images():
    """Two images of pixels in [0, 1], 64 x 64."""
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def normalised():
    """ImageNet's normalisation, by hand."""

    def normalise(images, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)):
        return (images - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)

    return normalise


@pytest.fixture
def close():
    """Equal to 1e-6 of the largest entry."""

    def check(one, other):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6 * float(other.abs().max()))

    return check
