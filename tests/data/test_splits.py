"""Which splits there are, and that a probe is never scored on what it was fitted on."""

import numpy as np
import pytest
import torch
from PIL import Image

from lipcomp.data import load_set, load_splits
from lipcomp.data._opening import splits_of

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (6, 8, 9, 3), dtype=np.uint8)


def test_probes_are_fitted_and_scored_on_different_images(tmp_path):
    for colours, name in zip(COLOURS, ("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png"), strict=False):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(colours).save(tmp_path / name)
    options = {"image_shape": (3, 8, 9)}
    with pytest.raises(ValueError, match="no train split"):
        load_splits(str(tmp_path), **options)
    train, test = load_splits(str(tmp_path), holdout=0.5, **options)
    assert train.labels.tolist() == test.labels.tolist() == [0, 1]
    assert not set(train.files) & set(test.files)
    whole = load_set(str(tmp_path), **options)
    with pytest.raises(ValueError, match="share images"):
        load_splits((whole, whole))
    (tmp_path / "linked").mkdir()
    for split in ("train", "val"):  # two names of one folder
        (tmp_path / "linked" / split).symlink_to(tmp_path / "both")
    (tmp_path / "both").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / name).rename(tmp_path / "both" / name)
    with pytest.raises(ValueError, match="share images"):
        load_splits(str(tmp_path / "linked"), **options)
    for split in ("train", "val"):  # two names of single files, in folders of their own
        for file in (tmp_path / "both").rglob("*.png"):
            place = tmp_path / "links" / split / file.parent.name
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{split}-{file.name}").symlink_to(file)
    with pytest.raises(ValueError, match="share images"):
        load_splits(str(tmp_path / "links"), **options)


def test_a_function_by_name_gives_a_dataset_to_every_command(tmp_path, monkeypatch):
    (tmp_path / "my_photos.py").write_text(
        "import torch\n"
        "def build(split):\n"
        "    shade = {'train': 10, 'test': 20}[split]\n"
        "    return [(torch.full((3, 8, 8), shade + i, dtype=torch.uint8), i % 2) for i in range(4)]\n"
        "def nothing(split): return None\n"
        "def bare(): return []\n"
    )
    monkeypatch.chdir(tmp_path)
    train, test = load_splits("my_photos:build", image_shape=(3, 8, 8))
    assert (train.batch(torch.tensor([1])) * 255).unique().tolist() == [11]
    assert (test.batch(torch.tensor([1])) * 255).round().unique().tolist() == [21]
    assert torch.equal(load_set("my_photos:build", "pretrain").labels, train.labels)
    assert splits_of("my_photos:build") == ("train", "test")
    for name, message in (
        ("nothing", "returned None"),
        ("bare", "cannot be used"),
        ("none", "has no function"),
    ):
        with pytest.raises(ValueError, match=message):
            load_set(f"my_photos:{name}")
    with pytest.raises(ValueError, match="No module named"):
        load_set("their_photos:build")


def test_which_splits_there_are(tmp_path):
    assert splits_of("mnist5k") == ("train", "test")
    for name in ("cat/0.png", "dog/0.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(COLOURS[0]).save(tmp_path / name)
    assert splits_of(str(tmp_path)) == ()
    for split in ("train", "valid"):
        (tmp_path / "s" / split / "cat").mkdir(parents=True)
        Image.fromarray(COLOURS[0]).save(tmp_path / "s" / split / "cat" / "0.png")
    assert set(splits_of(str(tmp_path / "s"))) == {"train", "val", "test"}


def test_a_mapping_of_splits_gives_the_one_that_is_asked_for():
    words = {
        "train": [(x, w) for x, w in zip(COLOURS[:4], "baba", strict=True)],
        "validation": [(COLOURS[4], "b")],
    }
    train, test = load_splits(words)
    assert (train.classes, test.classes) == (("a", "b"), ("a", "b"))
    assert (len(train), test.labels.tolist()) == (4, [1])
    with pytest.raises(ValueError, match=r"no train split, only: extra"):
        load_set({"extra": words["train"]}, "train")
