"""How tight is each lower bound: from many sources of pairs, at every layer and kappa, between search and certificate.

    python -m analyses.bound_study.measure studies/default --workers 2

Takes the checkpoints of a study's folder (or any folder of checkpoints) and appends to bounds.jsonl there. What is in
the file already, by checkpoint and part, is not measured again.

==========  ===================================================================================================
part        what is measured
==========  ===================================================================================================
layers      sigma_max at every layer, of the normalised embedding
pairs       the mean direction's bound (3.5) from each source of pairs, found by views, chance, neighbours, search
kappa       (3.1) to (3.4) over positive pairs at kappa = 1, 10, 100, 1024, 16384
sandwich    image by image on a ball: best chord <= searched sigma_max <= certified (5.3)
==========  ===================================================================================================
"""

import math
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from analyses.paired_study.measure import measured
from analyses.paired_study.stages import study_views
from analyses.paired_study.study import find_runs
from lipcomp.bound import (
    LowerBounds,
    all_pairs,
    certified_bound,
    measure_pairs,
    paired,
    random_pairs,
    search_ball,
    view_pairs,
)
from lipcomp.checkpoints import Checkpoint, load_encoder
from lipcomp.commands import Parser, run
from lipcomp.data import ImageSet, load_set
from lipcomp.jacobian import spectral_norm
from lipcomp.jobs import available_cores, raise_failures, run_jobs
from lipcomp.records import Record, append_records, provenance

RECORDS = "bounds.jsonl"
IMAGES = 500
SEARCHED = 24
RADIUS = 0.25
KAPPAS = (1.0, 10.0, 100.0, 1024.0, 16384.0)
UNIT = "1/pixel L2"


def measure_layers(checkpoint: Checkpoint, images: ImageSet) -> list[Record]:
    """sigma_max at every layer."""
    pixels = images.batch(torch.arange(min(128, len(images))))
    records = []
    for layer in checkpoint.encoder.layers():
        found = spectral_norm(partial(checkpoint.encoder, layer=layer), pixels, vectors=False)
        sigma = found.sigma[found.sigma.isfinite()].double()
        settings = {"layer": layer, "rtol": found.rtol, "unconverged": int((~found.converged).sum())}
        for statistic, value in (("median", sigma.median()), ("max", sigma.max())):
            records.append(
                Record(f"sigma_max.{statistic}", float(value), UNIT, len(sigma), None, {}, settings)
            )
    return records


def measure_pair_sources(checkpoint: Checkpoint, images: ImageSet) -> list[Record]:
    """(3.5) from each source of pairs."""
    encoder = checkpoint.encoder
    pixels = images.batch(torch.arange(min(IMAGES, len(images))))
    with torch.no_grad():
        mu = torch.cat([encoder(part) for part in pixels.split(250)])
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(pixels), generator=generator)
    nearest = _nearest(pixels)
    found: dict[str, LowerBounds] = {
        "views": measure_pairs(encoder, view_pairs(pixels.split(250), study_views(checkpoint), generator)),
        "two images, at random": measure_pairs(encoder, paired(pixels.split(250), pixels[order].split(250))),
        "nearest neighbours": measure_pairs(encoder, paired(pixels.split(250), pixels[nearest].split(250))),
        "random direction, radius 0.25": measure_pairs(
            encoder, random_pairs(pixels.split(250), RADIUS, generator)
        ),
        "all pairs": all_pairs(mu, pixels),
    }
    records = []
    for source, bounds in found.items():
        direction = bounds["direction"]
        settings = {"pairs": source, "layer": "latent"}
        records.append(
            Record("bound.direction.max", direction.maximum, UNIT, direction.n, None, {}, settings)
        )
    return records


def _nearest(pixels: Tensor) -> Tensor:
    """The nearest other image of every image, in pixel L2."""
    flat = pixels.flatten(1)
    return torch.cdist(flat, flat).fill_diagonal_(math.inf).argmin(1)


def measure_kappas(checkpoint: Checkpoint, images: ImageSet) -> list[Record]:
    """(3.1) to (3.4) over positive pairs, at many concentrations."""
    pixels = images.batch(torch.arange(min(IMAGES, len(images))))
    records = []
    for kappa in KAPPAS:
        blocks = view_pairs(pixels.split(250), study_views(checkpoint), torch.Generator().manual_seed(0))
        for name, bound in measure_pairs(checkpoint.encoder, blocks, kappa).bounds.items():
            if name != "direction":
                settings = {"pairs": "views", "kappa": kappa}
                records.append(
                    Record(f"bound.{name}.max", bound.maximum, bound.unit, bound.n, None, {}, settings)
                )
    return records


