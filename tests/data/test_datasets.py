"""Datasets of others: torchvision's, Hugging Face's, any map-style object; labels by name, pixels as they are."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset
from torchvision.datasets import FakeData, ImageFolder, ImageNet
from torchvision.transforms import v2

from lipcomp.data import Preprocessing, batches, from_dataset, load_set, load_splits
from lipcomp.data._items import planes_of, whole_numbers
from lipcomp.data._sets import ImageSet, TensorImages, file_of

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (6, 8, 9, 3), dtype=np.uint8)
LABELS = [2, 0, 1, 1, 0, 2]
NAMES = ["cat", "dog", "emu"]


class Photos(Dataset):
    """As torchvision's are: pictures, ``targets``, ``classes``, a transform."""

    def __init__(self, transform=None, target_transform=None):
        self.transform, self.target_transform = transform, target_transform
        self.targets, self.classes = list(LABELS), NAMES

    def __len__(self):
        return len(LABELS)

    def __getitem__(self, index):
        image, label = Image.fromarray(COLOURS[index]), self.targets[index]
        return (
            self.transform(image) if self.transform else image,
            self.target_transform(label) if self.target_transform else label,
        )


def animated():
    """A GIF of two frames, as a dataset of files opens it."""
    file = io.BytesIO()
    first, second = (Image.fromarray(colours) for colours in COLOURS[:2])
    first.save(file, "GIF", save_all=True, append_images=[second])
    return Image.open(file)


class Features(dict):
    """A column of classes, as the ``datasets`` library describes it."""

    class Label:
        names = NAMES


class HuggingFace:
    """What a ``datasets.Dataset`` offers: rows and columns by one bracket, features."""

    column_names = ("image", "label")
    features = Features(image=object(), label=Features.Label())

    def __len__(self):
        return len(LABELS)

    def __getitem__(self, key):
        if isinstance(key, str):
            return {"label": LABELS}[key]
        return {"image": Image.fromarray(COLOURS[key]), "label": LABELS[key]}


def to_bytes():
    return v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])


@pytest.mark.parametrize(
    "dataset",
    [
        Photos(),
        Photos(transform=to_bytes()),
        Photos(transform=v2.PILToTensor()),
        HuggingFace(),
        list(zip(COLOURS, LABELS, strict=True)),
        [{"img": x, "fine_label": torch.tensor(y)} for x, y in zip(COLOURS, LABELS, strict=True)],
        [(x, NAMES[y]) for x, y in zip(COLOURS, LABELS, strict=True)],
        Subset(Photos(), range(6)),
        ConcatDataset([Subset(Photos(), range(4)), Subset(Photos(), range(4, 6))]),
    ],
    ids=["pictures", "floats", "bytes", "hugging face", "arrays", "mappings", "words", "subset", "joined"],
)
def test_a_dataset_gives_its_own_pixels_and_labels(dataset):
    images = load_set(dataset)
    assert isinstance(images, ImageSet)
    assert images.labels.tolist() == LABELS
    assert images.image_shape == (3, 8, 9)
    expected = torch.from_numpy(COLOURS[[4, 1]]).permute(0, 3, 1, 2) / 255
    assert torch.equal(images.batch(torch.tensor([4, 1])), expected)
    if not isinstance(dataset, list | ConcatDataset) or (
        isinstance(dataset[0], tuple) and dataset[0][1] == "emu"
    ):
        assert images.classes == tuple(NAMES)
    assert file_of(images, 3) == f"{images.name}[3]"


