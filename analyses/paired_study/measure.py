"""Measure every finished run of a study and write the results as records.

    python -m analyses.paired_study.measure studies/default --workers 2

Each value is identified by the content of the encoder, the images, the probe and the settings, so nothing is measured
twice: after an interruption, run the same command again to continue. Two terminals can measure one study. A folder of
your own checkpoints works too; name the images with --data.
"""

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analyses.paired_study.design import design_text, read_design
from analyses.paired_study.study import RECORDS, read_plan
from analyses.runs import add_study_arguments, read_study, write_roll
from lipcomp._atomic import atomic_file
from lipcomp._commands import Parser, run
from lipcomp.checkpoints._native import Metadata
from lipcomp.jobs._contract import raise_failures
from lipcomp.jobs._engines import run_jobs
from lipcomp.jobs._options import engine_choice
from lipcomp.measure import CleanAccuracy, CorruptionAccuracy, Images, Pairs, Plan, Sigma, Source
from lipcomp.measure._accuracy import KNNAccuracy
from lipcomp.measure._bench import Bench
from lipcomp.measure._cells import Cells, blocks, load_arrays, save_arrays
from lipcomp.measure._compression import COMMON_KAPPA, Compression, EffectiveRank
from lipcomp.measure._corrupted import ProbeRefits, correctness_bits
from lipcomp.measure._map import Map
from lipcomp.measure._options import positive, tell_plan
from lipcomp.measure._parallel import run_parallel
from lipcomp.measure._plan import Probe
from lipcomp.measure._run import Outputs, open_benches, units_of
from lipcomp.measure._shifted import ShiftAccuracy
from lipcomp.measure._unit import Unit
from lipcomp.records import Record, append_records, read_records
from lipcomp.records._origin import provenance
from lipcomp.robustness.corruptions._corrupt import SEVERITIES

CACHE = "cache"  # folder of the corrupted images
CORRUPTED_IMAGES = {"quick": 300}  # by preset; otherwise 1000, or what fits into CACHE_BYTES
CACHE_BYTES = 2**30  # of corrupted images at most, unless their number is given
SIGMA_IMAGES = 300
PAIR_IMAGES = 1000
CORRUPTED_PAIR_IMAGES = 100  # times corruptions times severities: as many pairs
REFITS = 4

# Natural shifts that come with the default data: set -> the quantity its accuracy is recorded under.
SHIFTS = {"mnist5k": {"uci_digits": "accuracy.shift", "mnist5k_8x8": "accuracy.resolution"}}


