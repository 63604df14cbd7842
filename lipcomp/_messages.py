"""What error messages share: the known name that is near an unknown one, and what has to be installed."""

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


def nearest(name: str, known: Iterable[str]) -> str:
    """What follows an unknown name in a message: ``; did you mean 'fog'?``, or a full stop."""
    near = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else "."


def is_of_machine(error: BaseException) -> bool:
    """Whether memory or open files ran out, which is no fault of what was being read."""
    number, text = getattr(error, "errno", None), str(error).lower()
    short = isinstance(error, MemoryError) or number in (errno.ENOMEM, errno.EMFILE, errno.ENFILE)
    return short or any(sign in text for sign in ("allocate memory", "out of memory", "too many open files"))


@contextmanager
def needed(by: str, install: str) -> Iterator[None]:
    """Imports of what may not be installed; where it is not, the ImportError says what needs it and how it comes."""
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"{by} needs {error.name}, which cannot be imported ({error}); install it with: pip install '{install}'"
        ) from error
