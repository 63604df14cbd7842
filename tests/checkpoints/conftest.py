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


def _within(share):
    def check(found, expected):
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=0, atol=share * float(expected.abs().max()))

    return check


@pytest.fixture
def close():
    """Equal to 1e-6 of the largest entry."""
    return _within(1e-6)


@pytest.fixture
def agree():
    """Equal to 1e-5 of the largest entry."""
    return _within(1e-5)


@pytest.fixture
def small_images(images):
    """Their corners, 32 x 32."""
    return images[:, :, :32, :32]


@pytest.fixture
def small_sizes():
    """What timm calls the sizes of a small vision transformer."""
    return {"img_size": 32, "patch_size": 8, "embed_dim": 192, "depth": 2, "num_heads": 3}


@pytest.fixture
def small_vit(shaken, small_sizes):
    """A function that builds one whose features are those of its class token."""
    timm = pytest.importorskip("timm")

    def build(**more):
        kind = timm.models.vision_transformer.VisionTransformer
        return shaken(kind(**small_sizes, num_classes=0, global_pool="token", **more))

    return build
