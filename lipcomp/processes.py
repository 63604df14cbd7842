"""Jobs over several processes, one thread each, results as they come; an interrupt ends them without a word.

Two contending threads make small operations many times slower, so work is spread over processes. Ctrl-C reaches only
the parent, which ends its workers; what a job had written atomically stays, and the parent's command says the rest.
A parent that is killed takes its workers with it.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")
GRACE = 20.0  # seconds


def run_jobs(
    function: Callable[..., Result], jobs: Sequence[tuple[Any, ...]], workers: int
) -> Iterator[tuple[int, Result]]:
    """Call ``function(*job)`` for every job in a process of a pool; yields (the job's number, result) as they finish.

    Parameters
    ----------
    function
        A module's function: workers are spawned and import it.
    jobs
        Its arguments, a tuple a job; started in this order.
    workers
        Processes at most.

    Raises
    ------
    Exception
        The first that a job raises; jobs that have not started are dropped and those that run are ended. So it is
        when the generator is closed or interrupted.
    """
    if not jobs:
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context, initializer=_prepare_worker)
    try:
        numbers = {pool.submit(function, *job): number for number, job in enumerate(jobs)}
        for future in as_completed(numbers):
            yield numbers[future], future.result()
    except BaseException:
        processes = list(getattr(pool, "_processes", {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
        raise
    pool.shutdown()


def _prepare_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    """End this worker when its parent is gone: a job that heeds SIGTERM has a moment to save its state."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os._exit(1)
