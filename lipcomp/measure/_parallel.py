"""A plan on many processes or machines: one job per encoder (and shard), each of which appends whole units itself.

Two terminals, or two machines that share a folder, may run the same plan: each encoder is claimed by one of them
(:mod:`lipcomp._claims`), and what the other has measured is found. A job that fails is reported with its reason and the
others go on.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lipcomp._claims import claim
from lipcomp._commands import duration
from lipcomp.jobs._contract import raise_failures
from lipcomp.jobs._engines import run_jobs
from lipcomp.jobs._options import available_cores
from lipcomp.measure._plan import Plan, Source
from lipcomp.measure._run import Outputs, run

WAIT = 7 * 24 * 3600.0  # seconds that the last pass waits for encoders which another process measures
Tell = Callable[[str], object]


@dataclass(frozen=True)
class Measured:
    """What a job did for an encoder: how many units were measured now, and how many were there."""

    name: str
    fresh: int
    found: int
    busy: bool
    seconds: float


def measure_source(
    plan: Plan, outputs: Outputs, shard: tuple[int, int] | None = None, wait: float = 0.0
) -> Measured:
    """Measure what is missing of a plan's one encoder; a job's function.

    If another process measures this encoder, it says so after ``wait`` seconds, and measures nothing.
    """
    started, (source,) = time.monotonic(), plan.sources
    with ExitStack() as stack:
        folder = outputs.cells_folder or (None if outputs.out is None else outputs.out.parent)
        place = None if folder is None or shard is not None else folder / "claims" / claim_name(source)
        if place is not None and not stack.enter_context(claim(place, wait)):
            return Measured(name_of(source), 0, 0, True, time.monotonic() - started)
        fresh = [done.fresh for done in run(plan, outputs, shard=shard)]
    return Measured(name_of(source), sum(fresh), len(fresh) - sum(fresh), False, time.monotonic() - started)


def name_of(source: Source) -> str:
    """What messages and files call an encoder."""
    if source.name is not None:
        return source.name
    return Path(source.path).stem if source.path else str(source.factory)


def claim_name(source: Source) -> str:
    """What is claimed of an encoder, in the folder of claims; those of one name are told apart by their place."""
    if source.name is not None or source.path is None:
        return f"{name_of(source)}.claim"
    place = hashlib.sha256(os.path.realpath(source.path).encode()).hexdigest()
    return f"{name_of(source)}-{place[:8]}.claim"


def run_parallel(
    plan: Plan,
    outputs_of: Callable[[Source], Outputs],
    *,
    shards: int = 1,
    tell: Tell = print,
    workers: int | None = None,
    **engine: Any,
) -> int:
    """Measure every encoder of a plan in a separate job; return the number of units measured.

    Parameters
    ----------
    plan
        What to measure.
    outputs_of
        Where the results of an encoder go. Several may share one file of records.
    shards
        Into how many jobs the images of an encoder are cut. Their blocks meet in the cells, so the folder of cells
        must be seen by all.
    tell
        Called with a line per job, with the time remaining.
    workers, engine
        Of :func:`lipcomp.jobs.run_jobs`.

    Raises
    ------
    lipcomp.jobs.JobsError
        At the end, if jobs failed: each by name, with its reason.
    """
    if shards < 1:
        raise ValueError(f"shards must be at least 1, got {shards}")
    count, failures = 0, {}
    parts: Sequence[tuple[int, int] | None] = [(i, shards) for i in range(shards)] if shards > 1 else []
    waves: list[tuple[list[Source], Sequence[tuple[int, int] | None], float]] = []
    if parts:
        waves.append((list(plan.sources), parts, 0.0))
    waves.append((list(plan.sources), [None], 0.0))
    while waves:
        chosen, pieces, wait = waves.pop(0)
        busy: list[Source] = []
        jobs = [(plan.of(s), outputs_of(s), piece, wait) for s in chosen for piece in pieces]
        for done in _outcomes(jobs, tell, workers, engine):
            source = chosen[done[0] // len(pieces)]
            if isinstance(done[1], Measured):
                count += done[1].fresh
                if done[1].busy:
                    busy.append(source)
            else:
                failures[name_of(source)] = done[1]
        if busy:
            tell(f"  {len(busy)} encoders are being measured by another process; waiting for them")
            waves.append((busy, [None], WAIT))
    raise_failures(failures, len(plan.sources))
    return count


def _outcomes(
    jobs: list[Any], tell: Tell, workers: int | None, engine: dict[str, Any]
) -> Iterator[tuple[int, Any]]:
    """(number, what was measured or why not) of each job as it comes, with a line for each."""
    work, counted = 0.0, 0
    at_once = min(workers or available_cores(), len(jobs))
    for done, outcome in enumerate(run_jobs(measure_source, jobs, workers=workers, **engine), 1):
        (source,), piece = jobs[outcome.number][0].sources, jobs[outcome.number][2]
        name = name_of(source) + (f" shard {piece[0] + 1}/{piece[1]}" if piece else "")
        if outcome.error is not None:
            tell(f"  {done:3d}/{len(jobs)}  {name:32s}  failed: {outcome.error}")
            yield outcome.number, outcome.error
            continue
        found = outcome.result()
        work, counted = work + found.seconds, counted + (found.fresh > 0)
        left = work / max(counted, 1) * (len(jobs) - done) / at_once
        state = "measured elsewhere" if found.busy else f"{found.seconds:5.0f} s"
        tell(f"  {done:3d}/{len(jobs)}  {name:32s} {state}   {duration(left)} left")
        yield outcome.number, found
