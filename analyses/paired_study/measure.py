"""Measure every finished run of a study, and write records as they come.

    python -m analyses.paired_study.measure studies/default --workers 2

Each run and stage is measured once: what records.jsonl already holds of a checkpoint (by the hash of its file) is left
alone, so an interrupted measurement goes on where it stopped, and a run trained anew is measured anew. A folder of
your own checkpoints works too; name the images with --data.
"""

import functools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analyses.paired_study.images import StudyImages, prepare_images
from analyses.paired_study.stages import STAGES, Bench
from analyses.paired_study.study import RECORDS, Run, find_runs, read_plan
from lipcomp.checkpoints import load_encoder
from lipcomp.checkpoints.native import atomic_file
from lipcomp.commands import Parser, run
from lipcomp.jobs import available_cores, raise_failures, run_jobs
from lipcomp.records import Record, append_records, provenance, read_records

CORRUPTED_IMAGES = {"quick": 300}  # by preset; otherwise 1000, or what fits into 1 GiB


def measured(records: Path) -> set[tuple[str, str, str]]:
    """(run, hash of the checkpoint, stage) of everything that is in the records."""
    if not records.exists():
        return set()
    return {
        (r.subject["run"], r.subject["sha256"], r.settings["stage"])
        for r in read_records(records)
        if r.quantity == "time" and "sha256" in r.subject
    }


def measure_run(
    one: Run, study: Path, options: dict[str, Any], done: set[tuple[str, str, str]]
) -> tuple[str, float]:
    """Measure what is missing of one run, in a worker process; returns its name and the seconds it took."""
    started = time.monotonic()
    checkpoint = load_encoder(one.checkpoint)
    subject = {"run": one.name, **checkpoint.subject(), "checkpoint": str(one.checkpoint.relative_to(study))}
    stages = [stage for stage in STAGES if (one.name, checkpoint.sha256, stage) not in done]
    table = study / "images" / f"{one.name}.csv"
    if not table.exists():  # its stages wrote no whole table: measure again those that fill it
        stages = [stage for stage in STAGES if stage in stages or stage in ("corruptions", "jacobian")]
    if not stages:
        return one.name, 0.0
    bench = Bench(checkpoint, _images(study, checkpoint.encoder.image_shape, tuple(options.items())))
    for stage in stages:
        begun = time.monotonic()
        records = STAGES[stage](bench)
        write_images(table, bench)
        write_stage(study, subject, stage, records, time.monotonic() - begun)
    return one.name, time.monotonic() - started


@functools.cache
def _images(study: Path, shape: tuple[int, int, int], options: tuple[tuple[str, Any], ...]) -> StudyImages:
    """The study's images, read once in a process."""
    return prepare_images(study, image_shape=shape, **dict(options))


def write_images(table: Path, bench: Bench) -> None:
    """The per-image values, one row an image."""
    columns = {name: pd.Series(values) for name, values in bench.per_image.items()}
    if not columns:
        return
    frame = pd.DataFrame(columns)
    if table.exists():
        frame = frame.combine_first(pd.read_csv(table).drop(columns="image"))
    with atomic_file(table) as temporary:
        frame.rename_axis("image").reset_index().to_csv(temporary, index=False, float_format="%.6g")


def write_stage(
    study: Path, subject: dict[str, Any], stage: str, records: list[Record], seconds: float
) -> None:
    """A stage's records and its time, in one append: it is there whole or not at all."""
    told = provenance("cpu", threads=1)
    whole = [Record(r.quantity, r.value, r.unit, r.n, r.interval, subject, r.settings, told) for r in records]
    whole.append(Record("time", seconds, "s", None, None, subject, {"stage": stage}, told))
    append_records(study / RECORDS, whole)


def training_times(study: Path) -> None:
    """Copy the wall time of training into the records, once."""
    file = study / "timings.jsonl"
    if file.exists():
        times = pd.read_json(file, lines=True)
        total = float(times.loc[times["stage"] == "train", "seconds"].sum())
        known = [r for r in read_records(study / RECORDS) if r.quantity == "time.wall"]
        if not any(r.settings["stage"] == "train" and r.value == total for r in known):
            write_wall_time(study, "train", total)


def write_wall_time(study: Path, stage: str, seconds: float) -> None:
    """A record of how long a whole stage took on the clock."""
    append_records(
        study / RECORDS,
        [Record("time.wall", seconds, "s", settings={"stage": stage}, provenance=provenance())],
    )


def measure(study: Path, options: dict[str, Any], workers: int) -> None:
    """Measure every run of a study that is not measured yet."""
    runs = find_runs(study)
    started = time.monotonic()
    for shape in sorted({load_encoder(one.checkpoint).encoder.image_shape for one in runs}):
        prepare_images(study, image_shape=shape, workers=workers, **options)
    done = measured(study / RECORDS)
    print(f"measure: {len(runs)} runs, stages {', '.join(STAGES)}", flush=True)
    work, counted = 0.0, 0
    jobs = [(one, study, options, done) for one in runs]
    failures = {}
    for count, outcome in enumerate(run_jobs(measure_run, jobs, workers=workers), 1):
        if outcome.error is not None:
            failures[runs[outcome.number].name] = outcome.error
            print(f"  {count:3d}/{len(runs)}  {runs[outcome.number].name:32s}  failed", flush=True)
            continue
        name, seconds = outcome.result()
        work, counted = work + seconds, counted + (seconds > 0)
        left = work / max(counted, 1) * (len(runs) - count) / min(workers, len(runs))
        print(f"  {count:3d}/{len(runs)}  {name:32s} {seconds:5.0f} s   {left:4.0f} s left", flush=True)
    training_times(study)
    if counted:
        write_wall_time(study, "measure", time.monotonic() - started)
    raise_failures(failures, len(runs))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure a study."""
    parser = Parser(prog="python -m analyses.paired_study.measure", description=__doc__)
    parser.add_argument("study", type=Path, help="the study's folder, or a folder of checkpoints")
    parser.add_argument("--data", default="mnist5k", help="images to probe and measure on (default mnist5k)")
    parser.add_argument("--data-root", type=Path, help="the folder of a set that lies on disk")
    parser.add_argument(
        "--corrupted-images",
        type=int,
        help="how many test images are corrupted (default 1000, or what 1 GiB holds; quick: 300)",
    )
    parser.add_argument(
        "--workers", type=int, default=available_cores(), help="processes (default: one per core)"
    )
    options = parser.parse_args(arguments)
    if options.corrupted_images is None and options.study.is_dir():
        options.corrupted_images = CORRUPTED_IMAGES.get(str(read_plan(options.study).get("preset")))
    for name in ("workers", "corrupted_images"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    chosen = {name: getattr(options, name) for name in ("data", "data_root", "corrupted_images")}
    measure(options.study, chosen, options.workers)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
