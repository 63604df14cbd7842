"""Files that the libraries themselves write: torchvision, timm, safetensors, RobustBench."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from lipcomp.checkpoints import load_encoder
from lipcomp.checkpoints._lean import Budget, lean
from lipcomp.checkpoints._shapes import infer_backbone
from lipcomp.encoders._preact import PreActResNet, WideResNet

timm = pytest.importorskip("timm")

from timm.models.vision_transformer import VisionTransformer  # noqa: E402


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


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "resnext50_32x4d"])
def test_torchvision_by_name(name, tmp_path, shaken, images, normalised, close):
    network = shaken(torchvision.models.get_model(name, weights=None))
    torch.save(network.state_dict(), tmp_path / "theirs.pth")
    arch = None if "resne" in name else name
    checkpoint = load_encoder(tmp_path / "theirs.pth", arch=arch, image_size=64)
    *place, last = [child for child, module in network.named_modules() if isinstance(module, nn.Linear)][
        -1
    ].split(".")
    setattr(network.get_submodule(".".join(place)), last, nn.Identity())
    close(checkpoint.encoder.features(images), network(normalised(images)))
    assert checkpoint.encoder.architecture == f"torchvision/{name}"
    assert len(checkpoint.report.ignored) == 2


@pytest.mark.parametrize(
    "name", ["resnet26d", "convnext_atto", "mobilenetv3_small_050", "vit_tiny_patch16_224"]
)
def test_timm_by_name_with_its_preprocessing(name, tmp_path, shaken, normalised):
    network = shaken(timm.create_model(name, num_classes=7))
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    checkpoint = load_encoder(tmp_path / "model.safetensors", arch=f"timm/{name}")
    config = network.pretrained_cfg
    assert checkpoint.preprocessing.mean == config["mean"]
    assert checkpoint.preprocessing.pipeline.interpolation == config["interpolation"]
    assert checkpoint.image_shape == config["input_size"]
    images = torch.rand(1, *config["input_size"], generator=torch.Generator().manual_seed(2))
    network.reset_classifier(0)
    expected = network(normalised(images, config["mean"], config["std"]))
    torch.testing.assert_close(
        checkpoint.encoder.features(images), expected, rtol=0, atol=1e-6 * float(expected.abs().max())
    )


@pytest.mark.parametrize("name", ["resnet18", "resnet18d"])
def test_timms_resnets_are_read_off_their_weights(name, tmp_path, shaken, images, normalised, close):
    network = shaken(timm.create_model(name, num_classes=0))
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    encoder = load_encoder(
        tmp_path / "model.safetensors", mean=IMAGENET[0], std=IMAGENET[1], image_size=64
    ).encoder
    assert encoder.architecture.removeprefix("timm/") == name
    close(encoder.features(images), network(normalised(images)))


IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_a_timm_folder_says_its_preprocessing(tmp_path, shaken, images, normalised, close):
    network = shaken(timm.create_model("resnet18", num_classes=0))
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    told = {
        "input_size": [3, 64, 64],
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "interpolation": "bicubic",
    }
    config = {"architecture": "resnet18", "pretrained_cfg": {**told, "crop_pct": 0.95}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = load_encoder(tmp_path)
    ready = checkpoint.preprocessing
    assert (ready.mean, ready.std, ready.size) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), (64, 64))
    assert (ready.pipeline.resize, ready.pipeline.crop) == (67, (64, 64))
    assert (
        "shorter side to 67 (bicubic, antialias), centre crop 64 x 64, 64x64, mean (0.1, 0.2, 0.3)"
        in checkpoint.describe()
    )
    close(checkpoint.encoder.features(images), network(normalised(images, told["mean"], told["std"])))


@pytest.mark.parametrize(
    ("wrap", "head"),
    [
        (lambda state, head: state, None),
        (lambda state, head: {"teacher": {f"backbone.{k}": v for k, v in state.items()} | head}, "gelu"),
    ],
    ids=["release", "full"],
)
def test_dinos_vit(wrap, head, tmp_path, shaken, small_images, normalised):
    network = vit(shaken)
    mlp = shaken(nn.Sequential(nn.Linear(128, 64), nn.GELU(), nn.Linear(64, 16)))
    torch.save(wrap(network.state_dict(), {f"head.mlp.{k}": v for k, v in mlp.state_dict().items()} | {
        "head.last_layer.weight_v": torch.ones(3, 16)}), tmp_path / "dino.pth")  # fmt: skip
    encoder = load_encoder(tmp_path / "dino.pth", mean=IMAGENET[0], std=IMAGENET[1]).encoder
    expected = network(normalised(small_images))
    torch.testing.assert_close(
        encoder.features(small_images), expected, rtol=0, atol=1e-5 * float(expected.abs().max())
    )
    if head:
        expected = mlp(expected)
        torch.testing.assert_close(
            encoder.embedding(small_images), expected, rtol=0, atol=1e-5 * float(expected.abs().max())
        )


@pytest.mark.parametrize("arch", [None, "timm/vit_tiny_patch16_224"])
def test_a_vit_at_another_size_has_its_positions_resampled(arch, tmp_path, shaken, images, normalised):
    network = shaken(timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=96))
    torch.save(network.state_dict(), tmp_path / "vit.pth")
    checkpoint = load_encoder(
        tmp_path / "vit.pth", arch=arch, image_size=64, mean=IMAGENET[0], std=IMAGENET[1]
    )
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=64)
    state = network.state_dict()
    state["pos_embed"] = timm.layers.resample_abs_pos_embed(state["pos_embed"], [4, 4], num_prefix_tokens=1)
    theirs.load_state_dict(state)
    expected = theirs.eval()(normalised(images))
    torch.testing.assert_close(
        checkpoint.encoder.features(images), expected, rtol=0, atol=2e-5 * float(expected.abs().max())
    )
    assert "position embeddings resampled from 6x6 to 4x4 patches" in checkpoint.report.notes


@pytest.mark.parametrize(
    ("more", "size", "grid"),
    [
        ({"reg_tokens": 4}, None, (4, 4)),  # with positions of their own
        ({"no_embed_class": True}, None, (4, 4)),  # as DeiT-III's
        ({"no_embed_class": True}, 24, (3, 3)),
        ({"reg_tokens": 4, "class_token": False, "global_pool": "avg"}, None, (4, 4)),
        ({"reg_tokens": 4}, 24, (3, 3)),
        # 9 positions, which might be 3 x 3 without the class token's
        ({"img_size": (16, 32)}, (16, 32), (2, 4)),
    ],
    ids=["registers", "no position", "no position, smaller", "no class token", "smaller", "not square"],
)
def test_positions_of_a_vit_are_read_off(more, size, grid, tmp_path, shaken, images, normalised, close):
    network = vit(shaken, **more)
    torch.save(network.state_dict(), tmp_path / "vit.pth")
    checkpoint = load_encoder(tmp_path / "vit.pth", image_size=size, mean=IMAGENET[0], std=IMAGENET[1])
    small = images[:, :, : 8 * grid[0], : 8 * grid[1]]
    if size == 24:
        theirs = vit(shaken, **more, img_size=24)
        tokens = 0 if "no_embed_class" in more else 5
        state = network.state_dict()
        resample = timm.layers.resample_abs_pos_embed
        state["pos_embed"] = resample(state["pos_embed"], [3, 3], [4, 4], num_prefix_tokens=tokens)
        theirs.load_state_dict(state)
        network = theirs
    close(checkpoint.encoder.features(small), network(normalised(small)))


@pytest.mark.parametrize(
    "name",
    [
        "vit_so400m_patch14_siglip_gap_224",
        "vit_huge_patch14_224",
        "vit_giant_patch14_224",
        "vit_gigantic_patch14_224",
    ],
)
def test_the_widest_vits_have_heads_of_more_than_64(name):
    """At another depth or image size than the index knows, they got 18 to 26 heads, which none of them has."""
    with lean(Budget()):
        network = timm.create_model(name, depth=1, num_classes=0)
    found = infer_backbone(network.state_dict(), {})
    assert found.network.blocks[0].attn.num_heads == network.blocks[0].attn.num_heads == 16


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"embed_dim": 96, "num_heads": 3}, "a ViT of width 96 may have 1 heads or others"),
        # and another epsilon
        ({"pre_norm": True}, "the weights are of a CLIP with QuickGELU, .* or with GELU"),
    ],
)
def test_what_a_vits_weights_do_not_show_is_ambiguous(more, message, tmp_path, shaken):
    torch.save(vit(shaken, **more).state_dict(), tmp_path / "vit.pth")
    with pytest.raises(ValueError, match=f"ambiguous: {message}"):
        load_encoder(tmp_path / "vit.pth")


@pytest.mark.parametrize("arch", [None, "timm/vit_tiny_patch16_224"])
def test_one_channel_takes_the_mean_of_its_sources_colours(arch, tmp_path, shaken):
    """It was refused with "mean needs 1 or 1 finite numbers" where a library or a folder said the mean."""
    network = shaken(timm.create_model("vit_tiny_patch16_224", num_classes=0, in_chans=1))
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    path = tmp_path / "model.safetensors"
    if arch is None:
        config = {"architecture": "vit_tiny_patch16_224", "model_args": {"in_chans": 1}}
        inputs = {"input_size": [3, 224, 224], "mean": [0.2, 0.3, 0.4], "std": [0.1, 0.2, 0.3]}
        (tmp_path / "config.json").write_text(json.dumps({**config, "pretrained_cfg": inputs}))
        path = tmp_path
    ready = load_encoder(path, arch=arch).preprocessing
    assert ready.mean == pytest.approx((0.3 if arch is None else 0.5,))
    assert ready.std == pytest.approx((0.2 if arch is None else 0.5,))
    assert "the mean of its colours for 1 channels" in ready.origin


def test_moco_v3s_vit_has_twelve_heads(tmp_path, shaken, small_images, normalised):
    network = vit(shaken, embed_dim=384, num_heads=12)
    state = {f"module.base_encoder.{key}": value for key, value in network.state_dict().items()}
    head = shaken(
        nn.Sequential(
            nn.Linear(384, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 8, bias=False)
        )
    )
    state |= {f"module.base_encoder.head.{key}": value for key, value in head.state_dict().items()}
    torch.save({"state_dict": state, "arch": "vit_small"}, tmp_path / "moco.pth.tar")
    encoder = load_encoder(tmp_path / "moco.pth.tar", mean=IMAGENET[0], std=IMAGENET[1]).encoder
    expected = head(network(normalised(small_images)))
    torch.testing.assert_close(
        encoder.embedding(small_images), expected, rtol=0, atol=1e-5 * float(expected.abs().max())
    )


def test_robustbench_keeps_its_normalisation(tmp_path, shaken, small_images, normalised, close):
    network = shaken(WideResNet(10, 2))
    state = network.state_dict() | {"fc.weight": torch.zeros(10, 128), "fc.bias": torch.zeros(10)}
    state |= {"mu": torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1), "sigma": torch.full((1, 3, 1, 1), 0.4)}
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "wrn.pt")
    checkpoint = load_encoder(tmp_path / "wrn.pt")
    assert (checkpoint.format, checkpoint.encoder.architecture) == ("robustbench", "wrn_10_2")
    close(
        checkpoint.encoder.features(small_images),
        network(normalised(small_images, [0.1, 0.2, 0.3], [0.4] * 3)),
    )


def architecture(name):
    """One file of RobustBench's architectures, without importing the package, which needs more than it declares."""
    package = importlib.util.find_spec("robustbench")
    if package is None:
        pytest.skip("robustbench is not installed")
    file = Path(package.submodule_search_locations[0]) / "model_zoo" / "architectures" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"robustbench_{name}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_robustbenchs_own_networks(tmp_path, shaken, small_images):
    """The architectures of the package itself, where it is installed."""
    resnet, wide = architecture("resnet"), architecture("wide_resnet")
    networks = {
        "wrn_16_2": wide.WideResNet(16, 10, 2),
        "resnet18_cifar": resnet.ResNet18(),
        "preact_resnet18": resnet.PreActResNet(
            resnet.PreActBlockV2, [2, 2, 2, 2], bn_before_fc=True, out_shortcut=True
        ),
        "preact_resnet18_raw": resnet.PreActResNet18(),
    }
    for name, network in networks.items():
        torch.save(shaken(network).state_dict(), tmp_path / "theirs.pt")
        encoder = load_encoder(tmp_path / "theirs.pt").encoder
        assert encoder.architecture == name
        classifier = network.fc if name.startswith("wrn") else network.linear
        logits = encoder.features(small_images) @ classifier.weight.T + classifier.bias
        torch.testing.assert_close(
            logits, network(small_images), rtol=0, atol=1e-5 * float(logits.abs().max())
        )


