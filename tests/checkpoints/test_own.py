"""A network of one's own, built by a function, its weights found in a checkpoint; and the commands' options."""

import pytest
import torch
import torchvision
from torch import nn

from lipcomp import _commands as commands
from lipcomp._functions import load_function
from lipcomp.checkpoints import load_encoder, save_checkpoint
from lipcomp.checkpoints._errors import CheckpointError
from lipcomp.checkpoints._native import Metadata
from lipcomp.checkpoints._own import build_own, load_own
from lipcomp.encoders import EncoderSpec, build_encoder, register_backbone, wrap
from lipcomp.encoders._backbones import BACKBONES
from lipcomp.encoders._resnet import ResNet
from lipcomp.measure._options import add_encoder_arguments, load_listed
from lipcomp.measure._plan import Source

FACTORY = """
from torch import nn
from lipcomp.encoders import wrap

def network():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

def encoder():
    return wrap(network(), mean=0.5, std=0.25, image_shape=(1, 8, 8), layer="3")

def broken(argument):
    return argument

def nothing():
    return 3

def raising():
    raise KeyError("boom")

def leaving():
    raise SystemExit(3)
"""
BACKBONE = """
from torch import nn

def net(channels, width=6):
    return nn.Sequential(nn.Conv2d(channels, width, 3), nn.BatchNorm2d(width), nn.ReLU())

def wider(channels):
    return net(channels, 7)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "their_network.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def options(*words):
    parser = commands.Parser(prog="test")
    add_encoder_arguments(parser)
    return parser.parse_args([str(word) for word in words])


@pytest.mark.parametrize("prefix", ["", "module.", "net.encoder."])
def test_the_weights_are_found_behind_any_prefix(here, prefix, generator):
    source = build_own("their_network:network")
    state = {prefix + key: value for key, value in source.state_dict().items()}
    torch.save(
        {"model": {**state, "other.bias": torch.zeros(2)}, "optimizer": {"a": torch.zeros(1)}},
        here / "mine.pth",
    )
    (checkpoint,) = load_listed(
        options(
            "mine.pth",
            "--factory",
            "their_network:network",
            "--image-size",
            "8",
            "--mean",
            "0.5",
            "--std",
            "0.25",
        )
    )
    images = torch.rand(2, 1, 8, 8, generator=generator)
    torch.testing.assert_close(checkpoint.encoder.embedding(images), source.eval()((images - 0.5) / 0.25))
    assert checkpoint.report.ignored == {
        "model.other.bias": "another part of the file",
        "optimizer.a": "optimiser state",
    }
    assert len(checkpoint.report.used) == len(state)


def test_an_encoder_of_the_factory_keeps_its_layer(here, generator):
    source = build_own("their_network:network").eval()
    torch.save(source.state_dict(), here / "mine.pth")
    (checkpoint,) = load_listed(options("mine.pth", "--factory", "their_network:encoder"))
    images = torch.rand(2, 1, 8, 8, generator=generator)
    torch.testing.assert_close(checkpoint.encoder.embedding(images), source[:4]((images - 0.5) / 0.25))


def test_a_factory_without_a_checkpoint(here):
    (checkpoint,) = load_listed(options("--factory", "their_network:encoder"))
    assert checkpoint.subject()["checkpoint"] == "their_network:encoder"
    assert len(checkpoint.sha256) == 64
    assert checkpoint.concentration is None


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("their_network", r"write FILE\.py:FUNCTION or package\.module:FUNCTION"),
        ("their_network:absent", "has no function 'absent'"),
        ("absent.py:f", r"'absent\.py' cannot be imported"),
        ("absent_module:f", "No module named 'absent_module'"),
        ("their_network:broken", "missing 1 required positional argument"),
        ("their_network:raising", "their_network:raising.*KeyError: 'boom'"),
        ("their_network:leaving", "their_network:leaving.*SystemExit: 3"),
        ("their_network:nothing", "returned a int, not a torch.nn.Module"),
    ],
)
def test_a_factory_that_does_not_work_is_named(here, factory, message):
    with pytest.raises(CheckpointError, match=message):
        build_own(factory)


def test_a_checkpoint_trained_with_a_backbone_of_ones_own_takes_its_function(here):
    """Nothing is run because a file asks for it: the file names ``nets_of_mine.py:net``, the caller has to as well."""
    name = "nets_of_mine.py:net"
    (here / "nets_of_mine.py").write_text(BACKBONE)
    register_backbone(name, load_function(name))
    try:
        spec = EncoderSpec(name, (3, 16, 16), projector=(8, 4))
        encoder = build_encoder(spec, seed=1).eval()
        save_checkpoint(here / "mine.safetensors", encoder, metadata=Metadata(seed=1))
    finally:
        del BACKBONES[name]
    with pytest.raises(CheckpointError, match=r"is unknown; name the function .*register_backbone"):
        load_listed(options("mine.safetensors"))
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for factory in (name, f"{here / 'nets_of_mine.py'}:net"):  # the same file by another path
        (checkpoint,) = load_listed(options("mine.safetensors", "--factory", factory))
        assert checkpoint.metadata.seed == 1
        assert torch.equal(checkpoint.encoder(images), encoder(images))
        del BACKBONES[name]
    with pytest.raises(CheckpointError, match="does not fit its own metadata"):
        load_listed(options("mine.safetensors", "--factory", "nets_of_mine.py:wider"))
    del BACKBONES[name]


@pytest.mark.parametrize("backbone", ["small_cnn", "timm/mobilenetv3_small_050", "timm/efficientvit_m0"])
def test_a_native_checkpoint_of_any_named_backbone(tmp_path, backbone):
    if "timm" in backbone:
        pytest.importorskip("timm")
    encoder = build_encoder(EncoderSpec(backbone, (3, 32, 32), projector=None), seed=0).eval()
    save_checkpoint(tmp_path / "m.safetensors", encoder, metadata=Metadata())
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(load_listed(options(tmp_path / "m.safetensors"))[0].encoder(images), encoder(images))
    if backbone == "timm/efficientvit_m0":  # its images are square
        with pytest.raises(ValueError, match=r"cannot be built for images of shape \(3, 32, 48\)"):
            build_encoder(EncoderSpec(backbone, (3, 32, 48), projector=None))


def test_weights_that_do_not_fit_are_named(here):
    torch.save(nn.Sequential(nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5)).state_dict(), here / "other.pth")
    with pytest.raises(
        CheckpointError, match=r"0\.weight is \(5, 1, 3, 3\) in the file, \(4, 1, 3, 3\) in the network"
    ):
        load_own(build_own("their_network:network"), here / "other.pth")
    torch.save({"a": torch.zeros(1)}, here / "nothing.pth")
    with pytest.raises(CheckpointError, match=r"has no key that ends in '0\.weight'"):
        load_own(build_own("their_network:network"), here / "nothing.pth")
    with pytest.raises(CheckpointError, match="is an encoder already"):
        load_own(wrap(nn.Flatten(), image_shape=(1, 2, 2)), None, mean=(0.5,))


def test_what_was_assumed_is_printed(tmp_path, capsys):
    torch.save(ResNet(9, "cifar", 1 / 16, 3).state_dict(), tmp_path / "r9.pth")
    load_listed(options(tmp_path / "r9.pth"))
    shown = capsys.readouterr()
    assert not shown.out
    assert "format plain, resnet9_0.0625x_cifar, images 3x32x32, layers backbone, latent" in shown.err
    assert "assumed as for most networks of this size, since the file does not say" in shown.err
    assert "keys used, 0 ignored, 0 missing" in shown.err
    assert "note: 3 x 3 stem: padding 1 and no max-pool" in shown.err
    with pytest.raises(SystemExit) as end:
        load_listed(options(tmp_path / "r9.pth", "--list"))
    assert end.value.code == 0
    assert "used     conv1.weight -> backbone.conv1.weight" in capsys.readouterr().out


def test_a_network_of_transformers_takes_its_folder_under_its_own_names(tmp_path):
    """lipcomp's own reading of such a folder gives timm's names."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    network = transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=32, patch_size=16))
    network.save_pretrained(tmp_path)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    torch.save(state, tmp_path / "pytorch_model.bin")
    torch.nn.init.zeros_(network.layernorm.weight)
    encoder = wrap(network, mean=0.5, std=0.5, image_shape=(3, 32, 32), layer="pooler")
    load_own(encoder, tmp_path / "pytorch_model.bin")
    assert torch.equal(network.layernorm.weight, state["layernorm.weight"])


