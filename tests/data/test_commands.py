"""What the commands say and do of a user's images: labels, splits, bad files, channels, sizes."""

import csv

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from lipcomp import _commands as commands
from lipcomp.checkpoints import save_checkpoint
from lipcomp.checkpoints._native import Metadata
from lipcomp.encoders import EncoderSpec, build_encoder
from lipcomp.jacobian.__main__ import main as jacobian
from lipcomp.records import read_records
from lipcomp.robustness.__main__ import main as robustness


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoders") / "random.safetensors"
    save_checkpoint(
        path, build_encoder(EncoderSpec("small_cnn", image_shape=(1, 16, 16)), seed=0), metadata=Metadata()
    )
    return path


@pytest.fixture
def photos(tmp_path):
    """Ten bright and ten dark grey pictures, and a broken one."""
    rng = np.random.default_rng(0)
    for i in range(20):
        name = ("dark", "bright")[i % 2]
        (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 90, (20, 20)) + 160 * (i % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photos" / name / f"{i}.png")
    (tmp_path / "photos" / "dark" / "broken.png").write_bytes(b"none")
    return tmp_path / "photos"


def run(main, *arguments):
    return commands.run(main, [str(word) for word in arguments])


def words(capsys):
    """What was said, whatever the lines."""
    return " ".join(capsys.readouterr().err.split())


def test_a_probe_asks_for_a_split_and_gets_one_by_a_share_held_out(checkpoint, photos, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    arguments = (
        checkpoint,
        "--data",
        photos,
        "--probe",
        "knn",
        "--neighbours",
        1,
        "--corruptions",
        "none",
        "--device",
        "cpu",
        "--out",
        out,
    )
    assert run(robustness, *arguments, "--skip-unreadable") == 1
    assert "no train split" in words(capsys)
    assert run(robustness, *arguments, "--skip-unreadable", "--holdout", 0.3) == 0
    told = capsys.readouterr()
    assert "1 of" in told.err
    assert "broken.png" in told.err
    clean = next(r for r in read_records(out) if r.quantity == "accuracy.clean")
    assert (clean.value, clean.n) == (1.0, 6)
    assert run(robustness, *arguments, "--skip-unreadable", "--holdout", 0.3, "--split", "train") == 1
    assert "never scored on the images it was" in words(capsys)


def test_a_table_names_the_files_and_bad_ones_stop_the_run_unless_left_out(
    checkpoint, photos, tmp_path, capsys
):
    table, out = tmp_path / "values.csv", tmp_path / "out.jsonl"
    arguments = (checkpoint, "--data", photos, "--device", "cpu", "--table", table, "--out", out)
    assert run(jacobian, *arguments) == 1
    assert "broken.png" in words(capsys)
    assert run(jacobian, *arguments, "--skip-unreadable") == 0
    files = {row["file"] for row in csv.DictReader(table.open())}
    assert {"dark/0.png", "bright/1.png"} < files
    (largest,) = (r for r in read_records(out) if r.quantity == "sigma_max.max")
    assert set(largest.provenance["witness_files"]) < files


def test_colour_and_sizes_are_changed_by_request(checkpoint, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    arguments = (checkpoint, "--data", tmp_path, "--device", "cpu", "--json")
    assert run(jacobian, *arguments) == 1
    assert "--convert-channels" in words(capsys)
    assert run(jacobian, *arguments, "--convert-channels") == 1
    assert "smaller than the 16 x 16" in words(capsys)
    assert run(jacobian, *arguments, "--convert-channels", "--resize", 16, "--interpolation", "bicubic") == 0
    assert "shorter side to 16 (bicubic, antialias), centre crop 16 x 16" in capsys.readouterr().out


@pytest.mark.parametrize(
    "given",
    [
        (),
        ("--interpolation", "bicubic"),
        *(pytest.param(words, marks=pytest.mark.slow) for words in (("--resize", 40), ("--crop", 12))),
    ],
)
def test_the_preprocessing_that_is_said_is_the_one_that_is_recorded(given, photos, tmp_path, capsys):
    weights, out = tmp_path / "resnet18.pt", tmp_path / "out.jsonl"
    torch.save(torchvision.models.resnet18().state_dict(), weights)
    (photos / "dark" / "broken.png").unlink()
    size = 12 if "--crop" in given else 16
    arguments = (
        weights,
        "--data",
        photos,
        "--device",
        "cpu",
        "--image-size",
        size,
        "--limit",
        1,
        "--out",
        out,
    )
    assert run(jacobian, *arguments, "--convert-channels", *given) == 0
    said = words(capsys)
    assert f"images: {read_records(out)[0].settings['preprocessing']}, {size}x{size}," in said
    assert not given or f"; {given[0].removeprefix('--')} as given" in said
