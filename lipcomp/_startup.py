"""Ctrl-C while a command still imports torch, which takes seconds: one line and exit code 130, as later on.

Imported first by all packages that have commands; it changes nothing where they are imported by anything else.
"""

import sys
from pathlib import Path
from types import TracebackType

PACKAGES = ("lipcomp", "train", "analyses")


def _end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        _before(kind, error, trace)
        return
    print("\ninterrupted before it began", file=sys.stderr)
    raise SystemExit(130)


def _is_command() -> bool:
    """Whether this process was started as a command, by python -m or by the installed script."""
    name = sys.argv[0] if sys.argv else ""
    if name == "-m":  # as Python has it while it imports the packages of the module
        name = sys.orig_argv[-len(sys.argv)]  # the module, or -mMODULE, before the command's own options
        name = name.partition("m")[2] if name.startswith("-") else name
        return name.split(".")[0] in PACKAGES
    return Path(name).stem == "lipcomp"


_before = sys.excepthook
if _is_command():
    sys.excepthook = _end