def test_torchvisions_image_folder_names_its_files(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(COLOURS[0]).save(tmp_path / name / "0.png")
    images = from_dataset(ImageFolder(tmp_path))
    assert images.classes == ("a", "b")
    assert file_of(images, 1) == str(tmp_path / "b" / "0.png")


def test_a_target_transform_of_the_test_images_alone_is_refused():
    """Its numbers were taken for those of the training classes, by position."""
    swapped = Photos(target_transform=lambda label: 2 - label)
    for second in (swapped, Subset(swapped, range(6)), {"test": swapped}):
        with pytest.raises(ValueError, match="go through a target_transform"):
            load_splits((Photos(), second))


def test_a_target_transform_is_asked_item_by_item():
    images = from_dataset(Photos(target_transform=lambda label: 2 - label))
    assert images.labels.tolist() == [2 - label for label in LABELS]
    assert images.classes == ("0", "1", "2")  # the dataset's names are those of other numbers


def test_classes_are_matched_by_name():
    reordered = from_dataset(Photos(), classes=("emu", "dog", "cat", "fox"))
    assert reordered.labels.tolist() == [2 - label for label in LABELS]
    with pytest.raises(
        ValueError, match=r"class 'emu' of Photos is not among the classes cat, dog; .*by name"
    ):
        from_dataset(Photos(), classes=("cat", "dog"))
    numbered = from_dataset(list(zip(COLOURS, LABELS, strict=True)), classes=("x", "y", "z"))
    assert numbered.classes == ("x", "y", "z")
    words = [(x, w) for x, w in zip(COLOURS, "bcbcbc", strict=True)]
    train, test = load_splits(([*words[:4], (COLOURS[0], "a")], words[4:]))
    assert train.classes == test.classes == ("a", "b", "c")
    assert test.labels.tolist() == [1, 2]
    accents = load_splits(([(COLOURS[0], "caf\u00e9"), (COLOURS[1], "tea")], [(COLOURS[2], "cafe\u0301")]))
    assert accents[1].classes[int(accents[1].labels)] == "caf\u00e9"


def test_numbers_and_words_never_mean_one_class():
    mixed = from_dataset(list(zip(COLOURS, [1, "a", 1, "b", 0, "a"], strict=True)))
    assert [mixed.classes[i] for i in mixed.labels.tolist()] == ["1", "a", "1", "b", "0", "a"]
    numbered = list(zip(COLOURS, [0, 1, 2, 0, 1, 2], strict=True))
    with pytest.raises(ValueError, match="class '0' of list is not among the classes 1, 2, 3"):
        from_dataset(numbered, classes=("1", "2", "3"))  # by name or by position, not some by each


def test_parts_that_number_their_classes_differently_are_not_joined(tmp_path):
    for name in ("one/cat/0.png", "one/dog/0.png", "two/dog/1.png", "three/cat/1.png", "three/dog/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(COLOURS[0]).save(tmp_path / name)
    one, two, three = (ImageFolder(tmp_path / name) for name in ("one", "two", "three"))
    with pytest.raises(ValueError, match="number their classes differently"):
        from_dataset(ConcatDataset([one, two]))
    assert from_dataset(ConcatDataset([one, three])).classes == ("cat", "dog")


def test_an_index_is_no_label():
    items = [(Image.fromarray(pixels), i) for i, pixels in enumerate([*COLOURS, *COLOURS])]
    with pytest.raises(
        ValueError, match=r"the second part of each item of list is its index.*labelled=False"
    ):
        from_dataset(items)
    stacked = torch.stack([torch.from_numpy(pixels) for pixels in [*COLOURS, *COLOURS]]).permute(0, 3, 1, 2)
    for index in (torch.arange(12), np.arange(12)):
        with pytest.raises(ValueError, match="the second part of each item of list is its index"):
            from_dataset([*zip(stacked, index, strict=True)])
    with pytest.raises(ValueError, match="is its index"):  # that of its part
        from_dataset(ConcatDataset([items, items]))
    assert from_dataset(items, labels=range(12)).labels.tolist() == [*range(12)]
    assert from_dataset(items, labelled=False).classes == ()
    assert from_dataset(items[:3]).labels.tolist() == [0, 1, 2]  # one image of each class


def test_names_in_two_orders_are_refused():
    photos = Photos()
    photos.class_to_idx = {"cat": 0, "dog": 2, "emu": 1}
    with pytest.raises(ValueError, match="class 1 is 'dog', its class_to_idx says 2; correct one"):
        from_dataset(photos)
    photos.classes, photos.class_to_idx = ["cat", "crane", "crane"], {"cat": 0, "crane": 2}
    with pytest.raises(ValueError, match="there are two classes 'crane'; rename"):
        from_dataset(photos)


def test_names_of_classes_come_through_parts_of_datasets():
    """A column's names were lost in a Subset, so that numbers of other classes were taken by position."""
    swapped = HuggingFace()
    swapped.features = Features(image=object(), label=type("Label", (), {"names": NAMES[::-1]}))
    some = from_dataset(Subset(swapped, [0, 1]), classes=NAMES)
    assert some.labels.tolist() == [2 - label for label in LABELS[:2]]
    with pytest.raises(ValueError, match="number their classes differently"):
        from_dataset(ConcatDataset([HuggingFace(), swapped]))
    with pytest.raises(ValueError, match="a part of a ConcatDataset changes its labels"):
        from_dataset(ConcatDataset([Photos(), Photos(target_transform=lambda label: 2 - label)]))


class Formatted(HuggingFace):
    """As ``with_format("torch")``: a picture with a palette becomes an array of its indices."""

    features = Features(image=type("Image", (), {})(), label=Features.Label())

    def __init__(self, kind="torch"):
        self.format = {"type": kind}

    def with_format(self, kind):
        return Formatted(kind)

    def __getitem__(self, key):
        item = super().__getitem__(key)
        if isinstance(key, int):
            item["image"] = item["image"].quantize(16)
            if self.format["type"]:
                item["image"] = torch.from_numpy(np.array(item["image"]))
        return item


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: Subset(x, range(6)), lambda x: ConcatDataset([x])])
def test_a_palettes_indices_are_no_pixels(wrap):
    """with_format("torch") of Hugging Face gives them, and they were measured as grey values."""
    images = from_dataset(wrap(Formatted()))
    expected = np.asarray(Image.fromarray(COLOURS[1]).quantize(16).convert("RGB")).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(images.batch(torch.tensor([1]))[0].numpy(), expected, atol=1e-6)
    assert images.classes == tuple(NAMES)


