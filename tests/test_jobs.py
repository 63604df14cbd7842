"""Jobs on this machine: a failure is an outcome, a killed worker is replaced, an interrupt leaves no process."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lipcomp._commands import Parser
from lipcomp.jobs import (
    _local,
    _options as options,
)
from lipcomp.jobs._contract import EngineOptions, JobFailure, JobsError, raise_failures
from lipcomp.jobs._engines import run_jobs
from lipcomp.jobs._options import add_engine_arguments, available_cores, engine_choice

# A worker imports its function by name; the built-in eval is there without a module of the tests.
THREADS = "__import__('torch').get_num_threads()"
SLEEP = "__import__('time').sleep(60)"
FAIL = "[].index('job 2')"
DIE = "__import__('os').kill(__import__('os').getpid(), 9)"


def die_once(mark: Path) -> str:
    """An expression that kills its worker the first time."""
    return f"{DIE} if not __import__('pathlib').Path({str(mark)!r}).exists() and {mark_it(mark)} else 'done'"


def mark_it(mark: Path) -> str:
    return f"[__import__('pathlib').Path({str(mark)!r}).touch()]"


def no_process_is_left():
    deadline = time.monotonic() + 20
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.1)
    return not multiprocessing.active_children()


def test_every_job_is_done_once_with_its_threads():
    outcomes = list(run_jobs(eval, [(THREADS,), *((f"{x} ** 2",) for x in range(1, 5))], workers=2))
    assert {o.number: o.result() for o in outcomes} == {0: 1, 1: 1, 2: 4, 3: 9, 4: 16}
    assert all(o.seconds >= 0 for o in outcomes)
    assert no_process_is_left()
    assert list(run_jobs(eval, [], workers=2)) == []


def test_what_fails_is_named_and_what_is_killed_is_repeated(tmp_path):
    jobs = [
        (FAIL,),
        (DIE,),
        (die_once(tmp_path / "mark"),),
        ("1",),
        ("__import__('sys').exit(3)",),
        ("lambda: 0",),
    ]
    found = {o.number: o for o in run_jobs(eval, jobs, workers=2)}
    assert sorted(found) == list(range(6))
    assert found[3].result() == 1
    assert found[2].result() == "done"
    failed = found[0].error
    assert failed.kind == "error"
    assert failed.reason == "ValueError: 'job 2' is not in list"
    assert "Traceback" in failed.traceback
    assert (found[1].error.kind, found[1].value) == ("killed", None)
    assert "SIGKILL, perhaps out of memory" in found[1].error.reason
    assert found[4].error.reason == "its process ended with exit code 3"
    assert "cannot be sent back" in found[5].error.reason
    with pytest.raises(JobFailure, match="job 2"):
        found[0].result()
    assert no_process_is_left()


def test_a_job_that_cannot_be_sent_is_one_failure():
    (one, two) = run_jobs(len, [(lambda: 0,), ([1, 2],)], workers=1)
    assert "cannot be sent to another process" in one.error.reason
    assert two.result() == 2


def test_a_generator_that_is_closed_ends_its_workers():
    started = time.monotonic()
    jobs = run_jobs(eval, [("1",), (SLEEP,)], workers=1)
    assert next(jobs).result() == 1
    jobs.close()
    assert no_process_is_left()
    assert time.monotonic() - started < 50


def test_a_parent_that_is_killed_takes_its_workers_with_it():
    code = f"""
from lipcomp.jobs._engines import run_jobs
jobs = [("print(__import__('os').getpid(), flush=True)",), ({SLEEP!r},)]
list(run_jobs(eval, jobs, workers=1))
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{worker}").exists()


