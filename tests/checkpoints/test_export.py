"""Export: every layout loads again to the same output, in lipcomp and in the library it is for."""

import json

import pytest
import torch
import torchvision
from safetensors.torch import load_file
from torch import nn

from lipcomp.checkpoints import load_encoder, save_checkpoint
from lipcomp.checkpoints.__main__ import main
from lipcomp.checkpoints._errors import CheckpointError
from lipcomp.checkpoints._export import (
    to_safetensors,
    to_timm,
    to_torch_export,
    to_torchscript,
    to_torchvision,
)
from lipcomp.checkpoints._native import Metadata
from lipcomp.encoders import EncoderSpec, build_encoder
from lipcomp.encoders._resnet import ResNet
from lipcomp.records import Record

timm = pytest.importorskip("timm")


@pytest.fixture
def simsiam(tmp_path, resnet18, shaken):
    """A SimSiam checkpoint: backbone, projector, predictor."""
    head = shaken(nn.Sequential(nn.Linear(512, 16, bias=False), nn.BatchNorm1d(16, affine=False)), 1)
    predictor = shaken(
        nn.Sequential(nn.Linear(16, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 16)), 2
    )
    parts = {"encoder.": resnet18, "encoder.fc.": head, "predictor.": predictor}
    state = {
        f"module.{p}{key}": value for p, module in parts.items() for key, value in module.state_dict().items()
    }
    torch.save({"state_dict": state}, tmp_path / "simsiam.pth")
    return load_encoder(tmp_path / "simsiam.pth", image_size=64)


def test_torchvision(tmp_path, simsiam, images, normalised):
    path = to_torchvision(simsiam, tmp_path / "out" / "r18.pth")
    network = torchvision.models.resnet18(weights=None)
    assert network.load_state_dict(torch.load(path, weights_only=True), strict=False).missing_keys == [
        "fc.weight",
        "fc.bias",
    ]
    network.fc = nn.Identity()
    assert torch.equal(network.eval()(normalised(images)), simsiam.encoder.features(images))
    again = load_encoder(path, image_size=64).encoder
    assert torch.equal(again.features(images), simsiam.encoder.features(images))


def test_timm(tmp_path, simsiam, images, normalised):
    folder = to_timm(simsiam, tmp_path / "timm")
    config = json.loads((folder / "config.json").read_text())
    network = timm.create_model(config["architecture"], num_classes=0)
    network.load_state_dict(load_file(folder / "model.safetensors"))
    expected = simsiam.encoder.features(images)
    seen = normalised(images, config["pretrained_cfg"]["mean"], config["pretrained_cfg"]["std"])
    torch.testing.assert_close(
        network.eval()(seen), expected, rtol=0, atol=1e-6 * float(expected.abs().max())
    )
    again = load_encoder(folder)
    assert again.preprocessing.origin == "pretrained_cfg of config.json"
    assert again.image_shape == (3, 64, 64)
    assert torch.equal(again.encoder.features(images), expected)


def test_safetensors_with_a_model_card(tmp_path, simsiam, images):
    folder = to_safetensors(simsiam, tmp_path / "card")
    again = load_encoder(folder)
    for layer in ("backbone", "projection", "prediction", "latent"):
        assert torch.equal(again.encoder.embedding(images, layer), simsiam.encoder.embedding(images, layer))
    text = (folder / "README.md").read_text()
    assert simsiam.sha256 in text
    assert "load_encoder" in text
    assert "mean (0.485, 0.456, 0.406)" in text
    assert not again.report.ignored


def test_safetensors_keeps_what_weights_do_not_show(tmp_path, shaken):
    """solo-learn's padding of 2, found again in the exported folder."""
    network = shaken(ResNet(9, "cifar", 1 / 16, 3))
    state = {f"backbone.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": {**state, "classifier.weight": torch.zeros(2, 32)}}, tmp_path / "solo.ckpt")
    with pytest.raises(CheckpointError, match='format="solo-learn" or format="plain"'):
        load_encoder(tmp_path / "solo.ckpt")  # or anybody's
    solo = load_encoder(tmp_path / "solo.ckpt", format="solo-learn")
    assert solo.encoder.backbone.conv1.padding == (2, 2)
    again = load_encoder(to_safetensors(solo, tmp_path / "card"))
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(again.encoder(images), solo.encoder(images))
    network.conv1.padding = (2, 2)
    assert torch.equal(
        solo.encoder.features(images), network((images - solo.encoder.mean) / solo.encoder.std)
    )


def test_our_own_keep_their_metadata(tmp_path):
    spec = EncoderSpec("small_cnn", (1, 28, 28), projector=(8, 4), predictor=8)
    save_checkpoint(
        tmp_path / "m.safetensors",
        build_encoder(spec),
        metadata=Metadata(objective={"kappa_e": 64.0}, seed=3),
    )
    ours = load_encoder(tmp_path / "m.safetensors")
    again = load_encoder(to_safetensors(ours, tmp_path / "card"))
    assert again.metadata == ours.metadata
    assert again.concentration == 64.0
    images = torch.rand(2, 1, 28, 28)
    assert torch.equal(again.encoder(images), ours.encoder(images))
    assert "| kappa_e | 64.0 |" in (tmp_path / "card" / "README.md").read_text()


