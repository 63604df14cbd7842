"""Shards of WebDataset: the same images and labels as in files, whatever lies around them; damage is named."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from lipcomp.data import load_set
from lipcomp.data._opening import splits_of

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 7, 3), dtype=np.uint8)


def encoded(pixels, kind="png"):
    buffer = io.BytesIO()
    if kind == "npy":
        np.save(buffer, pixels)
    else:
        Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def write(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("kind", ["png", "npy"])
@pytest.mark.parametrize("label", ["cls", "json", None])
@pytest.mark.parametrize(
    "places", [("train-0.tar", "train-1.tar"), ("a.b/train/x-0.tar", "a.b/train/x-1.tar")]
)
def test_samples_of_shards_are_those_of_files(tmp_path, kind, label, places):
    """Four samples, then two: with captions beside them, hidden files, keys with folders' dots."""
    said = {
        "cls": lambda i: b"%d\n" % (i % 3),
        "json": lambda i: json.dumps({"label": f"dog{i % 3}"}).encode(),
    }
    for place, numbers in zip(places, (range(4), range(4, 6)), strict=True):
        members, here = [("._junk.png", b"x")], "./" if label == "cls" else ""  # as `tar -cf x.tar .` writes
        for i in numbers:
            members += [
                (f"{here}{i:04d}.{kind.upper()}", encoded(PIXELS[i], kind)),
                (f"{here}{i:04d}.txt", b"a dog"),
            ]
            members += [] if label is None else [(f"{here}{i:04d}.{label}", said[label](i))]
        write(tmp_path / "set" / place, members)
    root = (tmp_path / "set" / places[0]).parent.parent if "/" in places[0] else tmp_path / "set"
    images = load_set(str(root), "train")
    assert splits_of(str(root)) == ("train",)
    order = torch.tensor([5, 0, 3])
    assert torch.equal(
        (images.batch(order) * 255).byte(), torch.from_numpy(PIXELS)[order].permute(0, 3, 1, 2)
    )
    names = {"cls": ("0", "1", "2"), "json": ("dog0", "dog1", "dog2"), None: ()}[label]
    assert images.classes == names
    assert images.labels.tolist() == ([i % 3 for i in range(6)] if label else [-1] * 6)
    assert images.file_of(5).endswith(f"-1.tar/0005.{kind.upper()}")
    with pytest.raises(ValueError, match="has no test split among its shards"):
        load_set(str(root), "test")
    images = load_set(str(tmp_path / "set" / places[1]))  # one file is a set
    assert len(images) == 2
    with pytest.raises(ValueError, match="has no train split among its shards"):
        load_set(str(tmp_path / "set" / places[1]), "train")
    with pytest.raises(ValueError, match=r"root=.* would be ignored"):
        load_set(str(tmp_path / "set" / places[1]), root=tmp_path)


def test_shards_that_would_lose_images_or_labels_are_refused(tmp_path):
    png = encoded(PIXELS[0])
    whole = write(tmp_path / "whole.tar", [("a.png", png), ("b.png", png)]).read_bytes()
    cuts = {
        f"cut{n}": whole[:n] for n in (0, 100, 700, 512 + len(png), 1024 + 512 * -(-len(png) // 512), 2100)
    }
    for name, data in cuts.items():
        (tmp_path / f"{name}.tar").write_bytes(data)
        with pytest.raises(ValueError, match=rf"shard .*{name}.tar' is cut off, damaged or compressed"):
            load_set(str(tmp_path / f"{name}.tar"))
    for members, message in (
        ([("a.png", png), ("a.cls", b"1"), ("b.png", png)], r"sample t.tar/b.png of t.tar has no label"),
        ([("cat/a.png", png), ("dog/b.png", png)], r"has no label \(cls, or json\), but a folder; unpack it"),
        ([("a.cls", b"1"), ("b.png", png)], "sample 'a' .* holds cls: each sample needs one picture"),
        ([("a.png", png), ("a.jpg", png)], "holds png, jpg: each sample needs one picture"),
        ([("a.png", png), ("a.png", png)], "holds a.png twice"),
        (
            [("a.png", png), ("a.cls", b"1"), ("b.png", png), ("b.cls", b"\n")],
            "sample t.tar/b.png of t.tar has no label",
        ),
        ([("a.png", png), ("a.cls", b"-1")], "has the label -1"),
        ([("a.png", png[:60])], "image 't.tar/a.png' cannot be read"),
        ([("a.png", png), ("a.json", b"{")], "json cannot be read"),
        ([("a.png", png), ("a.json", b'{"label": 1, "cls": 2}')], "json has several labels"),
    ):
        with pytest.raises(ValueError, match=message):
            load_set(str(write(tmp_path / "t.tar", members)))


@pytest.mark.parametrize("broken", [(0,), (2, 5)])  # the first is looked at before all others
def test_pictures_of_shards_that_cannot_be_read_are_left_out_on_request(tmp_path, broken):
    members = []
    for i in range(6):
        data = encoded(PIXELS[i], "npy" if i == 5 else "png")
        kind = "npy" if i == 5 else "png"
        members += [(f"{i}.{kind}", data[:60] if i in broken else data), (f"{i}.cls", b"%d" % (i % 2))]
    place = write(tmp_path / "set" / "a.tar", members)
    looked = []
    images = load_set(str(place), skip_unreadable=True, advance=lambda: looked.append(1))
    kept = [i for i in range(6) if i not in broken]
    assert images.labels.tolist() == [i % 2 for i in kept]
    assert torch.equal(
        (images.batch(torch.arange(len(kept))) * 255).byte(),
        torch.from_numpy(PIXELS)[kept].permute(0, 3, 1, 2),
    )
    assert len(looked) == 6
    assert images.notes == (
        f"all but {len(broken)} of the 6 pictures of a.tar can be read; left out: "
        + ", ".join(f"a.tar/{i}.{'npy' if i == 5 else 'png'}" for i in broken),
    )
    assert images.content_hash() == load_set(str(place), skip_unreadable=True).content_hash()
    bad = [(name, b"x" if "cls" not in name else data) for name, data in members]
    with pytest.raises(ValueError, match=r"none of the 6 pictures of a\.tar can be read: a.tar/0"):
        load_set(str(write(place, bad)), skip_unreadable=True)


def test_an_archive_beside_its_folders_of_classes_is_no_shard(tmp_path):
    png = encoded(PIXELS[0])
    write(tmp_path / "pets.tar", [("cat/a.png", png)])
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(png)
    assert load_set(str(tmp_path)).classes == ("cat", "dog")
