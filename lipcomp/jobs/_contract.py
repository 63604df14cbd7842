"""The interface of an engine: what a job gets, and what it returns."""

import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

Result = TypeVar("Result")
Kind = Literal["error", "killed", "engine"]


class JobFailure(Exception):  # noqa: N818 - a reason, which may be raised
    """Why a job has no result.

    Attributes
    ----------
    reason : str
        One sentence for a person.
    traceback : str
        Where the job raised, or the end of its log; empty if it was killed.
    kind : str
        ``"error"`` if the function raised, ``"killed"`` if its process ended, ``"engine"`` if it could not be sent,
        started or fetched.
    """

    def __init__(self, reason: str, traceback: str = "", kind: Kind = "error") -> None:
        super().__init__(reason, traceback, kind)
        self.reason, self.traceback, self.kind = reason, traceback, kind

    def __str__(self) -> str:
        return self.reason


class JobsError(ChildProcessError):
    """Some of many jobs failed; the message names each with its reason."""


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """What became of one job."""

    number: int  # the job's place in the list
    value: Result | None  # what the function returned, or None if it failed
    error: JobFailure | None = None  # None, or why it failed
    seconds: float = 0.0  # how long the function ran, on the clock of the machine that ran it

    def result(self) -> Result:
        """The value; raises the :class:`JobFailure` if there is none."""
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]


@dataclass(frozen=True)
class EngineOptions:
    """What one job needs, and where to ask for it; None leaves it to the engine."""

    cores: int = 1  # CPU cores and threads per job
    gpus: int | None = None  # GPUs per job. On this machine the jobs share its GPUs evenly
    memory: float | None = None  # memory per job, in GB (slurm, ray)
    # time limit per job (slurm; None: 240). A job that reaches it is queued again, at most 20 times
    minutes: int | None = None
    partition: str | None = None  # partition of the cluster (slurm)
    # address of a running cluster (ray), such as ``"auto"`` or ``"ray://head:10001"``; None starts one here
    address: str | None = None
    folder: Path | None = None  # where jobs are kept while they run (slurm); every node must see it

    def __post_init__(self) -> None:
        for name in ("cores", "gpus", "memory", "minutes"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")


def pack(
    function: Callable[..., Any], arguments: tuple[Any, ...], dumps: Callable[[Any], bytes] = pickle.dumps
) -> bytes:
    """A job as bytes that another process can run; raises a :class:`JobFailure` if there are none.

    The command line is passed along, so that records made there contain it.
    """
    try:
        return dumps((function, arguments, sys.argv))
    except Exception as error:  # whatever a foreign __reduce__ raises
        reason = f"cannot be sent to another process ({describe(error)}); pass a module's function and plain values"
        raise JobFailure(reason, kind="engine") from error


def answer(data: bytes, threads: int | None = None) -> bytes:
    """Run a packed job where it was sent to, held to so many threads: what it raises becomes a reason."""
    if threads is not None:
        limit_threads(threads)
    started = time.monotonic()
    kind: Kind = "engine"
    value = failure = None
    try:
        function, arguments, sys.argv = pickle.loads(data)
        kind = "error"
        value = function(*arguments)
    except Exception as error:  # SystemExit ends the process: so does an engine that wants to run it again
        failure = JobFailure(describe(error), traceback.format_exc(), kind)
    seconds = time.monotonic() - started
    try:
        return pickle.dumps((value, failure, seconds))
    except Exception as error:
        failure = JobFailure(f"its result cannot be sent back: {describe(error)}", kind="engine")
        return pickle.dumps((None, failure, seconds))


def received(number: int, data: bytes) -> Outcome[Any]:
    """The outcome that an answer holds."""
    try:
        return Outcome(number, *pickle.loads(data))
    except Exception as error:
        failure = JobFailure(f"its result cannot be read: {describe(error)}", kind="engine")
        return Outcome(number, None, failure)


def describe(error: BaseException) -> str:
    """An exception's kind and message in one line."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def limit_threads(threads: int) -> None:
    """Limit the threads of this process: two that contend for one core make small operations many times slower."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    if "torch" in sys.modules:  # otherwise it reads the variables when it is imported
        sys.modules["torch"].set_num_threads(threads)


def raise_failures(failures: Mapping[str, JobFailure], total: int) -> None:
    """Raise :class:`JobsError` if there are failures; a note on it says where the first one was raised."""
    if not failures:
        return
    names: dict[str, list[str]] = {}
    for name, failure in failures.items():
        names.setdefault(failure.reason, []).append(name)
    reasons = "; ".join(f"{', '.join(alike)}: {reason}" for reason, alike in names.items())
    error = JobsError(
        f"{len(failures)} of {total} failed ({reasons}). "
        + ("The others are finished and kept; run" if len(failures) < total else "Run")
        + " the same command again to repeat what failed"
    )
    error.add_note(next(iter(failures.values())).traceback)
    raise error
