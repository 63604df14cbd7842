"""Vision transformers under the names of OpenCLIP, mmpretrain, EVA and others."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lipcomp.checkpoints import load_encoder
from lipcomp.checkpoints._errors import CheckpointError
from lipcomp.checkpoints._hugging_face import read_openclip
from lipcomp.checkpoints._preprocessing import from_timm

timm = pytest.importorskip("timm")


def test_quickgelu_and_padding_are_asked_for(agree, tmp_path, shaken):
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


def test_a_clip_of_the_index_at_another_size_is_itself(agree, tmp_path, shaken):
    """Its positions alone differ; it was read as a plain ViT, with another epsilon and without its normalisation."""
    network = shaken(timm.create_model("vit_xsmall_patch16_clip_224", num_classes=0, img_size=32))
    torch.save(network.state_dict(), tmp_path / "net.pth")
    encoder = load_encoder(tmp_path / "net.pth").encoder
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    agree(encoder.features(images), network((images - encoder.mean) / encoder.std))
    assert encoder.backbone.norm.eps == 1e-5
    assert float(encoder.mean[0]) == pytest.approx(0.48145466)


def renamed(state, rules):
    """The state under other names: (timm's part, theirs), all that apply, in order."""
    names = {}
    for key in state:
        name = key
        for ours, theirs in rules:
            name = name.replace(ours, theirs)
        names[name] = state[key]
    return names


def test_openclips_tower(agree, small_vit, tmp_path, small_images, normalised):
    network = small_vit(pre_norm=True, norm_layer=lambda width: nn.LayerNorm(width, 1e-5))
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


def test_mmpretrains_tower(agree, small_vit, tmp_path, small_images, normalised):
    network = small_vit()
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
    odd = {
        "backbone.stages.0.0.depthwise_conv.weight": torch.ones(8, 1, 7, 7),
        "head.fc.weight": torch.ones(3, 8),
    }
    torch.save({"state_dict": odd, "meta": {}}, tmp_path / "convnext.pth")
    with pytest.raises(CheckpointError, match=r"OpenMMLab names it .* build it there, and wrap it"):
        load_encoder(tmp_path / "convnext.pth", mean=(0.5,), std=(0.5,))
    state["backbone.pos_embed"] = state["backbone.pos_embed"][:, 1:]
    torch.save(state, tmp_path / "deit3.pth")
    with pytest.raises(CheckpointError, match=r"DeiT-III, which applies the first norm"):
        load_encoder(tmp_path / "deit3.pth")


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
def test_dialects_of_timms_own_names(agree, small_vit, more, change, tmp_path, small_images, normalised):
    network = small_vit(**more)
    state = {change(key): value for key, value in network.state_dict().items()}
    extra = {"mask_token": torch.zeros(1, 192), "decoder_pos_embed": torch.zeros(1, 17, 8)}
    torch.save({"model": state | extra}, tmp_path / "vit.pth")
    encoder = load_encoder(tmp_path / "vit.pth", mean=(0.5,) * 3, std=(0.5,) * 3).encoder
    agree(encoder.features(small_images), network(normalised(small_images, [0.5] * 3, [0.5] * 3)))


@pytest.mark.parametrize("heads", ["head", "dino_head"])
def test_lightlys_masked_transformers(heads, agree, small_vit, shaken, tmp_path, small_images):
    """As lightly 1.6's DINO and DINOv2: the vit in a module of its own was refused, or the student was taken."""
    student, teacher = small_vit(), shaken(small_vit(), 1)
    head = shaken(nn.Sequential(nn.Linear(192, 16), nn.GELU(), nn.Linear(16, 8)))
    state = {}
    for name, network in (("student", student), ("teacher", teacher)):
        state |= {f"{name}_backbone.vit.{key}": value for key, value in network.state_dict().items()}
        state[f"{name}_backbone.mask_token"] = torch.zeros(1, 1, 192)
        state |= {f"{name}_{heads}.layers.{key}": value for key, value in head.state_dict().items()}
        state[f"{name}_{heads}.last_layer.weight_v"] = torch.ones(3, 8)
    torch.save({"state_dict": state}, tmp_path / "a.ckpt")
    for branch, network in ((None, teacher), ("online", student)):
        encoder = load_encoder(tmp_path / "a.ckpt", branch=branch).encoder
        expected = network((small_images - encoder.mean) / encoder.std)
        agree(encoder.features(small_images), expected)
        agree(encoder.embedding(small_images), head(expected))


def test_lightlys_msn_has_gelu_in_its_head(agree, small_vit, shaken, tmp_path, small_images):
    """It was read with ReLU (6.6% off with lightly 1.6's own head)."""
    network = small_vit()
    head = shaken(nn.Sequential(nn.Linear(192, 16), nn.BatchNorm1d(16), nn.GELU(), nn.Linear(16, 8)))
    state = {f"projection_head.layers.{key}": value for key, value in head.state_dict().items()}
    state |= {f"anchor_{key}": value for key, value in state.items()}
    state |= {f"backbone.vit.{key}": value for key, value in network.state_dict().items()}
    state |= {f"anchor_backbone.vit.{key}": value + 1 for key, value in network.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "msn.ckpt")
    encoder = load_encoder(tmp_path / "msn.ckpt").encoder
    agree(encoder.embedding(small_images), head(network((small_images - encoder.mean) / encoder.std)))
