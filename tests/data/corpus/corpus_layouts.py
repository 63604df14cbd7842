"""Splits and class folders."""

import os
import shutil

import numpy as np
from corpus_building import CASES, HEIGHT, WIDTH, Checks, Exact, Folder, Refused, case
from PIL import Image

from lipcomp.data._layout import find_split

TWO = ("train/cat/0.png", "train/cat/1.png", "train/dog/0.png", "test/cat/0.png", "test/dog/0.png")
TEST = {"test/cat/0.png": "cat", "test/dog/0.png": "dog"}
TRAIN = {"train/cat/0.png": "cat", "train/cat/1.png": "cat", "train/dog/0.png": "dog"}


@case
def plain(f: Folder) -> Checks:
    f.put(*TWO)
    yield Exact(TEST, classes=("cat", "dog"))
    yield Exact(TRAIN, "train", classes=("cat", "dog"))
    yield Exact(TRAIN, "pretrain")


@case
def class_missing_in_test(f: Folder) -> Checks:
    f.put(*TWO, "train/ant/0.png")
    yield Exact(TEST, classes=("ant", "cat", "dog"))


@case
def class_missing_in_train(f: Folder) -> Checks:
    f.put(*TWO, "test/ant/0.png")
    yield Refused("1 classes .* not among the 2 of the train split: ant")
    yield Exact(TRAIN, "train")


@case
def class_empty_in_both(f: Folder) -> Checks:
    f.put(*TWO)
    for split in ("train", "test"):
        (f.root / split / "ant").mkdir()
    yield Exact(TEST, classes=("cat", "dog"), note="folders without images are no classes: ant")


@case
def class_empty_in_train(f: Folder) -> Checks:
    f.put(*TWO, "test/ant/0.png")
    (f.root / "train/ant").mkdir()
    yield Refused("not among the 2 of the train split: ant")


@case
def class_empty_in_test(f: Folder) -> Checks:
    f.put(*TWO, "train/ant/0.png")
    (f.root / "test/ant").mkdir()
    yield Exact(TEST, classes=("ant", "cat", "dog"), note="ant")


@case
def class_renamed(f: Folder) -> Checks:
    f.put(*TWO, "test/Dog/1.png")
    yield Refused("Dog.*is 'Dog' their 'dog'")


@case
def checkpoints_of_jupyter(f: Folder) -> Checks:
    f.put(
        *TWO,
        "test/.ipynb_checkpoints/0.png",
        "train/.ipynb_checkpoints/0.png",
        "test/cat/.ipynb_checkpoints/0.png",
    )
    yield Exact(TEST, classes=("cat", "dog"))
    yield Exact(TRAIN, "train")


@case
def files_of_operating_systems(f: Folder) -> Checks:
    f.put(*TWO)
    for name in (
        "test/cat/._0.png",
        "test/cat/Thumbs.db",
        "test/desktop.ini",
        "test/.DS_Store",
        "__MACOSX/cat/._0.png",
    ):
        f.make(name, b"\x00\x05\x16\x07")
    f.make("test/__MACOSX/cat/0.png", b"")
    yield Exact(TEST, classes=("cat", "dog"))


@case
def stray_image_in_test(f: Folder) -> Checks:
    f.put(*TWO, "test/stray.png")
    yield Refused(r"1 images lie beside the class folders .*stray\.png")


@case
def stray_image_in_train(f: Folder) -> Checks:
    f.put(*TWO, "train/stray.png")
    yield Refused("1 images lie beside", "train")


@case
def stray_image_beside_the_splits(f: Folder) -> Checks:
    f.put(*TWO, "preview.png")
    f.make("README.md", "photos")
    yield Exact(TEST)


def split_named(name: str, train: str = "train", asked: tuple[str, ...] = ("test", "val")) -> None:
    def build(f: Folder) -> Checks:
        f.put(f"{train}/ant/0.png", f"{train}/cat/0.png", f"{name}/cat/0.png")
        for split in asked:
            yield Exact({f"{name}/cat/0.png": "cat"}, split, classes=("ant", "cat"))
        yield Exact({f"{train}/ant/0.png": "ant", f"{train}/cat/0.png": "cat"}, "train")

    CASES[f"split_named_{name}_{train}"] = build


for _name in ("val", "valid", "validation", "dev", "Validation", "VAL"):
    split_named(_name)
split_named("testing", "training", ("test",))
split_named("Test", "Train", ("test",))


@case
def test_and_validation(f: Folder) -> Checks:
    f.put(*TWO, "validation/dog/0.png")
    yield Exact(TEST)
    yield Exact({"validation/dog/0.png": "dog"}, "val", classes=("cat", "dog"))


@case
def two_folders_for_validation(f: Folder) -> Checks:
    f.put("train/cat/0.png", "val/cat/0.png", "validation/cat/1.png")
    yield Refused("two folders for the val split")