def test_a_preactivation_network_by_name(tmp_path, shaken):
    torch.save(shaken(PreActResNet()).state_dict(), tmp_path / "p.pt")
    assert load_encoder(tmp_path / "p.pt", arch="preact_resnet18").image_shape == (3, 32, 32)


def test_lightlys_old_zoo_has_no_relu_in_its_stem(tmp_path, shaken, small_images):
    """The Sequential that lightly's command line made: batch norm, children of its ResNet, a 1 x 1 convolution."""
    parts = torchvision.models.resnet18(weights=None)
    conv = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    stages = [parts.layer1, parts.layer2, parts.layer3, parts.layer4]
    last = nn.Conv2d(512, 16, 1)
    network = shaken(
        nn.Sequential(nn.BatchNorm2d(3), conv, parts.bn1, *stages, last, nn.AdaptiveAvgPool2d(1))
    )
    state = {
        f"model.backbone.{key.replace('downsample', 'shortcut')}": v
        for key, v in network.state_dict().items()
    }
    torch.save({"state_dict": state}, tmp_path / "zoo.pth")
    checkpoint = load_encoder(tmp_path / "zoo.pth", mean=(0,), std=(1,))
    expected = network(small_images).flatten(1)
    torch.testing.assert_close(
        checkpoint.encoder.features(small_images), expected, rtol=0, atol=1e-5 * float(expected.abs().max())
    )
    assert checkpoint.format == "lightly-zoo"


