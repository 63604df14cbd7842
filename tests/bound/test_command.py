"""The bound and jacobian commands: side by side, written as they go, refusing in one paragraph."""

import csv
import inspect
from pathlib import Path

import pytest
import torch

from lipcomp._commands import run
from lipcomp.bound import search_ball
from lipcomp.bound.__main__ import build_parser, main as bound
from lipcomp.checkpoints import save_checkpoint
from lipcomp.checkpoints._native import Metadata
from lipcomp.encoders import EncoderSpec, build_encoder
from lipcomp.jacobian.__main__ import main as jacobian
from lipcomp.records import read_records, to_frame


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    paths = []
    for name, objective in (
        ("simclr", {"name": "simclr"}),
        ("c_simclr", {"name": "c_simclr", "kappa_e": 1024.0}),
    ):
        spec = EncoderSpec("small_cnn", (1, 16, 16), projector=(32, 16))
        path = folder / f"{name}.safetensors"
        save_checkpoint(
            path, build_encoder(spec, seed=len(paths)).eval(), metadata=Metadata(objective=objective)
        )
        paths.append(str(path))
    return paths


@pytest.fixture(scope="module")
def folder_of_images(tmp_path_factory):
    from PIL import Image

    folder = tmp_path_factory.mktemp("images")
    pixels = torch.randint(0, 256, (6, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pixels[5] = pixels[2]
    for i, image in enumerate(pixels):
        Image.fromarray(image.numpy()).save(folder / f"{i}.png")
    return str(folder)


@pytest.mark.slow
def test_every_source_of_pairs_is_recorded_for_every_encoder(checkpoints, small_digits, tmp_path, capsys):
    out, table = tmp_path / "bounds.jsonl", tmp_path / "images.csv"
    sources = "views,corruptions,random,neighbours,shuffled,all,search,certified"
    words = [
        *checkpoints, "--data", small_digits(16), "--limit", "4", "--pairs", sources, "--corruptions", "fog,shot_noise",
        "--starts", "1", "--steps", "2", "--radii", "1e-4",
        "--out", str(out), "--table", str(table), "--device", "cpu",
        "--witnesses", str(tmp_path / "pairs"),
    ]  # fmt: skip
    assert run(bound, words) == 0
    pictures = {file.name for file in (tmp_path / "pairs").iterdir()}
    assert {name.rsplit("_", 1)[0] for name in pictures} >= {
        "simclr_corruptions_fog_3_direction",
        *(f"c_simclr_{source}_direction" for source in ("views", "search", "all")),
    }
    shown = capsys.readouterr()
    assert "mean direction (3.5)" in shown.out
    assert "worst z (3.4)" in shown.out
    assert "lower" in shown.err
    assert "<= certified" in shown.err
    assert "OUT OF ORDER" not in shown.err
    frame = to_frame(read_records(out))
    direction = frame[frame.quantity == "bound.direction.max"]
    assert set(direction["settings.pairs"]) == set(sources.split(",")) - {"certified"}
    assert len(direction) == 2 * 8
    assert (direction["value"] > 0).all()
    assert (frame[frame.quantity == "bound.supremum.max"]["subject.objective"] == "c_simclr").all()
    ball = frame[frame.quantity.str.startswith("ball.")]
    assert sorted(ball["settings.radius"].unique()) == [1e-4]
    for _, group in ball.groupby(["subject.sha256", "settings.radius"]):
        value = group.set_index("quantity")["value"]
        assert value["ball.lower.median"] <= value["ball.searched.median"] * 1.001
        assert value["ball.searched.median"] <= value["ball.certified.median"]
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * (8 + 1) * 4
    before = out.read_bytes()
    assert run(bound, words) == 0  # it goes on where it stopped: nothing is left to do
    assert out.read_bytes() == before
    again = capsys.readouterr()
    assert "already in" in again.err
    assert again.out == shown.out  # and the table is that of the finished numbers
    lost = sorted((tmp_path / "pairs").iterdir())[0]
    lost.unlink()
    table.unlink()
    assert run(bound, words) == 0  # a picture or a table that was deleted is made again
    assert table.exists()
    assert out.read_bytes() == before


def test_a_common_concentration_makes_models_comparable(checkpoints, small_digits, tmp_path):
    out = tmp_path / "bounds.jsonl"
    words = [
        *checkpoints,
        "--data",
        small_digits(16),
        "--limit",
        "4",
        "--pairs",
        "all",
        "--concentration",
        "64",
        "--out",
        str(out),
    ]
    assert run(bound, words) == 0
    frame = to_frame(read_records(out))
    supremum = frame[frame.quantity == "bound.supremum.max"].set_index("subject.objective")["value"]
    direction = frame[frame.quantity == "bound.direction.max"].set_index("subject.objective")["value"]
    assert set(supremum.index) == {"simclr", "c_simclr"}
    for name in supremum.index:
        assert supremum[name] == pytest.approx(64 * direction[name])


@pytest.mark.parametrize("more", [[], ["--unnormalised", "--layer", "backbone"], ["--precision", "float64"]])
def test_a_folder_of_images_with_a_duplicate(checkpoints, folder_of_images, tmp_path, more, capsys):
    out = tmp_path / "bounds.jsonl"
    words = [
        checkpoints[0],
        "--data",
        folder_of_images,
        "--pairs",
        "all,neighbours",
        "--out",
        str(out),
        *more,
    ]
    assert run(bound, words) == 0
    frame = to_frame(read_records(out))
    zero = frame[(frame.quantity == "bound.excluded.zero_distance")].set_index("settings.pairs")["value"]
    assert zero["all"] == 1
    assert zero["neighbours"] == 2
    assert "left out 1 pairs (zero distance)" in capsys.readouterr().err


def test_the_jacobian_command(checkpoints, small_digits, tmp_path, capsys):
    out, table = tmp_path / "jacobian.jsonl", tmp_path / "images.csv"
    words = [
        *checkpoints, "--data", small_digits(16), "--limit", "5", "--k", "2", "--frobenius", "16",
        "--out", str(out), "--table", str(table),
    ]  # fmt: skip
    assert run(jacobian, words) == 0
    frame = to_frame(read_records(out)).set_index("quantity")
    assert (frame.loc["sigma_max.unconverged", "value"] == 0).all()
    mean, largest = (frame.loc[f"sigma_max.{name}", "value"].to_numpy() for name in ("mean", "max"))
    assert (mean <= largest).all()
    squared = frame.loc["frobenius_squared.mean"]
    assert (squared["value"] >= mean**2).all()
    assert frame.loc["fisher_trace.mean", "subject.objective"] == "c_simclr"
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 5  # encoders, quantities, images
    sigma = [row for row in rows if row["sigma_1"]]
    assert len(sigma) == 10
    assert all(float(row["sigma_1"]) >= float(row["sigma_2"]) > 0 for row in sigma)
    assert run(jacobian, words) == 0
    assert "already in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "more", "message", "code"),
    [
        (bound, ["--pairs", "everything"], "--pairs takes a comma-separated list", 2),
        (bound, ["--radius", "-1"], "argument --radius: must be positive", 2),
        (bound, ["--batch-size", "-3"], "argument --batch-size: must be positive", 2),
        (bound, ["--limit", "1"], "at least two images", 1),
        (
            bound,
            ["--pairs", "neighbours", "--limit", "3", "--neighbours", "3"],
            "--neighbours 3 needs at least 4 images, got 3; take",
            1,
        ),
        (bound, ["--table", "images.xlsx"], ".csv or .parquet", 1),
        (bound, ["--layer", "nowhere"], "layer must be one of", 1),
        (bound, ["--witnesses", __file__], "is not a folder", 1),
        (bound, ["--out", "/nowhere/\0/x"], "cannot be written: ", 1),
        (bound, ["--out", str(Path(__file__).parent)], "is a folder", 1),
        (bound, ["--precision", "bfloat16"], "precision must be", 1),
        (bound, ["--device", "tpu9"], "device 'tpu9' cannot be used", 1),
        (bound, ["--factory", "no.such:thing"], "no.such", 1),
        (
            bound,
            ["--pairs", "corruptions", "--corruptions", "rain"],
            "corruptions rain are not in the table",
            1,
        ),
        (
            bound,
            ["--unnormalised", "--concentration", "3"],
            "ignored with --unnormalised or --layer logits; leave",
            2,
        ),
        (
            bound,
            ["--pairs", "views,random", "--severity", "5"],
            "--severity would be ignored without --pairs corr",
            2,
        ),
        (bound, ["--pairs", "random", "--norm", "linf"], "--norm would be ignored without --pairs search", 2),
        (bound, ["--pairs", "certified", "--witnesses", "w"], "--witnesses would be ignored", 2),
        (
            bound,
            ["--pairs", "search", "--radii", "1"],
            "--radii would be ignored without --pairs certified",
            2,
        ),
        (bound, ["--cores", "2"], "without --workers, --engine or --shards", 2),
        (bound, ["--minutes", "5", "--workers", "2"], "--minutes would be ignored without --engine slurm", 2),
        (bound, ["--data-root", "/data"], "--data-root /data is the dataset directory of cifar10", 1),
        (
            jacobian,
            ["--layer", "logits", "--concentration", "3"],
            "ignored with --unnormalised or --layer logits; leave",
            2,
        ),
        (
            jacobian,
            ["--method", "rows", "--max-iterations", "3"],
            "--max-iterations would be ignored with --method rows",
            2,
        ),
        (jacobian, ["--concentration", "3"], "--concentration would be ignored without --frobenius", 2),
        (jacobian, ["--frobenius", "1"], "at least 2 probes", 2),
        (jacobian, ["--rtol", "3"], "rtol must lie in", 1),
        (jacobian, ["--data", "nowhere"], "neither a known set nor an existing folder", 1),
    ],
)
def test_bad_input_is_one_paragraph(checkpoints, small_digits, command, more, message, code, capsys):
    words = [checkpoints[0], "--data", small_digits(16), "--limit", "4", *more]
    try:
        found = run(command, words)
    except SystemExit as end:
        found = end.code
    shown = capsys.readouterr().err
    assert found == code
    assert message in " ".join(shown.split())
    assert "Traceback" not in shown


def test_images_must_be_named_for_an_encoder_that_was_trained_elsewhere(checkpoints, capsys):
    assert run(bound, [checkpoints[0]]) == 2
    assert "no --data given" in capsys.readouterr().err


def test_the_command_searches_as_the_function_does_where_nothing_is_said():
    given, own = (
        build_parser().parse_args(["x.pt"]),
        inspect.signature(search_ball).parameters,
    )
    told = {"norm": given.norm, "kind": given.search, "starts": given.starts, "steps": given.steps}
    assert told == {name: own[name].default for name in told}
