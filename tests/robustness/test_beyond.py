"""Beyond corruptions, on small trees in the published layouts: cue conflict, watermark, CCC, several labels, T5D."""

import gzip
import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from lipcomp.robustness import _watermark as watermark
from lipcomp.robustness._ccc import accuracy_over_time, open_ccc
from lipcomp.robustness._metrics import top5_distances
from lipcomp.robustness._probes import NO_VOTE
from lipcomp.robustness._shifted import class_table, imagenet_wnids
from lipcomp.robustness._shifts import load_shift
from lipcomp.robustness._texture import conflicting, decided, load_cue_conflict, recombine, shape_bias

SIXTEEN = tuple(class_table("sixteen_classes"))


@pytest.fixture
def conflict(tmp_path, photo):
    """Every shape with the texture of the next class, and once with its own."""
    for k, name in enumerate(SIXTEEN):
        photo(tmp_path / name / f"{name}1-{SIXTEEN[(k + 1) % 16]}2.png")
        photo(tmp_path / name / f"{name}1-{name}3.png")
    return load_cue_conflict(tmp_path, image_shape=(3, 32, 32), partial=True)


def test_shape_bias_counts_conflicts_answered_by_shape_or_texture(conflict):
    assert len(conflict.images) == 16  # the image whose cues agree is left out
    assert conflict.textures.tolist() == [(k + 1) % 16 for k in range(16)]
    answers = [0, 1, 2, 3 + 1, 4 + 1, *[(k + 5) % 16 for k in range(5, 16)]]  # three shapes, two textures
    sixteen = torch.eye(16)[answers]
    cues = conflict.images.labels, conflict.textures
    assert shape_bias(conflict.decisions(sixteen), *cues).value == 3 / 5
    assert shape_bias(conflict.decisions(sixteen), *cues).n == 5
    assert decided(conflict.decisions(sixteen), *cues).value == 5 / 16
    with pytest.raises(ValueError, match="no shape bias"):
        shape_bias(np.array([(k + 5) % 16 for k in range(16)]), *cues)
    with pytest.raises(ValueError, match=r"16 rows and 16 or 1000 classes, got \(16, 10\)"):
        conflict.decisions(sixteen[:, :10])


def test_a_thousand_classes_answer_by_their_mean_probability(conflict):
    """One sure breed among 109 dogs is less than a half-sure knife: the published aggregation is the mean."""
    table = class_table("sixteen_classes")
    p = torch.full((16, 1000), 1e-6)
    p[:, table["dog"][0]] = 0.7
    p[:, table["knife"][0]] = 0.3
    assert set(conflict.decisions(p.log())) == {SIXTEEN.index("knife")}
    inside = {k for members in table.values() for k in members}
    votes = torch.full((16, 1000), NO_VOTE)
    votes[:, next(k for k in range(1000) if k not in inside)] = 1  # neighbours of none of the sixteen classes
    assert set(conflict.decisions(votes.log())) == {-1}


def test_a_cue_conflict_folder_is_checked(tmp_path, photo):
    with pytest.raises(FileNotFoundError, match="lacks 16 of the 16"):
        load_cue_conflict(tmp_path)
    for name in SIXTEEN:
        photo(tmp_path / name / f"{name}1-cat2.png")
    with pytest.raises(ValueError, match="15 images in conflict, published are 1200"):
        load_cue_conflict(tmp_path)
    photo(tmp_path / "cat" / "cat1-ferret1.png")
    with pytest.raises(ValueError, match="does not tell its texture"):
        load_cue_conflict(tmp_path)


def test_a_cue_conflict_in_the_folder_of_another_shape_is_named(tmp_path, photo):
    photo(tmp_path / "cat" / "dog1-cat2.png")
    with pytest.raises(ValueError, match="lies in the folder of cat, its name tells another shape"):
        load_cue_conflict(tmp_path, classes=("cat", "dog"), partial=True)


def test_cue_conflicts_of_ones_own_classes_name_their_textures(tmp_path, photo):
    for name in ("7/7_1-12_3.png", "7/7_2-12.png", "12/a-1_1.png", "12/a-7_12.png", "1/b-7.png"):
        photo(tmp_path / name)
    conflict = load_cue_conflict(tmp_path, classes=("1", "12", "7"), image_shape=(3, 32, 32))
    told = {file.name: (int(label), int(texture)) for file, label, texture in
            zip(conflict.images.files, conflict.images.labels, conflict.textures, strict=True)}  # fmt: skip
    assert told == {
        "7_1-12_3.png": (2, 1), "7_2-12.png": (2, 1), "a-1_1.png": (1, 0), "a-7_12.png": (1, 2), "b-7.png": (0, 2),
    }  # fmt: skip
    ambiguous, unknown = tmp_path / "7" / "7_1-123.png", tmp_path / "7" / "7_1-9_3.png"
    photo(ambiguous)
    with pytest.raises(ValueError, match=r"7_1-123\.png' may tell the texture 1 or 12; put an underscore"):
        load_cue_conflict(tmp_path, classes=("1", "12", "7"))
    ambiguous.unlink()
    photo(unknown)
    with pytest.raises(ValueError, match="does not tell its texture"):
        load_cue_conflict(tmp_path, classes=("1", "12", "7"))


