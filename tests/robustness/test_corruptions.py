# ruff: noqa: NPY002
"""Corruptions: an image's own, whatever the batch; each against its definition by independent code."""

import hashlib
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage, stats

from lipcomp.robustness.corruptions import (
    _blur as blur,
    _digits as digits,
    _noise as noise,
    _weather as weather,
    corrupt,
    corruption_names,
)
from lipcomp.robustness.corruptions._corrupt import find_corruption, resave_jpeg, table_for
from lipcomp.robustness.corruptions._digital import pixelate
from lipcomp.robustness.corruptions._draws import Draws
from lipcomp.robustness.corruptions._filters import correlate, gaussian, zoom_matrix
from lipcomp.robustness.corruptions._spatter import _costs
from lipcomp.robustness.corruptions._tables import COMMON, TABLES, VALIDATION, Corruption

EVERY = [(table, name) for table in TABLES for name in corruption_names(table)]


def pictures(n, channels, side=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, channels, side // 4, side // 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)
    return (smooth * 255).round() / 255


def draws(n, stream="test", seed=0):
    return Draws(seed, stream, torch.arange(n), torch.device("cpu"))


@pytest.mark.parametrize(("table", "name"), EVERY)
def test_an_image_has_its_corruption_alone_in_any_batch_order_and_layout(table, name):
    images = pictures(5, 1 if table == "mnist" else 3, 28 if table == "mnist" else 32)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    together = corrupt(images, name, 4, table=table, seed=3)
    order = torch.tensor([3, 0, 4])
    last = images[order].contiguous(memory_format=torch.channels_last)
    apart = corrupt(last, name, 4, table=table, seed=3, indices=order)
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()
    assert (apart - together[order]).abs().max() <= 1 / 255 + 1e-6
    assert (apart == together[order]).float().mean() > 0.999
    assert together.shape == images.shape
    assert 0 <= together.min() <= together.max() <= 1
    levels = together * 255
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("table", "name"), EVERY)
def test_random_corruptions_depend_on_seed_and_image_and_none_changes_its_argument(table, name):
    image = pictures(1, 1 if table == "mnist" else 3, 28 if table == "mnist" else 32)
    images = image.repeat(6, 1, 1, 1)
    kept = images.clone()
    one = corrupt(images, name, 5, table=table, seed=0)
    assert torch.equal(images, kept)
    deterministic = {
        "defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression", "gaussian_blur",
        "saturate", "scale", "stripe", "canny_edges", "circular_motion_blur",
    }  # fmt: skip
    different = len({row.numpy().tobytes() for row in one})
    if name in deterministic:
        assert different == 1
        assert torch.equal(one, corrupt(images, name, 5, table=table, seed=1))
    else:
        assert different > 1
        assert not torch.equal(one, corrupt(images, name, 5, table=table, seed=1))
    if name != "translate":
        assert (one - images).abs().max() > 1 / 255


@pytest.mark.parametrize(("table", "name"), EVERY)
def test_bytes_give_the_bytes_that_their_pixels_give(table, name):
    for side in (28, 97):
        pixels = pictures(2, 1 if table == "mnist" else 3, side)
        found = corrupt((pixels * 255).round().byte(), name, 5, table=table)
        assert found.dtype == torch.uint8
        assert torch.equal(found, (corrupt(pixels, name, 5, table=table) * 255).round().byte())


