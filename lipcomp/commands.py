"""What every command shares: refusing bad input in one paragraph, and leaving cleanly when interrupted.

==========  ===========================================================
exit code   meaning
==========  ===========================================================
0           done
1           bad input or data; one paragraph on stderr names it and the remedy
2           wrong usage of the command line
130         interrupted (Ctrl-C); what was finished is kept
==========  ===========================================================
"""

import argparse
import difflib
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

import torch


class Parser(argparse.ArgumentParser):
    """An argument parser without abbreviations that answers an unknown option with the nearest known one."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Print usage and the nearest option, exit with 2."""
        known = [option for action in self._actions for option in action.option_strings]
        for word in message.split():
            option = word.split("=")[0]
            near = difflib.get_close_matches(option, known, 1) if option.startswith("--") else []
            if near and option not in known:
                message += f"; did you mean {near[0]}?"
        super().error(message)


def run(main: Callable[[Sequence[str] | None], int | None], arguments: Sequence[str] | None = None) -> int:
    """Run a command's main function; turn expected failures into one paragraph on stderr and an exit code."""
    try:
        return main(arguments) or 0
    except KeyboardInterrupt:
        print(
            "\ninterrupted; what was finished is kept, run the same command again to go on", file=sys.stderr
        )
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except (ValueError, OSError, ImportError, FloatingPointError) as failure:
        fail(str(failure) or repr(failure))
        return 1


def fail(message: str) -> None:
    """One paragraph on stderr."""
    width = min(100, shutil.get_terminal_size().columns)
    print(
        textwrap.fill(f"error: {message}", width, break_long_words=False, break_on_hyphens=False),
        file=sys.stderr,
    )


def choose_device(name: str) -> torch.device:
    """The device for ``--device``: "auto" takes an accelerator if there is one.

    Raises
    ------
    ValueError
        If the name is no device, or that device is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f'--device {name!r} cannot be used ({reason}); take "auto" or "cpu"') from error
    return device


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A plain table: first column to the left, the others to the right, two spaces between."""
    cells = [list(head), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
