"""Files that appear whole or not at all."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))  # a full disk, or one's share of it


@contextmanager
def atomic_file(path: Path, *, flush: bool = True) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on success flush it to disk and rename it, on failure remove it.

    Without the flush a file may be damaged after a power failure: for what is checked when it is read.
    """
    temporary = path.parent / f".{path.name}.{secrets.token_hex(6)}"
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


def full_disk(error: OSError, path: Path) -> OSError:
    """What to raise where a write was undone since the disk is full."""
    remedy = f"{path} is as it was before; make room and run the same again"
    return OSError(error.errno, f"{error.strerror}: {remedy}")
