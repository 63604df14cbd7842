"""What a run refuses before it writes anything, what it logs, and the command's errors."""

import json
import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lipcomp._commands import run
from lipcomp.checkpoints._native import load_checkpoint
from lipcomp.data import Preprocessing, from_dataset
from lipcomp.data._sets import TensorImages
from train.command import main
from train.data import data_hash, fit_to_data, held_out_set, training_set
from train.pretrain import pretrain
from train.settings import Settings


def quiet(line):
    pass


def test_a_run_logs_every_step_and_its_checkpoint_says_what_it_is(recipes, tmp_path):
    said = []
    recipe = replace(recipes["c_byol"], epochs=2)
    path = pretrain(recipe, 1, tmp_path, Settings(keep_epochs=1, tensorboard=True), report=said.append)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(36 * 2 // 8 + 1))
    for name in (
        "residual_information",
        "excess_residual",
        "byol",
        "alignment",
        "learning_rate",
        "target_decay",
    ):
        assert all(np.isfinite(line[name]) for line in steps), name
    assert (steps[0]["kappa_e"], steps[0]["kappa_b"], steps[0]["beta"]) == (16384.0, 10.0, 1.0)
    assert {"uniformity", "effective_rank"} < steps[-1].keys()
    measured = [line for line in lines if "knn_accuracy" in line]
    assert measured[-1]["step"] == steps[-1]["step"]
    assert 0 <= measured[-1]["held_out_probe_accuracy"] <= 1
    assert "images/s" in said[-1]
    assert "s left" in said[-1]
    assert list((tmp_path / "tensorboard").iterdir())
    assert sorted(p.name for p in (tmp_path / "every").iterdir()) == [
        "step-00000004.safetensors",
        "step-00000008.safetensors",
    ]
    assert not (tmp_path / "states").exists()
    checkpoint = load_checkpoint(path)
    assert checkpoint.concentration == 16384.0
    assert checkpoint.metadata.recipe["pair"] == "byol"
    assert checkpoint.metadata.seed == 1
    assert checkpoint.metadata.metrics["loss"] == steps[-1]["loss"]
    load_checkpoint(tmp_path / "best.safetensors")


def test_training_leaves_the_global_random_state_alone(recipes, tmp_path):
    before = torch.get_rng_state()
    pretrain(replace(recipes["c_simclr"], epochs=1), 0, tmp_path, report=quiet)
    assert torch.equal(torch.get_rng_state(), before)


def refused(recipe, out, settings=None, kind=ValueError):
    with pytest.raises(kind) as caught:
        pretrain(recipe, 0, out, settings, report=quiet)
    assert not out.exists(), "something was written"
    return str(caught.value)


def test_batches_that_do_not_fit_are_refused_before_anything_is_written(recipes, tmp_path):
    recipe = recipes["simclr"]
    assert "batch_size 64 is larger than the 36 images" in refused(
        replace(recipe, batch_size=64), tmp_path / "r"
    )
    message = refused(recipe, tmp_path / "r", Settings(accumulate=3))
    assert "batch_size 8 does not divide into 1 rank(s) x 3 part(s)" in message
    assert "multiple of 3" in message
    assert "at least 16" in refused(recipe, tmp_path / "r", Settings(accumulate=8))


def test_a_batch_smaller_than_the_ranks_is_refused(recipes):
    from train.data import check_split
    from train.parallel import Ranks

    images = TensorImages(
        "some", torch.zeros(36, 1, 16, 16, dtype=torch.uint8), torch.arange(36) % 3, ("a", "b", "c")
    )
    with pytest.raises(ValueError, match=r"batch_size 8 does not divide into 16 rank\(s\).*at least 32"):
        check_split(recipes["simclr"], images, Ranks(0, 16), Settings())


def test_one_class_is_refused_or_trained_without_the_head(recipes, write_images, tmp_path):
    root = write_images(tmp_path / "data", classes=1)
    recipe = replace(recipes["simclr"], data=str(root), epochs=1, batch_size=4)
    assert "has one class ('class0')" in refused(recipe, tmp_path / "r")
    pretrain(replace(recipe, probe=None), 0, tmp_path / "r", report=quiet)
    assert "probe_accuracy" not in (tmp_path / "r" / "metrics.jsonl").read_text()


def test_unreadable_images_are_counted_named_and_skipped_on_request(
    recipes, write_images, tmp_path, monkeypatch
):
    root = write_images(tmp_path / "data")
    (root / "train" / "class0" / "0.png").write_bytes(b"no image")
    whole = (root / "train" / "class1" / "3.png").read_bytes()
    (root / "train" / "class1" / "3.png").write_bytes(whole[: len(whole) // 2])
    recipe = replace(recipes["simclr"], data=str(root), epochs=1)
    message = refused(recipe, tmp_path / "r")
    assert "2 of the 36 images" in message
    assert "class0/0.png" in message
    assert "class1/3.png" in message
    assert "--skip-unreadable" in message
    said = []
    sorted((root / "test").rglob("*.png"))[-1].write_bytes(b"no image")  # held out
    with pytest.raises(ValueError, match="1 of the 12 images of data/test cannot be read"):
        held_out_set(recipe, Settings(), training_set(recipe, Settings(skip_unreadable=True), quiet))
    monkeypatch.setattr("train.data.DECODED", 1)  # of a large folder too, what is to be skipped is looked for
    path = pretrain(recipe, 0, tmp_path / "r", Settings(skip_unreadable=True), report=said.append)
    assert "2 of the 36 images" in said[0]
    assert load_checkpoint(path).metadata.data["images"] == 34


def test_missing_data_and_wrong_channels_are_refused(recipes, tmp_path):
    refused(replace(recipes["simclr"], data=str(tmp_path / "none")), tmp_path / "r", kind=FileNotFoundError)
    encoder = replace(recipes["simclr"].encoder, image_shape=(3, 28, 28), mean=(0.5,) * 3, std=(0.5,) * 3)
    colours = replace(recipes["simclr"], data="mnist5k", encoder=encoder)
    assert "have shape (1, 28, 28) (channels, height, width), the encoder takes (3, 28, 28)" in refused(
        colours, tmp_path / "r"
    )


def test_held_out_images_are_of_the_data_that_is_given(recipes, tmp_path):
    """They were the recipe's own, which other images are scored on by chance."""
    labels = torch.arange(16) % 3
    noise = torch.rand(16, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    items = list(zip(noise, labels.tolist(), strict=True))
    recipe = replace(recipes["simclr"], epochs=1)
    for name, data in (("items", items), ("splits", {"train": items, "test": items[:8]})):
        pretrain(recipe, 0, tmp_path / name, Settings(evaluate_epochs=1), data=data, report=quiet)
        evaluated = "knn_accuracy" in (tmp_path / name / "metrics.jsonl").read_text()
        assert evaluated == (name == "splits")


def test_crops_are_cut_from_the_whole_of_larger_items_unless_these_are_reduced_by_request(recipes):
    """They were centre-cropped first, so that their borders were never seen; such runs are others by their identity."""

    def images(side, **options):
        items = [(noise[:, :side, :side], i % 2) for i, noise in enumerate(torch.rand(4, 1, 24, 24))]
        return training_set(recipes["simclr"], Settings(), quiet, from_dataset(items, **options))

    small, size = (1, 16, 16), Preprocessing(resize=20, crop=(16, 16))
    assert [images(16).whole, images(24, image_shape=small, preprocessing=size).whole] == [False, False]
    larger = images(24, image_shape=small)
    assert larger.whole
    assert larger.content_hash() != replace(larger, whole=False, _seen={}).content_hash()


@pytest.mark.parametrize("side", [12, 40])
def test_images_of_any_size_are_brought_to_the_recipes(recipes, write_images, tmp_path, side):
    """Known sets and folders, grey ones too, whose images are of one size or of several."""
    root = write_images(tmp_path / "data")
    odd = root / "train" / "class0" / "0.png"
    Image.new("L", (50, 8), 90).save(odd)
    for number, data in enumerate(("mnist5k", str(root))):
        shape = replace(recipes["simclr"].encoder, image_shape=(1, side, side))
        recipe = replace(recipes["simclr"], data=data, encoder=shape, epochs=1, images=16)
        said = []
        pretrain(recipe, 0, tmp_path / str(number), report=said.append)
        assert (f"mnist5k: images of 28 x 28 are resized to {side} x {side}" in said) == (number == 0)


def test_a_folder_with_broken_images_is_fitted_to_by_the_others(recipes, write_images, tmp_path):
    root = write_images(tmp_path / "data")
    (root / "train" / "class0" / "0.png").write_bytes(b"no image")
    fitted = fit_to_data(recipes["simclr"], str(root), Settings(), quiet)
    (root / "train" / "class0" / "0.png").unlink()
    assert fitted == fit_to_data(recipes["simclr"], str(root), Settings(), quiet)
    for file in (root / "train").rglob("*.png"):
        file.write_bytes(b"no image")
    whole = replace(recipes["simclr"], data=str(root))
    with pytest.raises(ValueError, match="cannot be read"):
        pretrain(whole, 0, tmp_path / "r", Settings(skip_unreadable=True), report=quiet)


def test_shards_are_trained_on_without_pictures_that_cannot_be_read(recipes, write_images, tmp_path):
    """The option had no effect on them, and the first picture is looked at before any option."""
    (tmp_path / "s").mkdir()
    files = sorted((write_images(tmp_path / "data") / "train").rglob("*.png"))
    (tmp_path / "0").write_text("0")
    (tmp_path / "1").write_text("1")
    with tarfile.open(tmp_path / "s" / "train-0.tar", "w") as tar:
        for i, file in enumerate(files):
            file.write_bytes(b"no image" if i == 0 else file.read_bytes())
            tar.add(file, f"{i}.png")
            tar.add(tmp_path / str(i % 2), f"{i}.cls")
    shutil.copy(tmp_path / "s" / "train-0.tar", tmp_path / "s" / "test-0.tar")
    said, settings = [], Settings(skip_unreadable=True)
    recipe = fit_to_data(recipes["simclr"], str(tmp_path / "s"), settings, quiet)
    images = training_set(recipe, settings, said.append)
    assert (len(images), images.batch(torch.arange(35)).shape) == (35, (35, 1, 16, 16))
    assert len(held_out_set(recipe, settings, images, said.append)) == 35
    assert said == [
        f"warning: all but 1 of the 36 pictures of s/{split} can be read; left out: {split}-0.tar/0.png"
        for split in ("train", "test")
    ]
    assert data_hash(recipe, settings) == images.content_hash()
    assert data_hash(recipe, Settings()) is None


def test_a_warm_up_longer_than_the_run_is_told(recipes, tmp_path):
    said = []
    pretrain(replace(recipes["simclr"], epochs=1, warmup_epochs=2), 0, tmp_path, report=said.append)
    assert any("the warm-up of 2 epochs takes the whole run of 1" in line for line in said)


def test_accumulation_says_what_it_approximates(recipes, tmp_path):
    said = []
    recipe = replace(recipes["c_simclr"], epochs=1)
    pretrain(recipe, 0, tmp_path, Settings(accumulate=2), report=said.append)
    assert "batch norm's statistics and the negatives come from 4 images, not from 8" in said[0]


def test_compiled_backbones_keep_their_names_and_values(recipes, tmp_path, monkeypatch):
    """What is compiled is the call; torch's own eager backend stands in for a compiler here."""
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self: self.__setattr__("_compiled_call_impl", self._call_impl)
    )
    recipe = replace(recipes["c_byol"], epochs=1)
    one = pretrain(recipe, 0, tmp_path / "one", Settings(compile=True), report=quiet)
    two = pretrain(recipe, 0, tmp_path / "two", report=quiet)
    a, b = (load_checkpoint(p).encoder.state_dict() for p in (one, two))
    assert all(torch.equal(a[name], b[name]) for name in b)


@pytest.mark.parametrize(
    ("name", "value"), [("precision", "fp8"), ("accumulate", 0), ("save_steps", 0), ("workers", -1)]
)
def test_settings_out_of_range_are_named(name, value):
    with pytest.raises(ValueError, match=name):
        Settings(**{name: value})


# The command.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mnist_csimclr"], "did you mean 'mnist_c_simclr'"),
        (["mnist_c_simclr", "--set", "objective.bet=1"], "did you mean 'beta'"),
        (["mnist_c_simclr", "--set", "objective.kappa_e=-1"], "kappa_e must be positive"),
        (["mnist_c_simclr", "--set", "epochs"], "--set needs FIELD=VALUE"),
        (["mnist_c_simclr", "--set", "c_simclr:epochs=2"], "no recipe is called 'c_simclr'; did you mean"),
        (
            ["mnist_simclr", "--set", "epochs=2", "--epochs", "3"],
            "given twice: --set epochs=2 and --epochs 3",
        ),
        (["mnist_simclr", "--set", "epochs=2", "--set", "epochs=3"], "leave one of them out"),
        (["cifar10_simclr"], "give the folder that holds it"),
        (["imagenet_byol_300"], "neither a known set nor an existing folder"),
    ],
)
def test_the_command_refuses_in_one_paragraph(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wrong_usage = any(words in message for words in ("--set needs", "given twice", "leave one of them out"))
    assert run(main, arguments) == (2 if wrong_usage else 1)
    error = capsys.readouterr().err
    assert message in " ".join(error.split())
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_unknown_options_get_the_nearest(capsys):
    with pytest.raises(SystemExit):
        main(["mnist_c_simclr", "--precison", "bf16"])
    assert "did you mean --precision" in capsys.readouterr().err
