"""Folders and files that transformers writes, with what their configurations may say; transformers is the oracle."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lipcomp.checkpoints import load_encoder
from lipcomp.checkpoints._errors import CheckpointError

transformers = pytest.importorskip("transformers")
pytest.importorskip("timm")

SMALL = {
    **{"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96},
    **{"image_size": 32, "patch_size": 8},
}
SWIGLU = {key: value for key, value in SMALL.items() if key != "intermediate_size"}
STAGES = {"layer_type": "basic", "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "embedding_size": 8}
GREY = {
    **{"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}},
    **{"image_mean": [0.4] * 3, "image_std": [0.3] * 3},
}


def of(name, settings, head="Model"):
    """One of transformers' models, and its features."""
    config = getattr(transformers, f"{name}Config")(**settings)
    return getattr(transformers, f"{name}{head}")(config)


def write(path, network, processor=GREY, file="preprocessor_config.json", **changes):
    network.save_pretrained(path)
    if processor:
        (path / file).write_text(json.dumps(processor))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))
    return path


def features(network, images):
    out = network(pixel_values=(images - 0.4) / 0.3)
    pooled = getattr(out, "pooler_output", None)
    return (
        out.last_hidden_state[:, 0]
        if pooled is None or "ViT" in type(network).__name__
        else pooled.flatten(1)
    )


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ViT", {**SMALL, "hidden_act": "quick_gelu"}),
        ("ViT", {**SMALL, "qkv_bias": False, "layer_norm_eps": 0.1}),
        ("ViT", {**SMALL, "image_size": (32, 48)}),
        ("Dinov2", {**SWIGLU, "use_swiglu_ffn": True}),
        ("Dinov2", SMALL),  # its intermediate_size means nothing
        ("ResNet", {**STAGES, "hidden_act": "gelu"}),
        (
            "ResNet",
            {
                **STAGES,
                "layer_type": "bottleneck",
                "hidden_sizes": [8, 16, 16, 16],
                "downsample_in_bottleneck": True,
            },
        ),
    ],
)
def test_what_a_configuration_says_is_honoured(name, settings, tmp_path, shaken, images, close):
    network = shaken(of(name, settings))
    sides = settings.get("image_size", 32)
    height, width = (sides, sides) if isinstance(sides, int) else sides
    processor = GREY | {"size": {"height": height, "width": width}}
    images = images[:, :, :height, :width]
    encoder = load_encoder(write(tmp_path, network, processor)).encoder
    close(encoder.features(images), features(network, images))


def test_a_folder_of_a_wrapped_model(tmp_path, shaken, images, close):
    network = shaken(of("ViT", SMALL))
    write(tmp_path, network)
    weights = load_file(tmp_path / "model.safetensors")
    weights = {
        f"_fsdp_wrapped_module.net.{key}".replace(".layer.", ".layer._orig_mod."): weights[key]
        for key in weights
    }
    save_file(weights, tmp_path / "model.safetensors")
    checkpoint = load_encoder(tmp_path)
    close(checkpoint.encoder.features(images[:, :, :32, :32]), features(network, images[:, :, :32, :32]))
    assert checkpoint.report.used.keys() | checkpoint.report.ignored.keys() == weights.keys()


@pytest.mark.parametrize("head", ["ForImageClassification", "ForMaskedImageModeling"])
def test_what_is_beside_the_encoder_is_left_out(head, tmp_path, shaken, images, close):
    network = shaken(of("ViT", {**SMALL, "encoder_stride": 8}, head))
    checkpoint = load_encoder(write(tmp_path, network))
    close(checkpoint.encoder.features(images[:, :, :32, :32]), features(network.vit, images[:, :, :32, :32]))
    report = checkpoint.report
    assert not report.used.keys() & report.ignored.keys()
    assert report.used.keys() | report.ignored.keys() == load_file(tmp_path / "model.safetensors").keys()


def test_a_norm_that_the_classifier_reads_is_not_invented(tmp_path, shaken, images):
    """A Data2Vec or BEiT saved without its pooler got a layer norm of ones and zeros before the features."""
    write(tmp_path, shaken(of("Data2VecVision", SMALL)))
    with pytest.raises(CheckpointError, match=r"data2vec_vision\.pooler\.layernorm\.bias is not in the file"):
        load_encoder(tmp_path)


def test_a_model_without_features_is_refused_for_that(tmp_path, shaken):
    """Its names were taken for those within a module, and the reason given was that weights are missing."""
    network = of("PoolFormer", {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]})
    with pytest.raises(CheckpointError, match=r"PoolFormerModel: its output has no pooler_output"):
        load_encoder(write(tmp_path, shaken(network)))


def test_a_masked_autoencoder_of_pretraining(tmp_path, shaken, images, close):
    decoder = {
        f"decoder_{key}": value for key, value in SMALL.items() if key not in ("image_size", "patch_size")
    }
    network = shaken(of("ViTMAE", {**SMALL, **decoder, "mask_ratio": 0.0}, "ForPreTraining"))
    encoder = load_encoder(write(tmp_path, network)).encoder
    close(encoder.features(images[:, :, :32, :32]), features(network.vit, images[:, :, :32, :32]))


@pytest.mark.parametrize(
    ("name", "settings", "changes"),
    [
        ("ViT", SMALL, {"num_hidden_layers": 1}),
        ("ViT", SMALL, {"num_hidden_layers": 3}),
        ("ViT", SMALL, {"qkv_bias": False}),
        ("ViT", SMALL, {"patch_size": 4}),
        ("ViT", SMALL, {"layer_norm_eps": float("nan")}),
        ("ViT", SMALL, {"num_attention_heads": 0}),
        ("Dinov2", SWIGLU, {"mlp_ratio": 2}),
        ("ResNet", STAGES, {"depths": [1, 1, 2, 1]}),
        ("ResNet", STAGES, {"layer_type": "bottleneck"}),
    ],
)
def test_a_configuration_of_another_model_is_refused(name, settings, changes, tmp_path, shaken):
    path = write(tmp_path, shaken(of(name, settings)), **changes)
    with pytest.raises(CheckpointError, match=f"says {next(iter(changes))} "):
        load_encoder(path)


