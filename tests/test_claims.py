"""Claims: never two owners, whatever is killed; what is stale is taken over."""

import multiprocessing
import os
import random
import signal
import threading
import time

import pytest

from lipcomp import _claims as claims
from lipcomp._claims import claim


def work(path, log, seed):
    """Enter and leave, many times, noted in a log."""
    rng = random.Random(seed)
    for visit in range(10**6):
        with claim(path, wait=30.0) as mine, log.open("a") as notes:
            assert mine
            notes.write(f"enter {seed}.{visit}\n")
            notes.flush()
            time.sleep(rng.random() * 0.002)
            notes.write(f"leave {seed}.{visit}\n")


def hold(path, ready):
    with claim(path) as mine:
        assert mine
        ready.set()
        time.sleep(60)


def test_one_owner_at_a_time(tmp_path):
    path = tmp_path / "new" / "runs" / "a"
    with claim(path) as mine, claim(path) as other, claim(tmp_path / "new" / "runs" / "b") as another:
        assert (mine, other, another) == (True, False, True)
    with claim(path) as mine:
        assert mine
    assert list(path.parent.iterdir()) == []


def test_never_two_owners_while_processes_are_killed(tmp_path):
    rng = random.Random(0)
    context = multiprocessing.get_context("fork")

    def start(seed):
        process = context.Process(target=work, args=(tmp_path / "it", tmp_path / "log", seed))
        process.start()
        return process

    running = [start(seed) for seed in range(4)]
    for seed in range(4, 16):
        time.sleep(0.15)
        running.pop(rng.randrange(4)).kill()  # not reaped yet: a zombie is no owner
        running.append(start(seed))
    time.sleep(0.3)
    for process in running:
        process.kill()
        process.join()
    lines = (tmp_path / "log").read_text().splitlines()
    left = {line.split()[1] for line in lines if line.startswith("leave")}
    inside, killed = None, 0
    for line in lines:
        what, who = line.split()
        if what == "leave":
            assert inside == who
            inside = None
        else:
            assert inside is None or inside not in left, "two owners"
            killed, inside = killed + (inside is not None), who
    assert killed <= 16
    assert len(lines) > 100
    with claim(tmp_path / "it") as mine:
        assert mine


def test_a_killed_owner_is_replaced_at_once_and_a_living_one_never(tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    owner = context.Process(target=hold, args=(tmp_path / "a", ready))
    owner.start()
    ready.wait(10)
    os.kill(owner.pid, signal.SIGSTOP)  # it lives, though it gives no sign
    with claim(tmp_path / "a", wait=0.2) as mine:
        assert not mine
    owner.kill()
    owner.join()
    with claim(tmp_path / "a") as mine:
        assert mine


@pytest.fixture
def elsewhere(monkeypatch):
    """A claim of a process on another machine that gives no sign of life, and what is watched for a short time."""

    def start(path):
        monkeypatch.setattr(claims, "_machine", lambda: "elsewhere")
        theirs = claim(path)
        assert theirs.__enter__()
        monkeypatch.setattr(claims, "_machine", lambda: "here")
        (file,) = path.parent.iterdir()
        return theirs, file

    monkeypatch.setattr(claims, "WATCH", 0.3)
    return start


@pytest.mark.parametrize("ahead", [-claims.STALE - 1, 86400.0])  # the clock was set back a day since
def test_of_another_machine_the_last_sign_of_life_counts(tmp_path, elsewhere, ahead):
    theirs, file = elsewhere(tmp_path / "a")
    with claim(tmp_path / "a") as mine:
        assert not mine
    os.utime(file, (time.time() + ahead,) * 2)
    with claim(tmp_path / "a") as mine:
        assert mine
        assert not file.exists()
    theirs.__exit__(None, None, None)


def test_a_clock_that_jumps_makes_no_claim_stale(tmp_path, elsewhere):
    """By the new time the last sign of life is old, but the next one comes."""
    theirs, file = elsewhere(tmp_path / "a")
    os.utime(file, (time.time() - 600,) * 2)
    threading.Timer(0.1, os.utime, (file,)).start()
    with claim(tmp_path / "a") as mine:
        assert not mine
    assert file.exists()
    theirs.__exit__(None, None, None)


def test_what_another_takes_over_is_watched_no_longer(tmp_path, elsewhere):
    """Whoever still watched the file that is gone waited until the new owner's end."""
    theirs, file = elsewhere(tmp_path / "a")
    os.utime(file, (time.time() - 600,) * 2)
    stopped = threading.Event()
    new = file.with_name(f"{file.name}new")

    def take_over():
        new.write_bytes(b"held")
        file.unlink()
        if not stopped.wait(5):
            new.unlink()

    threading.Timer(0.1, take_over).start()
    with claim(tmp_path / "a") as mine:
        stopped.set()
        assert not mine
    theirs.__exit__(None, None, None)


def test_an_owner_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "BEAT", 0.01)
    with claim(tmp_path / "a"):
        (file,) = tmp_path.iterdir()
        os.utime(file, (0, 0))
        deadline = time.monotonic() + 10
        while file.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert time.time() - file.stat().st_mtime < 60


def test_a_folder_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"), claim(tmp_path / "file" / "a"):
        pass