@pytest.mark.parametrize("side", [*range(16, 33), 41, 49, 64, 75, 96])
def test_pixelation_equals_pillow_also_where_a_centre_is_a_border(side):
    pixels = torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8, generator=torch.manual_seed(0))
    picture = Image.fromarray(pixels[0].permute(1, 2, 0).numpy())
    for factor in (0.25, 0.4, 0.5, 0.65, 0.95):
        small = picture.resize((int(side * factor),) * 2, Image.Resampling.BOX)
        expected = np.asarray(small.resize((side, side), Image.Resampling.NEAREST))
        found = pixelate(pixels / 255, Draws(0, "", torch.arange(1), pixels.device), factor)[0]
        assert np.array_equal((found * 255).round().byte().permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("table", ["mnist", "imagenet"])
def test_the_callers_default_type_changes_no_corruption(table, default_float64):
    images = pictures(1, 1 if table == "mnist" else 3, 32)
    for name in corruption_names(table):
        expected = corrupt(images, name, 3, table=table)
        with default_float64():
            assert torch.equal(corrupt(images, name, 3, table=table), expected)


def test_threads_leave_the_default_type_as_it_was(default_float64):
    def corrupt_often(_):
        for _ in range(20):
            corrupt(torch.rand(2, 1, 28, 28, dtype=torch.float32), "brightness", 1, table="mnist")

    with default_float64(), ThreadPoolExecutor(4) as pool:
        list(pool.map(corrupt_often, range(4)))
        assert torch.get_default_dtype() == torch.float64


def test_grey_images_keep_one_channel_in_the_photo_tables():
    images = pictures(2, 1, 32)
    for name in corruption_names("imagenet"):
        assert corrupt(images, name, 3, table="imagenet").shape == images.shape


@pytest.mark.parametrize("table", ["cifar", "cifar-bar", "imagenet-bar"])
def test_images_need_not_be_square(table):
    images = pictures(2, 3, 32)[..., :25]
    for turned in (images, images.mT.contiguous()):
        for name in corruption_names(table):
            assert corrupt(turned, name, 2, table=table).shape == turned.shape


def test_the_tables_are_the_published_ones_and_differ():
    """Severity 3 of Gaussian noise is 0.18 for ImageNet-C and 0.08 for CIFAR-10-C, by measurement."""
    grey = torch.full((20, 3, 32, 32), 0.5)
    for table, scale in (("imagenet", 0.18), ("tiny", 0.12), ("cifar", 0.08)):
        noisy = corrupt(grey, "gaussian_noise", 3, table=table, to_bytes=False)
        assert abs(float(noisy.std()) - scale) < 0.003
    assert len(COMMON) == 15
    assert len(VALIDATION) == 4
    assert len(corruption_names("mnist")) == 15
    assert find_corruption("translate", "mnist").published == 3
    assert find_corruption("fog", "cifar").published is None


def test_draws_follow_from_seed_stream_image_and_call_alone():
    """SplitMix64 in Python's own whole numbers: published corrupted accuracies rest on these draws."""

    def mixed(word):
        word = (word + 0x9E3779B97F4A7C15) % 2**64
        word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        word = (word ^ (word >> 27)) * 0x94D049BB133111EB % 2**64
        return word ^ (word >> 31)

    draws = Draws(5, "fog/3", torch.tensor([7, 0]), torch.device("cpu"))
    found = torch.stack([draws.uniform(4) for _ in range(3)])
    head = int.from_bytes(hashlib.sha256(b"5/fog/3").digest()[:8], sys.byteorder)
    for call in range(3):
        for row, image in enumerate((7, 0)):
            seed = mixed((mixed(mixed(image) ^ head) + call) % 2**64)
            assert torch.equal(found[call, row], torch.rand(4, generator=torch.Generator().manual_seed(seed)))


def test_normal_and_uniform_draws_are_what_they_say():
    numbers = draws(50)
    assert stats.kstest(numbers.normal(400).flatten().numpy(), "norm").pvalue > 1e-3
    assert stats.kstest(numbers.uniform(400).flatten().numpy(), "uniform").pvalue > 1e-3
    whole = numbers.integers(-2, 3, 400).flatten()
    assert stats.chisquare(torch.bincount(whole + 2, minlength=5).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("photons", [3, 60, 500])
def test_shot_noise_is_poisson_at_every_level(photons):
    """Chi-square of the counts against the Poisson distribution, levels 1 to 255."""
    levels = torch.tensor([1, 30, 128, 255]) / 255
    images = levels.view(4, 1, 1, 1).expand(4, 1, 150, 150)
    counts = (noise.shot_noise(images, draws(4), photons) * photons).round().long().flatten(1)
    for level, row in zip(levels.tolist(), counts, strict=True):
        expected = stats.poisson.pmf(np.arange(int(row.max()) + 1), photons * level) * row.numel()
        observed = torch.bincount(row).numpy()
        common = expected > 5
        assert (
            stats.chisquare(
                np.append(observed[common], observed[~common].sum()),
                np.append(expected[common], row.numel() - expected[common].sum()),
            ).pvalue
            > 1e-4
        )


def test_impulse_noise_sets_half_of_its_pixels_to_each_end():
    images = torch.full((4, 3, 64, 64), 0.5)
    out = noise.impulse_noise(images, draws(4), 0.2)
    for value, share in ((0.0, 0.1), (1.0, 0.1), (0.5, 0.8)):
        assert abs(float((out == value).float().mean()) - share) < 0.01


def test_gaussian_filter_is_scipys():
    image = pictures(1, 1, 32)
    for sigma, ours, theirs in (
        (0.4, "nearest", "nearest"),
        (6.0, "nearest", "nearest"),
        (2.0, "reflect", "reflect"),
    ):
        expected = ndimage.gaussian_filter(image[0, 0].double().numpy(), sigma, mode=theirs)
        np.testing.assert_allclose(gaussian(image, sigma, ours)[0, 0].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 5), (1, 7), (13, 11)])  # by shifts, and by the Fourier transform
