"""What a file says is honoured; what it does not say is asked or noted: pooling, normalisation, activation."""

import argparse
import json

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune

from lipcomp.checkpoints import load_encoder
from lipcomp.checkpoints._errors import CheckpointError
from lipcomp.checkpoints._inputs import channels_of, check_images

timm = pytest.importorskip("timm")


GREY = {"input_size": [3, 32, 32], "mean": [0.4] * 3, "std": [0.3] * 3}


def folder(path, network, **config):
    save_file(network.state_dict(), path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"pretrained_cfg": GREY, **config}))
    return path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"global_pool": "avg"}, {"global_pool": "avg"}),
        ({"global_pool": "avg", "fc_norm": False}, {"model_args": {"fc_norm": False, "global_pool": "avg"}}),
        ({"qkv_bias": False, "init_values": 0.1}, {"model_args": {"qkv_bias": False, "init_values": 0.1}}),
        ({"act_layer": "relu"}, {"model_args": {"act_layer": "relu"}}),
        ({"reg_tokens": 4}, {"model_args": {"reg_tokens": 4}}),
    ],
    ids=["global_pool", "fc_norm", "qkv_bias", "act_layer", "reg_tokens"],
)
def test_a_timm_folders_settings(
    agree, small_sizes, arguments, said, tmp_path, shaken, small_images, normalised
):
    network = shaken(timm.create_model("vit_tiny_patch16_224", num_classes=0, **small_sizes, **arguments))
    more = {"model_args": {**small_sizes, **said.pop("model_args", {})}, **said}
    checkpoint = load_encoder(folder(tmp_path, network, architecture="vit_tiny_patch16_224", **more))
    assert checkpoint.encoder.architecture == "timm/vit_tiny_patch16_224"
    agree(checkpoint.encoder.features(small_images), network(normalised(small_images, [0.4] * 3, [0.3] * 3)))


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"mean": [123.7, 116.3, 103.5]}, "must be of pixels in .* divide both by 255"),
        ({"std": [58.4, 57.1, 57.4]}, "must be of pixels in .* divide both by 255"),
        ({"input_size": [32, 32, 3]}, "is .channels, height, width., its mean has 3 numbers"),
    ],
)
def test_a_timm_folders_numbers_are_of_pixels_and_in_order(told, message, tmp_path, shaken):
    network = shaken(timm.create_model("resnet10t", num_classes=0))
    path = folder(tmp_path, network, architecture="resnet10t", pretrained_cfg=GREY | told)
    with pytest.raises(CheckpointError, match=message):
        load_encoder(path)


@pytest.mark.parametrize("side", [32, [32, 48]])
def test_the_size_that_a_network_was_built_with_outranks_its_weights_first_one(
    agree, small_sizes, side, tmp_path, shaken
):
    """timm keeps the size of the pretrained weights in ``pretrained_cfg`` when a network is built for another."""
    network = shaken(
        timm.create_model("vit_tiny_patch16_224", num_classes=0, **small_sizes | {"img_size": side})
    )
    config = {
        "pretrained_cfg": GREY | {"input_size": [3, 224, 224]},
        "model_args": small_sizes | {"img_size": side},
    }
    checkpoint = load_encoder(folder(tmp_path, network, architecture="vit_tiny_patch16_224", **config))
    images = torch.rand(1, 3, *((32, 32) if side == 32 else side))
    agree(checkpoint.encoder.features(images), network((images - 0.4) / 0.3))


@pytest.mark.parametrize(
    "name", ["checkpoint_path", "pretrained", "pretrained_cfg", "features_only", "scriptable"]
)
def test_a_folder_reaches_nothing_outside_it(name, tmp_path, shaken):
    network = shaken(timm.create_model("resnet10t", num_classes=0))
    path = folder(
        tmp_path, network, architecture="resnet10t", model_args={name: str(tmp_path / "another.pth")}
    )
    with pytest.raises(CheckpointError, match=f"hold '{name}', which is no setting of a network"):
        load_encoder(path)


