"""Training's images a second, end to end, beside lightly's SimCLR on the same network: one process.

    pip install lightly==1.6.0
    python -m benchmarks.training --blocks 5 --steps 8
    python -m benchmarks.training --device cuda --batch-size 512 --loaders 16

Both sides train the same network with the same optimiser on the same images in batches of 64 (two views of each).
lightly brings its data set, its SimCLRTransform, PyTorch's DataLoader and its NTXentLoss; this project its sets, views
and loss. The sides take turns, block by block; figures are medians over the blocks of CPU seconds, which hardly depend
on who else uses the machine. Channels lie last in
memory here, first with lightly, as each side has them by default. Memory is the growth of a forked child's peak.

The colour augmentation is of the same kinds on both sides (crop, flip, jitter, grey; no blur at 32 x 32); of the
digits, lightly makes the same and this project its affine views.

On a GPU the figures are seconds on the clock, each part waited for; both sides compute in bfloat16 with channels last.
lightly's images come from ``--loaders`` processes, whose start is not counted; this project makes its views on the GPU.
"""

import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks._harness import smooth_images
from lipcomp._commands import Parser, choose_device, run, table
from lipcomp.data._loading import view_batches
from lipcomp.data._sets import TensorImages
from train.data import order, stream
from train.networks import Trainee
from train.optimizers import build_optimizer, set_rate
from train.parallel import Ranks
from train.recipe import Recipe
from train.recipes import cifar10_simclr, mnist_simclr

Stepper = Callable[[], dict[str, float]]


@dataclass(frozen=True)
class Setting:
    """Where and how both sides train: device, images per step, processes that load lightly's images (0: none)."""

    device: torch.device
    batch: int
    loaders: int

    @property
    def gpu(self) -> bool:
        """Whether time passes on a GPU."""
        return self.device.type == "cuda"

    def clock(self) -> float:
        """Processor seconds; on a GPU the clock's, once it has nothing left to do."""
        if not self.gpu:
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def autocast(self) -> torch.autocast:
        """The precision of the networks."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.gpu)


def generated(shape: tuple[int, int, int], count: int = 2048) -> TensorImages:
    """Smooth images of ten classes."""
    pixels = smooth_images(count, (shape[0], 7, 7), shape[1:])
    return TensorImages("generated", pixels, torch.arange(count) % 10, tuple(map(str, range(10))))


def timed(
    batches: Iterator[Any],
    forward: Callable[[Any], Tensor],
    optimizer: torch.optim.Optimizer,
    setting: Setting,
) -> Stepper:
    """One step, and the seconds of its parts."""

    def step() -> dict[str, float]:
        clock = [setting.clock()]
        batch = next(batches)
        clock.append(setting.clock())
        with setting.autocast():
            loss = forward(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        clock.append(setting.clock())
        optimizer.step()
        clock.append(setting.clock())
        return {
            "data": clock[1] - clock[0],
            "network": clock[2] - clock[1],
            "optimiser": clock[3] - clock[2],
        }

    return step


def ours(recipe: Recipe, images: TensorImages, setting: Setting) -> Stepper:
    """Our loop without its files."""
    trainee = Trainee(recipe, 0, 10).to(setting.device, memory_format=torch.channels_last).train()
    optimizer = build_optimizer(trainee, recipe)
    set_rate(optimizer, 1e-3)

    def plan() -> Iterator[tuple[int, Tensor, Tensor]]:
        for step, indices in enumerate(order(len(images), recipe, 0)):
            yield step, indices, recipe.views.draw(len(indices), stream(0, "views", step))

    def forward(batch: Any) -> Tensor:
        views = tuple(v.contiguous(memory_format=torch.channels_last) for v in batch.views)
        noise = stream(0, "noise", batch.step)
        rows = slice(0, setting.batch)
        result = trainee(recipe.objective, views, batch.labels, noise, Ranks(), rows, setting.batch)
        return result.value  # type: ignore[no-any-return]

    return timed(view_batches(images, recipe.views, plan(), setting.device), forward, optimizer, setting)


class Pictures(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """The same images as Pillow's, as lightly's transforms take them."""

    def __init__(self, images: TensorImages) -> None:
        arrays = images.pixels.permute(0, 2, 3, 1).numpy()
        self.arrays = [np.ascontiguousarray(a if a.shape[2] == 3 else a[..., 0]) for a in arrays]
        self.labels = images.labels.tolist()
        self.transform: Callable[[Image.Image], Any] | None = None  # LightlyDataset sets it

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = Image.fromarray(self.arrays[index])
        return (image if self.transform is None else self.transform(image)), self.labels[index]


def lightlys(recipe: Recipe, images: TensorImages, setting: Setting) -> Stepper:
    """Lightly's data set, transforms and loss around the same network and optimiser."""
    from lightly.data import LightlyDataset
    from lightly.loss import NTXentLoss
    from lightly.transforms import SimCLRTransform

    layout = torch.channels_last if setting.gpu else torch.contiguous_format
    trainee = Trainee(replace(recipe, probe=None), 0, 10).to(setting.device, memory_format=layout).train()
    optimizer = build_optimizer(trainee, recipe)
    set_rate(optimizer, 1e-3)
    transform = SimCLRTransform(
        input_size=images.image_shape[1],
        gaussian_blur=0.0,
        normalize={"mean": [0.0] * images.image_shape[0], "std": [1.0] * images.image_shape[0]},
    )
    dataset = LightlyDataset.from_torch_dataset(Pictures(images), transform=transform)
    loader = torch.utils.data.DataLoader(
        dataset,
        setting.batch,
        shuffle=True,
        drop_last=True,
        num_workers=setting.loaders,
        persistent_workers=setting.loaders > 0,
        pin_memory=setting.gpu,
    )
    criterion = NTXentLoss(temperature=0.1)

    def batches() -> Iterator[Any]:
        while True:
            yield from loader

    def forward(batch: Any) -> Tensor:
        views = torch.cat(batch[0][:2]).to(setting.device, memory_format=layout, non_blocking=True)
        return criterion(*trainee.online.embedding(views).chunk(2))  # type: ignore[no-any-return]

    return timed(batches(), forward, optimizer, setting)