def measure_sandwich(checkpoint: Checkpoint, images: ImageSet) -> list[Record]:
    """On the ball around each image: the best chord, the searched constant, the certificate."""
    pixels = images.batch(torch.arange(min(SEARCHED, len(images))))
    encoder = checkpoint.encoder
    found = search_ball(encoder, pixels, RADIUS, starts=2, steps=20)
    certificate = certified_bound(encoder, pixels, RADIUS)
    at_image = certified_bound(encoder, pixels, 0.0)
    kept = found.sigma.isfinite()
    settings: dict[str, Any] = {"radius": RADIUS, "norm": "l2", "statistic": "median over images"}
    values = {
        "ball.sigma_at_image": found.sigma_at_image[kept],
        "ball.chord": found.chord_ratio[kept],
        "ball.searched": found.sigma[kept],
        "ball.certified": certificate.bound[kept],
        "ball.certified_at_image": at_image.bound[kept],
    }
    records = []
    for quantity, each in values.items():
        middle = float(each.double().median())
        told = (
            {**settings, "certificate": (certificate.reason or "holds")}
            if "certified" in quantity
            else settings
        )
        value = middle if math.isfinite(middle) else None
        records.append(Record(quantity, value, UNIT, int(kept.sum()), None, {}, told))
    return records


PARTS: dict[str, Callable[[Checkpoint, ImageSet], list[Record]]] = {
    "layers": measure_layers,
    "pairs": measure_pair_sources,
    "kappa": measure_kappas,
    "sandwich": measure_sandwich,
}


def measure_checkpoint(name: str, path: Path, study: Path, data: str, root: Path | None) -> tuple[str, float]:
    """Measure what is missing of one checkpoint; returns its name and the seconds it took."""
    started = time.monotonic()
    checkpoint = load_encoder(path)
    images = load_set(data, "test", root=root, image_shape=checkpoint.encoder.image_shape)
    done = measured(study / RECORDS)
    subject = {"run": name, **checkpoint.subject(), "checkpoint": str(path.relative_to(study))}
    for part, measure_part in PARTS.items():
        if (name, checkpoint.sha256, part) in done:
            continue
        begun = time.monotonic()
        records = measure_part(checkpoint, images)
        told = provenance("cpu", threads=1)
        whole = [Record(r.quantity, r.value, r.unit, r.n, None, subject, r.settings, told) for r in records]
        whole.append(
            Record("time", time.monotonic() - begun, "s", None, None, subject, {"stage": part}, told)
        )
        append_records(study / RECORDS, whole)
    return name, time.monotonic() - started


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure how tight the bounds are."""
    parser = Parser(prog="python -m analyses.bound_study.measure", description=__doc__)
    parser.add_argument("study", type=Path, help="a study's folder, or a folder of checkpoints")
    parser.add_argument("--data", default="mnist5k", help="images to measure on (default mnist5k)")
    parser.add_argument("--data-root", type=Path, help="the folder of a set that lies on disk")
    parser.add_argument(
        "--workers", type=int, default=available_cores(), help="processes (default: one per core)"
    )
    options = parser.parse_args(arguments)
    if options.workers < 1:
        raise ValueError(f"--workers must be at least 1, got {options.workers}")
    runs = find_runs(options.study)
    load_set(options.data, "test", root=options.data_root)
    jobs = [(one.name, one.checkpoint, options.study, options.data, options.data_root) for one in runs]
    started = time.monotonic()
    failures = {}
    for count, outcome in enumerate(run_jobs(measure_checkpoint, jobs, workers=options.workers), 1):
        left = (time.monotonic() - started) / count * (len(runs) - count)
        name = runs[outcome.number].name
        end = f"{outcome.seconds:5.0f} s" if outcome.error is None else " failed"
        print(f"  {count:3d}/{len(runs)}  {name:32s} {end}   {left:4.0f} s left", flush=True)
        if outcome.error is not None:
            failures[name] = outcome.error
    raise_failures(failures, len(runs))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