def test_a_pairs_projection_has_the_pairs_size(tmp_path, shaken, images, close):
    words = {**SMALL, "vocab_size": 9}
    network = shaken(of("CLIP", {"vision_config": SMALL, "text_config": words, "projection_dim": 24}))
    encoder = load_encoder(write(tmp_path, network)).encoder
    images = images[:, :, :32, :32]
    found = network.visual_projection(features(network.vision_model, images))
    close(encoder.embedding(images), found)


def test_a_processor_of_another_size_than_the_network_is_refused(tmp_path, shaken):
    path = write(tmp_path, shaken(of("DeiT", SMALL)), GREY | {"size": {"height": 48, "width": 48}})
    with pytest.raises(CheckpointError, match=r"does not take images of 48 x 48 .* pass image_size=32"):
        load_encoder(path)
    assert load_encoder(path, image_size=32).image_shape == (3, 32, 32)


def test_the_processor_of_a_newer_folder(tmp_path, shaken):
    """transformers 5 puts it into processor_config.json, which then outranks the older file."""
    path = write(tmp_path, shaken(of("ViT", SMALL)), {"image_processor": GREY}, "processor_config.json")
    (path / "preprocessor_config.json").write_text("{}")
    assert load_encoder(path).preprocessing.mean == (0.4,) * 3


def test_a_processor_that_is_not_known_is_refused_with_what_helps(tmp_path, shaken):
    path = write(tmp_path, shaken(of("ViT", SMALL)), {"image_processor_type": "MobileViTImageProcessor"})
    with pytest.raises(
        CheckpointError, match=r"whose steps lipcomp does not know; move the file out .* mean="
    ):
        load_encoder(path)
    (path / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"ambiguous: nothing says how .* pass mean= and std="):
        load_encoder(path)
    assert load_encoder(path, mean=(0.4,) * 3, std=(0.3,) * 3).preprocessing.std == (0.3,) * 3


def test_a_bare_clips_activation_is_asked_for_and_its_name_helps(tmp_path, shaken, images):
    """OpenAI's have QuickGELU, LAION's GELU, and nothing in the weights shows it."""
    small = {**SMALL, "hidden_size": 192, "num_attention_heads": 3, "hidden_act": "quick_gelu"}
    network = shaken(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**small)))
    torch.save(network.state_dict(), tmp_path / "clip.pth")
    with pytest.raises(CheckpointError, match=r"ambiguous: .* QuickGELU, as OpenAI's, or with GELU"):
        load_encoder(tmp_path / "clip.pth")


@pytest.mark.parametrize("arch", ["timm/vit_tiny_patch16_224", "vit_tiny_patch16_224"])
def test_arch_helps_with_the_names_of_transformers(arch, tmp_path, shaken):
    sizes = {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768}
    network = shaken(of("ViT", {**sizes, "image_size": 224, "patch_size": 16, "layer_norm_eps": 1e-6}))
    torch.save({"model": network.state_dict()}, tmp_path / "vit.pth")
    encoder = load_encoder(tmp_path / "vit.pth", arch=arch, mean=(0.4,) * 3, std=(0.3,) * 3).encoder
    images = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    expected = features(network, images)
    error = (encoder.features(images) - expected).abs().max() / expected.abs().max()
    assert error <= 1e-5
    assert isinstance(encoder.backbone, nn.Module)


@pytest.mark.parametrize(("arch", "size"), [("resnet18", None), ("vit_tiny_patch16_224", 32)])
def test_a_network_of_timm_that_transformers_saved(arch, size, tmp_path, shaken, images, close):
    """Two logits were given as features, where timm calls its classifier fc; other sizes were refused."""
    options = {} if size is None else {"img_size": size, "depth": 1}
    model = of("TimmWrapper", {"architecture": arch, "model_args": options}, "ForImageClassification")
    network = shaken(model).timm_model
    checkpoint = load_encoder(write(tmp_path, model), image_size=32)
    inputs = (images[:, :, :32, :32] - 0.4) / 0.3
    wanted = network.forward_head(network.forward_features(inputs), pre_logits=True)
    close(checkpoint.encoder.features(images[:, :, :32, :32]), wanted)


def test_a_classifier_under_another_name_is_taken_off(tmp_path, shaken, images, close):
    """SwiftFormer's two heads; its logits were given as features."""
    settings = {"image_size": 32, "depths": [1, 1, 1, 1], "embed_dims": [8, 8, 8, 8]}
    model = shaken(of("SwiftFormer", settings, "ForImageClassification"))
    checkpoint = load_encoder(write(tmp_path, model))
    body = model.swiftformer(pixel_values=(images[:, :, :32, :32] - 0.4) / 0.3).last_hidden_state
    close(checkpoint.encoder.features(images[:, :, :32, :32]), model.norm(body).flatten(2).mean(-1))


def test_layers_that_are_saved_without_the_models_name(tmp_path, shaken, images, close):
    """As transformers 5 saves ViT-MSN with a classifier ("its weights have 0 layers")."""
    model = shaken(of("ViTMSN", SMALL, "ForImageClassification"))
    encoder = load_encoder(write(tmp_path, model)).encoder
    close(encoder.features(images[:, :, :32, :32]), features(model.vit, images[:, :, :32, :32]))
