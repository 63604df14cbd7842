"""Corruptions a second, ours against imagecorruptions-imaug 1.1.5, side by side on one thread.

    python -m benchmarks.corruptions                     32 x 32, severity 3, about two minutes
    python -m benchmarks.corruptions --side 224 --images 16 --theirs 4
    python -m benchmarks.corruptions --only fog,snow --json corruptions.json

Both run in this process in turns, several rounds each, and the best round of each counts: rates drift, ratios hold. The
table is ImageNet's for both, and both take and give bytes. The aim: a geometric mean over the fifteen common
corruptions of at least 5 at 32 x 32 and 3 at 224 x 224, and no ratio below 1.
"""

import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks._harness import smooth_images
from lipcomp._commands import Parser, run, table
from lipcomp.robustness.corruptions import corrupt, corruption_names
from lipcomp.robustness.corruptions._tables import COMMON


def rate(work: Callable[[], object], images: int) -> float:
    """Images a second of one call, of processor time: other work on the machine changes it little."""
    started = time.process_time()
    work()
    return images / max(time.process_time() - started, 1e-9)


def compare(name: str, images: np.ndarray, theirs: int, severity: int, rounds: int) -> tuple[float, float]:
    """Our rate and the package's, each the best of ``rounds`` turns after one to warm up."""
    from imagecorruptions import corrupt as corrupt_one

    batch = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    ours = [rate(lambda: corrupt(batch, name, severity, table="imagenet"), len(images))]
    others: list[float] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        corrupt_one(images[0], severity, name)
        for _ in range(rounds):
            ours.append(rate(lambda: corrupt(batch, name, severity, table="imagenet"), len(images)))
            others.append(rate(lambda: [corrupt_one(x, severity, name) for x in images[:theirs]], theirs))
    return max(ours), max(others)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print the table, write the JSON."""
    parser = Parser(prog="python -m benchmarks.corruptions", description=__doc__)
    parser.add_argument("--side", type=int, default=32, help="of the images, in pixels (default 32)")
    parser.add_argument("--images", type=int, default=256, help="in our batch (default 256)")
    parser.add_argument("--theirs", type=int, default=64, help="images the package corrupts (default 64)")
    parser.add_argument("--severity", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--only", help="comma-separated corruptions (default: all nineteen)")
    parser.add_argument("--json", type=Path, help="write the rates to this file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    import cv2

    cv2.setNumThreads(1)
    side = options.side
    smooth = smooth_images(options.images, (3, side // 8 + 2, side // 8 + 2), (side, side))
    images = smooth.permute(0, 2, 3, 1).contiguous().numpy()
    names = options.only.split(",") if options.only else corruption_names("imagenet")
    ratios, rows = {}, []
    for name in names:
        ours, theirs = compare(name, images, options.theirs, options.severity, options.rounds)
        ratios[name] = ours / theirs
        rows.append((name, f"{ours:.0f}", f"{theirs:.0f}", f"{ours / theirs:.2f}"))
        print(f"{name}: {ours / theirs:.2f}", file=sys.stderr, flush=True)
    print(table((f"{options.side} x {options.side}, images/s", "ours", "package", "ratio"), rows))
    common = [ratios[name] for name in names if name in COMMON]
    if common:
        mean = math.exp(sum(map(math.log, common)) / len(common))
        print(
            f"geometric mean of {len(common)} common: {mean:.2f}; lowest of all: {min(ratios.values()):.2f}"
        )
    if options.json:
        options.json.write_text(json.dumps({"side": options.side, "ratios": ratios}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