@dataclass(frozen=True)
class StudyTable:
    """The study's per-image values: images/RUN.csv, one row per image, and bits/RUN.npz, one row per condition."""

    study: Path
    corruptions: CorruptionAccuracy

    def check(self) -> None:
        """The study's folder is there: its checkpoints were read from it."""

    def has(self, bench: Bench, unit: Unit) -> bool:
        """Whether the unit's columns are in the table (or it has none there)."""
        names = self._columns(unit)
        kept = self._kept(bench)
        return not names or (
            all(kept.get(name) == unit.identity for name in names.values())
            and (unit.kind != "corruption.mean" or self._has_bits(bench, unit))
        )

    def add(self, bench: Bench, unit: Unit, columns: Mapping[str, np.ndarray]) -> None:
        """Join the unit's columns to the run's table."""
        names = self._columns(unit)
        if not names:
            return
        fresh = pd.DataFrame({own: pd.Series(columns[name]) for name, own in names.items()})
        csv, kept = self._csv(bench), self._kept(bench)
        if csv.exists() and kept:
            old = pd.read_csv(csv).drop(columns=["image", *fresh.columns], errors="ignore")
            fresh = pd.concat([old, fresh], axis=1)
        with atomic_file(csv) as temporary:
            fresh.rename_axis("image").reset_index().to_csv(temporary, index=False, float_format="%.6g")
        if unit.kind == "corruption.mean":
            bits = correctness_bits(bench, self.corruptions)
            save_arrays(self._bits(bench), {**bits, "unit": np.array(unit.identity)})
        with atomic_file(csv.with_suffix(".units.json")) as temporary:
            temporary.write_text(json.dumps(kept | dict.fromkeys(names.values(), unit.identity)))

    @staticmethod
    def _columns(unit: Unit) -> dict[str, str]:
        """The unit's columns that are kept -> what they are called."""
        if unit.kind == "corruption.mean":
            return {name: name for name in ("label", "clean_correct", "flipped")}
        if unit.kind == "sigma_max":
            layer = unit.settings["layer"]
            return {"sigma_1": "sigma" if layer == "latent" else f"sigma_{layer}"}
        return {}

    def _csv(self, bench: Bench) -> Path:
        return self.study / "images" / f"{bench.label}.csv"

    def _bits(self, bench: Bench) -> Path:
        return self.study / "bits" / f"{bench.label}.npz"

    def _has_bits(self, bench: Bench, unit: Unit) -> bool:
        found = load_arrays(self._bits(bench))
        return found is not None and str(found["unit"]) == unit.identity

    def _kept(self, bench: Bench) -> dict[str, str]:
        file = self._csv(bench).with_suffix(".units.json")
        if not self._csv(bench).exists():
            return {}
        try:
            return dict(json.loads(file.read_text()))
        except (OSError, ValueError):
            return {}


def study_plan(
    sources: Sequence[Source],
    images: Images,
    corrupted: int,
    sigma_images: int | None = None,
    **machine: Any,
) -> Plan:
    """Everything that is measured of a study, its baselines included."""
    corruptions = CorruptionAccuracy(limit=corrupted)
    shifts = tuple(ShiftAccuracy(name, quantity=q) for name, q in SHIFTS.get(images.data, {}).items())
    common = Map(concentration=COMMON_KAPPA[0])
    pairs: list[Pairs] = [
        Pairs("views", common, PAIR_IMAGES),
        Pairs("views", Map(), PAIR_IMAGES),
        Pairs(
            "corruptions", common, min(CORRUPTED_PAIR_IMAGES, corrupted), severities=SEVERITIES, pooled=True
        ),
        Pairs("shuffled", common, PAIR_IMAGES),
    ]
    quantities = (
        CleanAccuracy(),
        KNNAccuracy(),
        *shifts,
        EffectiveRank(),
        corruptions,
        ProbeRefits(REFITS, corruptions),
        Compression(),
        *pairs,
        *(Sigma(Map(layer), sigma_images or SIGMA_IMAGES) for layer in ("latent", "backbone", "logits")),
    )
    return Plan(tuple(sources), images, quantities, Probe(refits=REFITS), **machine)


def baselines(sources: Sequence[Source], metadata: Sequence[Metadata]) -> list[Source]:
    """What says what the numbers of our own runs are worth: untrained encoders, and raw pixels."""
    seeds: dict[int, Source] = {}
    for source, told in zip(sources, metadata, strict=True):
        if told.recipe and told.seed is not None:
            seeds.setdefault(told.seed, source)
    pixels = [replace(source, name="raw_pixels", baseline="pixels") for source in [*seeds.values()][:1]]
    return pixels + [
        replace(source, name=f"random-seed{seed}", baseline="random", seed=seed)
        for seed, source in sorted(seeds.items())
    ]


def make_corrupted(plan: Plan, folder: Path, corruptions: CorruptionAccuracy, part: int, parts: int) -> None:
    """Make every parts-th corrupted condition, once for all encoders; a job's function."""
    (bench,) = open_benches(plan)
    bench.made = Cells(folder)
    for condition in corruptions.conditions(bench)[part::parts]:
        for _, places in blocks(len(condition)):
            for _ in bench.batches(condition, places):
                pass


