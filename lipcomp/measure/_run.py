"""The measuring loop: results of a plan that do not exist yet are measured and appended; the others are read.

    for done in run(plan, out="records.jsonl"):
        print(done.unit.label, len(done.records), "measured" if done.fresh else "already there")

A unit's records are appended in one write, so an interruption loses at most the unit it was in, and the cells beside
the file hold even its finished blocks. Everything is opened and checked before anything is measured.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lipcomp._arguments import checked, differentiable
from lipcomp._atomic import check_writable
from lipcomp._commands import choose_device
from lipcomp._identity import digest
from lipcomp.data._sets import file_of
from lipcomp.jacobian._precision import full_precision
from lipcomp.measure._bench import Bench
from lipcomp.measure._cells import Cells, IncompleteError
from lipcomp.measure._outputs import ImageTable, Table, save_witness, witness_path
from lipcomp.measure._plan import Plan
from lipcomp.measure._unit import Result, Unit
from lipcomp.records import Record, append_records
from lipcomp.records._files import check_appendable, read_more
from lipcomp.records._origin import provenance

Progress = Callable[[int, str], AbstractContextManager[Callable[[int], object]]]


@dataclass(frozen=True)
class Done:
    """A unit with its records."""

    bench: Bench  # which encoder
    unit: Unit  # what was measured
    records: list[Record]
    fresh: bool  # whether this run measured them
    notes: Sequence[str] = ()  # lines for people


@dataclass
class Outputs:
    """Where results go."""

    out: Path | None = None  # a file of JSON lines; None keeps nothing
    cells: Path | None = None  # the folder of intermediate results; by default beside ``out``
    # the folder of corrupted images that several encoders share; None makes them for each
    made: Path | None = None
    # a .csv or .parquet file of per-image values, or another keeper of them
    table: "Table | Path | None" = None
    witnesses: Path | None = None  # a folder for pictures of the pairs that attain the bounds
    # whether intermediate results are kept on disk; if not, an interruption loses the unit it is in
    keep_cells: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.table, Path):
            self.table = ImageTable(self.table)

    def check(self) -> None:
        """Refuse what could not be written, before anything is measured."""
        if self.out is not None:
            check_writable(self.out, "out")
            check_appendable(self.out)
        if self.cells_folder is not None:
            check_writable(self.cells_folder / "cell.npz", "cache")
        if self.table is not None:
            self.table.check()  # type: ignore[union-attr]
            path = getattr(self.table, "path", None)
            if self.out is not None and path is not None and path.resolve() == self.out.resolve():
                raise ValueError(f"out and table are one file, {str(self.out)!r}; give each its own")
        if self.witnesses is not None:
            check_writable(self.witnesses / "picture.png", "witnesses")

    def has_files(self, bench: Bench, unit: Unit) -> bool:
        """Whether a unit's rows and pictures are there, where they are wanted."""
        table: Any = self.table
        if table is not None and unit.per_image and not table.has(bench, unit):
            return False
        drawn = self.witnesses is not None and unit.pictures
        return not drawn or witness_path(self.witnesses, bench, unit).exists()  # type: ignore[arg-type]

    @property
    def cells_folder(self) -> Path | None:
        """Where cells are kept."""
        if self.cells is not None or self.out is None or not self.keep_cells:
            return self.cells
        return self.out.with_name(self.out.name + ".cells")


def no_progress(total: int, label: str) -> AbstractContextManager[Callable[[int], object]]:
    """No progress is shown."""
    return nullcontext(lambda n=1: None)


@checked
def run(
    plan: Plan,
    outputs: Outputs | Path | str | None = None,
    *,
    progress: Progress = no_progress,
    benches: Sequence[Bench] | None = None,
    shard: tuple[int, int] | None = None,
) -> Iterator[Done]:
    """Measure what is missing of a plan; yields every unit, measured now or before.

    Parameters
    ----------
    plan
        What to measure.
    outputs
        Output files; a path means a file of records.
    progress
        Called as ``progress(total, label)`` for a context that yields ``advance(n)``.
    benches
        The encoders, if they are loaded already (:func:`open_benches`).
    shard
        (i, n): compute the i-th of n shards of every block-wise quantity into the cells, and write no record.

    Raises
    ------
    ValueError
        If the plan is not valid; nothing is measured then.
    OSError
        If an output cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from lipcomp.checkpoints import save_checkpoint
    >>> from lipcomp.encoders import EncoderSpec, build_encoder
    >>> from lipcomp.measure import Images, Plan, Sigma, Source, run
    >>> folder = tempfile.mkdtemp()
    >>> save_checkpoint(folder + "/mine.safetensors", build_encoder(EncoderSpec("small_cnn", (1, 28, 28))))
    >>> plan = Plan((Source(folder + "/mine.safetensors"),), Images("mnist5k", limit=2), (Sigma(),))
    >>> [record.n for done in run(plan) for record in done.records if record.quantity == "sigma_max.median"]
    [2]
    """
    kept = outputs if isinstance(outputs, Outputs) else Outputs(None if outputs is None else Path(outputs))
    kept.check()
    with differentiable():
        benches = open_benches(plan, kept, shard) if benches is None else benches
        work = [(bench, unit) for bench in benches for unit in units_of(bench)]
    if not work:
        raise ValueError("plan names no sources or no quantities: nothing would be measured")
    known = Known(kept.out)
    table: Any = kept.table
    for bench, unit in work:
        found = known.of(bench, unit)
        if found and kept.has_files(bench, unit):
            yield Done(bench, unit, found, False)
            continue
        started = time.monotonic()
        try:
            label = f"{bench.label} {unit.label}"
            with progress(unit.count, label) as advance, full_precision(), differentiable():
                result = unit.measure(advance)
        except IncompleteError:
            continue
        if shard is not None:
            continue
        bench.check_unchanged()
        records = to_records(bench, unit, result, time.monotonic() - started)
        if table is not None and unit.per_image and result.columns:
            table.add(bench, unit, result.columns)
        if kept.witnesses is not None:
            save_witness(kept.witnesses, bench, unit, result.witnesses)
        found = found or known.of(bench, unit)  # rows alone were missing, or another process was faster
        if not found:
            known.add(unit, records)
        yield Done(bench, unit, found or records, True, result.notes)


