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
import importlib.util
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd
import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from lipcomp.checkpoints import FORMAT_NAMES, Checkpoint, build_own, load_encoder, load_own
from lipcomp.data import SETS, ImageSet, load_set


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


def _floats(text: str) -> tuple[float, ...]:
    """Numbers with commas between, as --mean takes them."""
    return tuple(float(number) for number in text.split(","))


def _sizes(text: str) -> tuple[int, ...]:
    """One to three whole numbers with x or commas between, as --image-size takes them."""
    sizes = tuple(int(number) for number in text.replace("x", ",").split(","))
    if not 1 <= len(sizes) <= 3 or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"one to three positive numbers, SIDE, HxW or CxHxW; got {text!r}")
    return sizes


def add_encoder_arguments(parser: argparse.ArgumentParser) -> None:
    """CHECKPOINT..., and how to read those that others wrote."""
    parser.add_argument(
        "checkpoints",
        nargs="*",
        metavar="CHECKPOINT",
        help="a file, a Hugging Face folder, a TensorFlow prefix",
    )
    foreign = parser.add_argument_group("checkpoints of others (recognised by their keys)")
    foreign.add_argument(
        "--arch", help="the architecture: resnet50, timm/NAME, torchvision/NAME (default: by shapes)"
    )
    foreign.add_argument("--format", help=f"whose keys: {', '.join(FORMAT_NAMES)} (default: by the keys)")
    foreign.add_argument("--factory", metavar="MODULE:FUNCTION", help="a function that builds your network")
    foreign.add_argument("--head", default="auto", choices=("auto", "none"), help="none: the backbone alone")
    foreign.add_argument(
        "--branch", choices=("online", "momentum"), help="which network of a file that holds both"
    )
    foreign.add_argument(
        "--mean",
        type=_floats,
        metavar="M[,M,M]",
        help="normalisation of pixels in [0, 1], one or each channel",
    )
    foreign.add_argument("--std", type=_floats, metavar="S[,S,S]", help="as --mean")
    foreign.add_argument(
        "--image-size",
        type=_sizes,
        metavar="N",
        help="SIDE, HxW or CxHxW to measure on (default: the network's)",
    )
    foreign.add_argument("--list", action="store_true", help="show what was recognised, key by key, and stop")


def load_encoders(options: argparse.Namespace) -> list[Checkpoint]:
    """The encoders that :func:`add_encoder_arguments` asked for, in evaluation mode.

    What was recognised of a foreign one, and what had to be assumed, goes to stderr; with ``--list`` to stdout,
    key by key, and the command ends.

    Raises
    ------
    ValueError
        If there is nothing to load, or something that cannot be read safely or does not fit.
    """
    if not options.checkpoints and not options.factory:
        raise ValueError("no CHECKPOINT given; name a file or folder, or with --factory a function")
    mean, std, size = options.mean, options.std, options.image_size
    loaded = []
    for path in options.checkpoints or [None]:
        if options.factory:
            network = build_own(options.factory)
            loaded.append(load_own(network, path, mean=mean, std=std, image_size=size, name=options.factory))
        else:
            loaded.append(
                load_encoder(
                    path,
                    options.arch,
                    options.format,
                    head=options.head,
                    branch=options.branch,
                    mean=mean,
                    std=std,
                    image_size=size,
                )
            )
    for checkpoint in loaded:
        if options.list:
            print(checkpoint.describe(every_key=True))
        elif checkpoint.format != "lipcomp":
            print(checkpoint.describe(), file=sys.stderr)
    if options.list:
        raise SystemExit(0)
    return loaded


def add_data_arguments(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """--data, --data-root, --split, --limit, --seed: which images."""
    parser.add_argument(
        "--data",
        default=default,
        required=default is None,
        help=f"{', '.join(SETS)} or a folder of images" + (f" (default {default})" if default else ""),
    )
    parser.add_argument("--data-root", type=Path, help="the folder of a set that lies on disk, such as CIFAR")
    parser.add_argument("--split", default="test", choices=("train", "test"), help="default test")
    parser.add_argument("--limit", type=int, help="at most so many images, drawn by --seed (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="seed of every draw (default 0)")


def load_images(
    options: argparse.Namespace, image_shape: tuple[int, int, int] | None = None
) -> tuple[ImageSet, torch.Tensor]:
    """The images that :func:`add_data_arguments` asked for, and the indices of those to use, in order.

    Raises
    ------
    ValueError
        If ``--limit`` is not positive, or the images do not have the shape the encoder takes.
    """
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"--limit must be at least 1, got {options.limit}")
    images = load_set(options.data, options.split, root=options.data_root, image_shape=image_shape)
    if image_shape is not None and images.image_shape != image_shape:
        raise ValueError(
            f"--data {options.data}: its images have shape {images.image_shape}, the encoder takes "
            f"{image_shape}; give images of that shape, or a folder, whose images are converted"
        )
    indices = torch.arange(len(images))
    if options.limit is not None and options.limit < len(images):
        generator = torch.Generator().manual_seed(options.seed)
        indices = torch.randperm(len(images), generator=generator)[: options.limit].sort().values
    return images, indices


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """--device, --batch-size, --out, --json: where it runs and where the result goes."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default auto)")
    parser.add_argument("--batch-size", type=int, help="images at a time (default: what fits)")
    parser.add_argument("--out", type=Path, help="append the records to this file of JSON lines")
    parser.add_argument("--json", action="store_true", help="print the records as JSON lines, no table")


def check_table(path: Path) -> None:
    """Refuse a per-image table that could not be written, before anything is measured.

    Raises
    ------
    ValueError
        If the file is neither .csv nor .parquet.
    ImportError
        If Parquet is asked for and pyarrow is not installed.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise ValueError(f"--table must end in .csv or .parquet, got {str(path)!r}")
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ImportError(f"--table {str(path)!r} needs pyarrow; install it, or give a .csv file")


def write_table(path: Path, columns: Mapping[str, Sequence[object]]) -> None:
    """Add rows to a per-image table (.csv or .parquet), columns joined by name; it appears whole or not at all."""
    frame = pd.DataFrame(columns)
    parquet = path.suffix == ".parquet"
    if path.exists():
        frame = pd.concat([pd.read_parquet(path) if parquet else pd.read_csv(path), frame], ignore_index=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    frame.to_parquet(temporary) if parquet else frame.to_csv(temporary, index=False)
    temporary.replace(path)


@contextmanager
def progress(total: int, label: str, *, every: float = 10.0) -> Iterator[Callable[..., None]]:
    """Show work on stderr: a bar on a terminal, in a pipe a plain line every so many seconds.

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