def test_correlation_is_scipys(shape):
    image, kernel = pictures(1, 1, 24), torch.rand(shape, generator=torch.Generator().manual_seed(0))
    expected = ndimage.correlate(image[0, 0].double().numpy(), kernel.double().numpy(), mode="mirror")
    np.testing.assert_allclose(correlate(image, kernel)[0, 0].numpy(), expected, atol=1e-6 * kernel.sum())


@pytest.mark.parametrize("factor", [1.0, 1.06, 1.31, 2.25, 4.5])
def test_zoom_is_scipys_zoom_of_the_middle(factor):
    line = np.random.default_rng(0).random(32)
    crop = int(np.ceil(32 / factor))
    top = (32 - crop) // 2
    expected = ndimage.zoom(line[top : top + crop], factor, order=1)
    trim = (len(expected) - 32) // 2
    ours = zoom_matrix(32, factor, 32).double() @ torch.from_numpy(line)
    np.testing.assert_allclose(ours.numpy(), expected[trim : trim + 32], atol=1e-6)


def test_defocus_as_separable_filters_is_the_convolution(monkeypatch):
    images = pictures(2, 3, 32)[..., :24]
    for radius, softness in ((3, 0.1), (10, 0.5), (0.3, 0.4)):
        fast = blur.defocus_blur(images, draws(2), radius, softness)
        with monkeypatch.context() as patch:
            patch.setattr(blur, "LARGEST_SEPARABLE", 0)
            slow = blur.defocus_blur(images, draws(2), radius, softness)
        torch.testing.assert_close(fast, slow, atol=3e-6, rtol=0)


def test_glass_copies_without_a_loop_equal_the_loop():
    n, height, width, distance = 3, 20, 18, 3
    pointers = blur._copied_from(draws(n), n, height, width, distance)
    rows, columns = range(height - distance, distance, -1), range(width - distance, distance, -1)
    offsets = draws(n).integers(-distance, distance, len(rows), len(columns), 2)
    for image in range(n):
        grid = np.arange(height * width).reshape(height, width)
        for i, h in enumerate(rows):
            for j, w in enumerate(columns):
                dx, dy = offsets[image, i, j].tolist()
                grid[h, w] = grid[h + dy, w + dx]
        assert (pointers[image].numpy() == grid.reshape(-1)).all()


def test_glass_on_digits_only_moves_pixels(monkeypatch):
    images = pictures(4, 1, 28)
    monkeypatch.setattr(blur, "gaussian_matrix", lambda size, *rest: torch.eye(size))
    moved = blur.glass_swaps(images, draws(4), 1.0, 2, 3)
    assert torch.equal(
        moved.flatten(1).sort(1).values, (images * 255).round().div(255).flatten(1).sort(1).values
    )
    assert not torch.equal(moved, images)


def test_the_costs_of_the_chamfer_distance_are_those_of_the_shortest_way():
    """Over steps, diagonals and knight's moves, found one cell after another; at most 20."""
    moves = ((0, 1, 1.0), (1, 0, 1.0), (1, 1, 1.4), (1, 2, 2.1969), (2, 1, 2.1969))
    least = np.zeros((20, 21))
    for i, j in np.ndindex(20, 21):
        if i or j:
            least[i, j] = min(least[i - a, j - b] + cost for a, b, cost in moves if a <= i and b <= j)
    np.testing.assert_allclose(_costs().numpy(), least.clip(max=20), rtol=1e-6)


def test_motion_blur_of_a_point_is_half_a_gaussian_along_its_direction():
    images = torch.zeros(1, 1, 41, 41)
    images[0, 0, 20, 20] = 1
    out = blur.blur_along(images, torch.tensor([0.0]), 8, 3.0)[0, 0, 20]
    weights = torch.exp(-0.5 * (torch.arange(17) / 3.0) ** 2)
    torch.testing.assert_close(out[4:21], (weights / weights.sum()).flip(0), atol=1e-6, rtol=0)
    assert out[21:].abs().max() == 0


def test_plasma_is_scaled_to_the_unit_interval_and_rougher_for_slower_decay():
    smooth, rough = (weather.plasma(draws(8), 8, 64, decay) for decay in (3.0, 1.4))
    for heights in (smooth, rough):
        assert heights.amin((1, 2)).abs().max() == 0
        torch.testing.assert_close(heights.amax((1, 2)), torch.ones(8))
    assert rough.diff(dim=2).abs().mean() > 2 * smooth.diff(dim=2).abs().mean()


