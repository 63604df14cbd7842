"""SHA-256 of files by their bytes; unchanged files are not read twice."""

import contextlib
import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_RACY = 2_000_000_000  # ns: a file changed this recently may change again without a new time


def hash_files(
    paths: Sequence[Path | str], advance: Callable[[int], object] | None = None, *, cache: Path | None = None
) -> list[str]:
    """SHA-256 of each file's bytes, in order, as 64 hex digits; ``advance`` is called with how many are finished.

    What an earlier call read is remembered by path, size, inode and times (of content and of change), so that only
    changed files are read again. The memory is a cache of the content's hash and never stands for it: a file that was
    changed within the last two seconds is not remembered, and a damaged or unwritable cache costs time only.
    Its file is ``cache``, by default ``file-hashes.sqlite`` in :func:`cache_folder`. A missing file is an OSError.
    """
    told = advance or (lambda n: None)
    keys = [os.path.abspath(path) for path in paths]  # noqa: PTH100 (no link is followed: the name is the key)
    with _file_cache(cache) as memory, ThreadPoolExecutor(8) as pool:
        # One task per file would cost more than the look at it.
        parts = [keys[start : start + 512] for start in range(0, len(keys), 512)]
        marks = [mark for part in pool.map(lambda part: [_mark(key) for key in part], parts) for mark in part]
        known = memory.find(keys)
        found = [known.get(key, ("", "")) for key in keys]
        result = [sha if repr(mark) == seen else None for mark, (seen, sha) in zip(marks, found, strict=True)]
        told(sum(sha is not None for sha in result))
        missing = [i for i, sha in enumerate(result) if sha is None]
        # remembered as it goes: an interrupted call is not begun again
        for start in range(0, len(missing), 512):
            part = missing[start : start + 512]
            fresh = []
            for i, sha in zip(part, pool.map(_hash_file, [keys[i] for i in part]), strict=True):
                result[i] = sha
                told(1)
                if time.time_ns() - max(marks[i][2], marks[i][3]) > _RACY and _mark(keys[i]) == marks[i]:
                    fresh.append((keys[i], repr(marks[i]), sha))
            memory.add(fresh)
    return [str(sha) for sha in result]


def cache_folder() -> Path:
    """Where lipcomp keeps what it can compute again: $LIPCOMP_CACHE, or a folder ``lipcomp`` in the user's cache."""
    own = os.environ.get("LIPCOMP_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME")
    return Path(base or Path("~/.cache").expanduser()) / "lipcomp"


def _mark(path: str) -> tuple[int, int, int, int]:
    try:
        stat = os.stat(path)  # noqa: PTH116
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"file {path!r} does not exist (any more); is the folder being changed?"
        ) from error
    return stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns


def _hash_file(path: str) -> str:
    with open(path, "rb") as file:  # noqa: PTH123
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Memory:
    """The cache of file hashes; without a connection it remembers nothing."""

    def __init__(self, connection: sqlite3.Connection | None) -> None:
        self.connection = connection

    def find(self, keys: Iterable[str]) -> dict[str, tuple[str, str]]:
        if self.connection is None:
            return {}
        found: dict[str, tuple[str, str]] = {}
        keys = list(keys)
        with contextlib.suppress(sqlite3.Error, ValueError):
            for start in range(0, len(keys), 500):
                part = keys[start : start + 500]
                marks = ",".join("?" * len(part))
                rows = self.connection.execute(
                    f"select path, mark, sha from files where path in ({marks})", part
                )
                found |= {path: (mark, sha) for path, mark, sha in rows}
        return found

    def add(self, rows: list[tuple[str, str, str]]) -> None:
        if self.connection is None or not rows:
            return
        with contextlib.suppress(sqlite3.Error):
            self.connection.executemany("insert or replace into files values (?, ?, ?)", rows)
            self.connection.commit()


@contextlib.contextmanager
def _file_cache(path: Path | None) -> Iterator[_Memory]:
    connection = None
    try:
        place = path or cache_folder() / "file-hashes.sqlite"
        place.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(place, timeout=5, check_same_thread=False)
        connection.execute("create table if not exists files (path text primary key, mark text, sha text)")
    except (OSError, RuntimeError, sqlite3.Error):  # no home, say: a user of a container
        connection = None
    try:
        yield _Memory(connection)
    finally:
        if connection is not None:
            connection.close()