def peak_mib(make: Callable[[], Stepper], setting: Setting, steps: int = 3) -> float:
    """By how much a forked child's peak memory grows in some steps; on a GPU the peak of what is allocated there."""
    if setting.gpu:
        torch.cuda.reset_peak_memory_stats()
        step = make()
        for _ in range(steps):
            step()
        return torch.cuda.max_memory_allocated() / 2**20
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            step = make()
            for _ in range(steps):
                step()
            said = str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)  # else the read below would wait for ever if the child died
    text = os.read(reader, 10_000).decode()
    os.close(reader)
    os.waitpid(child, 0)
    if not text.isdigit():
        raise RuntimeError(f"the steps in a child process failed: {text or 'it was killed'}")
    return float(text) / 1024


def compare(recipe: Recipe, setting: Setting, blocks: int, steps: int) -> dict[str, dict[str, float]]:
    """Median seconds a step of both sides, their parts, and memory."""
    images = generated(recipe.encoder.image_shape, max(2048, 16 * setting.batch))
    makers = {
        "lipcomp": lambda: ours(recipe, images, setting),
        "lightly": lambda: lightlys(recipe, images, setting),
    }
    memory = {name: peak_mib(make, setting) for name, make in makers.items()}
    steppers = {name: make() for name, make in makers.items()}
    for step in steppers.values():
        step()
    times: dict[str, list[dict[str, float]]] = {name: [] for name in steppers}
    for block in range(blocks):
        names = list(steppers) if block % 2 == 0 else list(steppers)[::-1]
        for name in names:
            for _ in range(2 * setting.loaders):  # what was loaded while the other side had its turn
                steppers[name]()
            taken = [steppers[name]() for _ in range(steps)]
            times[name].append({part: statistics.mean(t[part] for t in taken) for part in taken[0]})
    result = {}
    for name, found in times.items():
        parts = {part: statistics.median(t[part] for t in found) for part in found[0]}
        total = statistics.median(sum(t.values()) for t in found)
        result[name] = {**parts, "seconds": total, "images/s": setting.batch / total, "MiB": memory[name]}
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Print both tables."""
    parser = Parser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--blocks", type=int, default=5, help="blocks a side (default 5)")
    parser.add_argument("--steps", type=int, default=8, help="steps a block (default 8)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument("--batch-size", type=int, default=64, help="images per step (default 64)")
    parser.add_argument(
        "--loaders", type=int, default=0, help="processes that load lightly's images (default 0: none)"
    )
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    setting = Setting(choose_device(options.device), options.batch_size, options.loaders)
    unit = "ms a step" if setting.gpu else "CPU ms a step"
    cases = {
        "small CNN, 28 x 28": replace(mnist_simclr(), batch_size=setting.batch),
        "ResNet-18, 32 x 32": replace(cifar10_simclr(), batch_size=setting.batch),
    }
    found = {}
    for name, recipe in cases.items():
        steps = options.steps if setting.gpu or "CNN" in name else max(1, options.steps // 4)
        found[name] = compare(recipe, setting, options.blocks, steps)
        rows = [
            [
                side,
                *(f"{1000 * r[part]:.1f}" for part in ("data", "network", "optimiser", "seconds")),
                f"{r['images/s']:.0f}",
                f"{r['MiB']:.0f}",
            ]
            for side, r in found[name].items()
        ]
        print(f"\n{name}, batch {setting.batch} x 2 views, {unit}")
        print(table(["", "data", "forward+backward", "optimiser", "all", "images/s", "peak MiB"], rows))
        ratio = found[name]["lipcomp"]["images/s"] / found[name]["lightly"]["images/s"]
        print(f"images a second, lipcomp : lightly = {ratio:.2f}", flush=True)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
