"""Input: decode a JPEG and cut two random 224 crops, images per second of one core, beside torchvision v2 and lightly.

    python -m benchmarks.input [--images 48] [--repeats 5]

Pictures of 500 x 375 are made here (smooth colours with grain, JPEG of quality 90, about 70 kB). Every path decodes,
cuts two crops of area U(0.08, 1), brings them to 224 x 224 as floats in [0, 1], and mirrors half; one thread, CPU
seconds, the best of the repeats, all in turns in one process.

- *ours*: ``lipcomp.data._folders.read_crops``: integer boxes, Keys' bicubic (a = -1/2) without antialias;
- *matrices*: the same numbers by the dense products that a GPU takes (``crop_and_resize``);
- *torchvision v2*: ``decode_jpeg``, ``RandomResizedCrop`` (bilinear, antialias), ``RandomHorizontalFlip`` on bytes;
- *lightly*: the crop and flip of its SimCLR transform, on Pillow images, if it is installed.

What a node needs and gets follows from the rate of a core: images/s of the GPUs / (images/s of a core) = cores.
"""

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.io import decode_jpeg, read_file
from torchvision.transforms import v2

from benchmarks._harness import times
from lipcomp._commands import Parser, run
from lipcomp.data._crops import crop_and_resize
from lipcomp.data._folders import load_folder, read_crops
from lipcomp.data._views import PhotoViews

SIDE = 224


def make_pictures(folder: Path, count: int) -> list[Path]:
    """JPEGs of 500 x 375 in one class folder."""
    rng, files = np.random.default_rng(0), []
    (folder / "class").mkdir(parents=True)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize(
            (500, 375), Image.BICUBIC
        )
        grain = np.asarray(coarse) + rng.normal(0, 8, (375, 500, 3))
        files.append(folder / "class" / f"{number:04d}.jpg")
        Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(files[-1], quality=90)
    return files


def rates(paths: dict[str, Callable[[int], object]], count: int, repeats: int) -> dict[str, float]:
    """Images per CPU second of each path, the best of its repeats; the paths take turns, since a machine drifts."""
    seconds: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(repeats):
        for name, path in paths.items():
            seconds[name] += times(lambda path=path: [path(number) for number in range(count)], 1)  # type: ignore[misc]
    return {name: count / min(found) for name, found in seconds.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = Parser(prog="python -m benchmarks.input", description=__doc__)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        files = make_pictures(Path(folder), options.images)
        images = load_folder(Path(folder), "pretrain", image_shape=(3, SIDE, SIDE))
        views = PhotoViews()
        numbers = views.draw(len(files), torch.Generator().manual_seed(0)).chunk(2, 1)
        rows = [[half[i : i + 1] for half in numbers] for i in range(len(files))]

        def matrices(i: int) -> list[torch.Tensor]:
            pixels = torch.from_numpy(np.array(Image.open(files[i]))).permute(2, 0, 1).float().div(255)[None]
            high, wide = pixels.shape[2:]
            return [
                crop_and_resize(pixels, views.boxes(u, high, wide), (SIDE, SIDE), views.mirrored(u))
                for u in rows[i]
            ]

        crop = v2.Compose(
            [
                v2.RandomResizedCrop(SIDE, antialias=True),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
            ]
        )

        def torchvision(i: int) -> list[torch.Tensor]:
            pixels = decode_jpeg(read_file(str(files[i])))
            return [crop(pixels), crop(pixels)]

        paths: dict[str, Callable[[int], object]] = {
            "decode alone (Pillow)": lambda i: np.array(Image.open(files[i])),
            "decode alone (torchvision)": lambda i: decode_jpeg(read_file(str(files[i]))),
            "ours": lambda i: read_crops(files[i], images, views, rows[i]),
            "ours, by matrices": matrices,
            "torchvision v2": torchvision,
        }
        try:
            from lightly.transforms import SimCLRTransform

            light = SimCLRTransform(
                SIDE, cj_prob=0.0, random_gray_scale=0.0, gaussian_blur=0.0, normalize=None
            )
            paths["lightly"] = lambda i: light(Image.open(files[i]).convert("RGB"))
        except ImportError:
            print("lightly is not installed")
        worst = max(
            (a - b).abs().max().item()
            for i in range(len(files))
            for a, b in zip(read_crops(files[i], images, views, rows[i]), matrices(i), strict=True)
        )
        print(f"ours and the matrices differ by {worst:.1e} at most")
        for name, found in rates(paths, len(files), options.repeats).items():
            print(f"{name:28s} {found:7.0f} images/s")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