def test_images_that_a_network_does_not_take_are_refused():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
    check_images(network, (3, 32, 32), "mine", (32, 32))
    with pytest.raises(CheckpointError, match=r"mine does not take images of 16 x 16 .* pass image_size=32"):
        check_images(network, (3, 16, 16), "mine", (32, 32))


class Remembers(nn.Module):
    """Makes a tensor when it is first called, where its image lies (as LeViT and others do with positions)."""

    ones = None

    def forward(self, x):
        self.ones = torch.ones(x.shape[-1], device=x.device) if self.ones is None else self.ones
        return (x * self.ones).flatten(1)


def test_a_look_at_a_network_leaves_it_as_it_was():
    network = Remembers()
    check_images(network, (3, 8, 8), "mine", None)
    assert network.ones is None
    assert network(torch.ones(1, 3, 8, 8)).sum() == 192


@pytest.mark.parametrize("pool", ["max", "catavgmax"])
def test_a_convolutional_folders_pooling(agree, pool, tmp_path, shaken, small_images, normalised):
    network = shaken(timm.create_model("resnet10t", num_classes=0, global_pool=pool))
    path = folder(tmp_path, network, architecture="resnet10t", global_pool=pool)
    agree(
        load_encoder(path).encoder.features(small_images),
        network(normalised(small_images, [0.4] * 3, [0.3] * 3)),
    )


@pytest.mark.parametrize("told", [{"global_pool": ""}, {"model_args": {"global_pool": ""}}])
def test_a_folder_without_pooling_gives_no_vector(told, tmp_path, shaken):
    network = shaken(timm.create_model("resnet10t", num_classes=0, global_pool=""))
    with pytest.raises(CheckpointError, match=r"gives \(1, 512, 1, 1\) for an image, .* \(global_pool\)"):
        load_encoder(folder(tmp_path, network, architecture="resnet10t", **told))


def test_a_folder_that_says_another_width_is_refused(tmp_path, shaken):
    network = shaken(timm.create_model("resnet10t", num_classes=0))
    with pytest.raises(CheckpointError, match="the folder says num_features 1024, timm builds it with 512"):
        load_encoder(folder(tmp_path, network, architecture="resnet10t", num_features=1024))


@pytest.mark.parametrize("arch", [None, "timm/vit_tiny_patch16_224"])
def test_fc_norm_means_the_mean_over_patches(agree, arch, tmp_path, shaken, images, normalised):
    network = shaken(timm.create_model("vit_tiny_patch16_224", num_classes=0, global_pool="avg", img_size=64))
    torch.save(network.state_dict(), tmp_path / "vit.pth")
    encoder = load_encoder(
        tmp_path / "vit.pth", arch=arch, mean=(0.1,) * 3, std=(0.2,) * 3, image_size=64
    ).encoder
    agree(encoder.features(images), network(normalised(images, [0.1] * 3, [0.2] * 3)))


def test_the_formats_normalisation_outranks_timms_tag(tmp_path, shaken):
    """DINO and MoCo v3 trained with ImageNet's; timm's default for vit_tiny_patch16_224 is .5, .5."""
    state = shaken(timm.create_model("vit_tiny_patch16_224", num_classes=0)).state_dict()
    dino = {f"backbone.{k}": v for k, v in state.items()} | {"head.last_layer.weight_v": torch.ones(2, 2)}
    torch.save({"teacher": dino}, tmp_path / "dino.pth")
    torch.save(
        {"state_dict": {f"module.base_encoder.{k}": v for k, v in state.items()}}, tmp_path / "moco.pth"
    )
    for name in ("dino", "moco"):
        for arch in (None, "timm/vit_tiny_patch16_224"):
            checkpoint = load_encoder(tmp_path / f"{name}.pth", arch=arch, head="none")
            assert checkpoint.preprocessing.mean == (0.485, 0.456, 0.406), (name, arch, checkpoint.format)
            heads = checkpoint.encoder.backbone.blocks[0].attn.num_heads
            assert heads == (12 if name == "moco" else 3), (name, arch)
    torch.save(state, tmp_path / "bare.pth")
    with pytest.raises(
        CheckpointError, match=r"ambiguous: .* mean 0.485,.* or mean 0.5,0.5,0.5.*pass mean= and std="
    ):
        load_encoder(tmp_path / "bare.pth")
    assert (
        load_encoder(tmp_path / "bare.pth", arch="timm/vit_tiny_patch16_224").preprocessing.mean == (0.5,) * 3
    )


