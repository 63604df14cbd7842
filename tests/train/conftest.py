"""A small world to train in: three classes of generated grey or colour images in a folder, recipes of a second."""

from contextlib import contextmanager, nullcontext
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import train.data
from train.recipe import compress
from train.recipes import mnist_byol, mnist_simclr


def _write_images(root, count=12, classes=3, size=16, colour=False, seed=0):
    """``count`` images a class below ``root/train`` and a third of that below ``root/test``: bars at an angle."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    for split, number in (("train", count), ("test", max(1, count // 3))):
        for label in range(classes):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(number):
                angle = np.pi * label / classes + 0.1 * rng.standard_normal()
                wave = np.sin(9 * (x * np.cos(angle) + y * np.sin(angle)) + 6 * rng.random())
                pixels = (
                    127 + 90 * wave[..., None] + 20 * rng.standard_normal((size, size, 3 if colour else 1))
                )
                array = pixels.clip(0, 255).astype(np.uint8)
                Image.fromarray(array if colour else array[..., 0]).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def write_images():
    """The function that generates them: write_images(root, count=12, classes=3, size=16, colour=False, seed=0)."""
    return _write_images


@pytest.fixture(scope="session")
def bars(tmp_path_factory):
    """36 training images, 16 x 16, grey."""
    return _write_images(tmp_path_factory.mktemp("bars"))


@pytest.fixture(scope="session")
def recipes(bars):
    """The four methods and SimCLR's control on the bars, a fraction of a second each."""
    encoder = replace(mnist_simclr().encoder, image_shape=(1, 16, 16), projector=(32, 16))
    simclr = replace(
        mnist_simclr(),
        name="simclr",
        encoder=encoder,
        data=str(bars),
        epochs=4,
        batch_size=8,
        warmup_epochs=1,
    )
    byol = replace(
        simclr,
        name="byol",
        objective=mnist_byol().objective,
        encoder=replace(encoder, predictor=32),
        target_decay=0.9,
    )
    return {
        "simclr": simclr,
        "c_simclr": compress(simclr, "c_simclr"),
        "byol": byol,
        "c_byol": compress(byol, "c_byol"),
    }


@pytest.fixture(scope="session")
def doubles(default_float64):
    """Networks are made in float64: at kappa_e = 16384 the rounding of one cosine to float32 moves the loss by 1e-3, on
    each processor another way. Runs too, though they are of float32 whatever their caller's default type.
    """

    @contextmanager
    def context():
        with default_float64(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(train.data, "in_float32", nullcontext)
            yield

    return context


@pytest.fixture(scope="session")
def long_runs(recipes):
    """The compressed methods, 46 steps each; one with AdamW, one with LARS."""
    return [
        replace(recipes["c_byol"], epochs=10, predictor_rate=4.0),
        replace(recipes["c_simclr"], epochs=10, optimizer="lars", learning_rate=1.0),
    ]
