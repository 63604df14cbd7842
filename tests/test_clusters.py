"""Jobs on a real Slurm of two nodes and on a real Ray cluster, both started here, with jobs that are killed."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lipcomp.checkpoints import save_checkpoint
from lipcomp.checkpoints._native import Metadata
from lipcomp.encoders import EncoderSpec, build_encoder
from lipcomp.jobs import _slurm
from lipcomp.jobs._contract import EngineOptions, answer
from lipcomp.jobs._engines import run_jobs
from lipcomp.measure import Images, Plan, Sigma, Source, run
from lipcomp.measure._parallel import run_parallel
from lipcomp.measure._run import Outputs
from lipcomp.records import read_records

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]

SQUARE = "__import__('time').sleep(0.1) or ({x} ** 2, __import__('torch').get_num_threads())"
FAIL = "[].index('job')"
DIE = "__import__('os').kill(__import__('os').getpid(), 9)"
SLEEP = "__import__('time').sleep(300)"
WRITE = (
    "(lambda r, told: r.append_records({path!r}, [r.Record('q', {x}.0, provenance=told, identity=str(i)) "
    "for i in range(50)]))(__import__('lipcomp.records').records, "
    "__import__('importlib').import_module('lipcomp.records._origin').provenance())"
)
SCRIPT = """
import sys
from pathlib import Path
from lipcomp.jobs._contract import EngineOptions
from lipcomp.jobs._engines import run_jobs

def double(x):
    return helper(x)

def helper(x):
    return 2 * x

if __name__ == "__main__":
    options = EngineOptions(minutes=5, folder=Path(sys.argv[2]))
    print([o.result() for o in run_jobs(double, [(3,)], engine=sys.argv[1], workers=1, options=options)])
"""
ORPHAN = """
import os
from lipcomp.jobs._engines import run_jobs
jobs = [("__import__('os').getpid()",), ("__import__('time').sleep(300)",)]
for outcome in run_jobs(eval, jobs, workers=1, engine="ray"):
    print(outcome.result(), flush=True)
"""


def when(condition: str, folder: Path, then: str) -> str:
    """An expression that leaves a file begun-* in a folder, waits for a condition, however long, and has a value."""
    begun = f"__import__('tempfile').mkstemp(dir={str(folder)!r}, prefix='begun-')"
    return f"{begun} and next({then} for _ in iter(int, 1) if {condition} or __import__('time').sleep(0.1))"


def once(mark: Path, then: str) -> str:
    """An expression that does something the first time, and later returns "again"."""
    path = f"__import__('pathlib').Path({str(mark)!r})"
    return f"'again' if {path}.exists() else ({path}.touch(), {then})[1]"


def free_port() -> int:
    with socket.socket() as end:
        end.bind(("127.0.0.1", 0))
        return end.getsockname()[1]


def until(what, seconds=180.0):
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.2)
    return found


@contextlib.contextmanager
def meanwhile(act):
    """Something done in a thread while the block runs; the block's end waits for it."""
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    yield
    thread.join(60)
    assert not thread.is_alive()