def test_transform_input_is_part_of_the_normalisation(agree, tmp_path, shaken):
    network = shaken(torchvision.models.googlenet(weights=None, init_weights=False, transform_input=True))
    torch.save(network.state_dict(), tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=r"ambiguous: .* transform_input.*pass mean= and std="):
        load_encoder(tmp_path / "net.pth")
    images = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    encoder = load_encoder(tmp_path / "net.pth", mean=(0.5,) * 3, std=(0.5,) * 3, image_size=96).encoder
    network.fc = nn.Identity()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    agree(encoder.features(images), network((images - mean) / std))


def test_a_name_is_of_the_library_that_wrote_it(tmp_path, shaken):
    """timm's resnet18 and torchvision's agree, their convnext_tiny do not."""
    network = shaken(timm.create_model("convnext_atto", num_classes=0))
    found = load_encoder(folder(tmp_path, network, architecture="convnext_atto"))
    assert found.encoder.architecture == "timm/convnext_atto"
    subject = found.subject()
    assert subject["normalisation"]["origin"] == "pretrained_cfg of config.json"
    assert subject["preprocessing"]["crop"] == (32, 32)
    assert len(subject["encoder"]) == 32


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: nn.utils.weight_norm(layer),
        lambda layer: nn.utils.parametrizations.weight_norm(layer, dim=1),
        lambda layer: nn.utils.spectral_norm(layer),
        lambda layer: nn.utils.parametrizations.spectral_norm(layer),
        lambda layer: nn.utils.spectral_norm(layer, dim=1),
        lambda layer: prune.random_unstructured(layer, "weight", 0.5),
        lambda layer: prune.random_unstructured(layer, "bias", 0.5),
    ],
    ids=[
        "weight_norm",
        "weight_norm of parametrizations",
        "spectral_norm",
        "... of parametrizations",
        "spectral_norm of the other axis",
        "pruned",
        "pruned bias",
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_weights_in_parts_are_put_together(agree, small_vit, change, tmp_path, small_images, normalised):
    network = small_vit().requires_grad_(True)
    for block in network.blocks:
        change(block.attn.proj)  # is square
    network.train()(torch.rand(2, 3, 32, 32))  # spectral norm's vectors are found in training
    network.eval().requires_grad_(False)
    state = {f"model._orig_mod.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "net.ckpt")
    checkpoint = load_encoder(tmp_path / "net.ckpt", mean=(0.5,) * 3, std=(0.5,) * 3)
    agree(checkpoint.encoder.features(small_images), network(normalised(small_images, [0.5] * 3, [0.5] * 3)))
    assert checkpoint.report.notes[0].endswith("of 2 weights put together")
    assert checkpoint.report.used.keys() | checkpoint.report.ignored.keys() == state.keys()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"args": argparse.Namespace(num_heads=6)}, "heads 6, and 3"),
        ({"hyper_parameters": {"net": {"layer_norm_eps": 1e-5}}}, "epsilon 1e-05, and 1e-06"),
        ({"config": {"hidden_act": "relu"}}, "activation relu, and gelu"),
        ({"global_pool": "avg"}, "pooling avg, and token"),
        ({"num_heads": "3", "args": argparse.Namespace(gp="cls", hidden_act="gelu", model="vit")}, None),
        ({"args": argparse.Namespace(gp=10, eps=1e-8, layer_norm_eps=9.999999974752427e-07)}, None),
        ({"config": {"text_cfg": {"heads": 8, "pool_type": "argmax"}, "act_layer": "torch.nn.GELU"}}, None),
        ({"args": {"decoder": {"num_heads": 16}, "projector": {"act_layer": "relu"}}}, None),
    ],
)
def test_settings_against_what_would_be_assumed_are_heard(small_vit, settings, said, tmp_path):
    torch.save({"model": small_vit().state_dict(), **settings}, tmp_path / "net.pth")
    if said is None:
        load_encoder(tmp_path / "net.pth")
    else:
        with pytest.raises(CheckpointError, match=f"ambiguous: the settings in the file say {said} would be"):
            load_encoder(tmp_path / "net.pth")


