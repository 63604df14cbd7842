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
from lipcomp.checkpoints._hugging_face import read_openclip
from lipcomp.checkpoints._inputs import channels_of, check_images
from lipcomp.checkpoints._preprocessing import from_timm

timm = pytest.importorskip("timm")

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 192, "depth": 2, "num_heads": 3}
GREY = {"input_size": [3, 32, 32], "mean": [0.4] * 3, "std": [0.3] * 3}


@pytest.fixture
def small_images(images):
    return images[:, :, :32, :32]


def folder(path, network, **config):
    save_file(network.state_dict(), path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"pretrained_cfg": GREY, **config}))
    return path


def agree(found, expected):
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


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
def test_a_timm_folders_settings(arguments, said, tmp_path, shaken, small_images, normalised):
    network = shaken(timm.create_model("vit_tiny_patch16_224", num_classes=0, **SMALL, **arguments))
    more = {"model_args": {**SMALL, **said.pop("model_args", {})}, **said}
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
def test_the_size_that_a_network_was_built_with_outranks_its_weights_first_one(side, tmp_path, shaken):
    """timm keeps the size of the pretrained weights in ``pretrained_cfg`` when a network is built for another."""
    network = shaken(timm.create_model("vit_tiny_patch16_224", num_classes=0, **SMALL | {"img_size": side}))
    config = {
        "pretrained_cfg": GREY | {"input_size": [3, 224, 224]},
        "model_args": SMALL | {"img_size": side},
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
def test_a_convolutional_folders_pooling(pool, tmp_path, shaken, small_images, normalised):
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
def test_fc_norm_means_the_mean_over_patches(arch, tmp_path, shaken, images, normalised):
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


def test_transform_input_is_part_of_the_normalisation(tmp_path, shaken):
    network = shaken(torchvision.models.googlenet(weights=None, init_weights=False, transform_input=True))
    torch.save(network.state_dict(), tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=r"ambiguous: .* transform_input.*pass mean= and std="):
        load_encoder(tmp_path / "net.pth")
    images = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    encoder = load_encoder(tmp_path / "net.pth", mean=(0.5,) * 3, std=(0.5,) * 3, image_size=96).encoder
    network.fc = nn.Identity()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    agree(encoder.features(images), network((images - mean) / std))


def test_quickgelu_and_padding_are_asked_for(tmp_path, shaken):
    network = shaken(timm.create_model("tf_mobilenetv3_small_075", num_classes=0))
    save_file(network.state_dict(), tmp_path / "net.safetensors")
    with pytest.raises(
        CheckpointError, match=r"ambiguous: .*timm/(tf_)?mobilenetv3_small_075 or .* pass arch="
    ):
        load_encoder(tmp_path / "net.safetensors")
    encoder = load_encoder(
        tmp_path / "net.safetensors", arch="timm/tf_mobilenetv3_small_075", image_size=65
    ).encoder
    images = torch.rand(1, 3, 65, 65, generator=torch.Generator().manual_seed(0))
    agree(encoder.features(images), network((images - encoder.mean) / encoder.std))


def test_a_name_is_of_the_library_that_wrote_it(tmp_path, shaken):
    """timm's resnet18 and torchvision's agree, their convnext_tiny do not."""
    network = shaken(timm.create_model("convnext_atto", num_classes=0))
    found = load_encoder(folder(tmp_path, network, architecture="convnext_atto"))
    assert found.encoder.architecture == "timm/convnext_atto"
    subject = found.subject()
    assert subject["normalisation"]["origin"] == "pretrained_cfg of config.json"
    assert subject["preprocessing"]["crop"] == (32, 32)
    assert len(subject["encoder"]) == 32


# --- other libraries' vision transformers -------------------------------------------------------------------------


def test_a_clip_of_the_index_at_another_size_is_itself(tmp_path, shaken):
    """Its positions alone differ; it was read as a plain ViT, with another epsilon and without its normalisation."""
    network = shaken(timm.create_model("vit_xsmall_patch16_clip_224", num_classes=0, img_size=32))
    torch.save(network.state_dict(), tmp_path / "net.pth")
    encoder = load_encoder(tmp_path / "net.pth").encoder
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    agree(encoder.features(images), network((images - encoder.mean) / encoder.std))
    assert encoder.backbone.norm.eps == 1e-5
    assert float(encoder.mean[0]) == pytest.approx(0.48145466)


def small_vit(shaken, **more):
    network = timm.models.vision_transformer.VisionTransformer(
        **SMALL, num_classes=0, global_pool="token", **more
    )
    return shaken(network)


def renamed(state, rules):
    """The state under other names: (timm's part, theirs), all that apply, in order."""
    names = {}
    for key in state:
        name = key
        for ours, theirs in rules:
            name = name.replace(ours, theirs)
        names[name] = state[key]
    return names


def test_openclips_tower(tmp_path, shaken, small_images, normalised):
    network = small_vit(shaken, pre_norm=True, norm_layer=lambda width: nn.LayerNorm(width, 1e-5))
    rules = [
        *(("patch_embed.proj.", "conv1."), ("norm_pre.", "ln_pre."), ("blocks.", "transformer.resblocks.")),
        *((".norm1.", ".ln_1."), (".norm2.", ".ln_2."), ("attn.qkv.", "attn.in_proj_")),
        *(("attn.proj.", "attn.out_proj."), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj")),
        *(("cls_token", "class_embedding"), ("pos_embed", "positional_embedding")),
    ]
    state = renamed(network.state_dict(), rules)
    state = {
        ("ln_post." + k.removeprefix("norm.") if k.startswith("norm.") else k): v for k, v in state.items()
    }
    state["class_embedding"], state["positional_embedding"] = (
        state["class_embedding"][0, 0],
        state["positional_embedding"][0],
    )
    state["proj"] = torch.randn(192, 16, generator=torch.Generator().manual_seed(0))
    whole = {f"visual.{k}": v for k, v in state.items()} | {
        "logit_scale": torch.tensor(1.0),
        "text_projection": torch.ones(4, 4),
        "transformer.resblocks.0.attn.in_proj_weight": torch.ones(12, 4),  # of the text tower
    }
    path = tmp_path / "open_clip_pytorch_model.bin"
    torch.save({"state_dict": {f"module.{k}": v for k, v in whole.items()}}, path)
    with pytest.raises(CheckpointError, match=r"ambiguous: .* QuickGELU, .*open_clip_config\.json"):
        load_encoder(path)
    for quick in (False, True):
        model = {"quick_gelu": quick, "vision_cfg": {"width": 192, "head_width": 32, "image_size": 32}}
        images = {"mean": [0.5] * 3, "std": [0.5] * 3}
        told = {"model_cfg": model, "preprocess_cfg": images}
        (tmp_path / "open_clip_config.json").write_text(json.dumps(told))
        checkpoint = load_encoder(tmp_path if quick else path)
        assert checkpoint.format == "openclip"
        for block in network.blocks:
            block.attn.num_heads, block.attn.head_dim, block.attn.scale = 6, 32, 32**-0.5
            block.mlp.act = timm.layers.get_act_layer("quick_gelu")() if quick else nn.GELU()
        expected = network(normalised(small_images, [0.5] * 3, [0.5] * 3))
        agree(checkpoint.encoder.features(small_images), expected)
        agree(checkpoint.encoder.embedding(small_images), expected @ state["proj"])
    (tmp_path / "open_clip_config.json").write_text(
        '{"model_cfg": {"vision_cfg": {"attentional_pool": true}}}'
    )
    with pytest.raises(CheckpointError, match="does not describe an image tower"):
        load_encoder(path)


@pytest.mark.parametrize(
    ("mode", "interpolation", "border"), [("longest", "bilinear", (7, 7, 7)), ("shortest", "bicubic", None)]
)
def test_openclips_images_of_another_shape(mode, interpolation, border, tmp_path):
    """As open_clip 3.3 prepares them: a colour around, and bicubic whatever it says where the shape is no square."""
    told = {"size": [48, 80], "resize_mode": mode, "fill_color": 7, "interpolation": "bilinear"}
    model = {"vision_cfg": {"width": 64}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": told}))
    pipeline = from_timm(read_openclip(tmp_path)[1], "").pipeline
    assert (pipeline.resize, pipeline.crop) == ((48, 80), (48, 80))
    assert (pipeline.interpolation, pipeline.border) == (interpolation, border)


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
def test_weights_in_parts_are_put_together(change, tmp_path, shaken, small_images, normalised):
    network = small_vit(shaken).requires_grad_(True)
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
def test_settings_against_what_would_be_assumed_are_heard(settings, said, tmp_path, shaken):
    torch.save({"model": small_vit(shaken).state_dict(), **settings}, tmp_path / "net.pth")
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


def test_a_file_beside_its_configuration_is_the_folders(tmp_path, shaken, small_images, normalised):
    """The class token would be taken of the file alone."""
    network = shaken(timm.create_model("vit_tiny_patch16_224", num_classes=0, global_pool="avg", **SMALL))
    more = {"model_args": SMALL, "global_pool": "avg", "architecture": "vit_tiny_patch16_224"}
    encoder = load_encoder(folder(tmp_path, network, **more) / "model.safetensors").encoder
    agree(encoder.features(small_images), network(normalised(small_images, [0.4] * 3, [0.3] * 3)))
    (tmp_path / "config.json").write_text('{"architecture": "my_simclr", "model_type": "simclr"}')
    load_encoder(tmp_path / "model.safetensors", mean=(0.5,) * 3, std=(0.5,) * 3)  # settings of one's own


def test_mmpretrains_tower(tmp_path, shaken, small_images, normalised):
    network = small_vit(shaken)
    rules = [
        *(("patch_embed.proj.", "patch_embed.projection."), ("blocks.", "layers."), (".norm1.", ".ln1.")),
        *((".norm2.", ".ln2."), ("mlp.fc1", "ffn.layers.0.0"), ("mlp.fc2", "ffn.layers.1")),
    ]
    state = renamed(network.state_dict(), rules)
    state = {("ln1." + k.removeprefix("norm.") if k.startswith("norm.") else k): v for k, v in state.items()}
    state = {f"backbone.{k}": v for k, v in state.items()}
    for beside in ({}, {"head.layers.head.weight": torch.ones(3, 192)}):  # a classifier's was refused
        torch.save({"state_dict": state | beside, "meta": {}}, tmp_path / "mm.pth")
        encoder = load_encoder(tmp_path / "mm.pth", mean=(0.5,) * 3, std=(0.5,) * 3).encoder
        agree(encoder.features(small_images), network(normalised(small_images, [0.5] * 3, [0.5] * 3)))
    state["backbone.pos_embed"] = state["backbone.pos_embed"][:, 1:]
    torch.save(state, tmp_path / "deit3.pth")
    with pytest.raises(CheckpointError, match=r"DeiT-III, which applies the first norm"):
        load_encoder(tmp_path / "deit3.pth")


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


@pytest.mark.parametrize(
    ("more", "change"),
    [
        (
            {"init_values": 1.0},
            lambda key: key.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"),
        ),
        ({}, lambda key: key.replace("blocks.0.", "blocks.0.0.").replace("blocks.1.", "blocks.1.1.")),
    ],
    ids=["deit3", "dinov2-chunks"],
)
def test_dialects_of_timms_own_names(more, change, tmp_path, shaken, small_images, normalised):
    network = small_vit(shaken, **more)
    state = {change(key): value for key, value in network.state_dict().items()}
    extra = {"mask_token": torch.zeros(1, 192), "decoder_pos_embed": torch.zeros(1, 17, 8)}
    torch.save({"model": state | extra}, tmp_path / "vit.pth")
    encoder = load_encoder(tmp_path / "vit.pth", mean=(0.5,) * 3, std=(0.5,) * 3).encoder
    agree(encoder.features(small_images), network(normalised(small_images, [0.5] * 3, [0.5] * 3)))


def test_evas_layer_scale_keeps_its_name(tmp_path, shaken, small_images, normalised):
    """It is DeiT-III's of old, in a network whose other names are timm's."""
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}
    network = shaken(timm.create_model("vit_mediumd_patch16_rope_reg1_gap_256", num_classes=0, **sizes))
    assert "blocks.0.gamma_1" in network.state_dict()
    name = {"architecture": "vit_mediumd_patch16_rope_reg1_gap_256", "model_args": sizes}
    encoder = load_encoder(folder(tmp_path, network, **name)).encoder
    agree(encoder.features(small_images), network(normalised(small_images, [0.4] * 3, [0.3] * 3)))


def test_a_stem_that_reads_blocks_of_pixels_has_three_channels():
    assert channels_of({"body.conv1.conv.weight": torch.zeros(8, 48, 3, 3)}) == 3
    assert channels_of({"conv1.weight": torch.zeros(8, 13, 3, 3)}) == 13