def test_labels_that_a_transform_renames_are_read_from_the_items():
    class Renamed(HuggingFace):
        def __getitem__(self, key):
            return {"pixel_values": COLOURS[key], "labels": LABELS[key]}

    assert from_dataset(Renamed()).labels.tolist() == LABELS


def test_imagenets_classes_are_its_synsets(tmp_path):
    """Two pairs of its classes have one name, and torchvision gives each a tuple of names: it was refused."""
    synonyms = {"n02012849": ("crane",), "n03126707": ("crane",), "n01440764": ("tench", "Tinca tinca")}
    for name in synonyms:
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.fromarray(COLOURS[0]).save(tmp_path / "val" / name / "0.png")
    torch.save((synonyms, []), tmp_path / "meta.bin")
    images = from_dataset(ImageNet(tmp_path, "val"))
    assert images.classes == tuple(sorted(synonyms))


@pytest.mark.parametrize(
    "told",
    [
        {"classes": {0: "cat", 1: "dog", 2: "emu"}},
        {"classes": np.array(NAMES)},
        {"classes": None, "class_to_idx": {"emu": 2, "cat": 0, "dog": 1}},
        {"targets": np.eye(6)[:, :2]},  # as QMNIST's, whose items take one of many columns
        {"targets": iter(LABELS)},
        {"targets": lambda: LABELS},
    ],
    ids=["mapping", "array", "index", "columns", "iterator", "method"],
)
def test_classes_and_targets_of_any_kind(told):
    class Told(Photos):
        def __getitem__(self, index):
            return Image.fromarray(COLOURS[index]), LABELS[index]

    dataset = Told()
    vars(dataset).update(told)
    images = from_dataset(dataset)
    assert [images.classes[i] for i in images.labels.tolist()] == [NAMES[i] for i in LABELS]


def test_an_item_that_changes_later_is_noticed():
    """As by a transform that depends on the epoch, or a rare one."""

    class Epochs(Photos):
        epoch = 0

        def __getitem__(self, index):
            return np.roll(COLOURS[index], self.epoch, 1), LABELS[index]

    dataset = Epochs()
    images = from_dataset(dataset)
    images.content_hash()
    dataset.epoch = 1
    with pytest.raises(ValueError, match="item 4 of Epochs is another image each time"):
        images.batch(torch.tensor([4]))


def test_parts_of_one_dataset_that_overlap_are_no_splits():
    with pytest.raises(ValueError, match="share images"):
        load_splits((Subset(Photos(), range(5)), Subset(Photos(), range(2, 6))))
    load_splits((Subset(Photos(), range(4)), Subset(Photos(), range(4, 6))))