def test_without_timm_a_vit_says_what_it_needs(tmp_path, shaken, monkeypatch):
    torch.save(vit(shaken).state_dict(), tmp_path / "vit.pth")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"pip install 'lipcomp\[timm\]'"):
        load_encoder(tmp_path / "vit.pth")


def test_weights_are_the_networks_own_and_equal_in_both_formats(tmp_path, shaken):
    network, images = shaken(torchvision.models.mobilenet_v3_small()), torch.rand(2, 3, 224, 224)
    # one byte: what follows is not aligned
    state = {"a": torch.zeros(1, dtype=torch.uint8)} | dict(network.state_dict())
    save_file(state, tmp_path / "net.safetensors")
    torch.save(network.state_dict(), tmp_path / "net.pth")
    options = {"arch": "torchvision/mobilenet_v3_small", "mean": (0.5,) * 3, "std": (0.5,) * 3}
    mapped, pickled = (
        load_encoder(tmp_path / f"net.{kind}", **options).encoder for kind in ("safetensors", "pth")
    )
    (tmp_path / "net.safetensors").write_bytes(b"")  # in place: what was read is gone
    with torch.no_grad():
        assert torch.equal(mapped.features(images), pickled.features(images))
    assert all(value.data_ptr() % 64 == 0 for value in mapped.parameters())
