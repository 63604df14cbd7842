"""Claims: one of many processes, on this machine or on others that share a folder, does a piece of work.

>>> from lipcomp._claims import claim
>>> with claim("runs/a") as mine:  # doctest: +SKIP
...     if mine:
...         train("runs/a")

A claim is an empty file of a name that nobody else uses, beside what is claimed. Whoever wants to work puts its file
there, *then* looks at the folder: if no other live file is there, it writes "held" into its own and works; if one is
held, it leaves; if others are trying too, all step back and try again after a random pause. Of two processes, the one
that looks last has put its file there before it looked, and the other one's as well, so never do both find the folder
empty. Nothing is ever taken away by name from a process that lives, so a stale file can be removed by anybody at any
moment: taking over has no race. No ``flock`` is needed, which some cluster file systems answer with ENOSYS.

A claim is stale when its process is gone (on this machine), or when nobody has renewed it for :data:`STALE` seconds
(on another, by the clock of the file server). Clocks are set: so it must also give no sign while it is watched for
:data:`WATCH` seconds, by a clock that nobody sets. A process that was stopped for longer than that may find its work
done by another: what is claimed must be written whole, in one rename or one append, as everything here is.
"""

import contextlib
import functools
import hashlib
import os
import platform
import random
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

STALE = 120.0  # seconds without a sign of life, of a process on another machine
BEAT = 20.0  # seconds between two signs of life
WATCH = 50.0  # seconds, at least two beats, that a claim is watched before it counts as stale
PAUSE = 0.005  # seconds, the first pause when others try or work; it doubles, up to 0.3 s, and grows with long waits
TRIES = 12

# What seems stale, at which sign of life, and since when it is watched.
Watched = dict[tuple[Path, float], float]


@contextlib.contextmanager
def claim(path: Path | str, wait: float = 0.0) -> Iterator[bool]:
    """Claim a piece of work; yields whether it is this process's, until the block ends.

    Parameters
    ----------
    path
        What is claimed: a file or a folder, which need not exist; its parent is made.
    wait
        Seconds to wait while another holds it; a claim that seems stale is watched at any rate.

    Raises
    ------
    OSError
        If no file can be made beside ``path``.
    """
    path = Path(path).absolute()
    mine = (
        path.parent / f"{_prefix(path)}{_machine()}~{os.getpid()}~{_born(os.getpid())}~{secrets.token_hex(4)}"
    )
    ended = threading.Event()
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            held = _take(path, mine, wait)
        except OSError as error:
            raise OSError(
                error.errno, f"{error.strerror}: no claim can be written in {path.parent}"
            ) from error
        if held:
            threading.Thread(target=_beat, args=(mine, ended), daemon=True).start()
        yield held
    finally:
        ended.set()
        with contextlib.suppress(OSError):
            mine.unlink()


def _take(path: Path, mine: Path, wait: float) -> bool:
    started, tries = time.monotonic(), 0
    watched: Watched = {}
    while True:
        mine.touch(exist_ok=False)
        now = mine.stat().st_mtime
        before, watched = watched, {}
        rivals = [file for file in path.parent.iterdir() if _rivals(file, path, mine)]
        others = [_is_held(file, now, before, watched) for file in rivals]
        states = [state for state in others if state is not None]
        if not states:
            mine.write_bytes(b"held")
            return True
        mine.unlink()
        tries += 1
        waited = time.monotonic() - started
        if waited >= wait and not watched and (any(states) or tries > TRIES):
            return False
        longest = max(PAUSE * 2 ** min(tries, 6), min(5.0, waited / 50))
        time.sleep(random.SystemRandom().random() * longest)


def _prefix(path: Path) -> str:
    name = path.name if len(path.name) < 100 else hashlib.sha256(path.name.encode()).hexdigest()
    return f".{name}.claim~"


def _rivals(file: Path, path: Path, mine: Path) -> bool:
    return file.name.startswith(_prefix(path)) and file.name != mine.name


def _is_held(file: Path, now: float, before: Watched, watched: Watched) -> bool | None:
    """Whether another's claim is held (True) or tried (False); None if it is gone or stale, which removes it."""
    machine, process, born, _ = file.name.rsplit("~", 4)[1:]
    try:
        if machine == _machine() and sys.platform != "win32":
            stale = not _lives(int(process), born)
        elif stale := abs(now - (sign := file.stat().st_mtime)) > STALE:
            since = before.get((file, sign), time.monotonic())
            if time.monotonic() - since < WATCH:
                watched[file, sign], stale = since, False
        if not stale:
            return file.stat().st_size > 0
        file.unlink()
    except (FileNotFoundError, ValueError):
        pass
    return None


@functools.cache
def _machine() -> str:
    """Where a process number means something: host, its boot, and the container's space of numbers."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _born(process: int) -> str:
    """When a process started, in ticks since the boot: numbers are used again. "0" if it is unknown."""
    return (_status(process) or ["0"] * 20)[19]


def _status(process: int) -> list[str] | None:
    """The fields of /proc/N/stat from the state on."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _lives(process: int, born: str) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    status = _status(process)
    return status is None or (status[0] not in "ZX" and status[19] == born)


def _beat(mine: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with contextlib.suppress(OSError):
            os.utime(mine)
