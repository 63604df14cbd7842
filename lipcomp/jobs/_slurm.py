"""Jobs in a Slurm job array, by submitit; results come as files in a folder that every node sees.

A job that is preempted or reaches its time limit is queued again by submitit under its own number; one whose process
was killed, or whose node failed, is submitted again from here. Whether a job still lives is asked of ``squeue``, which
needs no accounting. If the command that submitted them is killed, the jobs go on: what they write whole is there for
the next run. Ctrl-C cancels them.
"""

import contextlib
import os
import pickle
import secrets
import shutil
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from lipcomp.jobs._contract import EngineOptions, JobFailure, Outcome, answer, pack, received

ARRAY = 1000  # jobs of one array at most; Slurm's default limit is 1001
MINUTES = 240  # time limit of a job where none is given
REQUEUES = 20  # how often a job may reach its time limit
POLL = 2.0  # seconds between two looks
GRACE = 30.0  # seconds that a result may take to show after its job has ended
SILENCE = 600.0  # seconds without an answer of Slurm
_OVER = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"
}  # fmt: skip


class Task:
    """A packed job; being asked to stop, it is queued again from its beginning."""

    def __init__(self, data: bytes, cores: int) -> None:
        self.data, self.cores = data, cores

    def __call__(self) -> bytes:
        """Run it, on a node."""
        return answer(self.data, self.cores)

    def checkpoint(self) -> Any:
        """What submitit queues again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def run(
    function: Callable[..., Any],
    jobs: list[tuple[Any, ...]],
    workers: int | None,
    options: EngineOptions,
    retries: int,
) -> Iterator[Outcome[Any]]:
    """Run jobs; see :func:`lipcomp.jobs.run_jobs`."""
    import cloudpickle

    tasks: dict[int, Task] = {}
    for number, job in enumerate(jobs):
        try:
            tasks[number] = Task(pack(function, job, cloudpickle.dumps), options.cores)
        except JobFailure as failure:
            yield Outcome(number, None, failure)
    start = f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    folder = ((options.folder or Path()) / "slurm-jobs" / start).absolute()
    array = _Array(folder, workers or len(jobs), options)
    attempts = dict.fromkeys(tasks, 1)
    failed = False
    try:
        array.submit(tasks)
        while array.waiting:
            time.sleep(POLL)
            for number, data, why in array.ended():
                outcome = received(number, data) if data is not None else None
                if outcome is None and attempts[number] <= retries:
                    attempts[number] += 1
                    array.submit({number: tasks[number]})
                    continue
                outcome = outcome or Outcome(number, None, why)
                failed = failed or outcome.error is not None
                yield outcome
        if not failed:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        array.cancel()


class _Array:
    """Submitted jobs that have not come back."""

    def __init__(self, folder: Path, workers: int, options: EngineOptions) -> None:
        import submitit

        folder.mkdir(parents=True)
        self.folder, self.workers = folder, workers
        self.executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=REQUEUES)
        minutes = options.minutes or MINUTES
        parameters = {
            "name": "lipcomp",
            "timeout_min": minutes,
            "cpus_per_task": options.cores,
            "gpus_per_node": options.gpus,
            "mem_gb": options.memory,
            "slurm_partition": options.partition,
            "slurm_signal_delay_s": min(90, 15 * minutes),
        }
        self.executor.update_parameters(**{k: v for k, v in parameters.items() if v is not None})
        self.waiting: dict[str, int] = {}  # Slurm's number of a job: ours
        self.over_since: dict[str, float] = {}
        self.states: dict[str, str] = {}
        self.answered = time.monotonic()

    def submit(self, tasks: dict[int, Task], size: int = ARRAY) -> None:
        """Submit tasks as arrays, smaller ones where the cluster wants that."""
        from submitit.core.utils import FailedJobError

        numbers = list(tasks)
        parts = [numbers[i : i + size] for i in range(0, len(numbers), size)]
        self.executor.update_parameters(slurm_array_parallelism=max(1, self.workers // max(1, len(parts))))
        for part in parts:
            try:
                submitted = self.executor.submit_array([tasks[n] for n in part])
            except FailedJobError as error:
                if "array" in str(error).lower() and len(part) > 1:  # longer than MaxArraySize
                    self.submit({n: tasks[n] for n in part}, (len(part) + 1) // 2)
                    continue
                raise ConnectionError(
                    f"Slurm took no job: {str(error).strip() or error.__cause__}"
                ) from error
            self.waiting |= dict(zip((job.job_id for job in submitted), part, strict=True))

    def ended(self) -> Iterator[tuple[int, bytes | None, JobFailure]]:
        """(number, answer or None, why there is none) of jobs that have ended since the last look."""
        states = self._states()
        files = {file.name for file in self.folder.iterdir()}
        for name, number in list(self.waiting.items()):
            result = f"{name}_0_result.pkl"
            if result in files:
                del self.waiting[name]
                yield number, *self._result(self.folder / result)
            elif states is None or states.get(name, "") not in {"", *_OVER}:
                self.over_since.pop(name, None)
            elif time.monotonic() - self.over_since.setdefault(name, time.monotonic()) > GRACE:
                del self.waiting[name]
                yield number, None, self._why(name, states.get(name, ""))

    def _states(self) -> dict[str, str] | None:
        """The state of each job that Slurm remembers; None if it does not answer."""
        command = [
            "squeue",
            "--noheader",
            "--array",
            "--states=all",
            f"--user={os.getuid()}",
            "--format=%i %T",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            self.answered = time.monotonic()
            return dict(line.split(None, 1) for line in done.stdout.splitlines() if " " in line.strip())
        if time.monotonic() - self.answered > SILENCE:
            raise ConnectionError(
                f"Slurm has not answered for {SILENCE / 60:g} minutes ({done.stderr.strip()}); running jobs "
                "continue, and the same command continues from what they have written"
            )
        warnings.warn(f"Slurm does not answer ({done.stderr.strip()}); waiting", RuntimeWarning, stacklevel=2)
        return None

    def _result(self, file: Path) -> tuple[bytes | None, JobFailure]:
        try:
            how, value = pickle.loads(file.read_bytes())
        except Exception as error:
            how, value = "error", f"{file} cannot be read: {error}"
        if how == "success":
            return value, JobFailure("")
        reason = str(value).strip().splitlines()[-1]
        return pickle.dumps((None, JobFailure(reason, str(value), "engine"), 0.0)), JobFailure(reason)

    def _why(self, name: str, state: str) -> JobFailure:
        log = self.folder / f"{name}_0_log.err"
        tail = ""
        with contextlib.suppress(OSError):
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        what = {"OUT_OF_MEMORY": "was out of memory", "": "left the queue", "COMPLETED": "ended"}
        told = what.get(state, f"ended as {state}")
        return JobFailure(f"its Slurm job {name} {told} without a result (log: {log})", tail, "killed")

    def cancel(self) -> None:
        """Cancel what has not come back."""
        for chunk in [list(self.waiting)[i : i + 100] for i in range(0, len(self.waiting), 100)]:
            subprocess.run(["scancel", *chunk], capture_output=True, check=False)