@case
def an_empty_folder_of_a_split(f: Folder) -> Checks:
    f.put(*TWO)
    (f.root / "val").mkdir()
    yield Exact(TEST)
    yield Refused("no val split", "val")


@case
def no_splits(f: Folder) -> Checks:
    f.put("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png")
    everything = {"cat/0.png": "cat", "cat/1.png": "cat", "dog/0.png": "dog", "dog/1.png": "dog"}
    yield Exact(everything, classes=("cat", "dog"))
    yield Refused("no train split, and a probe is never scored on the images it was fitted on", "train")
    yield Exact(everything, "pretrain")
    parts = [find_split(f.root, split, holdout=0.5) for split in ("train", "test")]
    files = [str(file.relative_to(f.root)) for part in parts for file in part.files]
    assert sorted(files) == sorted(everything)
    for split, part in zip(("train", "test"), parts, strict=True):
        names = {str(file.relative_to(f.root)): file.parent.name for file in part.files}
        assert sorted(names.values()) == ["cat", "dog"]
        yield Exact(names, split, {"holdout": 0.5})


@case
def only_train(f: Folder) -> Checks:
    f.put("train/cat/0.png", "train/dog/0.png")
    yield Refused("no test split .*only: train.*holdout")
    yield Exact({"train/cat/0.png": "cat", "train/dog/0.png": "dog"}, "train")


@case
def only_test(f: Folder) -> Checks:
    f.put("test/cat/0.png", "test/dog/0.png")
    yield Exact(TEST)
    yield Refused("no train split", "train")


@case
def flat(f: Folder) -> Checks:
    f.put("0.png", "1.png")
    yield Exact({"0.png": None, "1.png": None}, classes=())
    yield Refused("no train split", "train")


@case
def flat_splits(f: Folder) -> Checks:
    f.put("train/0.png", "test/1.png")
    yield Exact({"test/1.png": None}, classes=())


@case
def flat_test_beside_classes(f: Folder) -> Checks:
    f.put("train/cat/0.png", "train/dog/0.png", "test/0.png")
    yield Refused("without class folders, but the train split has classes")


@case
def imagenet_with_its_test_set(f: Folder) -> Checks:
    f.put("train/cat/0.png", "train/dog/0.png", "val/dog/0.png", "test/0.png")
    yield Refused("take split='val'")
    yield Exact({"val/dog/0.png": "dog"}, "val", classes=("cat", "dog"))
    yield Refused("has splits already", options={"holdout": 0.5})


@case
def a_class_called_train(f: Folder) -> Checks:
    f.put("bus/0.png", "car/0.png", "train/0.png")
    yield Refused("a split or a class")


@case
def folders_beside_the_splits(f: Folder) -> Checks:
    f.put(*TWO, "extras/0.png")
    yield Exact(TEST)


@case
def one_folder_deeper(f: Folder) -> Checks:
    f.put(*(f"photos/{name}" for name in TWO))
    yield Refused("one folder deeper: give .*photos")


@case
def classes_one_folder_deeper(f: Folder) -> Checks:
    f.put(
        "train/images/cat/0.png", "train/images/dog/0.png", "test/images/cat/0.png", "test/images/dog/0.png"
    )
    yield Refused("one folder deeper: give .*images", "train")
    yield Refused("one folder deeper: give .*images")


@case
def splits_inside_classes(f: Folder) -> Checks:
    f.put("cat/train/0.png", "cat/test/0.png", "dog/train/0.png", "dog/test/0.png")
    yield Refused("inside the class folders")


@case
def folders_inside_classes(f: Folder) -> Checks:
    f.put("train/cat/a/0.png", "train/dog/0.png", "test/cat/b/c/0.png", "test/dog/0.png")
    yield Exact({"test/cat/b/c/0.png": "cat", "test/dog/0.png": "dog"})


@case
def one_class(f: Folder) -> Checks:
    f.put("train/cat/0.png", "test/cat/0.png")
    yield Exact({"test/cat/0.png": "cat"}, classes=("cat",))


@case
def linked_classes(f: Folder) -> Checks:
    f.put("store/0.png", "train/dog/0.png", "test/cat/0.png", "test/dog/0.png")
    (f.root / "train/cat").symlink_to(f.root / "store")
    yield Exact(TEST, classes=("cat", "dog"))


@case
def a_link_to_above(f: Folder) -> Checks:
    f.put(*TWO)
    (f.root / "test/cat/again").symlink_to(f.root / "test")
    yield Exact(TEST)


@case
def a_broken_link(f: Folder) -> Checks:
    f.put(*TWO)
    (f.root / "test/cat/gone.png").symlink_to(f.root / "nowhere.png")
    yield Refused(r"gone\.png' cannot be read")
    yield Exact(TEST, options={"skip_unreadable": True}, note="gone.png")


