"""Local Hugging Face folders: configuration, shards, and transformers' names.

The folders are made from timm's networks and the published names; they were compared once with what transformers
5.24 writes (ViT, DINOv2 with and without registers, ResNet).
"""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lipcomp.checkpoints import load_encoder
from lipcomp.checkpoints._errors import CheckpointError

timm = pytest.importorskip("timm")

from timm.models.vision_transformer import VisionTransformer  # noqa: E402

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def small_images(images):
    return images[:, :, :32, :32]


def vit(shaken, **changes):
    options = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 128,
        "depth": 2,
        "num_heads": 2,
        "num_classes": 0,
    }
    return shaken(VisionTransformer(**{**options, "global_pool": "token", **changes}))


def transformers_vit(network, kind):
    """The state of timm's network under transformers' names, query, key and value apart."""
    names = [("cls_token", "embeddings.cls_token"), ("pos_embed", "embeddings.position_embeddings")]
    names += [
        ("reg_token", "embeddings.register_tokens"),
        ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
    ]
    inner = {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    if kind != "vit":
        inner = {"norm1": "norm1", "norm2": "norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    inner |= {
        "attn.proj": "attention.output.dense",
        "ls1.gamma": "layer_scale1.lambda1",
        "ls2.gamma": "layer_scale2.lambda1",
    }
    state = {}
    for key, value in network.state_dict().items():
        parts = key.split(".")
        if ".attn.qkv." in key:
            for part, rows in zip(("query", "key", "value"), value.chunk(3), strict=True):
                state[f"encoder.layer.{parts[1]}.attention.attention.{part}.{parts[-1]}"] = rows.contiguous()
            continue
        if parts[0] == "blocks":
            rest = ".".join(parts[2:])
            old = next(name for name in inner if rest.startswith(name))
            state[f"encoder.layer.{parts[1]}.{inner[old]}{rest.removeprefix(old)}"] = value
        elif parts[0] == "norm":
            state[f"layernorm.{parts[1]}"] = value
        else:
            old, new = next(pair for pair in names if key.startswith(pair[0]))
            state[new + key.removeprefix(old)] = value
    return state


@pytest.mark.parametrize("kind", ["vit", "dinov2", "dinov2_with_registers"])
def test_a_transformers_folder(kind, tmp_path, shaken, small_images, normalised):
    more = {"init_values": 0.5} if kind != "vit" else {}
    more |= {"reg_tokens": 4, "no_embed_class": True} if kind.endswith("registers") else {}
    network = vit(shaken, num_heads=4, **more)
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-3  # large, so that forgetting it shows
    state = transformers_vit(network, kind)
    if kind.endswith("registers"):  # there the class token has a position, here it is in the token already
        state["embeddings.position_embeddings"] = torch.cat(
            [torch.ones(1, 1, 128), state["embeddings.position_embeddings"]], 1
        )
        state["embeddings.cls_token"] = state["embeddings.cls_token"] - 1
    prefix = "vit." if kind == "vit" else ""
    state = {prefix + key: value for key, value in state.items()} | {"classifier.weight": torch.zeros(2, 128)}
    save_file(state, tmp_path / "model.safetensors")
    config = {"model_type": kind, "num_attention_heads": 4, "layer_norm_eps": 1e-3, "hidden_act": "gelu"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ready = {
        "size": {"height": 32, "width": 32},
        "image_mean": [0.5] * 3,
        "image_std": [0.25] * 3,
        "resample": 3,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(ready))
    checkpoint = load_encoder(tmp_path)
    assert checkpoint.format == "huggingface"
    assert (checkpoint.preprocessing.mean, checkpoint.preprocessing.pipeline.interpolation) == (
        (0.5,) * 3,
        "bicubic",
    )
    expected = network(normalised(small_images, [0.5] * 3, [0.25] * 3))
    torch.testing.assert_close(
        checkpoint.encoder.features(small_images), expected, rtol=0, atol=1e-5 * float(expected.abs().max())
    )
    assert checkpoint.report.used.keys() | checkpoint.report.ignored.keys() == state.keys()


def test_a_transformers_resnet_in_shards(tmp_path, resnet18, images, normalised, close):
    state = {}
    for key, value in resnet18.state_dict().items():
        *place, what = key.split(".")
        kind = "convolution" if value.ndim == 4 else "normalization"
        if place[0].startswith("layer"):
            part = "shortcut" if place[2] == "downsample" else f"layer.{int(place[2][-1]) - 1}"
            name = f"encoder.stages.{int(place[0][-1]) - 1}.layers.{place[1]}.{part}.{kind}.{what}"
        else:
            name = f"embedder.embedder.{kind}.{what}"
        state[f"resnet.{name}"] = value
    half = len(state) // 2
    shards = {
        "model-00001-of-00002.safetensors": dict([*state.items()][:half]),
        "model-00002-of-00002.safetensors": dict([*state.items()][half:]),
    }
    index = {key: name for name, part in shards.items() for key in part}
    for name, part in shards.items():
        save_file(part, tmp_path / name)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet", "hidden_act": "relu"}))
    ready = {
        "size": {"shortest_edge": 224},
        "image_processor_type": "ConvNextImageProcessor",
        "crop_pct": 0.875,
        "image_mean": IMAGENET[0],
        "image_std": IMAGENET[1],
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(ready))
    checkpoint = load_encoder(tmp_path, image_size=64)
    assert checkpoint.encoder.architecture == "resnet18"
    close(checkpoint.encoder.features(images), resnet18(normalised(images)))
    assert not any("took" in note for note in checkpoint.report.notes)
    assert load_encoder(tmp_path).preprocessing.pipeline.resize == 256
    first, second = shards
    name = next(iter(shards[first]))
    save_file(shards[second] | {name: shards[first][name] + 1}, tmp_path / second)
    with pytest.raises(
        CheckpointError, match=r"-00002.safetensors and a shard before it hold 'resnet.*different values"
    ):
        load_encoder(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": index | {"bias": second}})
    )
    save_file(shards[second], tmp_path / second)
    with pytest.raises(CheckpointError, match="its index names 'bias', which is in none of the shards"):
        load_encoder(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "../../etc/passwd"}})
    )
    with pytest.raises(
        CheckpointError, match=r"its index names '\.\./\.\./etc/passwd', which is not a file in it"
    ):
        load_encoder(tmp_path)
    save_file(state, tmp_path / "model.safetensors")
    assert "took model.safetensors, as transformers does" in load_encoder(tmp_path).report.notes[0]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"model_type": "absent"}', "transformers model of type 'absent', which"),
        ("{", r"is not valid JSON .*or move it out of the folder"),
        ("[]", r"does not hold a JSON object .*or move it out of the folder"),
        ('{"architecture": "local-dir:/tmp/x", "pretrained_cfg": {}}', "is of no known library"),
        ('{"lipcomp": {"architecture": 1}}', "its config.json is damaged"),
    ],
)
def test_a_bad_configuration_is_named(config, message, tmp_path, resnet18):
    save_file(resnet18.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match=message):
        load_encoder(tmp_path)


