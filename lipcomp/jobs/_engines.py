"""Choose an engine and run jobs on it."""

import importlib.util
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from lipcomp.jobs._contract import EngineOptions, Outcome

Result = TypeVar("Result")
# Each engine's package and programs.
NEEDS: dict[str, tuple[str | None, tuple[str, ...]]] = {
    "local": (None, ()),
    "slurm": ("submitit", ("sbatch", "srun", "squeue", "scancel")),
    "ray": ("ray", ()),
}
ENGINES = tuple(NEEDS)


def run_jobs(
    function: Callable[..., Result],
    jobs: Sequence[tuple[Any, ...]],
    *,
    workers: int | None = None,
    engine: str = "local",
    options: EngineOptions | None = None,
    retries: int = 1,
) -> Iterator[Outcome[Result]]:
    """Call ``function(*job)`` for every job in a process of an engine; yields an outcome per job as they finish.

    Parameters
    ----------
    function
        A module's function: the processes import it.
    jobs
        Its arguments, one tuple per job; started in this order.
    workers
        Jobs at the same time; None: one per core, or as many as the cluster runs.
    engine
        ``"local"``, ``"slurm"`` or ``"ray"``.
    options
        What a job needs (:class:`EngineOptions`).
    retries
        How often a job is repeated when its process was killed, preempted or lost. A job that raises is not repeated.

    Raises
    ------
    ValueError
        If an argument is none, or the engine is not installed or cannot be reached.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    if retries < 0:
        raise ValueError(f"retries must be at least 0, got {retries}")
    package, programs = NEEDS[engine]
    if package and importlib.util.find_spec(package) is None:
        raise ValueError(f"the engine {engine} needs {package}: pip install 'lipcomp[{engine}]'")
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        raise ValueError(f"the engine {engine} needs {', '.join(missing)}: run it on a machine that has them")
    module = importlib.import_module(f"lipcomp.jobs._{engine}")
    outcomes: Iterator[Outcome[Result]] = module.run(
        function, list(jobs), workers, options or EngineOptions(), retries
    )
    return outcomes
