"""What all commands share: errors in one paragraph, exit codes, progress and tables.

==========  ===========================================================
exit code   meaning
==========  ===========================================================
0           done
1           bad input or data; one paragraph on stderr names it and the remedy
2           wrong usage of the command line
130         interrupted (Ctrl-C); finished work is kept
==========  ===========================================================
"""

import argparse
import difflib
import io
import os
import re
import shutil
import sys
import textwrap
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar, NoReturn

import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from lipcomp._messages import is_of_machine


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help texts that show the type of each option, and its default if the text does not mention one."""

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        kind = getattr(action.type, "__name__", "")
        return kind.upper() if kind in ("int", "float", "Path") else action.dest.upper()

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        if not action.option_strings or action.nargs == 0 or action.required or "default" in text:
            return text
        if isinstance(default, tuple | list):
            default = ",".join(f"{value:g}" if isinstance(value, float) else str(value) for value in default)
        return f"{text} (default: {'none' if default in (None, '') else default})".replace("%", "%%")


class Parser(argparse.ArgumentParser):
    """An argument parser without abbreviations that answers an unknown option with the nearest known one."""

    latest: "ClassVar[Parser | None]" = None
    """The parser of the running command."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", HelpFormatter)
        super().__init__(allow_abbrev=False, **options)
        self._unread: list[tuple[str, Callable[[Any], Any], tuple[str, ...]]] = []

    def ignores(self, when: str, holds: Callable[[argparse.Namespace], Any], *options: str) -> None:
        """Refuse options that nothing reads: ``when`` is "without ..." or "with ...", ``holds`` whether it is so."""
        self._unread.append((when, holds, options))

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse; an empty argument is refused, since an unset variable of a shell gives one."""
        Parser.latest = self
        given = list(sys.argv[1:] if args is None else args)
        for before, argument in zip(["the first", *given], given, strict=False):
            if argument == "" or (argument.startswith("--") and argument.endswith("=")):
                place = argument or (
                    f"argument {before}" if before.startswith("-") else f"the one after {before!r}"
                )
                self.error(f"{place}: an argument is empty; is a variable of the shell not set?")
        found, unknown = super().parse_known_args(given, namespace)
        for when, holds, options in self._unread:
            alone = [option for option in options if self._changed(found, option)]
            if alone and holds(found):
                remedy = "give both, or neither" if when.startswith("without") else "leave one of them out"
                self.error(f"{', '.join(alone)} would be ignored {when}; {remedy}")
        return found, unknown

    def _changed(self, found: argparse.Namespace, option: str) -> bool:
        """Whether an option has another value than its default."""
        name = option.strip("-").replace("-", "_")
        return bool(getattr(found, name) != self.get_default(name))

    def error(self, message: str) -> NoReturn:
        """Print usage and the nearest option, exit with 2."""
        known = [option for action in self._actions for option in action.option_strings]
        for word in message.split():
            option = word.split("=")[0].rstrip(":,;")
            near = difflib.get_close_matches(option, known, 1) if option.startswith("--") else []
            if near and option not in known:
                message += f"; did you mean {near[0]}?"
        super().error(message)


# What the library's parameters are called on a command line, where it is another name or none.
ON_COMMAND_LINE = {
    "root": "--data-root",
    "image_shape": "--image-size",
    "preprocessing": "--resize and --crop",
    "enlarge": "--resize",
    "layer": "",  # of lipcomp.wrap; --layer names a stage of the encoder
}
BY_FACTORY = {
    "(lipcomp.wrap)": "(--factory package.module:function)",
    "lipcomp.encoders.register_backbone(name, function)": "--factory FILE.py:FUNCTION",
}


def as_options(text: str) -> str:
    """A message of the library, with the running command's options in the place of its parameters."""
    actions = () if Parser.latest is None else Parser.latest._actions
    known = {option for action in actions for option in action.option_strings}

    def option(match: re.Match[str]) -> str:
        if match[1] is None:  # in quotes: a path or a name
            return match[0]
        name, value = match[1], (match[2] or "").strip("\"'")
        told = ON_COMMAND_LINE.get(name, "--" + name.replace("_", "-"))
        if told.partition(" ")[0] not in known:
            return match[0]
        if value in ("", "True", "..."):
            value_follows = re.match(r"[\w([+-]", text[match.end() :])  # such as (0.5, 1)
            return f"{told} " if value_follows else told
        return f"{told} {value}"

    for function, told in BY_FACTORY.items() if "--factory" in known else ():
        text = text.replace(function, told)
    quoted, value = r"\"[^\"]*\"|'[^']*'", r"True\b|[\d.]*\d|\.\.\."
    return re.sub(
        rf"(?<![\w=])(?:{quoted})|(?<![\w./-])(?<!--set )([a-z_]+)=(?!=)({value}|{quoted})?", option, text
    )


