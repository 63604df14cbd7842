"""Jobs in processes of this machine, one job each at a time.

Every worker has its own pipe, so that the parent knows which job a killed worker held and repeats it.
Ctrl-C reaches the parent alone, which ends its workers; a parent that is killed takes its workers with it.
"""

import atexit
import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from lipcomp.jobs._contract import (
    EngineOptions,
    JobFailure,
    Outcome,
    answer,
    limit_threads,
    pack,
    received,
)
from lipcomp.jobs._options import available_cores

GRACE = 20.0  # seconds a worker has to save its state after SIGTERM


class _Worker:
    """A process that runs one job after the other; started within :func:`_interrupt_later`."""

    def __init__(self, cores: int, devices: str | None) -> None:
        context = multiprocessing.get_context("spawn")
        self.devices = devices
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, cores, devices))
        self.process.start()
        theirs.close()

    def give(self, job: bytes) -> None:
        """Send a packed job."""
        with contextlib.suppress(OSError):  # it is dead, as the empty answer will say
            self.connection.send_bytes(job)

    def answer(self) -> bytes | None:
        """What came back, or None if the process died."""
        try:
            return self.connection.recv_bytes() if self.connection.poll() else None
        except (EOFError, OSError):
            return None

    def why_it_ended(self) -> str:
        """How the process died, for a person."""
        self.process.join(GRACE)
        code = self.process.exitcode
        if code is None or code >= 0:
            return f"its process ended with exit code {code}"
        name = signal.Signals(-code).name
        return f"its process was killed ({name}{', perhaps out of memory' if name == 'SIGKILL' else ''})"


def run(
    function: Callable[..., Any],
    jobs: list[tuple[Any, ...]],
    workers: int | None,
    options: EngineOptions,
    retries: int,
) -> Iterator[Outcome[Any]]:
    """Run jobs; see :func:`lipcomp.jobs.run_jobs`."""
    limit = min(workers or max(1, available_cores() // options.cores), len(jobs))
    devices = _devices(options.gpus, limit)
    queue, attempts = deque(range(len(jobs))), [0] * len(jobs)
    idle: list[_Worker] = []
    busy: dict[_Worker, int] = {}

    def stop() -> None:
        _end(list(busy), idle)

    atexit.register(stop)
    try:
        while queue or busy:
            # all start at once, before any waits for its job; Ctrl-C waits until one that was started is on the list
            while len(idle) < min(len(queue), limit - len(busy)):
                with _interrupt_later():
                    idle.append(_Worker(options.cores, devices.pop()))
            while queue and idle:
                worker, number = idle.pop(), queue.popleft()
                busy[worker] = number
                try:
                    worker.give(pack(function, jobs[number]))
                except JobFailure as failure:
                    idle.append(worker)
                    del busy[worker]
                    yield Outcome(number, None, failure)
            for worker in _ready(busy):
                number = busy.pop(worker)
                data = worker.answer()
                if data is not None:
                    idle.append(worker)
                    yield received(number, data)
                    continue
                devices.append(worker.devices)
                attempts[number] += 1
                if attempts[number] <= retries:
                    queue.append(number)  # last, when fewer compete for the memory
                else:
                    yield Outcome(number, None, JobFailure(worker.why_it_ended(), kind="killed"))
    finally:
        atexit.unregister(stop)
        stop()


def _ready(busy: dict[_Worker, int]) -> list[_Worker]:
    """Workers that have answered or died, at least one of them."""
    if not busy:
        return []
    wait([end for worker in busy for end in (worker.connection, worker.process.sentinel)])
    return [worker for worker in busy if worker.connection.poll() or not worker.process.is_alive()]


def _devices(gpus: int | None, limit: int) -> list[str | None]:
    """The GPUs that each of the workers sees, as CUDA_VISIBLE_DEVICES; shared evenly if there are fewer."""
    if gpus is None:
        return [None] * limit
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    if gpus > len(names):
        raise ValueError(
            f"gpus={gpus} per job, but this machine shows {len(names)}; leave it out, or use a cluster"
        )
    shares: list[str | None] = [
        ",".join(names[(i * gpus + j) % len(names)] for j in range(gpus)) for i in range(limit)
    ]
    return shares[::-1]  # the first worker takes the last


def _end(busy: list[_Worker], idle: list[_Worker]) -> None:
    """End workers: idle ones leave when their pipe closes, busy ones are asked, then killed."""
    for worker in busy:
        worker.process.terminate()
    for worker in idle:
        worker.connection.close()
    deadline = time.monotonic() + GRACE
    for worker in [*busy, *idle]:
        worker.process.join(max(0.0, deadline - time.monotonic()))
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


@contextlib.contextmanager
def _interrupt_later() -> Iterator[None]:
    """Ctrl-C waits meanwhile, and a process started here is born deaf to it (until it says otherwise)."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # which the first process starts otherwise, letting Ctrl-C through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection, threads: int, devices: str | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_follow_parent, daemon=True).start()
    if devices is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices
    limit_threads(threads)
    while True:
        try:
            data = connection.recv_bytes()
        except (EOFError, OSError):
            return
        try:
            connection.send_bytes(answer(data))
        except KeyboardInterrupt:  # the job heeded SIGTERM; its parent reports
            return


def _follow_parent() -> None:
    """End this worker when its parent is gone: a job that heeds SIGTERM has a moment to save its state."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os._exit(1)
