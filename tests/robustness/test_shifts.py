"""Natural shifts and videos, as small trees in their real layouts; what is damaged or missing is named."""

import csv
import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lipcomp.measure._shifted import _some_of_imagenet
from lipcomp.robustness._arrays import MappedImages
from lipcomp.robustness._probes import NearestNeighbours
from lipcomp.robustness._shifted import (
    CIFAR10,
    Shift,
    answers,
    check_cifar_order,
    check_imagenet_order,
    imagenet_wnids,
    project,
)
from lipcomp.robustness._shifts import SHIFTS, Request, _many_labels, load_shift
from lipcomp.robustness._videos import load_vid_robust, load_ytbb_robust, open_perturbations, sequences

RNG = np.random.default_rng(0)


def test_projection_takes_the_best_of_each_list():
    logits = torch.tensor([[1.0, 5.0, 2.0, 0.0], [9.0, 0.0, 0.0, 1.0]])
    assert project(logits, ((0, 1), (2,))).tolist() == [[5, 2], [9, 0]]
    assert project(logits, None) is logits
    with pytest.raises(ValueError, match="names class 7, but the model has 4"):
        project(logits, ((7,),))


def test_neighbours_that_are_all_of_other_classes_answer_none_of_the_shifts():
    """The first class was right without a vote: a kNN probe got 0.5% of ImageNet-A for pictures of other classes."""
    bank = torch.eye(4)
    images = MappedImages("two", np.zeros((3, 4, 4, 3), np.uint8), torch.tensor([0, 0, 1]), ("a", "b"))
    probe = NearestNeighbours(bank, torch.arange(4), k=1)
    shift = Shift("two of four", images, ((1,), (2, 3)), 4)
    assert shift.right(probe(bank[[0, 1, 3]])).tolist() == [False, True, True]
    assert shift.right_clean(probe(bank[[0, 1, 3]]), torch.tensor([1, 1, 3])).tolist() == [False, True, True]
    assert answers(torch.zeros(2, 3), some=False).tolist() == [0, 0]  # of all classes, as clean accuracy is


def test_the_class_lists_are_subsets_of_imagenets():
    everything = imagenet_wnids()
    assert len(everything) == len(set(everything)) == 1000
    for subset in ("imagenet_a", "imagenet_r"):
        wnids = imagenet_wnids(subset)
        assert len(wnids) == 200
        assert set(wnids) < set(everything)
        assert list(wnids) == sorted(wnids)


def test_a_thousand_classes_in_another_order_are_refused():
    wnids, words = imagenet_wnids(), tuple(map("".join, product("abcdefghij", repeat=3)))
    numbered = (
        [f"{wnid}_{word}" for wnid, word in zip(wnids, words[::-1], strict=True)],
        [f"class {k:04}" for k in range(1000)],
    )
    numbered += (tuple(map(str, range(1000))), [f"{k:04}.{words[-k]}" for k in range(1, 1001)])
    for fits in (wnids, *numbered, ("tench", "goldfish", *words[2:]), words[:10]):
        check_imagenet_order("imagenet-a", fits)
    for other in (wnids[::-1], words, tuple(sorted(map(str, range(1000))))):
        with pytest.raises(ValueError, match="imagenet-a counts ImageNet's classes in the order of"):
            check_imagenet_order("imagenet-a", other)


def test_ten_classes_in_another_order_than_cifars_are_refused():
    words = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    for fits in (CIFAR10, words, tuple("0123456789"), words[:3]):
        check_cifar_order("cifar10.1", fits)
    with pytest.raises(ValueError, match=r"cifar10\.1 numbers CIFAR-10's.* here bird is number 0, not 2"):
        check_cifar_order("cifar10.1", sorted(words))