def open_benches(
    plan: Plan, outputs: Outputs | None = None, shard: tuple[int, int] | None = None
) -> list[Bench]:
    """The encoders of a plan, loaded, on their device, with their images."""
    kept = outputs or Outputs()
    device = choose_device(plan.device)
    cells = Cells(kept.cells_folder, shard)
    made = None if kept.made is None else Cells(kept.made)
    return [Bench(source, source.load(), plan, device, cells, made) for source in plan.sources]


def units_of(bench: Bench) -> list[Unit]:
    """Everything that the plan asks of an encoder."""
    units: list[Unit] = []
    for quantity in bench.plan.quantities:
        found = list(quantity.units(bench))
        if not found:
            raise ValueError(f"{quantity!r} names nothing to measure; is one of its lists empty?")
        units += found
    return units


@dataclass
class Known:
    """The records of a file, which others may append to, by the unit that they belong to; without one, those added."""

    path: Path | None
    by_unit: dict[str, list[Record]] = field(default_factory=dict)
    _begin: list[int] = field(default_factory=lambda: [0, 0])

    def add(self, unit: Unit, records: list[Record]) -> None:
        """Append a unit's records."""
        if self.path is None:
            self.by_unit[unit.identity] = records  # it may be asked for twice
        else:
            append_records(self.path, records)

    def of(self, bench: Bench, unit: Unit) -> list[Record]:
        """The records of a unit, if all are there and the encoder still gives what it gave when they were written."""
        seen, more = self._begin[0], [] if self.path is None else read_more(self.path, self._begin)
        if self._begin[0] < seen:  # the file was cut off, or is another by now
            self.by_unit.clear()
        for record in more:
            self.by_unit.setdefault(str(record.identity).split(".")[0], []).append(record)
        found = list({record.identity: record for record in self.by_unit.get(unit.identity, [])}.values())
        whole = found and len(found) >= found[0].provenance.get("of_unit", 1)
        return found if whole and bench.agrees(found[0].subject.get("guard")) else []


def to_records(bench: Bench, unit: Unit, result: Result, seconds: float) -> list[Record]:
    """A unit's findings as records; one more says how long it took."""
    subject = bench.subject()
    settings = json.loads(json.dumps(dict(unit.settings)))
    origin = provenance(
        bench.device,
        bench.plan.precision,
        bench.plan.seed,
        seconds=round(seconds, 3),
        batch_size=bench.plan.batch_size,
        of_unit=len({digest(f.quantity, dict(f.settings)) for f in result.findings}),
    )
    records = []
    for finding in result.findings:
        own = dict(finding.settings)
        value = finding.value
        if value is not None and not np.isfinite(value):
            value = None
        interval = finding.interval
        if interval is not None and not np.isfinite(interval).all():
            interval = None
        records.append(
            Record(
                finding.quantity,
                value,
                finding.unit,
                finding.n,
                interval,
                subject,
                settings | own,
                origin | _with_files(bench, finding.details),
                identity=f"{unit.identity}.{digest(finding.quantity, own)[:16]}",
            )
        )
    return records


def _with_files(bench: Bench, details: Mapping[str, Any]) -> dict[str, Any]:
    """Details of a finding, with the files of the images that attain it."""
    told = dict(details)
    if "witness" in told and hasattr(bench.images, "file_of"):
        pair = told["witness"] if isinstance(told["witness"], list) else [told["witness"]]
        told["witness_files"] = [file_of(bench.images, i) for i in pair]
    return told


@dataclass(frozen=True)
class Estimate:
    """How much of a plan is left: a unit, whether it is there, seconds it will take, bytes it will keep."""

    bench: Bench
    unit: Unit
    there: bool
    seconds: float
    size: int


def dry_run(plan: Plan, outputs: Outputs) -> Iterator[Estimate]:
    """What would be measured and what is there, with times from one timed batch; nothing is written."""
    outputs.check()
    known, asked = Known(outputs.out), set[str]()
    for bench in open_benches(plan, outputs):
        each, passed = seconds_per_image(bench), dict[str, int]()
        for unit in units_of(bench):
            there = unit.identity in asked or (bool(known.of(bench, unit)) and outputs.has_files(bench, unit))
            asked.add(unit.identity)
            before, passed = sum(passed.values()), passed | dict(unit.reads)
            passes = unit.cost * unit.count + sum(passed.values()) - before
            size = 0 if there else 2000 + (40 * unit.count if bench.cells.folder else 0)
            yield Estimate(bench, unit, there, 0.0 if there else each * passes, size)


@torch.no_grad()
def seconds_per_image(bench: Bench) -> float:
    """Seconds of one forward pass per image, decoding included, from one batch."""
    places = torch.arange(min(len(bench.indices), bench.batch_size, 64))
    bench.encoder(bench.load(places[:1]))
    started = time.monotonic()
    bench.encoder(bench.load(places)).sum().item()
    return (time.monotonic() - started) / len(places)
