"""Encoders: normalisation inside, named layers, weights that a seed and a part decide."""

import re

import pytest
import torch
import torchvision

from lipcomp.encoders import EncoderSpec, build_encoder
from lipcomp.encoders._backbones import BACKBONES
from lipcomp.encoders._resnet import ResNet
from lipcomp.encoders._small import SmallCNN

DIGIT = EncoderSpec("small_cnn", (1, 28, 28), mean=(0.13,), std=(0.31,), projector=(32, 16))


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_normalisation_is_part_of_the_network(generator):
    encoder = build_encoder(DIGIT).eval()
    images = torch.rand(3, 1, 28, 28, generator=generator)
    by_hand = encoder.projector(encoder.backbone((images - 0.13) / 0.31))
    torch.testing.assert_close(encoder(images), by_hand / by_hand.norm(dim=1, keepdim=True))


def test_layers_by_name(generator):
    encoder = build_encoder(
        EncoderSpec("small_cnn", (1, 28, 28), projector=(32, 16), predictor=24, decoder=True)
    ).eval()
    images = torch.rand(2, 1, 28, 28, generator=generator)
    assert encoder.layers() == ("backbone", "projection", "prediction", "latent")
    assert [encoder.embedding(images, layer).shape[1] for layer in encoder.layers()] == [128, 16, 16, 16]
    torch.testing.assert_close(encoder.embedding(images), encoder.embedding(images, "prediction"))
    for layer in encoder.layers():
        torch.testing.assert_close(encoder(images, layer).norm(dim=1), torch.ones(2))
    with pytest.raises(ValueError, match="layer must be one of backbone, projection, latent"):
        build_encoder(DIGIT).embedding(images, "prediction")


def test_parts_of_two_specs_share_their_initial_weights():
    plain = build_encoder(EncoderSpec("small_cnn", (1, 28, 28), projector=(32, 16)), seed=5)
    state = torch.get_rng_state()
    compressed = build_encoder(
        EncoderSpec("small_cnn", (1, 28, 28), projector=(32, 16), predictor=8, decoder=True), seed=5
    )
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in plain.state_dict().items():
        assert torch.equal(compressed.state_dict()[name], value), name
    other = build_encoder(EncoderSpec("small_cnn", (1, 28, 28), projector=(32, 16)), seed=6)
    assert not torch.equal(other.projector[0].weight, plain.projector[0].weight)


def test_resnet_50_is_torchvisions(generator):
    theirs = torchvision.models.resnet50(weights=None)
    theirs.fc = torch.nn.Identity()
    ours = ResNet(50)
    ours.load_state_dict(theirs.state_dict())
    images = torch.rand(1, 3, 64, 64, generator=generator)
    torch.testing.assert_close(ours.eval()(images), theirs.eval()(images))


def test_every_width_of_the_2x_network_is_doubled():
    with torch.device("meta"):
        single, double = ResNet(50), ResNet(50, width=2)
    assert double.out_features == 4096
    assert 93.5e6 < parameters(double) < 94.5e6  # the paper's 94 M, without a classifier
    for (name, one), two in zip(single.named_parameters(), double.parameters(), strict=True):
        factors = {b / a for a, b in zip(one.shape, two.shape, strict=True)}
        assert factors <= {1.0, 2.0}, name
        assert one.shape[0] * 2 == two.shape[0], name


def test_tensorflow_pads_the_pool_on_one_side_only(generator):
    images = torch.rand(1, 1, 8, 8, generator=generator)
    pooled = ResNet(18, pool_padding="tensorflow").maxpool(images)
    assert pooled.shape == (1, 1, 4, 4)
    assert pooled[0, 0, 0, 0] == images[0, 0, :3, :3].max()
    assert pooled[0, 0, 3, 3] == images[0, 0, 6:, 6:].max()


DEEP = re.compile("101|152|200")  # take half a second each, and differ in depth alone


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * bool(DEEP.search(name))) for name in BACKBONES]
)
def test_every_backbone_reports_its_width(name):
    with torch.device("meta"):
        backbone = BACKBONES[name](3).eval()
        size = 32 if "cifar" in name or name == "small_cnn" else 64
        assert backbone(torch.rand(2, 3, size, size)).shape == (2, backbone.out_features)


def test_small_cnn_takes_other_sizes_and_widths():
    assert SmallCNN(3, width=2)(torch.rand(2, 3, 40, 33)).shape == (2, 256)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backbone": "resnet5"}, "did you mean 'resnet50'"),
        ({"image_shape": (1, 0, 28)}, "image_shape must be"),
        ({"std": (0.0,)}, "std must be positive"),
        ({"mean": (0.1, 0.2)}, "mean needs 1 or 3"),
        ({"projector": None, "predictor": 8}, "a predictor needs a projector"),
        ({"decoder": True}, "the decoder follows the latent"),
    ],
)
def test_a_spec_that_does_not_fit_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        EncoderSpec(**{"backbone": "small_cnn", "image_shape": (3, 28, 28), **fields})


def test_an_image_of_the_wrong_size_is_named():
    with pytest.raises(
        ValueError, match=r"images must have shape \(batch, 1, 28, 28\).*got \(2, 1, 32, 32\)"
    ):
        build_encoder(DIGIT)(torch.rand(2, 1, 32, 32))


def test_a_spec_survives_json():
    import json

    assert EncoderSpec.from_dict(json.loads(json.dumps(DIGIT.to_dict()))) == DIGIT
