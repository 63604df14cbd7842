"""The number of available cores, and the command-line options that choose an engine."""

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lipcomp.jobs._contract import EngineOptions
from lipcomp.jobs._engines import ENGINES

CGROUPS = Path("/sys/fs/cgroup")


def available_cores() -> int:
    """CPU cores that this process may use: affinity and container quotas count, ``OMP_NUM_THREADS`` does not."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min([cores, *(math.ceil(quota) for quota in _quotas())]))


def _quotas(cgroups: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> list[float]:
    """CPU quotas in cores of this process's cgroups (v1 and v2) and their parents."""
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return []
    found = []
    for _, controllers, path in lines:
        if controllers == "":
            root, limits = cgroups, ["cpu.max"]
        elif "cpu" in controllers.split(","):
            root, limits = cgroups / "cpu", ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        else:
            continue
        group = root / path.lstrip("/")
        for folder in [group, *group.parents]:
            if not folder.is_relative_to(root):
                break
            try:
                quota, period = " ".join((folder / name).read_text() for name in limits).split()
                if quota not in ("max", "-1"):
                    found.append(int(quota) / int(period))
            except (OSError, ValueError):
                continue
    return found


def positive(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """An argparse type: a number above zero."""

    def parse(text: str) -> Any:
        try:
            number = kind(text)
        except ValueError as error:
            named = "whole number" if kind is int else "number"
            raise argparse.ArgumentTypeError(f"must be a {named}, got {text!r}") from error
        if not 0 < number < float("inf"):
            raise argparse.ArgumentTypeError(f"must be positive, got {text}")
        return number

    parse.__name__ = kind.__name__  # --help shows it
    return parse


def add_engine_arguments(parser: Any) -> None:
    """``--workers``, ``--engine`` and the options of the engines; :func:`engine_choice` reads them.

    ``parser`` is one of ``lipcomp._commands``, which this package does not import.
    """
    group = parser.add_argument_group("parallel jobs")
    # fmt: off
    group.add_argument("--workers", type=positive(int),
        help="parallel jobs (default: one per core; with slurm or ray, no limit)")
    group.add_argument("--engine", choices=ENGINES, default="local",
        help="run on this machine, on a Slurm cluster or on a Ray cluster")
    group.add_argument("--cores", type=positive(int), default=1, help="CPU cores and threads per job")
    group.add_argument("--gpus", type=positive(int), help="GPUs per job")
    group.add_argument("--memory", type=positive(float),
        help="memory per job in GB, for slurm and ray (default: the cluster's)")
    group.add_argument("--minutes", type=positive(int), help="time limit per job in minutes, for slurm (default: 240)")
    group.add_argument("--partition", help="Slurm partition (default: the cluster's)")
    group.add_argument("--address", help='address of a running Ray cluster, such as "auto" (default: start one here)')
    # fmt: on
    parser.ignores("without --engine slurm or ray", lambda given: given.engine == "local", "--memory")
    parser.ignores(
        "without --engine slurm", lambda given: given.engine != "slurm", "--minutes", "--partition"
    )
    parser.ignores("without --engine ray", lambda given: given.engine != "ray", "--address")


def engine_choice(options: argparse.Namespace, folder: Path | None = None) -> dict[str, Any]:
    """Keyword arguments of :func:`run_jobs` from parsed options.

    Parameters
    ----------
    options
        What a parser with :func:`add_engine_arguments` returned.
    folder
        Where the files of a cluster's jobs are kept while they run; every node must see it.
    """
    names = ("cores", "gpus", "memory", "minutes", "partition", "address")
    chosen = EngineOptions(**{name: getattr(options, name) for name in names}, folder=folder)
    return {"workers": options.workers, "engine": options.engine, "options": chosen}
