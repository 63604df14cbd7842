"""A unit's identity: each input that can change a number is changed alone, and the identity changes; else it stays."""

import dataclasses
import os
import shutil

import pytest
import torch
from PIL import Image

from lipcomp.checkpoints import save_checkpoint
from lipcomp.checkpoints._native import Metadata
from lipcomp.encoders import EncoderSpec, build_encoder
from lipcomp.measure import CleanAccuracy, CorruptionAccuracy, Images, Pairs, Plan, Sigma, Source
from lipcomp.measure._accuracy import KNNAccuracy, RobustAccuracy
from lipcomp.measure._compression import Compression
from lipcomp.measure._local import Ball, Frobenius
from lipcomp.measure._map import Map
from lipcomp.measure._plan import Probe
from lipcomp.measure._run import open_benches, units_of
from lipcomp.measure._shifted import FlipRate, ShiftAccuracy

BASE = (
    CleanAccuracy(),
    KNNAccuracy(),
    Sigma(),
    Frobenius(),
    Ball(radii=(1e-3,)),
    Compression(),
    Pairs("views"),
    Pairs("random"),
    Pairs("search"),
    Pairs("all"),
    CorruptionAccuracy(names=("fog",), severities=(2,)),
    RobustAccuracy("pgd", "l2", 0.1),
)


def write_images(folder, seed=0):
    """Grey BMP images in two classes and three splits: equal names and sizes whatever their content."""
    generator = torch.Generator().manual_seed(seed)
    for split in ("train", "test", "val"):
        for label in ("cat", "dog"):
            place = folder / split / label
            place.mkdir(parents=True)
            for i in range(3):
                pixels = torch.randint(0, 256, (28, 28), generator=generator, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(place / f"{label}{i}.bmp")
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory, save_small):
    folder = tmp_path_factory.mktemp("world")
    return save_small(folder / "a.safetensors"), write_images(folder / "images"), folder


def identities(checkpoint, folder, quantities=BASE, source=None, images=None, **plan):
    asked = Plan(
        (source or Source(checkpoint),), images or Images(str(folder)), quantities, device="cpu", **plan
    )
    (bench,) = open_benches(asked)
    return [unit.identity for unit in units_of(bench)]


def changed_folder(world, change):
    checkpoint, folder, place = world
    copy = place / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    change(copy)
    return identities(checkpoint, copy)


def repaint(folder, split="test"):
    """One pixel of one image, the file's size and times kept."""
    file = folder / split / "cat" / "cat1.bmp"
    stat = file.stat()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


FOLDER_CHANGES = {
    "one pixel of a test image": repaint,
    "an image moves to another class": lambda f: (f / "test/cat/cat1.bmp").rename(f / "test/dog/cat1.bmp"),
    "class folders change places": lambda f: [
        (f / s / a).rename(f / s / b)
        for s in ("train", "test")
        for a, b in (("cat", "x"), ("dog", "cat"), ("x", "dog"))
    ],
    "a class is renamed": lambda f: [(f / s / "cat").rename(f / s / "bird") for s in ("train", "test")],
    "an image is gone": lambda f: (f / "test/dog/dog2.bmp").unlink(),
}


@pytest.mark.parametrize("name", FOLDER_CHANGES)
def test_what_changes_the_images_changes_every_identity(world, name):
    before = identities(*world[:2])
    after = changed_folder(world, FOLDER_CHANGES[name])
    assert not set(before) & set(after)


def test_training_images_change_what_reads_the_probe(world):
    before = identities(*world[:2])
    after = changed_folder(world, lambda folder: repaint(folder, "train"))
    changed = [a != b for a, b in zip(before, after, strict=True)]
    reads_probe = [type(q) in (CleanAccuracy, KNNAccuracy, RobustAccuracy) for q in BASE[:10]] + [True] * 3
    assert changed == reads_probe


def touch(folder):
    for file in folder.rglob("*.bmp"):
        os.utime(file, ns=(1, 1))


@pytest.mark.parametrize("same", [lambda f: None, touch, lambda f: (f / "test/.DS_Store").write_text("x")])
def test_copying_touching_or_renaming_the_folder_leaves_it(world, same):
    assert changed_folder(world, same) == identities(*world[:2])


def test_another_place_of_the_checkpoint_leaves_it(world):
    copy = world[2] / "elsewhere.safetensors"
    shutil.copy(world[0], copy)
    assert identities(copy, world[1]) == identities(*world[:2])


PLAN_CHANGES = {
    "seed": ({"seed": 1}, {"sigma", "frobenius", "ball", "compression", "pairs", "corruption", "attack"}),
    "precision": ({"precision": "float64"}, "all"),
    "number of images": ({"images": 5}, "all"),
    "the draw of the images": ({"images": (5, 1)}, "all"),
    "split": ({"images": "val"}, "all"),
    "probe seed": ({"probe": Probe(seed=1)}, {"clean", "corruption", "attack"}),
    "probe kind": ({"probe": Probe("knn")}, {"clean", "corruption", "attack"}),
}
KINDS = [
    "clean",
    "knn",
    "sigma",
    "frobenius",
    "ball",
    "compression",
    *["pairs"] * 4,
    *["corruption"] * 2,
    "attack",
]