@case
def a_pipe_called_png(f: Folder) -> Checks:
    f.put(*TWO)
    os.mkfifo(f.root / "test/cat/pipe.png")
    yield Exact(TEST)


@case
def accents_in_two_forms(f: Folder) -> Checks:
    f.put("train/caf\u00e9/0.png", "train/tea/0.png", "test/cafe\u0301/0.png")
    yield Exact({"test/cafe\u0301/0.png": "caf\u00e9"}, classes=("caf\u00e9", "tea"))


@case
def names_that_look_alike(f: Folder) -> Checks:
    for one, other in (("polar bear", "polar\u00a0bear"), ("cat\u200b", "cat"), ("01", "1")):
        f.put(f"train/{one}/0.png", f"train/{other}/1.png")
        yield Refused("one name or number written in two ways", "train")
        shutil.rmtree(f.root / "train")
    f.put("Cat/0.png", "cat/1.png")
    yield Exact({"Cat/0.png": "Cat", "cat/1.png": "cat"}, note="differ only in capitals: Cat, cat")


@case
def one_class_in_two_folders(f: Folder) -> Checks:
    f.put("train/caf\u00e9/0.png", "train/cafe\u0301/1.png", "train/tea/0.png", "test/tea/0.png")
    yield Refused("two classes 'caf\u00e9'")
    yield Refused("two classes 'caf\u00e9'", "train")


@case
def numbers_as_names(f: Folder) -> Checks:
    names = [str(i) for i in range(12)]
    f.put(*(f"train/{name}/0.png" for name in names), "test/10/0.png", "test/2/0.png")
    yield Exact({"test/10/0.png": "10", "test/2/0.png": "2"}, classes=tuple(sorted(names)))


@case
def odd_names(f: Folder) -> Checks:
    f.put("train/a b/0.png", "train/c,d;'e'/0.png", "test/a b/x y.png", "test/c,d;'e'/#%.png")
    yield Exact({"test/a b/x y.png": "a b", "test/c,d;'e'/#%.png": "c,d;'e'"})


@case
def suffixes_in_capitals(f: Folder) -> Checks:
    f.put(*TWO, "test/dog/1.PNG", "test/dog/2.Png")
    f.save(
        "test/dog/3.jfif",
        Image.fromarray(np.full((HEIGHT, WIDTH), 90, np.uint8)),
        np.full((HEIGHT, WIDTH), 90 / 255),
        format="JPEG",
    )
    more = ("test/dog/1.PNG", "test/dog/2.Png", "test/dog/3.jfif")
    yield Exact({**TEST, **dict.fromkeys(more, "dog")})


@case
def another_format_than_the_suffix(f: Folder) -> Checks:
    f.put(*TWO)
    array = f.rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    f.save("test/dog/1.jpg", Image.fromarray(array), array / 255, format="PNG")
    yield Exact({**TEST, "test/dog/1.jpg": "dog"})


@case
def a_folder_called_like_an_image(f: Folder) -> Checks:
    f.put(*TWO, "test/cat/x.png/1.png")
    yield Exact({**TEST, "test/cat/x.png/1.png": "cat"})


@case
def classes_that_are_given(f: Folder) -> Checks:
    f.put("dog/0.png", "cat/0.png")
    images: dict[str, str | None] = {"dog/0.png": "dog", "cat/0.png": "cat"}
    yield Exact(images, options={"classes": ("dog", "emu", "cat")}, classes=("dog", "emu", "cat"))
    yield Refused("not among the 2 of the classes given: dog", options={"classes": ("emu", "cat")})
    yield Refused("two classes 'cat'", options={"classes": ("cat", "dog", "cat")})


@case
def a_class_of_gifs(f: Folder) -> Checks:
    f.put(*TWO)
    f.save("test/ant/0.gif", Image.new("L", (WIDTH, HEIGHT)))
    yield Refused(r"only images that cannot be decoded.*1 \.gif")


@case
def formats_that_are_counted(f: Folder) -> Checks:
    f.put(*TWO)
    f.save("test/cat/1.gif", Image.new("L", (WIDTH, HEIGHT)))
    f.make("test/dog/1.heic", b"ftypheic")
    f.make("test/dog/2.heic", b"ftypheic")
    f.make("test/dog/3.mpo", b"")
    yield Exact(TEST, note="1 .gif, 2 .heic, 1 .mpo")


@case
def nothing(f: Folder) -> Checks:
    f.make("notes.txt", "no images")
    yield Refused("holds no image")


@case
def only_other_formats(f: Folder) -> Checks:
    f.make("a.heic", b"ftypheic")
    yield Refused(r"holds no image.*1 \.heic")