def printed(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def queue() -> str:
    return printed(["squeue", "-h"])


def processes(words: str) -> list[int]:
    """The processes whose command line holds some words."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if words in line and not line.startswith(("srun", "/bin/bash")) and "srun" not in line.split()[0]:
                found.append(int(folder.name))
    return found


@pytest.fixture(scope="module")
def environment():
    """Of every process that a test starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Ray's workers are nice by 15: on a busy machine they stand still
        patch.setenv("RAY_worker_niceness", "0")
        yield patch


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch, environment):
    monkeypatch.setattr(_slurm, "GRACE", 3.0)
    monkeypatch.setattr(_slurm, "POLL", 0.5)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory, environment):
    """A Slurm of two nodes with one core each, on this machine."""
    pytest.importorskip("submitit", reason="submitit is not installed: pip install 'lipcomp[slurm]'")
    for program in ("slurmctld", "slurmd", "munged", "sbatch"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed: apt-get install slurmctld slurmd slurm-client munge")
    if os.getuid() != 0:
        pytest.skip("a Slurm of one's own needs root")
    home = tmp_path_factory.mktemp("slurm")
    home.chmod(0o755)
    host = printed(["hostname", "-s"]).strip()
    key = home / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    # cred_expire is also how long a job that is queued again has to wait; 120 seconds by default
    (home / "slurm.conf").write_text(f"""
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={free_port()}
AuthType=auth/munge
AuthInfo=socket={home}/munge.socket,cred_expire=30
SlurmUser=root
StateSaveLocation={home}/state
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd-%n.pid
SlurmdSpoolDir={home}/spool-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=2,batch_sched_delay=0
KillWait=2
MaxArraySize=5
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()} CPUs=1
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()} CPUs=1
PartitionName=small Nodes=node1,node2 Default=YES MaxTime=60 State=UP
""")
    environment.setenv("SLURM_CONF", str(home / "slurm.conf"))
    commands = [
        f"munged --force --foreground --socket={home}/munge.socket --key-file={key} --pid-file={home}/munge.pid "
        f"--log-file={home}/munge.log --seed-file={home}/munge.seed",
        "slurmctld -D",
        "slurmd -D -N node1",
        "slurmd -D -N node2",
    ]
    idle = ["sinfo", "-h", "-t", "idle", "-o", "%D"]
    started = []
    with (home / "log").open("w") as log:
        for command in commands:
            started.append(subprocess.Popen(command.split(), stdout=log, stderr=log))
            time.sleep(0.5)
    try:
        until(lambda: subprocess.run(idle, capture_output=True).stdout == b"2\n")
        yield home
    except AssertionError:
        pytest.fail((home / "log").read_text()[-3000:])
    finally:
        subprocess.run(["scancel", "--user=root"], check=False)
        for process in reversed(started):
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
        for folder in Path("/proc").glob("[0-9]*"):  # the steps of a job queued again outlive everything
            with contextlib.suppress(OSError):
                if f"SLURM_CONF={home}/".encode() in (folder / "environ").read_bytes():
                    os.kill(int(folder.name), signal.SIGKILL)


def start_patiently(start):
    """Ray gives a node half a minute to start, which a busy machine may need twice."""
    for _ in range(3):
        with contextlib.suppress(Exception):
            return start()
    return start()


@pytest.fixture(scope="module")
def ray_cluster(environment):
    """A Ray cluster of two nodes with one core each, on this machine."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'lipcomp[ray]'")
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False}
    cluster = start_patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
    start_patiently(lambda: cluster.add_node(num_cpus=1))
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


@pytest.fixture(params=["slurm", "ray"])
def engine(request):
    """An engine's name: the Slurm above, and a Ray that is started for the time."""
    if request.param == "slurm":
        request.getfixturevalue("slurm")
    else:
        pytest.importorskip("ray", reason="Ray is not installed: pip install 'lipcomp[ray]'")
    return request.param


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Two small encoders."""
    folder = tmp_path_factory.mktemp("encoders")
    spec = EncoderSpec("small_cnn", (1, 28, 28), projector=(16, 8))
    paths = [folder / "0.safetensors", folder / "1.safetensors"]
    for seed, path in enumerate(paths):
        told = Metadata(seed=seed, data={"name": "mnist5k/train"})
        save_checkpoint(path, build_encoder(spec, seed=seed), metadata=told)
    return paths


# --- jobs


def test_slurm_runs_repeats_and_names(slurm, tmp_path):
    record = tmp_path / "r.jsonl"
    jobs = [(SQUARE.format(x=x),) for x in range(3)]
    jobs += [(FAIL,), (DIE,), (once(tmp_path / "mark", DIE),), (WRITE.format(path=str(record), x=7),)]
    options = EngineOptions(minutes=5, partition="small", folder=tmp_path)
    found = {o.number: o for o in run_jobs(eval, jobs, engine="slurm", options=options)}
    assert sorted(found) == list(range(7))
    assert [found[x].result() for x in range(3)] == [(0, 1), (1, 1), (4, 1)]
    assert (found[3].error.kind, found[3].error.reason) == ("error", "ValueError: 'job' is not in list")
    assert found[4].error.kind == "killed"
    assert "ended as FAILED without a result" in found[4].error.reason
    assert found[5].result() == "again"
    assert len(read_records(record)) == 50
    assert read_records(record)[0].provenance["command"].startswith(("pytest", "python"))  # of who asked
    until(lambda: queue() == "")  # a job whose result is here may still be completing


def test_slurm_runs_again_what_is_preempted_or_cut(slurm, tmp_path):
    jobs = [(once(tmp_path / "one", SLEEP),), (once(tmp_path / "two", SLEEP),), ("1",)]
    outcomes = run_jobs(eval, jobs, engine="slurm", options=EngineOptions(minutes=30, folder=tmp_path))

    def stop() -> None:
        until((tmp_path / "one").exists)
        until((tmp_path / "two").exists)
        numbers = {line.split()[0].partition("_")[2]: line.split()[0] for line in queue().splitlines()}
        subprocess.run(["scancel", "--signal=USR2", numbers["0"]], check=True)
        subprocess.run(["scancel", numbers["1"]], check=True)  # by an administrator

    with meanwhile(stop):
        assert {o.number: o.result() for o in outcomes} == {0: "again", 1: "again", 2: 1}
    assert not list((tmp_path / "slurm-jobs").iterdir())  # all went well: nothing is kept


def test_slurm_queues_again_what_reaches_its_time_limit(slurm, tmp_path):
    """The least limit there is: a minute, of which Slurm tells a quarter before; the second time the job is quick."""
    job = (once(tmp_path / "mark", SLEEP),)
    options = EngineOptions(minutes=1, folder=tmp_path)
    started = time.monotonic()
    (outcome,) = run_jobs(eval, [job], engine="slurm", options=options, retries=0)
    assert outcome.result() == "again"
    assert time.monotonic() - started > 30


def test_slurm_jobs_are_cancelled_when_nobody_waits(slurm, tmp_path):
    options = EngineOptions(minutes=5, folder=tmp_path)
    outcomes = run_jobs(eval, [("1",), (SLEEP,), (SLEEP,)], engine="slurm", options=options)
    assert next(outcomes).result() == 1
    assert queue() != ""
    outcomes.close()
    until(lambda: queue() == "")


def test_slurm_that_does_not_answer_is_named(slurm, tmp_path, monkeypatch):
    options = EngineOptions(partition="none", folder=tmp_path)
    with pytest.raises(ConnectionError, match=r"Slurm took no job: .*invalid partition"):
        list(run_jobs(eval, [("1",)], engine="slurm", options=options))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="needs sbatch, srun, squeue, scancel"):
        run_jobs(eval, [("1",)], engine="slurm")


def test_ray_runs_repeats_and_names(ray_cluster, tmp_path):
    node = "__import__('ray').get_runtime_context().get_node_id()"
    jobs = [(SQUARE.format(x=x),) for x in range(3)]
    jobs += [(FAIL,), (DIE,), (once(tmp_path / "mark", DIE),)]
    both = f"len(__import__('glob').glob({str(tmp_path / 'begun-*')!r})) >= 2"
    jobs += [(when(both, tmp_path, node),)] * 2  # neither ends before the other has begun: on the other node
    options = EngineOptions(address=ray_cluster.address)
    found = {o.number: o for o in run_jobs(eval, jobs, engine="ray", options=options)}
    assert sorted(found) == list(range(8))
    assert [found[x].result() for x in range(3)] == [(0, 1), (1, 1), (4, 1)]
    assert (found[3].error.kind, found[3].error.reason) == ("error", "ValueError: 'job' is not in list")
    assert found[4].error.kind == "killed"
    assert "its worker was lost" in found[4].error.reason
    assert found[5].result() == "again"
    assert found[6].result() != found[7].result()  # both nodes worked


def test_ray_repeats_what_a_lost_node_held(ray_cluster, tmp_path):
    node = start_patiently(lambda: ray_cluster.add_node(num_cpus=1))
    ray_cluster.wait_for_nodes()
    go = tmp_path / "go"
    jobs = [(when(f"__import__('os').path.exists({str(go)!r})", tmp_path, "1"),)] * 3
    outcomes = run_jobs(eval, jobs, engine="ray", options=EngineOptions(address=ray_cluster.address))

    def pull_the_plug():
        until(lambda: len(list(tmp_path.glob("begun-*"))) == 3)
        ray_cluster.remove_node(node, allow_graceful=False)
        # a worker outlives its node for a moment
        until(lambda: len(processes(f"ray::{answer.__name__}")) == 2)
        go.touch()

    with meanwhile(pull_the_plug):
        assert [o.result() for o in outcomes] == [1, 1, 1]
    assert len(list(tmp_path.glob("begun-*"))) == 4  # the third ran twice


@pytest.mark.parametrize("answer", [None, b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_ray_that_cannot_be_reached_is_named(answer, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setattr("lipcomp.jobs._ray.PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = f"127.0.0.1:{server.getsockname()[1] if answer is not None else free_port()}"
        if answer:  # without one, what listens is silent
            threading.Thread(target=lambda: server.accept()[0].sendall(answer), daemon=True).start()
        options = EngineOptions(address=place)
        with pytest.raises(ConnectionError, match="cannot be reached"):
            list(run_jobs(eval, [("1",)], engine="ray", options=options))


def test_ray_here_ends_with_its_parent():
    pytest.importorskip("ray")
    parent = subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, text=True)
    worker = Path(f"/proc/{int(parent.stdout.readline())}")
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    until(lambda: not worker.exists() or "Z" in (worker / "stat").read_text().split())


def test_the_functions_of_a_script_run(engine, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "script.py", engine, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[6]"


# --- what runs in the jobs


def measure(folder: Path, checkpoints: list[Path], *words: str, kill: str = "") -> dict[str, float]:
    """The records of a command, by identity; meanwhile a process whose command line holds some words is killed."""
    out, killed = folder / "r.jsonl", 0
    command = [sys.executable, "-m", "lipcomp.jacobian", *map(str, checkpoints), "--data", "mnist5k"]
    command += ["--limit", "60", "--device", "cpu", "--out", str(out), *words]
    with subprocess.Popen(command, cwd=folder) as running:
        try:
            while kill and not killed and running.poll() is None:
                for process in processes(kill)[:1]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL)
                        killed = process
                time.sleep(0.1)
            running.wait(600)
        except BaseException:
            running.kill()  # else the test waits for a command that nobody looks at any more
            raise
    assert running.returncode == 0
    assert bool(killed) == bool(kill)
    records = read_records(out)
    assert len({r.subject["sha256"] for r in records}) == len(checkpoints)
    assert all("lipcomp.jacobian" in r.provenance["command"] for r in records)
    assert len({(r.quantity, r.identity) for r in records}) == len(records)  # nothing twice
    return {r.quantity + r.identity: r.value for r in records if not r.quantity.startswith("time")}


@pytest.fixture(scope="module")
def here(checkpoints, environment, tmp_path_factory):
    """What the command measures on this machine."""
    pytest.importorskip("mlxtend")
    return measure(tmp_path_factory.mktemp("local"), checkpoints)


def test_a_command_whose_job_is_killed_measures_what_it_does_here(engine, checkpoints, here, tmp_path):
    words = {"slurm": ("--minutes", "5"), "ray": ("--workers", "1")}[engine]
    kill = {"slurm": f"submitit.core._submit {tmp_path}", "ray": f"ray::{answer.__name__}"}[engine]
    found = measure(tmp_path, checkpoints, "--engine", engine, *words, kill=kill)
    assert found == pytest.approx(here, rel=1e-5)


@pytest.fixture(scope="module")
def plan(checkpoints):
    """Two encoders and 300 images: two blocks, which two shards share."""
    sources = tuple(Source(str(path), name) for path, name in zip(checkpoints, "ab", strict=True))
    return Plan(sources, Images("mnist5k", limit=300), (Sigma(),), device="cpu")


@pytest.fixture(scope="module")
def plan_here(plan, tmp_path_factory):
    """What this process measures."""
    out = tmp_path_factory.mktemp("plan") / "here.jsonl"
    list(run(plan, out))
    return by_encoder(out)


def by_encoder(path: Path) -> dict[tuple[str, str], float]:
    return {(r.subject["run"], r.identity): r.value for r in read_records(path)}


@pytest.mark.parametrize("name", ["slurm", "ray"])
def test_a_plan_is_measured_in_shards(name, request, plan, plan_here, tmp_path):
    if name == "slurm":
        request.getfixturevalue("slurm")
        options = EngineOptions(minutes=5, partition="small", folder=tmp_path / "jobs")
    else:
        address = request.getfixturevalue("ray_cluster").address
        options = EngineOptions(address=address, folder=tmp_path / "jobs")
    outputs, lines = Outputs(tmp_path / "there.jsonl"), []
    run_parallel(plan, lambda source: outputs, shards=2, tell=lines.append, engine=name, options=options)
    assert by_encoder(outputs.out) == plan_here
    assert len(lines) == 4 + 2  # shards, then encoders


def test_a_sweep_on_slurm_outlives_killed_jobs_and_a_diverging_run(slurm, tmp_path):
    """Twelve runs: two are killed with SIGKILL once they have written a state, one diverges; the others do not mind."""
    import numpy as np
    from PIL import Image

    from train.data import fit_to_data
    from train.recipes import find_recipe
    from train.settings import Settings
    from train.sweep import over_betas, sweep

    rng, data = np.random.default_rng(0), tmp_path / "images"
    for number in range(64):
        folder = data / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(folder / f"{number}.png")
    settings = Settings(save_steps=2, evaluate_epochs=0)
    fitted = (
        fit_to_data(find_recipe(f"mnist_{method}"), str(data), settings, print)
        for method in ("simclr", "weighted_simclr", "c_simclr")
    )
    base = [replace(recipe, epochs=20, batch_size=16) for recipe in fitted]
    wild = replace(base[0], name="wild", learning_rate=1e30, warmup_epochs=0)
    recipes = [wild, *over_betas(base, (0.1, 0.3, 1.0, 3.0, 10.0))]
    runs, killed = tmp_path / "study" / "runs", []

    def kill_two():
        while len(killed) < 2:
            time.sleep(0.02)
            for file in runs.glob(".*.claim~*") if runs.exists() else ():
                name, process = file.name[1:].partition(".claim~")[0], int(file.name.rsplit("~", 4)[2])
                if name not in killed and len(killed) < 2 and list((runs / name / "states").glob("*.state")):
                    with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                        os.kill(process, signal.SIGKILL)
                        killed.append(name)

    said: list[str] = []
    options = EngineOptions(minutes=10, partition="small", folder=tmp_path / "jobs")
    with meanwhile(kill_two):
        failed = sweep(
            recipes,
            1,
            tmp_path / "study",
            settings=settings,
            report=said.append,
            engine="slurm",
            options=options,
        )
    print("\n".join(said), "killed:", killed)
    assert failed == {}
    finished = {file.parent.name for file in runs.glob("*/model.safetensors")}
    assert finished == {f"{recipe.name}-seed0" for recipe in recipes} - {"wild-seed0"}
    assert set(killed) < finished
    assert "wild-seed0: diverged" in said[-1]
