"""What the scripts share: clocks, memory, parts of the work, rows as JSON lines, networks whose branches count."""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lipcomp._commands import table

M = TypeVar("M", bound=nn.Module)


def times(work: Callable[[], object], repeats: int, *, device: str = "cpu") -> list[float]:
    """Processor seconds of each of several runs after one to warm up; on a GPU elapsed seconds until it is done."""
    clock, taken = time.process_time if device == "cpu" else time.perf_counter, []
    for _ in range(repeats + 1):
        started = clock()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(clock() - started)
    return taken[1:]


def seconds(work: Callable[[], object], repeats: int, *, device: str = "cpu") -> float:
    """The least of these."""
    return min(times(work, repeats, device=device))


def reset_peak() -> float:
    """Forget the peak of the process's memory so far; the memory in use now, MiB. NaN where there is no /proc."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return math.nan
    return _status("VmRSS")


def peak_memory() -> float:
    """The peak since :func:`reset_peak`, MiB."""
    return _status("VmHWM")


def _status(key: str) -> float:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return math.nan
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key + ":"))


def part(text: str) -> slice:
    """``I/N`` of the command line: every N-th job from the I-th."""
    first, _, step = text.partition("/")
    if not (first.isdigit() and step.isdigit() and 1 <= int(first) <= int(step)):
        raise argparse.ArgumentTypeError(f"must be I/N with 1 <= I <= N, got {text!r}")
    return slice(int(first) - 1, None, int(step))


def add_part(parser: argparse.ArgumentParser) -> None:
    """The option ``--shard``."""
    parser.add_argument(
        "--shard", type=part, default="1/1", metavar="I/N", help="this part of the work (default 1/1)"
    )


def append_lines(path: Path | None, rows: Iterable[object]) -> None:
    """Append rows to a file of JSON lines, if one is given."""
    if path is not None:
        with path.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def read_lines(files: Iterable[Path]) -> list[Any]:
    """The rows of such files."""
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def show(parts: dict[str, list[dict[str, Any]]], path: Path | None) -> None:
    """Print a table of each part, with the union of its columns; write all as JSON, if a path is given."""
    for rows in parts.values():
        columns = list(dict.fromkeys(name for row in rows for name in row))
        print(table(columns, [[_cell(row.get(name, "-")) for name in columns] for row in rows]), end="\n\n")
    if path is not None:
        path.write_text(json.dumps(parts, indent=1))


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def smooth_images(count: int, coarse: Sequence[int], size: Sequence[int]) -> Tensor:
    """Smooth random images, bytes: what they show does not matter to speed."""
    small = torch.rand(count, *coarse, generator=torch.Generator().manual_seed(0))
    pixels = nn.functional.interpolate(small, tuple(size), mode="bicubic").clamp(0, 1)
    return (pixels * 255).to(torch.uint8)


def dense_sigma(fn: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The largest singular value of each Jacobian, by torch.func alone."""
    one = torch.func.jacrev(lambda image: fn(image.unsqueeze(0)).squeeze(0))
    return torch.linalg.svdvals(torch.func.vmap(one)(images).flatten(2))[:, 0]


def awaken(network: M, low: float = 0.5, high: float = 1.0) -> M:
    """Give batch norms random weights: those of weight 0 would switch their branches off."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, low, high)
    return network
