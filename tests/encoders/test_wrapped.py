"""Any module behind the encoder's interface."""

import numpy as np
import pytest
import torch
from torch import nn

from lipcomp.encoders import wrap
from lipcomp.encoders._preact import PreActResNet, WideResNet
from lipcomp.encoders._wrapped import WrappedEncoder


def linear():
    """A network whose output is known: the pixels themselves."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 12, bias=False))
    nn.init.eye_(network[1].weight)
    return network


def test_the_output_is_the_networks(generator):
    images = torch.rand(3, 3, 2, 2, generator=generator)
    encoder = wrap(linear(), mean=(0.1, 0.2, 0.3), std=0.5, image_shape=(3, 2, 2))
    expected = ((images - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / 0.5).flatten(1)
    torch.testing.assert_close(encoder.embedding(images), expected)
    torch.testing.assert_close(encoder(images), expected / expected.norm(dim=1, keepdim=True))
    torch.testing.assert_close(encoder(images, "backbone"), encoder(images))
    assert encoder.layers() == ("backbone", "latent")
    assert encoder.image_shape == (3, 2, 2)
    assert encoder.architecture == "Sequential"


def test_heads_become_layers(generator):
    head, predictor = nn.Linear(12, 4), nn.Linear(4, 2)
    encoder = wrap(linear(), image_shape=(3, 2, 2), projector=head, predictor=predictor)
    images = torch.rand(2, 3, 2, 2, generator=generator)
    assert encoder.layers() == ("backbone", "projection", "prediction", "latent")
    torch.testing.assert_close(encoder.embedding(images, "projection"), head(images.flatten(1)))
    torch.testing.assert_close(encoder.embedding(images), predictor(head(images.flatten(1))))
    with pytest.raises(ValueError, match="layer must be one of backbone, latent"):
        wrap(linear(), image_shape=(3, 2, 2)).embedding(images, "projection")
    with pytest.raises(ValueError, match="a predictor needs a projector"):
        wrap(linear(), image_shape=(3, 2, 2), predictor=predictor)


class Tokens(nn.Module):
    """(batch, tokens, features), as a transformer gives."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Conv2d(3, 5, 1)
        self.classify = nn.Linear(5, 2)

    def forward(self, x):
        return self.classify(self.inner(x).flatten(2).transpose(1, 2))


def test_a_layer_by_name_and_its_pooling(generator):
    network, images = Tokens(), torch.rand(2, 3, 4, 4, generator=generator)
    maps = network.inner(images)
    for pool, expected in (("mean", maps.mean((2, 3))), ("flatten", maps.flatten(1))):
        encoder = wrap(network, layer="inner", image_shape=(3, 4, 4), pool=pool)
        torch.testing.assert_close(encoder.features(images), expected)
    tokens = network(images)
    for pool, expected in (("mean", tokens.mean(1)), ("token", tokens[:, 0])):
        torch.testing.assert_close(wrap(network, image_shape=(3, 4, 4), pool=pool).features(images), expected)
    with pytest.raises(ValueError, match=r"output has shape \(2, 16, 2\).*give pool="):
        wrap(network, image_shape=(3, 4, 4))
    with pytest.raises(ValueError, match="near it: inner"):
        wrap(network, layer="iner", image_shape=(3, 4, 4))
    assert not network.inner._forward_hooks


def test_gradients_and_transforms_pass_through(generator):
    """A linear map's Jacobian is its matrix over the std, by reverse, forward and double-backward mode."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4, bias=False))
    encoder = wrap(network, std=0.5, image_shape=(3, 2, 2), layer="1")
    image = torch.rand(3, 2, 2, generator=generator)
    expected = network[1].weight / 0.5
    for jacobian in (torch.func.jacrev, torch.func.jacfwd):
        found = jacobian(lambda x: encoder.embedding(x[None])[0])(image).flatten(1)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mean": (0.1, 0.2)}, "mean needs 1 or 3 finite numbers"),
        ({"mean": float("nan")}, "mean needs 1 or 3 finite numbers"),
        ({"mean": (123.7, 116.3, 103.5)}, r"mean must be of pixels in \[0, 1\].*divide mean and std by 255"),
        ({"std": 0}, "std must be positive"),
        ({"mean": 0.5, "std": (58.4, 57.1, 57.4)}, r"std must be of pixels in \[0, 1\]"),
        ({"mean": "0.5"}, "mean must be one number, or one per channel; got '0.5'"),
        ({"image_shape": (3, 0, 2)}, "image_shape must be"),
        ({"image_shape": (2, 2)}, "image_shape must be"),
        ({"image_shape": (3, 5, 5)}, r"does not take two images of image_shape \(3, 5, 5\)"),
    ],
)
def test_what_does_not_fit_is_named(arguments, message, untyped):
    with pytest.raises(ValueError, match=message):
        wrap(linear(), **{"image_shape": (3, 2, 2), **arguments})


def test_a_network_is_normalised_once(untyped):
    encoder = wrap(linear(), mean=torch.tensor(0.5), std=np.float32(0.25), image_shape=(3, 2, 2))
    assert (encoder.mean.tolist(), encoder.std.tolist()) == ([[[0.5]]], [[[0.25]]])
    with pytest.raises(ValueError, match="second normalisation"):
        wrap(encoder, mean=0.5, std=0.25, image_shape=(3, 2, 2))
    wrap(encoder, image_shape=(3, 2, 2))


def test_an_output_that_is_no_tensor_is_named():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(ValueError, match="is a tuple, not a tensor; give layer="):
        wrap(Pair(), image_shape=(3, 2, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda x: x[:1],
            "1 rows of torch.float32 for 2 images; an embedding is one row of floats per image",
        ),
        (lambda x: torch.cat([x, x]), "4 rows of torch.float32 for 2 images"),
        (lambda x: x.argmax(1, keepdim=True), "2 rows of torch.int64"),
    ],
)
def test_an_output_that_is_not_one_row_of_floats_per_image_is_named(change, message, untyped):
    class Changed(nn.Module):
        def forward(self, x):
            return change(x.flatten(1))

    with pytest.raises(ValueError, match=message):
        wrap(Changed(), image_shape=(3, 2, 2))


def test_it_is_measured_in_evaluation_mode(generator):
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten()).train()
    encoder = wrap(network, image_shape=(3, 2, 2))
    images = torch.rand(4, 3, 2, 2, generator=generator)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    torch.testing.assert_close(encoder.features(images)[:1], encoder.features(images[:1]))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert isinstance(encoder, WrappedEncoder)


def test_double_precision_is_kept(generator):
    encoder = wrap(linear().double(), mean=0.25, image_shape=(3, 2, 2))
    images = torch.rand(2, 3, 2, 2, generator=generator, dtype=torch.float64)
    assert encoder(images).dtype == torch.float64


def test_preactivation_networks():
    with torch.device("meta"):
        wide, plain = WideResNet(28, 10), PreActResNet()
    assert 36.4e6 < sum(p.numel() for p in wide.parameters()) < 36.6e6  # Zagoruyko & Komodakis: 36.5 M
    assert 11.1e6 < sum(p.numel() for p in plain.parameters()) < 11.3e6
    assert (wide.out_features, plain.out_features) == (640, 512)
    with pytest.raises(ValueError, match="depth must be 6 n"):
        WideResNet(29)
