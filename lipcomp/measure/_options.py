"""Options of the commands -> a plan; and what every measuring command does with it.

``lipcomp bound``, ``jacobian`` and ``robustness`` differ in the quantities that their options ask for and in their
tables; everything else is here, once.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from lipcomp import _commands as commands
from lipcomp.checkpoints import FORMAT_NAMES, Checkpoint
from lipcomp.data import SETS
from lipcomp.data._preprocessing import INTERPOLATIONS
from lipcomp.jobs import add_engine_arguments, engine_choice
from lipcomp.measure._parallel import run_parallel
from lipcomp.measure._plan import DTYPES, Images, Plan, Probe, Source
from lipcomp.measure._run import Done, Outputs, dry_run, run

DEFAULT_DATA = "mnist5k"

Row = tuple[str, ...]


def positive(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """An argparse type: a number above zero."""

    def parse(text: str) -> Any:
        try:
            number = kind(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from error
        if not number > 0:
            raise argparse.ArgumentTypeError(f"must be positive, got {text}")
        return number

    return parse


def words(text: str) -> tuple[str, ...]:
    """An argparse type: words with commas between."""
    found = tuple(word.strip() for word in text.split(",") if word.strip())
    if not found:
        raise argparse.ArgumentTypeError("must name at least one, with commas between")
    return found


def numbers(text: str) -> tuple[float, ...]:
    """An argparse type: numbers with commas between."""
    try:
        return tuple(float(word) for word in words(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be numbers with commas between, got {text!r}") from error


def severities(text: str) -> tuple[int, ...]:
    """An argparse type: severities with commas between."""
    found = tuple(int(number) for number in numbers(text))
    if any(not 1 <= severity <= 5 for severity in found):
        raise argparse.ArgumentTypeError(f"severities are whole numbers from 1 to 5, got {text!r}")
    return found


def _sizes(text: str) -> tuple[int, ...]:
    """One to three whole numbers with x or commas between, as --image-size takes them."""
    try:
        sizes = tuple(int(number) for number in text.replace("x", ",").split(","))
    except ValueError:
        sizes = ()
    if not 1 <= len(sizes) <= 3 or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"one to three positive numbers, SIDE, HxW or CxHxW; got {text!r}")
    return sizes


def add_encoder_arguments(parser: argparse.ArgumentParser) -> None:
    """CHECKPOINT..., and how to read foreign files."""
    parser.add_argument(
        "checkpoints",
        nargs="*",
        metavar="CHECKPOINT",
        help="a file, a Hugging Face folder, a TensorFlow prefix",
    )
    foreign = parser.add_argument_group("foreign checkpoints (recognised by their keys)")
    foreign.add_argument(
        "--arch",
        metavar="NAME",
        help="architecture: resnet50, timm/NAME, torchvision/NAME (default: by shapes)",
    )
    foreign.add_argument("--format", help=f"whose keys: {', '.join(FORMAT_NAMES)} (default: by the keys)")
    foreign.add_argument("--factory", metavar="MODULE:FUNCTION", help="a function that builds your network")
    foreign.add_argument(
        "--head", choices=("auto", "none"), help="none: the backbone without its heads (default auto)"
    )
    foreign.add_argument(
        "--branch",
        metavar="NAME",
        help="which of several networks: online, momentum, or its place or prefix in the file",
    )
    foreign.add_argument(
        "--mean",
        type=numbers,
        metavar="M[,M,M]",
        help="normalisation of pixels in [0, 1], one or per channel",
    )
    foreign.add_argument("--std", type=numbers, metavar="S[,S,S]", help="as --mean")
    foreign.add_argument(
        "--image-size",
        type=_sizes,
        metavar="N",
        help="SIDE, HxW or CxHxW to measure on (default: the network's)",
    )
    foreign.add_argument("--list", action="store_true", help="show what was recognised, key by key, and stop")


def sources(options: argparse.Namespace) -> tuple[Source, ...]:
    """The encoders that :func:`add_encoder_arguments` asked for.

    Raises
    ------
    commands.UsageError
        If no encoder is named.
    """
    if not options.checkpoints and not options.factory:
        raise commands.UsageError("no CHECKPOINT given; name a file or folder, or with --factory a function")
    named = {
        "arch": options.arch,
        "format": options.format,
        "head": options.head,
        "branch": options.branch,
        "mean": options.mean,
        "std": options.std,
        "image_size": options.image_size,
    }
    given = {name: value for name, value in named.items() if value is not None}
    return tuple(
        Source(path, factory=options.factory, options=given) for path in options.checkpoints or [None]
    )


def load_listed(options: argparse.Namespace) -> list[Checkpoint]:
    """Load the encoders; with ``--list`` print what was recognised, key by key, and end the command."""
    loaded = [source.load() for source in sources(options)]
    for checkpoint in loaded:
        if options.list:
            print(checkpoint.describe(every_key=True))
        elif checkpoint.format != "lipcomp":
            print(checkpoint.describe(), file=sys.stderr)
    if options.list:
        raise SystemExit(0)
    return loaded


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """--data, --data-root, --split, --limit, --seed, and how images are prepared."""
    group = parser.add_argument_group("images")
    group.add_argument(
        "--data",
        help=f"{', '.join(SETS)}, a folder of images, or MODULE:FUNCTION that returns a dataset (default "
        f"{DEFAULT_DATA} for encoders trained on it)",
    )
    group.add_argument("--data-root", metavar="FOLDER", help="the dataset directory of a set such as CIFAR")
    group.add_argument("--split", default="test", choices=("train", "test", "val"), help="default test")
    group.add_argument(
        "--limit", type=positive(int), metavar="N", help="use N random images, drawn by --seed (default: all)"
    )
    group.add_argument("--seed", type=int, default=0, help="seed of every draw (default 0)")
    group.add_argument(
        "--labels", metavar="FILE", help="a table of the labels of a folder (.csv, .tsv, .jsonl)"
    )
    group.add_argument("--label-column", metavar="NAME", help="its column of labels (default: by its name)")
    group.add_argument(
        "--holdout",
        type=float,
        metavar="SHARE",
        help="test images of a folder without splits, per class: 0.2",
    )
    group.add_argument(
        "--skip-unreadable",
        action="store_true",
        help="leave out image files that cannot be read, and name them",
    )
    group.add_argument(
        "--convert-channels",
        action="store_true",
        help="bring grey images to three channels, and colour to one",
    )
    group.add_argument(
        "--resize",
        type=_side,
        metavar="N",
        help="shorter side in pixels, or HxW (default: as the model's library does)",
    )
    group.add_argument("--crop", type=_side, metavar="N", help="side in pixels of the centre crop, or HxW")
    group.add_argument("--interpolation", choices=INTERPOLATIONS, help="of the resize")


def _side(text: str) -> int | tuple[int, int]:
    """One or two sizes in pixels."""
    sizes = _sizes(text)
    if len(sizes) > 2:
        raise argparse.ArgumentTypeError(f"one or two positive numbers, SIDE or HxW; got {text!r}")
    return sizes[0] if len(sizes) == 1 else (sizes[0], sizes[1])


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """--device, --precision, --batch-size, --out, --json, --dry-run, --table."""
    group = parser.add_argument_group("where it runs and where results go")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default auto)")
    group.add_argument("--precision", default="float32", choices=tuple(DTYPES), help="default float32")
    group.add_argument(
        "--batch-size", type=positive(int), metavar="N", help="images at a time (default: what fits)"
    )
    group.add_argument(
        "--out", type=Path, metavar="FILE", help="append the records to this file of JSON lines"
    )
    group.add_argument(
        "--cache", type=Path, metavar="FOLDER", help="intermediate results (default: beside --out)"
    )
    group.add_argument(
        "--table", type=Path, metavar="FILE", help="per-image values to this .csv or .parquet file"
    )
    group.add_argument(
        "--json", action="store_true", help="print the records as JSON lines instead of a table"
    )
    group.add_argument(
        "--shards",
        type=positive(int),
        default=1,
        metavar="N",
        help="jobs per encoder, each with a share of the images",
    )
    group.add_argument(
        "--dry-run",
        action="store_true",
        help="say what would be measured, what is there, how long it takes; stop",
    )
    add_engine_arguments(parser)


def images(options: argparse.Namespace, loaded: Sequence[Checkpoint]) -> Images:
    """The images that :func:`add_data_arguments` asked for.

    Raises
    ------
    commands.UsageError
        If no data are named, and an encoder was not trained on the default ones.
    """
    data = options.data
    if data is None:
        trained = {str(checkpoint.metadata.data.get("name", "")).split("/")[0] for checkpoint in loaded}
        if trained != {DEFAULT_DATA}:
            raise commands.UsageError(
                f"no --data given; name the images to measure on: a folder, or one of {', '.join(SETS)}"
            )
        data = DEFAULT_DATA
    crop = (options.crop, options.crop) if isinstance(options.crop, int) else options.crop
    told = {
        "labels": options.labels,
        "label_column": options.label_column,
        "holdout": options.holdout,
        "skip_unreadable": options.skip_unreadable,
        "convert_channels": options.convert_channels,
        "override": {"resize": options.resize, "crop": crop, "interpolation": options.interpolation},
    }
    chosen = {name: value for name, value in told.items() if value}
    return Images(data, options.split, options.data_root, options.limit, options.seed, chosen)


def run_command(
    options: argparse.Namespace,
    quantities: Sequence[Any],
    head: Row,
    rows: Callable[[Done], Iterable[Row]],
    probe: Probe | None = None,
) -> int:
    """Measure what the options ask for, with progress; print a table or records.

    Parameters
    ----------
    options
        Of a parser with encoder, data and run arguments.
    quantities
        What to measure.
    head, rows
        The table: its columns, and the rows of a unit.
    probe
        For quantities that read classes.
    """
    loaded = load_listed(options)
    plan = Plan(
        sources(options),
        images(options, loaded),
        tuple(quantities),
        probe or Probe(),
        options.device,
        options.precision,
        options.batch_size,
        options.seed,
    )
    outputs = Outputs(options.out, options.cache, None, options.table, getattr(options, "witnesses", None))
    if options.dry_run:
        return tell_plan(plan, outputs)
    if options.workers is not None or options.engine != "local" or options.shards > 1:
        if options.out is None:
            raise commands.UsageError(
                "--workers, --engine and --shards need --out, where the jobs' records meet"
            )
        engine = engine_choice(options, outputs.cells_folder)
        outputs.check()
        run_parallel(plan, lambda source: outputs, shards=options.shards, tell=_to_stderr, **engine)
    told: list[Row] = []
    left_out: set[str] = set()
    for done in run(plan, outputs, progress=commands.progress):
        for note in dict.fromkeys(done.bench.left_out):
            if note not in left_out:
                print(note, file=sys.stderr)
        left_out |= set(done.bench.left_out)
        label = f"{done.bench.label} {done.unit.label}"
        if not done.fresh:
            print(f"{label}: already in {options.out}", file=sys.stderr)
        for note in done.notes:
            print(f"{label}: {note}", file=sys.stderr)
        if options.json:
            print("\n".join(record.to_json() for record in done.records), flush=True)
        told += rows(done)
    if not options.json:
        print(commands.table(head, told))
    return 0


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def tell_plan(plan: Plan, outputs: Outputs) -> int:
    """Print what would be measured, what is there, and how long and how much disk it takes; the exit code."""
    found = list(dry_run(plan, outputs))
    told = [
        (e.bench.label, e.unit.label, str(e.unit.count), "there" if e.there else f"about {e.seconds:.0f} s")
        for e in found
    ]
    print(commands.table(("encoder", "quantity", "count", "time"), told))
    seconds, size = sum(e.seconds for e in found), sum(e.size for e in found)
    missing = sum(not e.there for e in found)
    print(
        f"{missing} of {len(found)} to measure, about {commands.duration(seconds)} on {plan.device}, "
        f"{size / 2**20:.1f} MiB on disk. Times come from one timed batch; searches and certificates vary."
    )
    return 0