def test_the_card_shows_what_was_measured_of_this_encoder(tmp_path):
    """Those of others are left out; a row says of which data, at which layer, under what."""
    found = []
    for seed in (0, 1):
        save_checkpoint(
            tmp_path / f"{seed}.safetensors", build_encoder(EncoderSpec("small_cnn", (1, 28, 28)), seed=seed)
        )
        found.append(load_encoder(tmp_path / f"{seed}.safetensors"))
    own, other = (checkpoint.subject() for checkpoint in found)
    at = {"data": "d/test", "layer": "latent"}
    records = [
        Record("sigma_max.median", 1.5, subject=own, settings=at, identity="a"),
        Record("sigma_max.median", 2.5, subject=own, settings=at, identity="a"),
        Record("sigma_max.median", 3.5, subject=other, settings=at),
        Record(
            "accuracy.corruption",
            0.25,
            subject=own,
            settings={"corruption": "fog", "severity": 1, "table": "x"},
        ),
        Record(
            "accuracy.corruption",
            0.75,
            subject=own,
            settings={"corruption": "fog", "severity": 1, "table": "y"},
        ),
        Record("accuracy.clean", None, subject=own),
        Record("mine", 7.0),
    ]
    text = (found[0].save_pretrained(tmp_path / "hub", records=records) / "README.md").read_text()
    rows = [line for line in text.partition("| measured ")[2].splitlines()[2:] if line.startswith("|")]
    assert rows == [
        "| sigma_max.median, data d/test, layer latent | 2.5  |  |  |",
        "| accuracy.corruption, corruption fog, severity 1, table x | 0.25  |  |  |",
        "| accuracy.corruption, corruption fog, severity 1, table y | 0.75  |  |  |",
        "| mine | 7  |  |  |",
    ]
    with pytest.raises(
        ValueError, match=r"records are of other encoders \(.*1\.safetensors\), none of .*0\.safetensors"
    ):
        found[0].save_pretrained(tmp_path / "wrong", records=records[2:3])
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize("layer", ["latent", pytest.param("backbone", marks=pytest.mark.slow)])
def test_programs_without_lipcomp(tmp_path, simsiam, images, layer):
    traced = torch.jit.load(to_torchscript(simsiam, tmp_path / "model.pt", layer))
    exported = torch.export.load(to_torch_export(simsiam, tmp_path / "model.pt2", layer)).module()
    for batch in (images, images[:1], images.repeat(3, 1, 1, 1)):
        expected = simsiam.encoder(batch, layer)
        scale = float(expected.abs().max())
        torch.testing.assert_close(traced(batch), expected, rtol=0, atol=1e-6 * scale)
        torch.testing.assert_close(exported(batch), expected, rtol=0, atol=1e-6 * scale)


def test_what_has_no_counterpart_is_refused(tmp_path, shaken):
    torch.save(shaken(ResNet(9, "cifar", 1 / 16, 3)).state_dict(), tmp_path / "r9.pth")
    with pytest.raises(CheckpointError, match='counterpart in timm; export it with to="safetensors" or'):
        to_timm(load_encoder(tmp_path / "r9.pth"), tmp_path / "timm")
    padded = ResNet(18, "imagenet", 1, 3, "same").state_dict()
    torch.save(padded, tmp_path / "byol.pth")
    with pytest.raises(CheckpointError, match="no counterpart in torchvision"):
        to_torchvision(load_encoder(tmp_path / "byol.pth", format="byol-converted"), tmp_path / "x.pth")
    assert not (tmp_path / "x.pth").exists()


def test_the_command(tmp_path, capsys):
    torch.save(ResNet(9, "cifar", 1 / 16, 3).state_dict(), tmp_path / "r9.pth")
    with pytest.raises(SystemExit):
        main(["list", str(tmp_path / "r9.pth")])
    shown = capsys.readouterr().out
    assert "format plain, resnet9_0.0625x_cifar, images 3x32x32" in shown
    assert "used     layer4.0.conv2.weight -> backbone.layer4.0.conv2.weight" in shown
    out = tmp_path / "card"
    assert main(["export", str(tmp_path / "r9.pth"), "--to", "safetensors", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert load_encoder(out).encoder.architecture == "resnet9_0.0625x_cifar"
    assert main(["formats"]) == 0
    assert "solo-learn" in capsys.readouterr().out


@pytest.mark.parametrize("target", ["safetensors", "torchscript"])
def test_an_export_writes_over_no_file_of_others(tmp_path, target):
    source, foreign = tmp_path / "run" / "model.safetensors", tmp_path / "project"
    save_checkpoint(source, build_encoder(EncoderSpec("small_cnn", (1, 28, 28))))
    foreign.mkdir()
    (foreign / "README.md").write_text("Mine.")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}

    def export(out):
        return main(["export", str(source), "--to", target, "--out", str(out)])

    for out in {"safetensors": [source.parent], "torchscript": [source]}[target]:
        with pytest.raises(CheckpointError, match="is the checkpoint that is exported; give another path"):
            export(out)
    with pytest.raises(
        (CheckpointError, OSError), match=r"holds README.md, which no export wrote|it is a folder"
    ):
        export(foreign)
    with pytest.raises(OSError, match=r"'.*README.md' is not a folder"):
        export(foreign / "README.md" / "out")
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
    assert export(tmp_path / "out") == export(tmp_path / "out") == 0  # its own is written anew
