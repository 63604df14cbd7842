"""Several workers, processes and commands on one folder, and kills at any moment."""

import os
import pickle
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from lipcomp._claims import claim
from lipcomp.jobs._contract import JobsError
from lipcomp.measure import (
    Images,
    Plan,
    Sigma,
    Source,
    _run as running,
    run,
)
from lipcomp.measure._parallel import claim_name, measure_source, run_parallel
from lipcomp.measure._run import Outputs


@pytest.mark.slow
def test_workers_share_one_file_and_a_job_that_fails_is_named(plan, tmp_path, values):
    bad = Source(str(tmp_path / "gone.safetensors"), "gone")
    asked = replace(plan, sources=(*plan.sources, bad), quantities=(Sigma(limit=4),))
    out, lines = tmp_path / "out.jsonl", []
    with pytest.raises(JobsError, match=r"gone.*does not exist"):
        run_parallel(asked, lambda source: Outputs(out), tell=lines.append, workers=2)
    assert {run for run, _ in values(out)} == {"a", "b"}
    assert any("failed" in line for line in lines)


LOOP = """
import pathlib, pickle, sys
from lipcomp.measure._run import Outputs
from lipcomp.measure._parallel import measure_source
plan = pickle.loads(pathlib.Path(sys.argv[2]).read_bytes())
print("ready", flush=True)
for source in plan.sources:
    print(measure_source(plan.of(source), Outputs(pathlib.Path(sys.argv[1])), wait=60.0), flush=True)
"""


def start(out, plan):
    """The plan in a process of its own."""
    sent = out.with_suffix(".plan")
    sent.write_bytes(pickle.dumps(plan))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-c", LOOP, str(out), str(sent)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True)


@pytest.mark.slow
def test_twenty_kills_end_in_the_records_of_an_undisturbed_run(plan, tmp_path, values):
    started = time.monotonic()
    list(run(plan, tmp_path / "whole.jsonl"))
    seconds = time.monotonic() - started
    out, rng, killed = tmp_path / "killed.jsonl", random.Random(0), 0
    for _ in range(20):
        process = start(out, plan)
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.0, seconds / 5))
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
    final = start(out, plan)
    assert "busy=False" in final.communicate(timeout=300)[0]
    assert killed > 5
    assert values(out) == values(tmp_path / "whole.jsonl")


@pytest.mark.slow
def test_two_processes_share_the_work_of_one_folder(plan, tmp_path, values):
    list(run(plan, tmp_path / "whole.jsonl"))
    out = tmp_path / "both.jsonl"
    processes = [start(out, plan) for _ in range(2)]
    said = [process.communicate(timeout=300) for process in processes]
    assert all(process.returncode == 0 for process in processes), said
    assert values(out) == values(tmp_path / "whole.jsonl")


def test_two_runs_into_one_file_write_nothing_twice(plan, tmp_path, values):
    """One looks at what the other has appended, before it measures and before it writes."""
    out, asked = (
        tmp_path / "out.jsonl",
        replace(plan.of(plan.sources[0]), quantities=tuple(Sigma(limit=n) for n in (1, 2, 3))),
    )
    first, second = run(asked, out), run(asked, out)
    fresh = [next(first).fresh, next(second).fresh]
    with pytest.MonkeyPatch.context() as patch:  # the first writes what the second measures

        def meanwhile(*arguments):
            patch.undo()
            fresh.append(next(first).fresh)
            return running.to_records(*arguments)

        patch.setattr(running, "to_records", meanwhile)
        fresh.append(next(second).fresh)
    rest = [done.fresh for one in (first, second) for done in one]
    assert fresh + rest == [True, False, True, True, True, False]
    values(out)


def test_records_that_are_lost_during_a_run_are_measured_again(plan, tmp_path, values):
    """What was cut off, or removed, was "already there" until the next run."""
    out, asked = (
        tmp_path / "out.jsonl",
        replace(plan, sources=plan.sources[:1], quantities=(Sigma(limit=2),) * 3),
    )
    running_on = run(asked, out)
    fresh = [next(running_on).fresh]
    out.write_bytes(b"")
    fresh.append(next(running_on).fresh)
    out.unlink()
    assert [*fresh, next(running_on).fresh] == [True, True, True]
    values(out)


def test_encoders_of_one_name_are_measured_side_by_side(save_small, folder, tmp_path):
    """Their jobs waited for each other, as for "another process"."""
    for seed, place in enumerate("ab"):
        (tmp_path / place).mkdir()
        save_small(tmp_path / place / "model.safetensors", seed)
    sources = [Source(str(tmp_path / place / "model.safetensors")) for place in "ab"]
    plan = Plan(tuple(sources), Images(str(folder), limit=2), (Sigma(),), device="cpu")
    with claim(tmp_path / "out.jsonl.cells" / "claims" / claim_name(sources[0]), wait=1.0):
        found = [measure_source(plan.of(source), Outputs(tmp_path / "out.jsonl")).busy for source in sources]
    assert found == [True, False]
