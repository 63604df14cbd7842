"""Files that appear whole or not at all."""

import contextlib
import errno
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# A full disk, or one's share of it, or a file as large as the shell allows (ulimit -f).
FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)


@contextmanager
def atomic_file(path: Path, *, flush: bool = True) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on success flush it to disk and rename it, on failure remove it.

    Without the flush a file may be damaged after a power failure: for what is checked when it is read. Where ``path``
    is a link, the file that it names is written. A device or pipe is refused: a rename would put a file in its place.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "not a regular file"
        raise OSError(f"{str(path)!r} is {kind}; give the path of a file")
    temporary = _beside(path)
    try:
        temporary.touch(exist_ok=False)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
    try:
        yield temporary
        if flush:
            with temporary.open("rb+") as written:
                os.fsync(written.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in FULL:
            raise full_disk(error, path) from error
        raise


def check_writable(path: Path, name: str) -> None:
    """Refuse a path that cannot be written, before anything is measured; nothing is left behind.

    Raises
    ------
    OSError
        Naming the argument, the path and the reason.
    """
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            told = path.stat()  # not of a loop of links, nor of a name that is too long
            if stat.S_ISDIR(told.st_mode):
                raise IsADirectoryError("it is a folder; give the path of a file")
            if not stat.S_ISREG(told.st_mode):
                raise OSError("it is not a regular file; give the path of a file")
            if any(os.path.samestat(os.fstat(stream), told) for stream in filter(os.path.exists, (1, 2))):
                raise OSError("what is printed goes into this file, too; give a file of its own")
            path.open("rb+").close()
        place = path.resolve()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # too long a name is neither
            _beside(place).stat()
        folder = place.parent
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        if not folder.is_dir():
            raise NotADirectoryError(f"{str(folder)!r} is not a folder; give another path")
        # Every file is written beside its place, or claimed there. Permissions do not tell all: a full disk, say.
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, ValueError) as error:  # no file has a name with a null character
        reason = getattr(error, "strerror", None) or str(error)
        raise OSError(f"{name} {str(path)!r} cannot be written: {reason}") from error


def _beside(path: Path) -> Path:
    """A temporary name in the same folder."""
    return path.parent / f".{path.name}.{secrets.token_hex(6)}"


def full_disk(error: OSError, path: Path) -> OSError:
    """What to raise where a write was undone since the disk is full."""
    remedy = f"{path} is as it was before; {room(error)} and run the same again"
    return OSError(error.errno, f"{error.strerror}: {remedy}")


def room(error: OSError) -> str:
    """How to make room for what did not fit."""
    return "raise the limit (ulimit -f)" if error.errno == errno.EFBIG else "make room"