def test_indices_are_whole_numbers_of_the_set(tmp_path, untyped):
    """A mask was read as the indices 0 and 1."""
    for i, colours in enumerate(COLOURS):
        Image.fromarray(colours).save(tmp_path / f"{i}.png")
    pixels = torch.from_numpy(COLOURS).permute(0, 3, 1, 2).contiguous()
    sets = (
        load_set(str(tmp_path), image_shape=(3, 8, 9)),
        from_dataset(Photos()),
        TensorImages("t", pixels, torch.tensor(LABELS), tuple(NAMES)),
    )
    for images in sets:
        assert torch.equal(images.batch([1, 5]), pixels[[1, 5]] / 255)
        for wrong, message in (
            (torch.tensor([True, False] * 3), r"got a mask; pass mask.nonzero\(\)"),
            (torch.tensor([1.0]), "got torch.float32"),
            (torch.tensor([-1]), "between 0 and 5, got -1"),
            (torch.tensor([6]), "between 0 and 5, got 6"),
            (3, r"of shape \(\)"),
        ):
            with pytest.raises(ValueError, match=message):
                images.batch(wrong)
            with pytest.raises(ValueError, match=message):
                next(batches(images, indices=wrong))
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        next(batches(sets[0], batch_size=0))


def test_an_item_that_cannot_be_read_is_named():
    class Broken(Photos):
        def __getitem__(self, index):
            if index == 4:
                raise KeyError("lost")
            return super().__getitem__(index)

    with pytest.raises(ValueError, match="item 4 of Broken cannot be read: KeyError: 'lost'"):
        from_dataset(Broken()).batch(torch.tensor([4]))


def test_shapes_are_reached_by_a_preprocessing_and_channels_by_request():
    images = from_dataset(Photos(), image_shape=(3, 4, 4))
    picture = Image.fromarray(COLOURS[0])
    assert torch.equal(images.batch(torch.tensor([0]))[0], Preprocessing.default(4, 4)(picture))
    greys = [(x[..., 0], 0) for x in COLOURS]
    with pytest.raises(ValueError, match=r"grey, the encoder takes 3 channels.*convert_channels=True"):
        from_dataset(greys, image_shape=(3, 8, 9))
    assert (
        from_dataset(greys, image_shape=(3, 8, 9), convert_channels=True).batch(torch.tensor([0])).shape[1]
        == 3
    )
    with pytest.raises(ValueError, match=r"in colour, the encoder takes 1 channel"):
        from_dataset(Photos(), image_shape=(1, 8, 9)).batch(torch.tensor([0]))
    mixed = [(COLOURS[0], 0), (COLOURS[1][:5], 1)]
    with pytest.raises(ValueError, match=r"item 1 .*shape \(3, 5, 9\), not \(3, 8, 9\)"):
        from_dataset(mixed).batch(torch.arange(2))


def noisy(image):
    return torch.rand(3, 8, 9)


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        (Photos(transform=noisy), {}, "another image each time it is read"),
        (
            Photos(transform=v2.Compose([to_bytes(), v2.Normalize([0.5] * 3, [0.2] * 3)])),
            {},
            r"must lie in \[0, 1\]",
        ),
        ([(x.astype(np.int64), 0) for x in COLOURS], {}, "int64 do not define which value is white"),
        ([(np.full((4, 4), np.nan, np.float32), 0)], {}, r"must lie in \[0, 1\]"),
        ([("photo.png", 0)], {}, "got str; open files with PIL.Image.open"),
        ([(torch.zeros(3, 4, 4).to_sparse(), 0)], {}, "holds no pixels"),
        ([(np.zeros((4, 4, 5), np.uint8), 0)], {}, "no image of 1, 3 or 4 channels"),
        (list(COLOURS), {}, "gives no labels"),
        ([(x, i or None) for i, x in enumerate(COLOURS)], {}, "gives no label for item 0"),
        ([(x, -1) for x in COLOURS], {}, "label -1; .* labelled=False, .* to lipcomp.data.from_dataset"),
        ([(x, [0, 1]) for x in COLOURS], {}, "one whole number or word"),
        ([(x, 0.5) for x in COLOURS], {}, "whole number"),
        ([(x, 10**9) for x in COLOURS], {}, "number the classes from 0, or make the labels words"),
        ([(COLOURS[0], -1), (COLOURS[1], "a")], {}, "label -1"),
        ([(np.zeros((3, 0, 4), np.float32), 0)], {}, "no image of 1, 3 or 4 channels"),
        (Photos(), {"labels": [0, 1]}, r"one integer per image \(6\)"),
        (Photos(), {"labels": [0, 1, 2, 3, 4, 5], "classes": ("a", "b")}, "2 class names"),
        ([{"pixels": x, "label": 0} for x in COLOURS], {}, "image_key="),
        ([(x, float("inf")) for x in COLOURS], {}, "one whole number or word, got inf"),
        (
            [{"image": x, "img": x, "label": 0} for x in COLOURS],
            {},
            r"several images \(image, img\).*image_key=",
        ),
        ([{"img": x, "label": 0, "class": "a"} for x in COLOURS], {}, r"several labels.*label_key="),
        ([(x, f"{i}.png", 0) for i, x in enumerate(COLOURS)], {}, "second differs for every image"),
        (list(COLOURS), {"labels": np.eye(6, dtype=int)}, r"shape \(6, 6\)"),
        ([(x % 2, 0) for x in COLOURS], {}, "bytes of list are 0 and 1, which is black and almost black"),
        ([(animated(), 0)], {}, "2 frames or pages"),
        ([], {}, "holds no image"),
        (iter([1]), {}, "map-style"),
    ],
)
def test_what_leaves_doubt_is_refused(dataset, options, message):
    with pytest.raises(ValueError, match=message):
        from_dataset(dataset, **options)