class UsageError(ValueError):
    """Options that contradict each other, or a missing one: exit code 2."""


def run(main: Callable[[Sequence[str] | None], int | None], arguments: Sequence[str] | None = None) -> int:
    """Run a command's main function; turn failures into one paragraph on stderr and an exit code.

    Set LIPCOMP_TRACEBACK=1 to see the traceback.
    """
    Parser.latest = None
    formatted = warnings.formatwarning
    try:
        warnings.formatwarning = partial(_warning, formatted)
        if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.encoding.lower().startswith("utf"):
            sys.stdout.reconfigure(errors="backslashreplace")  # names that the terminal cannot show
        code = main(arguments) or 0
        if sys.stdout is not None:  # None where a shell has closed it
            sys.stdout.flush()
    except KeyboardInterrupt:
        print("\ninterrupted; finished work is kept. Run the same command again to continue", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, for example head, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as failure:
        if os.environ.get("LIPCOMP_TRACEBACK"):
            traceback.print_exc()
        fail(as_options(_explain(failure)))
        return 2 if isinstance(failure, UsageError) else 1
    finally:
        warnings.formatwarning = formatted
    return code


def _warning(others: Callable[..., str], message: Any, category: type[Warning], *place: Any) -> str:
    """A warning of the library as one paragraph, without the line of code that raised it."""
    if not category.__module__.startswith("lipcomp"):
        return others(message, category, *place)
    return _paragraph(f"warning: {message}") + "\n"


def _explain(failure: Exception) -> str:
    """The failure in one sentence, with the remedy if there is a known one."""
    text = " ".join(str(failure).split()) or repr(failure)
    if is_of_machine(failure) and "open files" in text:
        return f"{text}; close some, or raise the limit, as in: ulimit -n 4096"
    if is_of_machine(failure):
        return f"out of memory ({text[:200]}); use a smaller --batch-size, or another --device"
    if isinstance(failure, UnicodeEncodeError) and "surrogates" in failure.reason:
        return f"the name {os.fsencode(failure.object)[:200]!r} is not UTF-8; rename the file or folder"
    if isinstance(failure, ValueError | OSError | ImportError | FloatingPointError):
        return text
    kind = type(failure).__name__
    return f"{kind}: {text[:600]} (set LIPCOMP_TRACEBACK=1 to see the traceback)"


def fail(message: str) -> None:
    """One paragraph on stderr."""
    print(_paragraph(f"error: {message}"), file=sys.stderr)


def _paragraph(text: str) -> str:
    width = min(100, shutil.get_terminal_size().columns)
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


@contextmanager
def progress(total: int, label: str, *, every: float = 10.0) -> Iterator[Callable[..., None]]:
    """Show work on stderr: a bar on a terminal, in a pipe one line every ``every`` seconds.

    Yields ``advance(n=1)``, to be called as parts of ``total`` are done.
    """
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(label, total=total)
            yield lambda n=1: bar.advance(task, n)
        return
    started, done, shown = time.monotonic(), 0, time.monotonic()

    def advance(n: int = 1) -> None:
        nonlocal done, shown
        done += n
        now = time.monotonic()
        if now - shown >= every and done < total:
            shown, left = now, (now - started) / max(done, 1) * (total - done)
            print(f"{label}: {done}/{total}, {left:.0f} s left", file=sys.stderr, flush=True)

    yield advance


def choose_device(name: str) -> torch.device:
    """A device by name; "auto" chooses an accelerator if there is one.

    Raises
    ------
    ValueError
        If the name is not that of a device, or the device is not available.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()  # also where no values are held, as on "meta"
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f'device {name!r} cannot be used ({reason}); use "auto" or "cpu"') from error
    return device


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table: first column to the left, the others to the right; plain in a pipe, drawn on a terminal."""
    rows = list(rows)
    console = Console()
    if console.is_terminal:
        drawn = Table(*head, box=box.SIMPLE_HEAD)
        for column in drawn.columns[1:]:
            column.justify = "right"
        for row in rows:
            drawn.add_row(*map(str, row))
        with console.capture() as captured:
            console.print(drawn)
        return captured.get().strip("\n")
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


def duration(seconds: float) -> str:
    """Seconds in words: "40 s", "3 min", "2.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