def test_recombined_images_have_the_phase_of_one_and_the_amplitude_of_the_other():
    # nothing clipped
    one, other = torch.rand(2, 5, 3, 9, 8, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.45
    spectrum = torch.fft.rfft2(recombine(one, other))
    torch.testing.assert_close(spectrum.abs(), torch.fft.rfft2(other).abs(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(recombine(one, one), one, atol=1e-6, rtol=0)
    labels = torch.tensor([0] * 30 + [1, 2])
    places = conflicting(labels)
    assert (labels[places] != labels).all()
    assert torch.equal(places, conflicting(labels))
    with pytest.raises(ValueError, match="at least two classes"):
        conflicting(labels[:30])


def test_imagenet_d_and_hard_take_any_of_several_classes(tmp_path, photo):
    for kind in ("background", "material", "texture"):
        photo(tmp_path / "d" / kind / "chair" / "a.jpg")
    shift = load_shift("imagenet-d", tmp_path / "d", partial=True, image_shape=(3, 32, 32))
    assert shift.accepted == (frozenset({423, 559, 765}),) * 3
    logits = torch.zeros(3, 1000)
    logits[0, 765] = logits[1, 423] = logits[2, 7] = 1  # all 1000 compete
    assert shift.right(logits).tolist() == [True, True, False]
    with pytest.raises(ValueError, match="holds 3 images, published are 4835"):
        load_shift("imagenet-d", tmp_path / "d")
    photo(tmp_path / "d" / "texture" / "throne" / "a.jpg")
    with pytest.raises(ValueError, match="no class of imagenet-d: throne"):
        load_shift("imagenet-d", tmp_path / "d", partial=True)
    photo(tmp_path / "hard" / "images" / "0.jpg")
    (tmp_path / "hard" / "labels.json").write_text(json.dumps({"0.jpg": [3, 9]}))
    hard = load_shift("imagenet-hard", tmp_path / "hard", partial=True, image_shape=(3, 32, 32))
    assert hard.right(torch.eye(1000)[[9]]).tolist() == [True]
    (tmp_path / "hard" / "labels.json").write_text(json.dumps({"0.jpg": [3], "1.jpg": [5]}))
    with pytest.raises(FileNotFoundError, match=r"lacks 1 of the 2 images of labels.json \(1.jpg\)"):
        load_shift("imagenet-hard", tmp_path / "hard", partial=True)


def test_stylized_imagenet_is_imagenets_classes(tmp_path, photo):
    wnids = imagenet_wnids()
    photo(tmp_path / wnids[3] / "a.png")
    shift = load_shift("imagenet-styled", tmp_path, partial=True, image_shape=(3, 32, 32))
    assert shift.class_map is None
    assert shift.images.labels.tolist() == [3]


def test_the_watermark_whitens_its_letters_and_gaps_are_paired(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="Whac-A-Mole"):
        watermark.Watermark(224, tmp_path / "none.otf")
    letters = ImageFont.load_default(36)
    monkeypatch.setattr(watermark.ImageFont, "truetype", lambda path, size: letters)
    monkeypatch.setattr(watermark, "TEXT", "HHHHHH")
    (tmp_path / "font.otf").touch()
    mark = watermark.Watermark(224, tmp_path / "font.otf")
    images = torch.zeros(2, 3, 224, 224)
    marked = mark(images)
    assert marked.shape == images.shape
    assert marked.max() == pytest.approx(128 / 255, abs=1 / 255)  # white at opacity one half, on black
    written = marked[0, 0] > 0
    assert 0.005 < written.float().mean() < 0.2
    assert not written[: int(0.4 * 224)].any()
    clean, with_it = np.array([1, 1, 0, 1], bool), np.array([1, 0, 0, 1], bool)
    assert watermark.gap(clean, with_it).value == -0.25
    assert watermark.carton_gap(clean, with_it, torch.tensor([478, 478, 1, 2])).value == -0.5


def ccc_archive(path, keys, first=0):
    with tarfile.open(path, "w") as archive:
        for k, key in enumerate(keys):
            buffer = io.BytesIO()
            Image.new("RGB", (32, 32), (10 * (first + k), 0, 0)).save(buffer, "JPEG", quality=100)
            for name, data in (
                (f"{key}.input.jpg", buffer.getvalue()),
                (f"{key}.output.cls", str(k).encode()),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def test_ccc_is_a_stream_read_from_its_archives(tmp_path):
    ccc_archive(tmp_path / "serial_00000.tar", ("a", "b", "c"))
    ccc_archive(tmp_path / "serial_00001.tar", ("d", "e"), first=3)
    stream = open_ccc(tmp_path, image_shape=(3, 32, 32))
    assert stream.labels.tolist() == [0, 1, 2, 0, 1]
    reds = stream.batch(torch.tensor([0, 2, 4]))[:, 0].mean((1, 2)) * 255
    torch.testing.assert_close(reds, torch.tensor([0.0, 20.0, 40.0]), atol=2.0, rtol=0)
    assert len(open_ccc(tmp_path, limit=4)) == 4
    assert stream.content_hash() != open_ccc(tmp_path, limit=4).content_hash()
    blocks = accuracy_over_time(np.array([1, 1, 0, 0, 1], bool), block=2)
    assert [b.value for b in blocks] == [1, 0, 1]
    ccc_archive(tmp_path / "serial_00003.tar", ("f",))
    with pytest.raises(ValueError, match=r"lacks serial_00002.tar"):
        open_ccc(tmp_path)
    (tmp_path / "serial_00002.tar").write_bytes((tmp_path / "serial_00000.tar").read_bytes()[:700])
    with pytest.raises(ValueError, match=r"serial_00002.tar' cannot be read"):
        open_ccc(tmp_path)
    (tmp_path / "serial_00002.tar").write_bytes(gzip.compress((tmp_path / "serial_00000.tar").read_bytes()))
    with pytest.raises(ValueError, match=r"serial_00002.tar' cannot be read"):  # images are read in place
        open_ccc(tmp_path)
    with pytest.raises(FileNotFoundError, match="oripress"):
        open_ccc(tmp_path / "none")
    with pytest.raises(ValueError, match="limit must be at least 1"):
        open_ccc(tmp_path, limit=0)


def test_a_ccc_stream_that_lacks_its_beginning_or_has_foreign_labels_is_named(tmp_path):
    ccc_archive(tmp_path / "serial_00001.tar", ("a",))
    with pytest.raises(ValueError, match=r"lacks serial_00000.tar"):
        open_ccc(tmp_path)
    ccc_archive(tmp_path / "serial_00000.tar", [f"{k}" for k in range(25)])
    assert len(open_ccc(tmp_path, limit=25)) == 25
    content = (tmp_path / "serial_00000.tar").read_bytes()
    (tmp_path / "serial_00000.tar").write_bytes(content.replace(b"\xff\xd8", b"no"))
    with pytest.raises(ValueError, match=r"image 0 of .*serial_00000.tar', cannot be read"):
        open_ccc(tmp_path, image_shape=(3, 32, 32)).batch(torch.arange(1))
    (tmp_path / "serial_00000.tar").write_bytes(content.replace(b"24" + b"\0" * 9, b"-1" + b"\0" * 9))
    with pytest.raises(ValueError, match="labels from -1 to"):
        open_ccc(tmp_path)


@pytest.mark.parametrize("labels", ["[3.7]", '["tench"]', "[[1], [2]]", "null", "true", "[]", '{"a": 1}'])
def test_labels_of_imagenet_hard_are_class_numbers(tmp_path, photo, labels):
    photo(tmp_path / "images" / "0.png")
    (tmp_path / "labels.json").write_text(f'{{"0.png": {labels}}}')
    with pytest.raises(
        ValueError, match=r"a class number or a list of them for each image, got .* for 0.png"
    ):
        load_shift("imagenet-hard", tmp_path, partial=True)


@pytest.mark.parametrize("noise", [False, True])
def test_top5_distance_is_the_published_definition(noise):
    """Hendrycks and Dietterich's sum over the cells between ranks, written out in loops."""
    logits = np.random.default_rng(0).normal(size=(3, 6, 9))
    total = np.cumsum([0, 1, 1, 1, 1, 1, 0, 0, 0])  # of rank: how many of the top five lie before it
    means = []
    for video in logits:
        ranks = (-video).argsort(1).argsort(1) + 1
        distances, before = [], ranks[0]
        for after in ranks[1:]:
            moved = after[np.argsort(before)]  # the new rank of the class of rank 1, 2, ...
            distances.append(np.abs(total[:5] - total[moved - 1][:5]).sum())
            before = before if noise else after
        means.append(np.mean(distances))
    assert top5_distances(logits, noise=noise) == pytest.approx(np.array(means))
    with pytest.raises(ValueError, match="at least 6 classes"):
        top5_distances(logits[:, :, :5])
    assert np.isfinite(top5_distances(logits[:, :, :6])).all()
    assert np.isfinite(top5_distances(logits[:, :2])).all()