def test_frost_adds_a_cut_of_the_texture_that_is_given():
    ramp = (torch.arange(64 * 80).view(1, 64, 80) / (64 * 80)).expand(3, -1, -1)
    images = pictures(5, 3, 32) * 0.2
    out = corrupt(images, "frost", 1, table="imagenet", frost_textures=[ramp], to_bytes=False)
    cut = (out - images) / 0.4
    inside = out < 1
    steps = cut[:, 0].diff(dim=2)[inside[:, 0, :, 1:]]
    torch.testing.assert_close(steps, torch.full_like(steps, 1 / 5120), atol=1e-5, rtol=0)
    assert len({round(float(x), 5) for x in cut[:, 0, 0, 0]}) > 1


def test_generated_frost_has_the_brightness_and_contrast_of_the_photographs():
    made = weather.frost_textures()
    np.testing.assert_allclose([float(t.mean()) for t in made], [0.51, 0.81, 0.80, 0.60, 0.48], atol=0.02)
    spreads = [float(t.mean(0).std()) for t in made]
    np.testing.assert_allclose(spreads, [0.07, 0.09, 0.09, 0.11, 0.17], rtol=0.05)


@pytest.mark.parametrize("sigma", [0.6, 1.0, 1.5])
def test_canny_edges_are_scikit_images(sigma):
    feature = pytest.importorskip("skimage.feature")
    images = torch.from_numpy(
        np.stack([ndimage.gaussian_filter(np.random.default_rng(s).random((28, 28)), 1.2) for s in range(30)])
    )[:, None].float()
    images = (images - images.min()) / (images.max() - images.min())
    ours = digits.canny_edges(images, draws(30), sigma)
    theirs = np.stack([feature.canny(image.double().numpy(), sigma=sigma) for image in images[:, 0]])
    assert (ours[:, 0].numpy() == theirs).mean() > 0.9995


@pytest.mark.parametrize(("table", "name"), [("mnist", "rotate"), ("mnist", "shear"), ("cifar", "contrast")])
def test_motions_and_means_round_in_the_same_way_in_any_batch_and_layout(table, name):
    images = pictures(5, 1 if table == "mnist" else 3, 40)[..., :28]
    together = corrupt(images, name, 3, table=table, to_bytes=False)
    last = images[3:4].contiguous(memory_format=torch.channels_last)
    alone = corrupt(last, name, 3, table=table, to_bytes=False, indices=[3])
    assert torch.equal(alone, together[3:4])


def test_motions_of_digits_are_scipys_affine_maps():
    image = pictures(1, 1, 28)
    centre = np.array([13.5, 13.5])
    for transform, amount, matrices in (
        (digits.rotate, 0.4, [[[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]] for a in (0.4, -0.4)]),
        (digits.shear, 0.6, [[[np.cos(a), 0], [-np.sin(a), 1]] for a in (0.6, -0.6)]),
        (digits.scale, 0.7, [[[1 / 0.7, 0], [0, 1 / 0.7]]]),
    ):
        ours = transform(image, draws(1), amount)[0, 0].numpy()
        errors = []
        for matrix in matrices:  # rows and columns of (y, x)
            offset = centre - np.array(matrix) @ centre
            expected = ndimage.affine_transform(
                image[0, 0].numpy(), matrix, offset, order=1, mode="grid-constant"
            )
            errors.append(np.abs(ours - expected).max())
        assert min(errors) < 1e-4


def test_translation_and_stripes():
    image = pictures(8, 1, 28)
    moved = digits.translate(image, draws(8), 3)
    ways = set()
    for before, after in zip(image[:, 0], moved[:, 0], strict=True):
        for dy in (-3, 3):
            for dx in (-3, 3):
                shifted = ndimage.shift(before.numpy(), (-dy, -dx), order=0)
                if np.abs(shifted - after.numpy()).max() < 1e-6:
                    ways.add((dy, dx))
    assert len(ways) >= 2
    striped = corrupt(image, "stripe", 3, table="mnist")
    torch.testing.assert_close(striped[..., 7:21], image[..., 7:21], atol=1.1 / 255, rtol=0)
    torch.testing.assert_close(striped[..., :7], 1 - image[..., :7], atol=1.1 / 255, rtol=0)


def test_strokes_are_white_on_their_line_and_fade_with_distance():
    black = torch.zeros(20, 1, 28, 28)
    lines = corrupt(black, "dotted_line", 3, table="mnist", to_bytes=False)
    assert lines[..., [0, 1, 4, 5, 24, 25]].max() == 0
    assert lines[..., 2:4].amax((1, 2, 3)).min() > 0.6
    zigzags = corrupt(black, "zigzag", 3, table="mnist", to_bytes=False)
    assert zigzags.amax((1, 2, 3)).min() > 0.9
    grey = corrupt(torch.full((1, 1, 28, 28), 0.5), "zigzag", 3, table="mnist")
    assert grey.median() == pytest.approx(127 / 255)  # what the stroke does not reach stays as it is