def outputs_of(study: Path, corruptions: CorruptionAccuracy) -> Outputs:
    """Where a study's results go."""
    table = StudyTable(study, corruptions)
    return Outputs(study / RECORDS, made=study / CACHE, table=table, keep_cells=False)


def measure(study: Path, plan: Plan, corruptions: CorruptionAccuracy, engine: dict[str, Any]) -> int:
    """Measure every run of a study that is not measured yet; returns how many units were measured."""
    started = time.monotonic()
    read_design(read_plan(study))  # a damaged one is refused before the work
    made = study / CACHE
    first = replace(plan.of(plan.sources[0]), quantities=(), batch_size=256)
    if not made.exists():
        print("measure: making the corrupted images, once for all encoders", flush=True)
        parts = 15
        jobs = [(first, made, corruptions, part, parts) for part in range(parts)]
        outcomes = run_jobs(make_corrupted, jobs, **engine)
        failures = {f"part {o.number + 1}": o.error for o in outcomes if o.error is not None}
        raise_failures(failures, parts)
    print(f"measure: {len(plan.sources)} encoders, {len(plan.quantities)} quantities", flush=True)
    fresh = run_parallel(plan, lambda source: outputs_of(study, corruptions), tell=_tell, **engine)
    training_times(study)
    if fresh:
        write_wall_time(study, "measure", time.monotonic() - started)
    return fresh


def _tell(line: str) -> None:
    print(line, flush=True)


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
    """A record of how long a whole stage took on the clock, and of the design at its end."""
    told = provenance() | {"design": design_text(read_design(read_plan(study)))}
    record = Record("time.wall", seconds, "s", settings={"stage": stage}, provenance=told)
    append_records(study / RECORDS, [record])


def corrupted_images(study: Path, asked: int | None, plan: Plan) -> tuple[int, int]:
    """How many test images are corrupted (as asked, by the preset, or what 1 GiB holds), and the bytes they take."""
    if asked is None:
        asked = CORRUPTED_IMAGES.get(str(read_plan(study).get("preset")))
    (bench,) = open_benches(replace(plan.of(plan.sources[0]), quantities=()))
    conditions = len(CorruptionAccuracy(limit=1).conditions(bench))
    each = conditions * math.prod(bench.checkpoint.image_shape)
    count = min(asked or min(1000, max(16, CACHE_BYTES // each)), len(bench.indices))
    return count, count * each


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure a study."""
    parser = Parser(prog="python -m analyses.paired_study.measure", description=__doc__)
    # fmt: off
    parser.add_argument("study", type=Path, help="folder of the study, or a folder of checkpoints")
    parser.add_argument("--corrupted-images", type=positive(int),
        help="number of test images to corrupt (default: 1000, or as many as fit in 1 GiB; preset quick: 300)")
    parser.add_argument("--sigma-images", type=positive(int),
        help=f"number of test images at which sigma_max is computed (default: {SIGMA_IMAGES})")
    # fmt: on
    add_study_arguments(parser)
    options = parser.parse_args(arguments)
    sources, metadata, _, hashes, images = read_study(options)
    sources += baselines(sources, metadata)
    settings = {name: getattr(options, name) for name in ("device", "precision", "batch_size", "seed")}
    settings["sigma_images"] = options.sigma_images
    plan = study_plan(sources, images, 1, **settings)
    count, size = corrupted_images(options.study, options.corrupted_images, plan)
    plan = study_plan(sources, images, count, **settings)
    if options.dry_run:
        outputs = outputs_of(options.study, CorruptionAccuracy(limit=count))
        return tell_plan(plan, outputs, 0 if (options.study / CACHE).exists() else size)
    engine = engine_choice(options, options.study / CACHE / "jobs")
    for bench in open_benches(plan.of(plan.sources[0])):
        units_of(bench)  # what no encoder can be measured for is refused once, before the work
    measure(options.study, plan, CorruptionAccuracy(limit=count), engine)
    write_roll(options.study, hashes)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
