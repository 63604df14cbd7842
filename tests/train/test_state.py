"""A run's folder: atomic states, damage noticed, one run at a time, failures of the disk explained."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from train.folder import find_states, held, keep_lines, last_state, load_state, remove_fragments, save_state
from train.parallel import Interruption

STATE = {"run": "x", "trainee": {"w": torch.arange(50.0)}}


def test_a_state_comes_back_and_only_the_last_two_are_kept(tmp_path):
    for step in (3, 10, 200):
        save_state(tmp_path, step, STATE)
    assert [file.name for file in find_states(tmp_path)] == ["step-00000200.state", "step-00000010.state"]
    state = last_state(tmp_path, print)
    assert state["step"] == 200
    assert torch.equal(state["trainee"]["w"], STATE["trainee"]["w"])


@pytest.mark.parametrize("damage", ["empty", "half", "flipped bit", "garbage"])
def test_a_damaged_last_state_is_said_and_the_one_before_it_taken(tmp_path, damage):
    save_state(tmp_path, 1, STATE)
    file = save_state(tmp_path, 2, STATE)
    data = bytearray(file.read_bytes())
    if damage == "empty":
        data = b""
    elif damage == "half":
        data = data[: len(data) // 2]
    elif damage == "garbage":
        data = os.urandom(1000)
    else:
        data[len(data) // 2] ^= 1
    file.write_bytes(data)
    said = []
    assert last_state(tmp_path, said.append)["step"] == 1
    assert "step-00000002.state' is damaged" in said[0]
    assert "going back" in said[0]
    find_states(tmp_path)[1].write_bytes(b"")
    assert last_state(tmp_path, said.append) is None
    with pytest.raises(ValueError, match="damaged"):
        load_state(file)


def test_a_full_disk_keeps_the_state_before_and_says_so(tmp_path):
    """A real failed write: the process may not write files larger than the limit."""
    save_state(tmp_path, 1, STATE)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match=r"step 2 cannot be written.*step-00000001.state, is whole.*Free"):
            save_state(tmp_path, 2, {"w": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [file.name for file in (tmp_path / "states").iterdir()] == ["step-00000001.state"]
    assert last_state(tmp_path, print)["step"] == 1


def test_a_folder_that_cannot_be_written_to_is_said_before_anything_is_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot be written to.*--out"), held(tmp_path / "file" / "run"):
        pass


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_read_only_folder_is_refused(tmp_path):
    """As another user, since root may write anywhere."""
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.getuid() and len(parent.parts) > 2:
            parent.chmod(parent.stat().st_mode | 0o055)
    readonly = tmp_path / "readonly"
    readonly.mkdir()
    readonly.chmod(0o555)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.getuid() == 0:
                os.setuid(65534)
            try:
                with held(readonly / "run"):
                    os.write(writer, b"no error")
            except OSError as error:
                os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    message = os.read(reader, 1000).decode()
    os.close(reader)
    os.close(writer)
    assert "readonly/run' cannot be written to (" in message
    assert "Permission denied" in message
    assert "); give another with --out" in message
    assert not list(readonly.iterdir())


@pytest.mark.slow
def test_two_runs_in_one_folder_are_refused_while_the_first_lives(tmp_path):
    code = "import sys, time\nfrom pathlib import Path\nsys.path.insert(0, sys.argv[2])\n"
    code += "from train.folder import held\n"
    code += "with held(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    root = str(Path(__file__).parents[2])
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), root], stdout=subprocess.PIPE, text=True, cwd=root
    )
    assert other.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match="another run trains in"), held(tmp_path):
        pass
    other.kill()
    other.wait()
    with held(tmp_path):  # the lock went with the process
        (tmp_path / "metrics.jsonl").touch()


def test_a_run_that_stops_before_writing_leaves_no_folder(tmp_path):
    with pytest.raises(KeyError), held(tmp_path / "a" / "run"):
        raise KeyError
    assert not list((tmp_path / "a").iterdir())


def test_metrics_are_cut_back_and_torn_lines_dropped(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 0, "loss": 1}\n{"step": 1, "loss": 2}\n{"step": 2, "lo')
    keep_lines(file, 2)
    assert file.read_text() == '{"step": 0, "loss": 1}\n{"step": 1, "loss": 2}\n'
    keep_lines(file, 1)
    assert file.read_text() == '{"step": 0, "loss": 1}\n'
    keep_lines(tmp_path / "none", 1)
    file.write_bytes(b'[1]\n{"loss": 1}\n\xff\n{"step": 0}\n')  # and what is none of ours
    keep_lines(file, 1)
    assert file.read_text() == '{"step": 0}\n'


def test_what_a_killed_write_left_is_removed_and_nothing_else(tmp_path):
    save_state(tmp_path, 1, STATE)
    (tmp_path / ".model.safetensors.ab12").touch()
    (tmp_path / "states" / ".step-00000002.state.x1").touch()
    (tmp_path / "metrics.jsonl").touch()
    remove_fragments(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.jsonl", "states"]
    assert len(list((tmp_path / "states").iterdir())) == 1


@pytest.mark.parametrize("first", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_the_first_signal_of_each_kind_asks_and_the_handlers_come_back(first):
    """A closed terminal killed a run at once; and its worker, which hears of it, is asked by SIGTERM then."""
    signals = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT]
    told = []

    def usual(number, frame):
        told.append(number)

    own = {each: signal.signal(each, usual) for each in signals}
    try:  # whatever the tests were started with: nohup ignores SIGHUP, a shell's & SIGINT
        with Interruption() as interruption:
            os.kill(os.getpid(), getattr(signal, first))
            assert interruption.requested
            assert signal.getsignal(getattr(signal, first)) is usual
            for each in {*signals} - {getattr(signal, first)}:
                os.kill(os.getpid(), each)
        assert all(signal.getsignal(each) is usual for each in signals)
    finally:
        for each, handler in own.items():
            signal.signal(each, handler)
    assert not told