def test_cifar_10_1_and_10_2(tmp_path):
    np.save(tmp_path / "cifar10.1_v6_data.npy", RNG.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8))
    np.save(tmp_path / "cifar10.1_v6_labels.npy", np.arange(6))
    shift = load_shift("cifar10.1", tmp_path, partial=True)
    logits = torch.eye(10)[[0, 1, 2, 3, 5, 5]]
    assert shift.right(logits).tolist() == [True, True, True, True, False, True]
    assert shift.model_classes == 10
    with pytest.raises(ValueError, match="holds 6 images, published are 2000"):
        load_shift("cifar10.1", tmp_path)
    np.savez(
        tmp_path / "cifar102_test.npz",
        images=np.zeros((4, 32, 32, 3), np.uint8),
        labels=np.array([0, 1, 9, 9]),
    )
    shift = load_shift("cifar10.2", tmp_path, partial=True)
    assert (shift.images.labels.tolist(), shift.model_classes) == ([0, 1, 9, 9], 10)
    np.savez(
        tmp_path / "cifar102_test.npz",
        images=np.zeros((4, 32, 32, 3), np.uint8),
        labels=np.array([0, 1, 9, 10]),
    )
    with pytest.raises(ValueError, match="labels from 0 to 10"):
        load_shift("cifar10.2", tmp_path, partial=True)
    for labels in (np.zeros((4, 1), int), np.array([3.7, 1, 2, 9]), np.array(list("abcd")), np.array(3)):
        np.savez(tmp_path / "cifar102_test.npz", images=np.zeros((4, 32, 32, 3), np.uint8), labels=labels)
        with pytest.raises(ValueError, match="one integer per image"):
            load_shift("cifar10.2", tmp_path, partial=True)
    with pytest.raises(ValueError, match="leave classes out"):
        load_shift("cifar10.2", tmp_path, classes=("cat",))
    whole = (tmp_path / "cifar102_test.npz").read_bytes()
    (tmp_path / "cifar102_test.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be read"):
        load_shift("cifar10.2", tmp_path, partial=True)
    with (tmp_path / "cifar102_test.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match="cannot be read"):
        load_shift("cifar10.2", tmp_path, partial=True)


def test_imagenet_v2_folders_are_numbers_and_not_sorted_as_text(tmp_path, photo):
    for label in (0, 2, 10, 999):
        photo(tmp_path / str(label) / "a.jpeg")
    with pytest.raises(ValueError, match="lacks 996 of imagenet-v2's 1000"):
        load_shift("imagenet-v2", tmp_path)
    shift = load_shift("imagenet-v2", tmp_path, partial=True, image_shape=(3, 32, 32))
    assert shift.images.labels.tolist() == [0, 2, 10, 999]
    assert shift.class_map is None


def test_the_three_sets_of_imagenet_v2_are_not_taken_for_each_other(tmp_path, photo):
    others = tmp_path / "imagenetv2-threshold0.7-format-val"
    for label in (0, 2):
        photo(others / str(label) / "a.jpeg")
    (tmp_path / "link").symlink_to(others)
    for folder in (others, tmp_path / "link"):
        for name in ("imagenet-v2", "imagenet-v2-top-images"):
            with pytest.raises(ValueError, match=r"is the shift imagenet-v2-threshold0\.7, not"):
                load_shift(name, folder, partial=True)
    shift = load_shift("imagenet-v2-threshold0.7", others, partial=True, image_shape=(3, 32, 32))
    assert shift.images.labels.tolist() == [0, 2]


def test_imagenet_a_lets_only_its_classes_compete(tmp_path, photo):
    wnids, everything = imagenet_wnids("imagenet_a"), imagenet_wnids()
    for wnid in wnids:
        photo(tmp_path / wnid / "a.jpg", size=(20, 30))  # smaller than wanted: resized, as published
    shift = load_shift("imagenet-a", tmp_path, partial=True, image_shape=(3, 32, 32))
    assert shift.images.batch(torch.arange(2)).shape == (2, 3, 32, 32)
    for classes in (None, everything, wnids):  # half a set is half a set, whatever the model's classes
        with pytest.raises(ValueError, match="holds 200 images, published are 7500"):
            load_shift("imagenet-a", tmp_path, classes=classes)
    with pytest.raises(ValueError, match="every class once"):
        load_shift("imagenet-a", tmp_path, classes=wnids + wnids[:1])
    logits = torch.zeros(200, 1000)
    outside = next(k for k, wnid in enumerate(everything) if wnid not in wnids)
    logits[:, outside] = 10  # a class of ImageNet that ImageNet-A does not have
    for row, wnid in enumerate(wnids):
        logits[row, everything.index(wnid)] = 5
    assert shift.right(logits).all()
    clean_labels = torch.tensor([outside, everything.index(wnids[3]), everything.index(wnids[7])])
    assert shift.clean_subset(clean_labels).tolist() == [1, 2]
    clean = torch.zeros(3, 1000)
    clean[1, clean_labels[1]] = 1
    clean[2, clean_labels[1]] = 1
    assert shift.right_clean(clean, clean_labels).tolist() == [True, False]
    with pytest.raises(ValueError, match="holds 200 images, published are 7500"):
        load_shift("imagenet-a", tmp_path)
    own = load_shift("imagenet-a", tmp_path, classes=[wnids[5], wnids[2]], image_shape=(3, 32, 32))
    assert own.class_map == ((1,), (0,))
    # a probe of a part of the classes
    hundred = _some_of_imagenet("imagenet-a", (wnids[5], everything[outside]))
    shift = load_shift("imagenet-a", tmp_path, classes=hundred)
    assert (shift.class_map, shift.model_classes, len(shift.images)) == (((0,),), 2, 1)
    with pytest.raises(
        ValueError, match="imagenet-hard needs a model of ImageNet's 1000 classes in their order"
    ):
        load_shift("imagenet-hard", tmp_path, classes=hundred)
    assert _some_of_imagenet("imagenet-a", everything) is _some_of_imagenet("uci_digits", wnids) is None
    with pytest.raises(ValueError, match="none of the model's 1 classes"):
        load_shift("imagenet-a", tmp_path, classes=["n00000000"])


def objectnet(folder, photo):
    for name, value in (("alarm_clock", 200), ("bucket", 90), ("only_objectnet", 3)):
        photo(folder / "images" / name / "x.png", value)
    mappings = folder / "mappings"
    mappings.mkdir()
    lines = [f"name {i}" for i in range(1000)]
    lines[409], lines[530], lines[463] = "analog clock", "digital clock", "bucket, pail"
    (mappings / "imagenet_to_label_2012_v2").write_text("\n".join(lines))
    write = {
        "pytorch_to_imagenet_2012_id": {str(i): (i + 7) % 1000 for i in range(1000)},
        "folder_to_objectnet_label": {
            "alarm_clock": "Alarm clock",
            "bucket": "Bucket",
            "only_objectnet": "Thing",
        },
        "objectnet_to_imagenet_1k": {"Alarm clock": "analog clock; digital clock", "Bucket": "bucket, pail"},
    }
    for name, content in write.items():
        (mappings / f"{name}.json").write_text(json.dumps(content))


def test_objectnet_reads_the_map_it_is_published_with_and_cuts_its_frame(tmp_path, photo):
    objectnet(tmp_path, photo)
    picture = Image.open(tmp_path / "images" / "bucket" / "x.png")
    framed = Image.new("RGB", picture.size, (255, 0, 0))
    framed.paste(picture.crop((2, 2, 38, 34)), (2, 2))
    framed.save(tmp_path / "images" / "bucket" / "x.png")
    shift = load_shift("objectnet", tmp_path, partial=True, image_shape=(3, 32, 32))
    assert shift.images.classes == ("alarm_clock", "bucket")
    assert shift.class_map == ((402, 523), (456,))
    assert abs(float(shift.images.batch(torch.tensor([1]))[0, 0].max()) * 255 - 90) < 1.5
    (tmp_path / "mappings" / "objectnet_to_imagenet_1k.json").write_text('{"Bucket": "no such class"}')
    with pytest.raises(ValueError, match=r"do not fit each other.*no such class"):
        load_shift("objectnet", tmp_path, partial=True)
    (tmp_path / "mappings" / "objectnet_to_imagenet_1k.json").write_text("{")
    with pytest.raises(ValueError, match="is not valid JSON"):
        load_shift("objectnet", tmp_path, partial=True)
    (tmp_path / "mappings" / "objectnet_to_imagenet_1k.json").unlink()
    with pytest.raises(FileNotFoundError, match="is missing"):
        load_shift("objectnet", tmp_path, partial=True)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("objectnet_to_imagenet_1k", {"Bucket": ["bucket, pail"]}),
        ("pytorch_to_imagenet_2012_id", {"0": None}),
        ("folder_to_objectnet_label", {"bucket": ["Bucket"]}),
    ],
)
def test_objectnets_mappings_of_another_kind_are_named(tmp_path, photo, file, content):
    objectnet(tmp_path, photo)
    (tmp_path / "mappings" / f"{file}.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"ObjectNet's mappings below .* do not fit each other"):
        load_shift("objectnet", tmp_path, partial=True)


def test_an_image_that_is_all_frame_is_named(tmp_path, photo):
    objectnet(tmp_path, photo)
    photo(tmp_path / "images" / "bucket" / "small.png", size=(40, 4))
    shift = load_shift("objectnet", tmp_path, partial=True, image_shape=(3, 32, 32))
    with pytest.raises(ValueError, match=r"small\.png' is 40 x 4 pixels, of which a frame of 2 is cut off"):
        shift.images.batch(torch.arange(3))


def test_every_shift_says_where_to_get_it(tmp_path):
    for name, entry in SHIFTS.items():
        if entry.source is not None:
            with pytest.raises(FileNotFoundError, match="https://"):
                load_shift(name, tmp_path / "nothing")
    with pytest.raises(ValueError, match="did you mean 'imagenet-v2'"):
        load_shift("imagenet-v3")


def test_the_default_shift_comes_with_scikit_learn():
    pytest.importorskip("sklearn")
    assert len(load_shift("uci_digits").images) == 1797


def test_vid_robust_frames_and_pm_k(tmp_path, photo):
    frames = [f"val/v/{i:06d}.JPEG" for i in range(5)]
    for i, frame in enumerate(frames):
        photo(tmp_path / frame, 50 * i)
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "pmsets.json").write_text(
        json.dumps({frames[2]: [frames[0], frames[1], frames[3], frames[4]]})
    )
    (tmp_path / "metadata" / "labels.json").write_text(json.dumps({frame: [7, 4] for frame in frames}))
    found = load_vid_robust(tmp_path, image_shape=(3, 32, 32))
    assert len(found.images) == 5
    assert len(found.class_map) == 30
    logits = torch.zeros(5, 1000)
    logits[:, 345] = 1  # ImageNet's ox is VID's class 7
    logits[0, 345], logits[0, 404] = 0, 1  # an airliner two frames away
    assert [found.pm_k(logits, k).value for k in (0, 1, 2, 10)] == [1, 1, 0, 0]
    with pytest.raises(ValueError, match="each of 5 frames"):
        found.pm_k(logits[:3])
    whole = (tmp_path / "metadata" / "labels.json").read_text()
    (tmp_path / "metadata" / "labels.json").write_text(json.dumps({frames[2]: []}))
    with pytest.raises(ValueError, match=r"has classes \[\], outside the 30"):
        load_vid_robust(tmp_path)
    (tmp_path / "metadata" / "labels.json").write_text(whole)
    (tmp_path / frames[4]).unlink()
    with pytest.raises(FileNotFoundError, match="1 of 5 frames are missing"):
        load_vid_robust(tmp_path)
    for name, content, message in (
        ("labels", "{}", "lacks 1 anchors"),
        ("labels", {frames[2]: [[7]]}, "the metadata below .* do not fit each other"),
        ("pmsets", {frames[2]: ["val/v/first.JPEG"]}, "the metadata below .* do not fit each other"),
        ("pmsets", {frames[2]: None}, "the metadata below .* do not fit each other"),
    ):
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "metadata" / f"{name}.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            load_vid_robust(tmp_path)