def test_shards_need_no_configuration(tmp_path, resnet18, images, normalised, close):
    """As one file needs none: accelerate and torch write both without it."""
    save_file(resnet18.state_dict(), tmp_path / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(resnet18.state_dict(), "model-00001-of-00001.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        close(load_encoder(path, image_size=64).encoder.features(images), resnet18(normalised(images)))
    with pytest.raises(CheckpointError, match=r"one of 2 shards; give their folder"):
        load_encoder(tmp_path / "model-00001-of-00002.safetensors")
    save_file(resnet18.state_dict(), tmp_path / "model_1.safetensors")
    with pytest.raises(CheckpointError, match=r"ambiguous: .*index\.json and model_1\.safetensors; give one"):
        load_encoder(tmp_path)


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no checkpoint of its own: .* it is empty"):
        load_encoder(tmp_path)
    (tmp_path / "epoch_3.pth").write_bytes(b"1")
    with pytest.raises(CheckpointError, match=r"but epoch_3\.pth; give one of them"):
        load_encoder(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(
        CheckpointError, match=r"adapter of PEFT, .*merge_and_unload\(\)\.save_pretrained\(\.\.\.\)$"
    ):
        load_encoder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"1")  # which transformers would read with its changes
    with pytest.raises(CheckpointError, match=r"adapter of PEFT, .*without it, give model\.safetensors"):
        load_encoder(tmp_path)
    for name in ("adapter_config.json", "model.safetensors"):
        (tmp_path / name).unlink()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"has neither model\.safetensors nor pytorch_model\.bin"):
        load_encoder(tmp_path)


SMALL = {"num_hidden_layers": 2, "intermediate_size": 96, "image_size": 32, "patch_size": 8}
VIT = {"hidden_size": 384, "num_attention_heads": 6, **SMALL}
CONVNEXT = {"depths": [1, 2, 1, 1], "hidden_sizes": [8, 12, 16, 24]}
BARE = [
    ("deit", VIT),
    ("siglip_vision_model", {"hidden_size": 768, "num_attention_heads": 12, **SMALL}),
    ("dinov3_vit", VIT | {"num_register_tokens": 4}),
    ("dinov3_vit", VIT | {"use_gated_mlp": True, "hidden_act": "silu"}),
    ("convnext", CONVNEXT),
    ("convnextv2", CONVNEXT),
    ("dinov3_convnext", CONVNEXT),
    ("vit", VIT),
    ("dinov2", VIT),
]


@pytest.mark.parametrize(("kind", "options"), BARE)
def test_bare_weights_of_transformers(kind, options, tmp_path, shaken, images, close):
    """As a module has them and as save_pretrained writes them; alone, and behind a prefix beside a classifier."""
    pytest.importorskip("transformers")
    from transformers.models.auto import configuration_auto, modeling_auto

    settings = configuration_auto.CONFIG_MAPPING[kind](**options)
    network = modeling_auto.MODEL_MAPPING[type(settings)](settings)
    fixed = {
        name: value.clone() for name, value in network.named_buffers() if name not in network.state_dict()
    }
    shaken(network)
    for name, value in network.named_buffers():  # what no file holds keeps its value
        value.copy_(fixed.get(name, value))
    images = images[:, :, :32, :32]
    out = network(pixel_values=(images - 0.4) / 0.3)
    pooled = (
        out.last_hidden_state[:, 0] if kind in ("deit", "vit", "dinov2") else out.pooler_output.flatten(1)
    )
    network.save_pretrained(tmp_path)
    written = load_file(tmp_path / "model.safetensors")
    states = (
        network.state_dict(),
        {"module.net." + key: value for key, value in written.items()}
        | {"module.classifier.weight": torch.ones(2, 3)},
    )
    for state in states:
        torch.save({"model": state, "best_acc1": torch.tensor(71.5)}, tmp_path / "bare.pth")
        if kind != "dinov2":
            with pytest.raises(CheckpointError, match=r"ambiguous: .* pass mean= and std="):
                load_encoder(tmp_path / "bare.pth")
        size = 32 if "conv" in kind or kind == "dinov3_vit" else None
        checkpoint = load_encoder(tmp_path / "bare.pth", mean=(0.4,), std=(0.3,), image_size=size)
        assert checkpoint.image_shape == (3, 32, 32)
        close(checkpoint.encoder.features(images), pooled)
        notes = " ".join(checkpoint.report.notes)
        assert "conv" in kind or "6 heads" in notes or "12 heads" in notes
        everything = checkpoint.report.used.keys() | checkpoint.report.ignored.keys()
        assert {key.rpartition("best_acc1")[0] or key for key in everything} >= state.keys()


def test_a_network_of_patches_is_not_damaged(tmp_path):
    state = {"embeddings.patch_embedding.weight": torch.ones(64, 192), "head.probe": torch.ones(1, 1, 64)}
    torch.save(state, tmp_path / "naflex.pth")
    with pytest.raises(CheckpointError, match=r"takes patches with further inputs .* \(lipcomp\.wrap\)"):
        load_encoder(tmp_path / "naflex.pth")


def test_bare_weights_of_a_width_that_nobody_published_are_refused(tmp_path):
    state = {"embeddings.distillation_token": torch.zeros(1, 1, 60)}
    state["embeddings.position_embeddings"] = torch.zeros(1, 18, 60)
    state["embeddings.patch_embeddings.projection.weight"] = torch.zeros(60, 3, 8, 8)
    state["layers.0.mlp.fc1.weight"] = torch.zeros(120, 60)
    torch.save(state, tmp_path / "bare.pth")
    with pytest.raises(CheckpointError, match=r"ambiguous: a deit of width 60 .* give the folder"):
        load_encoder(tmp_path / "bare.pth")