@pytest.mark.parametrize(
    ("shape", "table"),
    [((1, 28, 28), "mnist"), ((3, 32, 32), "cifar"), ((3, 64, 64), "tiny"), ((3, 96, 128), "imagenet")],
)
def test_the_table_is_chosen_by_the_images(shape, table):
    assert table_for(shape) == table
    images = pictures(2, shape[0], 128)[..., : shape[1], : shape[2]]
    assert torch.equal(corrupt(images, "brightness", 4), corrupt(images, "brightness", 4, table=table))


@pytest.mark.parametrize(
    "own",
    [
        lambda images, draws, share: images[:, :, :8],
        lambda images, draws, share: (images * 255).byte(),
        lambda images, draws, share: images.double(),
        lambda images, draws, share: images / 0 * 0,
    ],
    ids=["cut", "bytes", "double", "nan"],
)
def test_a_corruption_of_ones_own_returns_finite_pixels_like_its_images(own, monkeypatch):
    """NaN went through; the others ended in torch's words."""
    monkeypatch.setitem(TABLES, "mine", {"x": Corruption(own, ((0.1,),) * 5)})
    with pytest.raises(
        ValueError, match=r"corruption 'x' must return finite pixels of shape \(2, 1, 28, 28\)"
    ):
        corrupt(torch.ones(2, 1, 28, 28), "x", 3, table="mine")
    with pytest.raises(ValueError, match="settings must be five tuples, one per severity"):
        Corruption(own, ((0.1,),) * 3)


def test_frost_photographs_are_the_first_five_of_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no frost1.png or .jpg"):
        weather.read_frost(tmp_path)
    for number in range(1, 7):
        pixels = np.full((40 + number, 50, 3), 10 * number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"frost{number}.{'png' if number < 4 else 'jpg'}")
    found = weather.read_frost(tmp_path)
    assert [t.shape for t in found] == [(3, 40 + k, 50) for k in range(1, 6)]
    assert float(found[1].mean()) == pytest.approx(20 / 255)


def test_a_jpeg_file_gives_back_what_pillow_gives(tmp_path):
    images = pictures(2, 3, 48)
    Image.fromarray((images[1] * 255).round().byte().permute(1, 2, 0).numpy()).save(
        tmp_path / "x.jpg", quality=85
    )
    with Image.open(tmp_path / "x.jpg") as read:
        expected = torch.from_numpy(np.array(read)).permute(2, 0, 1) / 255
    torch.testing.assert_close(resave_jpeg(images)[1], expected)
    with pytest.raises(ValueError, match="between 1 and 95, got 100"):
        resave_jpeg(images, 100)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "gausian_noise"}, "did you mean 'gaussian_noise'"),
        ({"severity": 6}, "severity must be 1, 2, 3, 4 or 5, got 6"),
        ({"severity": 0}, "got 0"),
        ({"table": "imagnet"}, "table must be one of imagenet, cifar, tiny, mnist, imagenet-bar, cifar-bar"),
        ({"images": torch.rand(2, 3, 8, 8)}, "at least 16 pixels high and wide, got 8 x 8"),
        ({"images": torch.rand(2, 2, 32, 32)}, r"\(batch, 1 or 3, height, width\)"),
        ({"images": torch.rand(2, 3, 32, 32) * 255}, r"pixels in \[0, 1\], got values"),
        ({"images": torch.full((2, 3, 32, 32), float("nan"))}, "got values from nan"),
        ({"indices": torch.arange(3)}, "one whole number per image"),
        ({"indices": torch.tensor([True, False])}, "got torch.bool"),
        ({"severity": 3.0}, "got float 3.0"),
        ({"images": np.zeros((2, 3, 32, 32))}, "must be a tensor .*got ndarray"),
        ({"table": "mnist", "name": "shear"}, "3 channels; take another table"),
    ],
)
def test_bad_input_is_named(change, message, untyped):
    given = {
        "images": torch.rand(2, 3, 32, 32),
        "name": "gaussian_noise",
        "severity": 1,
        "table": "imagenet",
    } | change
    with pytest.raises(ValueError, match=message):
        corrupt(**given)


def test_an_empty_batch_stays_empty():
    assert corrupt(torch.zeros(0, 3, 32, 32), "fog", 1, table="cifar").shape == (0, 3, 32, 32)