def test_the_architecture_that_a_file_names_is_one_of_those_that_fit(tmp_path, shaken):
    state = shaken(timm.create_model("tf_mobilenetv3_small_075", num_classes=0)).state_dict()
    torch.save({"arch": "tf_mobilenetv3_small_075", "state_dict": state}, tmp_path / "net.pth")
    found = load_encoder(tmp_path / "net.pth", mean=(0.5,) * 3, std=(0.5,) * 3)
    assert found.encoder.architecture == "timm/tf_mobilenetv3_small_075"


def test_a_file_beside_its_configuration_is_the_folders(
    agree, small_sizes, tmp_path, shaken, small_images, normalised
):
    """The class token would be taken of the file alone."""
    network = shaken(
        timm.create_model("vit_tiny_patch16_224", num_classes=0, global_pool="avg", **small_sizes)
    )
    more = {"model_args": small_sizes, "global_pool": "avg", "architecture": "vit_tiny_patch16_224"}
    encoder = load_encoder(folder(tmp_path, network, **more) / "model.safetensors").encoder
    agree(encoder.features(small_images), network(normalised(small_images, [0.4] * 3, [0.3] * 3)))
    (tmp_path / "config.json").write_text('{"architecture": "my_simclr", "model_type": "simclr"}')
    load_encoder(tmp_path / "model.safetensors", mean=(0.5,) * 3, std=(0.5,) * 3)  # settings of one's own


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"meta": {"cfg": "model = dict(backbone=dict(depth=50, style='caffe'))"}}, "style='caffe"),
        ({"meta": {"cfg": "backbone=dict(strides=(\n    1,\n    2,\n    2,\n    1,\n))"}}, r"strides=\( 1"),
        ({"hyper_parameters": {"output_stride": 16}}, "output_stride=16"),
        ({"args": {"replace_stride_with_dilation": [False, False, True]}}, "replace_stride_with_dilation="),
        ({"args": {"style": "pytorch", "strides": (1, 2, 2, 2), "dilations": [1, 1, 1, 1]}}, ""),
        ({"cfg": "strides:\n- 1\n- 2\n- 2\n- 2\nanchors: {strides: [4, 8, 16, 32, 64]}\ndilations: 1"}, ""),
    ],
)
def test_strides_that_settings_name_are_asked_for(settings, said, tmp_path, resnet18):
    """mmpretrain's ResNets of Caffe's style were read as torchvision's (10% off)."""
    torch.save({"state_dict": resnet18.state_dict(), **settings}, tmp_path / "net.pth")
    if said:
        with pytest.raises(CheckpointError, match=f"ambiguous: the settings in the file say {said}"):
            load_encoder(tmp_path / "net.pth")
    assert load_encoder(tmp_path / "net.pth", arch="resnet18" if said else None).encoder


def test_a_stem_that_reads_blocks_of_pixels_has_three_channels():
    assert channels_of({"body.conv1.conv.weight": torch.zeros(8, 48, 3, 3)}) == 3
    assert channels_of({"conv1.weight": torch.zeros(8, 13, 3, 3)}) == 13


def test_evas_layer_scale_keeps_its_name(agree, tmp_path, shaken, small_images, normalised):
    """It is DeiT-III's of old, in a network whose other names are timm's."""
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}
    network = shaken(timm.create_model("vit_mediumd_patch16_rope_reg1_gap_256", num_classes=0, **sizes))
    assert "blocks.0.gamma_1" in network.state_dict()
    name = {"architecture": "vit_mediumd_patch16_rope_reg1_gap_256", "model_args": sizes}
    encoder = load_encoder(folder(tmp_path, network, **name)).encoder
    agree(encoder.features(small_images), network(normalised(small_images, [0.4] * 3, [0.3] * 3)))