@pytest.mark.parametrize("labels", [["a"] * 6, [None] * 6, [[0], [0, 1]]])
def test_labels_of_the_callers_own_are_numbers(labels):
    with pytest.raises(ValueError, match=r"one integer per image \(6\), got list .*classes="):
        whole_numbers("photos", labels, 6)


def test_a_table_of_labels_that_does_not_hold_is_noticed():
    dataset = Photos()
    dataset.targets = list(LABELS)
    images = from_dataset(dataset)
    dataset.targets[2] = 0
    with pytest.raises(ValueError, match="item 2 of Photos has the label 0"):
        images.batch(torch.tensor([2]))


def test_images_without_labels():
    images = from_dataset(list(COLOURS), labelled=False)
    assert images.classes == ()
    assert images.labels.tolist() == [-1] * 6
    with pytest.raises(ValueError, match="no labels, a probe needs at least two classes"):
        load_splits((images, images))
    labelled = from_dataset(Photos())
    with pytest.raises(ValueError, match="share images"):
        load_splits((labelled, from_dataset(Photos())))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, bool])
def test_arrays_of_every_kind_become_pictures(dtype):
    white = {np.uint8: 255, np.uint16: 65535, np.float32: 1, bool: 1}[dtype]
    for shape in ((3, 4), (3, 4, 1), (3, 4, 3), (3, 4, 4)):
        planes = planes_of(np.full(shape, white, dtype))
        assert all(Preprocessing()(plane).eq(1).all() for plane in planes)
        assert (planes[0].height, planes[0].width) == (3, 4)
    if dtype == np.uint8:  # PILToTensor of a picture with transparency
        clear = torch.zeros(4, 3, 5, dtype=torch.uint8)
        assert Preprocessing()(planes_of(clear)[0]).eq(1).all()
    deep = planes_of(torch.full((3, 5, 6), 0.123456))
    assert [plane.mode for plane in deep] == ["F"] * 3


def test_a_random_sets_first_items_are_steady():
    images = from_dataset(FakeData(5, (3, 8, 8), 3))
    assert len(images) == 5


def test_a_set_in_memory_is_brought_to_another_shape_by_request():
    pixels = torch.randint(
        0, 256, (4, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    images = TensorImages("t", pixels, torch.tensor([0, 1, 0, 1]), ("a", "b"))
    assert load_set(images, image_shape=(1, 8, 8)) is images
    with pytest.raises(ValueError, match=r"shape \(1, 8, 8\).*takes \(3, 8, 8\).*convert_channels=True"):
        load_set(images, image_shape=(3, 8, 8))
    coloured = load_set(images, image_shape=(3, 8, 8), convert_channels=True)
    assert torch.equal(coloured.batch(torch.arange(4)), (pixels / 255).expand(-1, 3, -1, -1))
    assert coloured.labels is images.labels
    enlarged = load_set(images, image_shape=(1, 16, 16), preprocessing=Preprocessing(16, (16, 16), "nearest"))
    assert torch.equal(
        enlarged.batch(torch.arange(4)), (pixels / 255).repeat_interleave(2, 2).repeat_interleave(2, 3)
    )
    assert len({s.content_hash() for s in (images, coloured, enlarged)}) == 3
    with pytest.raises(ValueError, match="labels is for folders"):
        load_set(images, labels="table.csv")
