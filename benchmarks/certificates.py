"""How tight the local certificate is, and what it costs: certified over searched constants against the radius.

    python -m benchmarks.certificates STUDY [--images 20] [--radii 1e-4,1e-3,1e-2] [--shard 3/16] [--out rows.jsonl]
    python -m benchmarks.certificates --summary rows*.jsonl

For every encoder of a study (``STUDY/runs/*/model.safetensors``), image and L2 radius: the searched constant (4.5), the
least certificate, which method gave it, and seconds. ``--resnet`` measures an untrained ResNet-18 at 32 x 32 instead.
"""

import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks._harness import add_part, append_lines, awaken, read_lines
from lipcomp._commands import Parser, run
from lipcomp.bound import certified_bound, search_ball
from lipcomp.checkpoints._native import load_checkpoint
from lipcomp.data._digits import load_mnist5k
from lipcomp.encoders import EncoderSpec, build_encoder


def resnet() -> torch.nn.Module:
    """An untrained ResNet-18 whose branches count (a new one's last batch norms are 0)."""
    encoder = build_encoder(EncoderSpec("resnet18_cifar", (3, 32, 32), projector=(128, 64)), seed=0)
    awaken(encoder, 1.0, 1.0)
    with torch.no_grad():  # statistics of some images
        encoder.train()(torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    return encoder.eval()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure a shard, or summarise what shards wrote."""
    parser = Parser(prog="python -m benchmarks.certificates", description=__doc__)
    parser.add_argument("paths", nargs="*", type=Path, help="a study, or files of rows with --summary")
    parser.add_argument("--images", type=int, default=20, help="test images (default 20)")
    parser.add_argument("--radii", default="1e-4,5e-4,1e-3,1e-2,0.05,0.1", help="L2 radii")
    parser.add_argument("--units", type=int, default=7000, help="uncertain units at most (default 7000)")
    parser.add_argument("--memory", type=float, default=4.0, help="GiB (default 4)")
    parser.add_argument("--device", default="cpu", help="where the certificate is computed (default cpu)")
    add_part(parser)
    parser.add_argument("--resnet", action="store_true", help="an untrained ResNet-18 at 32 x 32")
    parser.add_argument("--summary", action="store_true", help="print the table of the rows given")
    parser.add_argument("--out", type=Path, help="append rows to this file, JSON lines")
    options = parser.parse_args(arguments)
    if options.summary:
        summarise(options.paths)
        return 0
    radii = [float(part) for part in options.radii.split(",")]
    if options.resnet:
        encoders = {"resnet18": resnet()}
        images = torch.rand(options.images, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    else:
        files = sorted(options.paths[0].glob("runs/*/model.safetensors"))
        encoders = {file.parent.name: load_checkpoint(file).encoder.eval() for file in files}
        images = load_mnist5k("test")[0][: options.images].float() / 255
    work = [(name, i, radius) for radius in radii for i in range(len(images)) for name in encoders]
    for name, i, radius in work[options.shard]:
        encoder = encoders[name].to(options.device)
        image = images[i : i + 1].to(options.device)
        searched = float(search_ball(encoder, image, radius, starts=2, steps=30).sigma[0])
        started = time.process_time() if options.device == "cpu" else time.monotonic()
        with torch.no_grad():
            found = certified_bound(encoder, image, radius=radius, units=options.units, memory=options.memory)
        ended = time.process_time() if options.device == "cpu" else time.monotonic()
        row = {
            "encoder": name, "image": i, "radius": radius, "searched": searched, "certified": float(found.bound[0]),
            "method": found.methods[0], "reason": found.reason, "seconds": round(ended - started, 2),
        }  # fmt: skip
        print(json.dumps(row), flush=True)
        append_lines(options.out, [row])
    return 0


def summarise(files: list[Path]) -> None:
    """One line per radius: how many have a certificate, its ratio to the searched constant, seconds."""
    rows = read_lines(files)
    print("| radius | n | certified | median ratio | 90th percentile | at most 10 | seconds per image |")
    print("|---|---|---|---|---|---|---|")
    for radius in sorted({row["radius"] for row in rows}):
        at = [row for row in rows if row["radius"] == radius]
        ratios = sorted(row["certified"] / row["searched"] for row in at)
        has = sum(map(math.isfinite, ratios))
        few = sum(ratio <= 10 for ratio in ratios) / len(ratios)
        seconds = statistics.median(row["seconds"] for row in at)
        ninth = ratios[min(int(0.9 * len(ratios)), len(ratios) - 1)]
        print(
            f"| {radius:g} | {len(at)} | {has / len(at):.0%} | {statistics.median(ratios):.3f} | {ninth:.3f} "
            f"| {few:.0%} | {seconds:.1f} |"
        )
        if any(row["certified"] < row["searched"] * (1 - 1e-6) for row in at):
            print("OUT OF ORDER: a certificate is below what search found")


if __name__ == "__main__":
    sys.exit(run(main))
