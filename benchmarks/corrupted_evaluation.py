"""A corrupted evaluation against its forward passes alone: what reading, corrupting and keeping results add.

    python -m benchmarks.corrupted_evaluation --images 64
    python -m benchmarks.corrupted_evaluation --images 10000 --device cuda

A ResNet-18 on 32 x 32 colour images, fifteen corruptions at severity 3: read from a set on disk in CIFAR-10-C's layout,
and made on the way by CIFAR-10-C's table. Processor time on the CPU, elapsed time elsewhere. The aim: at most 1.1 times
the forward passes from disk, 1.3 times with made corruptions.
"""

import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks._harness import seconds
from lipcomp._commands import Parser, choose_device, run, table
from lipcomp.encoders import EncoderSpec, build_encoder
from lipcomp.robustness._sets import open_corruption_set
from lipcomp.robustness.corruptions import corrupt
from lipcomp.robustness.corruptions._tables import COMMON

SEVERITY = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the three ways, print their times."""
    parser = Parser(prog="python -m benchmarks.corrupted_evaluation", description=__doc__)
    parser.add_argument("--images", type=int, default=64, help="in each condition (default 64)")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    device = choose_device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    encoder = build_encoder(EncoderSpec("resnet18_cifar", (3, 32, 32)), seed=0).eval().to(device)
    pixels = torch.randint(0, 256, (options.images, 32, 32, 3), dtype=torch.uint8).numpy()
    clean = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255).to(device)

    @torch.no_grad()
    def evaluate(batches: Callable[[], Iterable[torch.Tensor]]) -> None:
        for batch in batches():
            encoder.features(batch.to(device))

    def places() -> Sequence[torch.Tensor]:
        return torch.arange(options.images).split(options.batch_size)

    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "labels.npy", np.zeros(5 * options.images, np.int64))
        for k, name in enumerate(COMMON):
            np.save(Path(folder) / f"{name}.npy", np.concatenate([np.roll(pixels, k + 1, 1)] * 5))
        corrupted = open_corruption_set(folder, classes=10)
        ways = {
            "forward passes": lambda: (clean[i] for _ in COMMON for i in places()),
            "read from disk": lambda: (
                corrupted.images(n, SEVERITY).batch(i) for n in COMMON for i in places()
            ),
            "made on the way": lambda: (
                corrupt(clean[i], n, SEVERITY, table="cifar", indices=i) for n in COMMON for i in places()
            ),
        }
        taken = {
            name: seconds(lambda batches=batches: evaluate(batches), 1, device=device.type)
            for name, batches in ways.items()
        }
    first = taken["forward passes"]
    rows = [(name, f"{value:.2f}", f"{value / first:.3f}") for name, value in taken.items()]
    print(table((f"{15 * options.images} images on {device}", "seconds", "forward passes"), rows))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
