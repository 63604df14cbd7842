"""Certified accuracy of a linear probe beside its accuracy under AutoAttack and without attack, on the same images.

    python -m benchmarks.certified_accuracy CHECKPOINT... [--images 10] [--radii 1e-3,3e-3,1e-2,2e-2] [--out rows.jsonl]
    python -m benchmarks.certified_accuracy --summary rows*.jsonl

A probe is fitted on the features of MNIST-5k's training images. Each test image and L2 radius: whether the class is
right, stays right under AutoAttack, and is certified in the whole ball (5.8). The order certified <= attacked <= clean
must hold image by image. An image that is wrong, or not certified at a radius, is not tried at larger ones.
"""

import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks._harness import append_lines, read_lines
from lipcomp._commands import Parser, run
from lipcomp.bound import certified_radius
from lipcomp.checkpoints._native import load_checkpoint
from lipcomp.data._digits import load_mnist5k
from lipcomp.robustness import auto_attack, fit_linear_probe
from lipcomp.robustness._probes import Classifier


def classifier_of(path: Path) -> Classifier:
    """The encoder with a probe of its features."""
    encoder = load_checkpoint(path).encoder.eval()
    images, labels = load_mnist5k("train")
    with torch.no_grad():
        features = torch.cat([encoder.features(part.float() / 255) for part in images.split(500)])
    return Classifier(encoder, fit_linear_probe(features, labels)).eval().requires_grad_(False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, or summarise what was written."""
    parser = Parser(prog="python -m benchmarks.certified_accuracy", description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, help="checkpoints, or files of rows with --summary")
    parser.add_argument("--images", type=int, default=10, help="number of test images (default 10)")
    parser.add_argument("--radii", default="1e-3,3e-3,1e-2,2e-2", help="L2 radii, growing")
    parser.add_argument("--summary", action="store_true", help="print the table of the rows given")
    parser.add_argument("--out", type=Path, help="append rows to this file, JSON lines")
    options = parser.parse_args(arguments)
    if options.summary:
        print("\n".join(summary(read_lines(options.paths))))
        return 0
    torch.set_num_threads(1)
    images, labels = (part[: options.images] for part in load_mnist5k("test"))
    images = images.float() / 255
    for path in options.paths:
        classifier = classifier_of(path)
        with torch.no_grad():
            clean = classifier(images).argmax(1) == labels
        held = clean.clone()
        for radius in map(float, options.radii.split(",")):
            attacked = auto_attack(classifier, images, labels, norm="l2", radius=radius).right
            for i in range(len(images)):
                started = time.process_time()
                if held[i]:
                    held[i] = float(certified_radius(classifier, images[i : i + 1], radius)[0]) >= radius * (
                        1 - 1e-6
                    )
                row = {
                    "encoder": path.parent.name, "image": i, "radius": radius, "clean": bool(clean[i]),
                    "attacked": bool(attacked[i]), "certified": bool(held[i]),
                    "seconds": round(time.process_time() - started, 2),
                }  # fmt: skip
                print(json.dumps(row), flush=True)
                append_lines(options.out, [row])
    return 0


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """One line per encoder and radius."""
    lines = [
        "| encoder | radius | n | certified | AutoAttack | clean | s per image |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, radius in dict.fromkeys((row["encoder"], row["radius"]) for row in rows):
        at = [row for row in rows if (row["encoder"], row["radius"]) == (name, radius)]
        shares = " | ".join(
            f"{sum(row[kind] for row in at) / len(at):.0%}" for kind in ("certified", "attacked", "clean")
        )
        taken = [row["seconds"] for row in at if row["seconds"] > 0.05]
        seconds = f"{statistics.median(taken):.0f}" if taken else "-"
        lines.append(f"| {name} | {radius:g} | {len(at)} | {shares} | {seconds} |")
        if any(row["certified"] > row["attacked"] or row["attacked"] > row["clean"] for row in at):
            lines.append("OUT OF ORDER: an attack broke what was certified")
    return lines


if __name__ == "__main__":
    sys.exit(run(main))