def test_nothing_to_load_is_said():
    with pytest.raises(ValueError, match="no CHECKPOINT given"):
        load_listed(options())
    with pytest.raises(SystemExit):
        options("x", "--image-size", "0")
    assert options("x", "--image-size", "1x28x28").image_size == (1, 28, 28)
    assert options("--mean", "0.1,0.2,0.3", "x").mean == (0.1, 0.2, 0.3)


def test_a_wrapped_encoder_is_not_written_as_ours(tmp_path):
    with pytest.raises(CheckpointError, match="a wrapped Flatten has no spec"):
        save_checkpoint(
            tmp_path / "m.safetensors", wrap(nn.Flatten(), image_shape=(1, 2, 2)), metadata=Metadata()
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["arch", "format", "head", "branch"])
def test_what_a_factory_would_ignore_is_refused(option):
    source = Source(None, None, "torch.nn:Flatten", options={option: "none"})
    with pytest.raises(ValueError, match=f"{option}= would be ignored with factory="):
        source.load()


@pytest.mark.parametrize("given", [{"std": (0.0,)}, {"mean": (float("nan"),) * 3}])
def test_a_normalisation_that_is_none_is_not_the_files_fault(given, tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match="mean= and std= must be finite") as error:
        load_encoder(tmp_path / "net.pth", **given)
    assert "damaged" not in str(error.value)
