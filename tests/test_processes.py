"""Jobs over processes: results as they come, the first error ends the rest, an interrupt leaves no process."""

import multiprocessing
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lipcomp.processes import run_jobs

# A worker imports its function by name; the built-in eval is there without a module of the tests.
THREADS = "__import__('torch').get_num_threads()"
SLEEP = "__import__('time').sleep(60)"
FAIL = "[].index('job 2')"


def no_process_is_left():
    deadline = time.monotonic() + 20
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.1)
    return not multiprocessing.active_children()


def test_every_job_is_done_once_with_one_thread():
    assert dict(run_jobs(eval, [(f"({x} ** 2, {THREADS})",) for x in range(5)], 2)) == {
        x: (x * x, 1) for x in range(5)
    }
    assert list(run_jobs(eval, [], 2)) == []


def test_the_first_error_ends_the_jobs_that_run():
    started = time.monotonic()
    with pytest.raises(ValueError, match="job 2"):
        list(run_jobs(eval, [(SLEEP,), (FAIL,), (SLEEP,)], 2))
    assert time.monotonic() - started < 50
    assert no_process_is_left()


def test_a_generator_that_is_closed_ends_its_workers():
    jobs = run_jobs(eval, [("1",), (SLEEP,)], 1)
    assert next(jobs) == (0, 1)
    jobs.close()
    assert no_process_is_left()


def test_a_parent_that_is_killed_takes_its_workers_with_it():
    code = f"""
from lipcomp.processes import run_jobs
jobs = [("print(__import__('os').getpid(), flush=True)",), ({SLEEP!r},)]
list(run_jobs(eval, jobs, 1))
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{worker}").exists()