def test_ytbb_robust_keeps_reviewed_anchors_and_similar_neighbours(tmp_path, photo):
    keys = [f"vid_{t}/frame-{i}.jpg" for t in (1000, 2000) for i in (14, 15, 16, 17)]
    for key in keys:
        photo(tmp_path / key)
    meta = tmp_path / "metadata"
    meta.mkdir()
    (meta / "rev_class_idx_map.json").write_text(json.dumps({str(k): [k, k + 100] for k in range(24)}))
    (meta / "ytbb_class_index.json").write_text(json.dumps({"3": "bear", "4": "dog"}))
    with (meta / "ytbb_robustness_test_anchors_full.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("ytid", "time_ms", "label"), ("vid", 1000, 22), ("vid", 2000, 5)])
    anchors = [
        {"key": f"any/{keys[1]}", "labels": [0, 2]},  # good, bear
        {"key": f"any/{keys[5]}", "labels": [1]},  # bad
    ]
    (meta / "anchor_labels.json").write_text(
        json.dumps({"labels": ["good", "bad", "bear"], "annotations": anchors})
    )
    pairs = [
        {"key": f"{keys[1]},{keys[0]}", "labels": [0]},
        {"key": f"{keys[1]},{keys[2]}", "labels": [0, 1]},  # similar, but blurred
        {"key": f"{keys[1]},{keys[3]}", "labels": [0]},
    ]
    (meta / "pmk_labels.json").write_text(
        json.dumps({"labels": ["similar", "blur-increase"], "annotations": pairs})
    )
    found = load_ytbb_robust(tmp_path, image_shape=(3, 32, 32))
    assert [near for _, near in found.anchors] == [{-1: 0, 2: 2}]
    assert found.accepted == (frozenset({23, 3}),)  # 22 and 23 are exchanged in the published evaluation
    assert len(found.images) == 3
    for name, content in (
        ("rev_class_idx_map.json", '{"0": ["dog"]}'),
        ("ytbb_class_index.json", '{"dog": "3"}'),
        ("ytbb_robustness_test_anchors_full.csv", "video,label\nvid,22\n"),
        (
            "pmk_labels.json",
            json.dumps({"labels": ["similar"], "annotations": [{"key": keys[1], "labels": [0]}]}),
        ),
    ):
        was = (meta / name).read_text()
        (meta / name).write_text(content)
        with pytest.raises(ValueError, match=r"the metadata below .* do not fit each other"):
            load_ytbb_robust(tmp_path)
        (meta / name).write_text(was)


def test_perturbation_sequences(tmp_path):
    array = RNG.integers(0, 256, (3, 7, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "gaussian_noise.npy", array)
    np.save(tmp_path / "labels.npy", np.arange(3))
    (tmp_path / "._gaussian_noise.npy").write_bytes(b"what a Mac leaves behind")
    places = open_perturbations(tmp_path)
    assert list(places) == ["gaussian_noise"]
    read = list(sequences(places["gaussian_noise"]))
    assert len(read) == 3
    torch.testing.assert_close(read[1] * 255, torch.from_numpy(array[1]).permute(0, 3, 1, 2).float())
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="neither"):
        open_perturbations(tmp_path / "empty")
    np.save(tmp_path / "fog.npy", array[:0])
    with pytest.raises(ValueError, match=r"fog\.npy' must hold bytes .*, got uint8 \(0, 7, 32, 32, 3\)"):
        next(sequences(tmp_path / "fog.npy"))


def test_imagenet_p_videos_are_decoded(tmp_path):
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "weather" / "brightness" / "n01" / "a.mp4"  # in a group, as the archives unpack
    path.parent.mkdir(parents=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, (64, 64))
    if not writer.isOpened():
        pytest.skip("this OpenCV writes no MP4")
    for value in (30, 120, 220):
        writer.write(np.full((64, 64, 3), (0, 0, value), np.uint8))
    writer.release()
    (frames,) = sequences(open_perturbations(tmp_path)["brightness"])
    assert frames.shape == (3, 3, 64, 64)
    np.testing.assert_allclose(frames[:, 0].mean((1, 2)).numpy() * 255, [30, 120, 220], atol=6)
    np.save(tmp_path / "tilt.npy", np.zeros((1, 3, 64, 64, 3), np.uint8))
    assert set(open_perturbations(tmp_path)) == {"brightness", "tilt"}


@pytest.mark.parametrize("own", [(), (1000,), (-1,), (3, 1000)])
def test_an_image_without_a_class_of_imagenet_is_refused(own):
    wanted = Request("mine", Path(), (3, 8, 8), None, False)
    with pytest.raises(ValueError, match="mine: an image has no label, or one that is no ImageNet class"):
        _many_labels(wanted, [Path("a.png"), Path("b.png")], (frozenset({3}), frozenset(own)))