def test_an_interrupt_of_the_group_ends_all_without_a_word_from_the_workers():
    code = f"""
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored where the tests run in the background
from lipcomp.jobs import _local
from lipcomp.jobs._engines import run_jobs
with _local._interrupt_later():  # with the first of all, Python starts a process of its own
    first = _local._Worker(1, None)
    deaf = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
_local._end([], [first])
try:
    list(run_jobs(eval, [("print('ready', flush=True)",), ({SLEEP!r},), ({SLEEP!r},)], workers=2))
except KeyboardInterrupt:
    print("interrupted", deaf)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert parent.stdout.readline() == "ready\n"
    time.sleep(0.5)
    os.killpg(parent.pid, signal.SIGINT)
    assert parent.communicate(timeout=30) == ("interrupted True\n", "")
    assert parent.returncode == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"workers": 0}, "workers must be at least 1, got 0"),
        ({"engine": "cloud"}, "engine must be one of local, slurm, ray, got 'cloud'"),
        ({"retries": -1}, "retries must be at least 0"),
    ],
)
def test_arguments_are_looked_at_before_anything_starts(wrong, message):
    with pytest.raises(ValueError, match=message):
        run_jobs(eval, [("1",)], **wrong)
    with pytest.raises(ValueError, match="minutes must be positive, got 0"):
        EngineOptions(minutes=0)


def test_failures_are_one_error_with_their_reasons():
    raise_failures({}, 3)
    failure = JobFailure("KeyError: 'x'", "Traceback ...")
    with pytest.raises(
        JobsError, match=r"2 of 3 failed \(run-a, run-b: KeyError: 'x'\)\. The others"
    ) as raised:
        raise_failures({"run-a": failure, "run-b": failure}, 3)
    assert raised.value.__notes__ == ["Traceback ..."]
    with pytest.raises(JobsError, match=r"1 of 1 failed .*\. Run the same command"):
        raise_failures({"run-a": failure}, 1)


def test_cores_follow_affinity_and_quotas_but_not_openmp(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(options.os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    monkeypatch.setattr(options, "_quotas", list)
    assert available_cores() == 6
    monkeypatch.setattr(options, "_quotas", lambda: [2.5, 8.0])
    assert available_cores() == 3
    monkeypatch.undo()
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "a" / "b" / "cpu.max").write_text("max 100000\n")
    (tmp_path / "own").write_text("0::/a/b\n")
    assert options._quotas(tmp_path, tmp_path / "own") == [1.5]
    (tmp_path / "cpu" / "c").mkdir(parents=True)
    (tmp_path / "cpu" / "c" / "cpu.cfs_quota_us").write_text("400000\n")
    (tmp_path / "cpu" / "c" / "cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "own").write_text("3:cpu,cpuacct:/c\n1:name=systemd:/\n")
    assert options._quotas(tmp_path, tmp_path / "own") == [4.0]


def test_gpus_are_shared_evenly(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,6")
    assert sorted(_local._devices(1, 4)) == ["2", "2", "5", "6"]
    assert _local._devices(2, 1) == ["2,5"]
    assert _local._devices(None, 2) == [None, None]
    with pytest.raises(ValueError, match=r"gpus=4 per job, but this machine shows 3"):
        _local._devices(4, 1)
    (seen,) = run_jobs(
        eval, [("__import__('os').environ['CUDA_VISIBLE_DEVICES']",)], options=EngineOptions(gpus=1)
    )
    assert seen.result() == "2"


def test_a_command_chooses_its_engine(capsys):
    parser = Parser()
    add_engine_arguments(parser)
    assert engine_choice(parser.parse_args([])) == {
        "workers": None,
        "engine": "local",
        "options": EngineOptions(),
    }
    with pytest.raises(SystemExit):
        parser.parse_args(["--memory", "8"])
    assert "--memory would be ignored without --engine slurm or ray" in capsys.readouterr().err
    line = "--engine slurm --workers 3 --partition gpu --gpus 1 --memory 8 --minutes 30 --cores 4"
    chosen = engine_choice(parser.parse_args(line.split()), Path("jobs"))
    assert chosen["options"] == EngineOptions(4, 1, 8.0, 30, "gpu", None, Path("jobs"))
    for option in ("--workers", "--cores", "--gpus", "--memory", "--minutes"):
        with pytest.raises(SystemExit):
            parser.parse_args(["--engine", "slurm", option, "0"])
        assert f"argument {option}: must be positive, got 0" in capsys.readouterr().err