@pytest.mark.parametrize("name", PLAN_CHANGES)
def test_what_changes_the_plan_changes_what_depends_on_it(world, name):
    change, expected = PLAN_CHANGES[name]
    more = dict(change)
    if "images" in more:
        chosen = more.pop("images")
        folder = str(world[1])
        more["images"] = (
            Images(folder, split=chosen)
            if isinstance(chosen, str)
            else Images(
                folder, limit=chosen[0] if isinstance(chosen, tuple) else chosen, seed=len(str(chosen))
            )
        )
    before, after = identities(*world[:2]), identities(*world[:2], **more)
    for kind, one, other in zip(KINDS, before, after, strict=True):
        assert (one != other) == (expected == "all" or kind in expected), kind


FIELD_CHANGES = {
    Sigma(): {
        "rtol": 1e-3,
        "method": "rows",
        "max_iterations": 7,
        "k": 2,
        "limit": 2,
        "map": Map("backbone"),
    },
    Frobenius(): {"probes": 4, "map": Map(normalised=False)},
    Ball(radii=(0.1,)): {"radii": (0.2,), "starts": 5, "steps": 3, "map": Map("logits")},
    Compression(): {"draws": 1, "pairs": 3},
    KNNAccuracy(): {"neighbours": 3, "temperature": 0.2},
    Pairs("random"): {"radius": 0.1, "map": Map(concentration=3.0), "source": "shuffled"},
    Pairs("search"): {"norm": "linf", "search": "chord", "starts": 2, "steps": 4, "radius": 1.0},
    Pairs("neighbours"): {"neighbours": 2},
    Pairs("corruptions", corruptions=("fog",)): {
        "severities": (1,),
        "corruptions": ("spatter",),
        "table": "cifar",
    },
    CorruptionAccuracy(names=("fog",), severities=(2,)): {
        "names": ("spatter",),
        "severities": (3,),
        "table": "cifar",
        "jpeg": 85,
    },
    RobustAccuracy("pgd", "l2", 0.1): {"norm": "linf", "radius": 0.2, "limit": 2},
}
FIELDS = [
    (quantity, name, value) for quantity, changes in FIELD_CHANGES.items() for name, value in changes.items()
]


@pytest.mark.parametrize(("quantity", "name", "value"), FIELDS)
def test_every_setting_of_a_quantity_counts(world, quantity, name, value):
    before = identities(*world[:2], (quantity,))
    after = identities(*world[:2], (dataclasses.replace(quantity, **{name: value}),))
    assert not set(before) & set(after)


def test_every_field_of_every_quantity_is_tried():
    # labels, places; tried by content
    never_a_number = {"pooled", "quantity", "folder", "baselines", "corruptions", "frost", "everything"}
    for quantity, changes in FIELD_CHANGES.items():
        if not isinstance(quantity, Pairs):
            names = {f.name for f in dataclasses.fields(quantity)} - never_a_number
            tried = set(changes) | ({"map"} if "map" in names else set()) | {"limit", "attack"}
            assert names <= tried, type(quantity).__name__


@pytest.mark.parametrize(("option", "value"), [("mean", 0.5), ("std", 0.5), ("head", "none")])
def test_how_a_foreign_file_is_read_counts(world, option, value):
    import torchvision

    path = world[2] / "resnet18.pth"
    if not path.exists():
        torch.save(torchvision.models.resnet18(num_classes=4).state_dict(), path)
    images = Images(str(world[1]), options={"convert_channels": True})
    asked = (Sigma(limit=1), CleanAccuracy())
    base = {"image_size": (3, 28, 28)}
    one = identities(path, world[1], asked, Source(str(path), options=base), images)
    given = {option: (value,) * 3 if option != "head" else value}
    if option == "head":
        given = {"image_size": (3, 26, 26)}
    other = identities(path, world[1], asked, Source(str(path), options=base | given), images)
    assert not set(one) & set(other)


def test_two_routes_to_a_number_are_one_unit(world):
    """The whole table of a study holds the cell that a command asks for alone."""
    whole = identities(*world[:2], (CorruptionAccuracy(),))
    alone = identities(*world[:2], (CorruptionAccuracy(names=("fog",), severities=(2,)),))
    assert alone[0] in whole
    assert identities(*world[:2], (Sigma(),)) == identities(*world[:2], (Sigma(limit=100),))
    refits = identities(*world[:2], (CleanAccuracy(),), probe=Probe(refits=3))
    assert refits == identities(*world[:2], (CleanAccuracy(),))


def test_shifts_go_by_content(world):
    digits = Images("mnist5k", limit=4)
    one = identities(world[0], None, (ShiftAccuracy("uci_digits"),), images=digits)
    other = identities(world[0], None, (ShiftAccuracy("mnist5k_8x8"),), images=digits)
    assert one != other


def test_flips_go_by_content(tmp_path):
    """Published perturbations are in colour: an encoder that takes them, on the images of ``world`` painted so."""
    import numpy as np

    images = write_images(tmp_path / "images")
    for file in images.rglob("*.bmp"):
        Image.open(file).convert("RGB").save(file)
    encoder = build_encoder(EncoderSpec("small_cnn", (3, 28, 28), projector=(16, 8)), seed=0).eval()
    save_checkpoint(
        tmp_path / "a.safetensors", encoder, metadata=Metadata(objective={"name": "SimCLR"}, seed=0)
    )
    found = []
    for seed in (0, 0, 1):
        folder = tmp_path / f"p{len(found)}"
        folder.mkdir()
        frames = np.random.default_rng(seed).integers(0, 256, (2, 3, 28, 28, 3), dtype=np.uint8)
        np.save(folder / "brightness.npy", frames)
        found.append(identities(str(tmp_path / "a.safetensors"), images, (FlipRate(str(folder)),)))
    assert found[0] == found[1] != found[2]
