"""Command-line options, the plan that they describe, and the loop that measures it.

``lipcomp bound``, ``jacobian`` and ``robustness`` differ only in the quantities that they measure and in their tables.
Everything else is here.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lipcomp import _commands as commands
from lipcomp.checkpoints._formats import NAMES as FORMAT_NAMES
from lipcomp.checkpoints._native import Checkpoint, Metadata
from lipcomp.data._known import SETS
from lipcomp.data._preprocessing import INTERPOLATIONS
from lipcomp.jobs._options import add_engine_arguments, engine_choice, positive
from lipcomp.measure._bench import LOGITS
from lipcomp.measure._parallel import run_parallel
from lipcomp.measure._plan import DTYPES, Images, Plan, Probe, Source
from lipcomp.measure._run import Done, Outputs, dry_run, run

DEFAULT_DATA = "mnist5k"

Row = tuple[str, ...]


def seed(text: str) -> int:
    """An argparse type: a seed that every generator takes."""
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not 0 <= number < 2**32:
        raise argparse.ArgumentTypeError(f"must be an integer from 0 to 2**32 - 1, got {text!r}")
    return number


def words(text: str) -> tuple[str, ...]:
    """An argparse type: a comma-separated list of words."""
    found = tuple(word.strip() for word in text.split(",") if word.strip())
    if not found:
        raise argparse.ArgumentTypeError("must be a comma-separated list of at least one name")
    return found


def numbers(text: str) -> tuple[float, ...]:
    """An argparse type: a comma-separated list of numbers."""
    try:
        return tuple(float(word) for word in words(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"must be a comma-separated list of numbers, got {text!r}"
        ) from error


def severities(text: str) -> tuple[int, ...]:
    """An argparse type: a comma-separated list of severities."""
    found = numbers(text)
    if not {*found} <= {1, 2, 3, 4, 5}:
        raise argparse.ArgumentTypeError(f"severities are integers from 1 to 5, got {text!r}")
    return tuple(map(int, found))


def _sizes(text: str) -> tuple[int, ...]:
    """An argparse type: one to three integers separated by x or commas."""
    try:
        sizes = tuple(int(number) for number in text.replace("x", ",").split(","))
    except ValueError:
        sizes = ()
    if not 1 <= len(sizes) <= 3 or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"must be SIDE, HxW or CxHxW with positive integers, got {text!r}")
    return sizes


def add_encoder_arguments(parser: argparse.ArgumentParser) -> None:
    """CHECKPOINT..., and the options for checkpoints of other libraries."""
    # fmt: off
    parser.add_argument("checkpoints", nargs="*", metavar="CHECKPOINT",
        help="checkpoint file, Hugging Face folder, or prefix of a TensorFlow checkpoint")
    parser.add_argument("--list", action="store_true", help="print how each key of the file was read, then stop")
    # fmt: on
    add_foreign_arguments(parser)


def add_foreign_arguments(parser: argparse.ArgumentParser) -> None:
    """The options for checkpoints of other libraries."""
    foreign = parser.add_argument_group(
        "checkpoints of other libraries (recognised automatically; set these to override)"
    )
    # fmt: off
    foreign.add_argument("--arch", metavar="NAME",
        help="architecture: resnet50, timm/NAME or torchvision/NAME (default: recognised by names and shapes)")
    foreign.add_argument("--format", metavar="NAME",
        help=f"checkpoint format: {', '.join(FORMAT_NAMES)} (default: recognised by the keys)")
    foreign.add_argument("--factory", metavar="FILE.py:FUNCTION",
        help="function that returns your network, or MODULE:FUNCTION; after training with --backbone, the same one")
    foreign.add_argument("--head", choices=("auto", "none"),
        help="none: use the backbone without its heads (default: auto)")
    foreign.add_argument("--branch", metavar="NAME", help="which network of the file: online, momentum, or its path "
        "or prefix in the file (default: the one that the authors evaluate)")
    foreign.add_argument("--mean", type=numbers, metavar="M[,M,M]", help="mean of pixels in [0, 1] that the encoder "
        "subtracts, one value or one per channel (default: the checkpoint's)")
    foreign.add_argument("--std", type=numbers, metavar="S[,S,S]",
        help="standard deviation by which the encoder divides, like --mean (default: the checkpoint's)")
    foreign.add_argument("--image-size", type=_sizes, metavar="SIZE",
        help="image size in pixels: SIDE, HxW or CxHxW (default: the network's)")
    # fmt: on


def sources(options: argparse.Namespace) -> tuple[Source, ...]:
    """The encoders that :func:`add_encoder_arguments` asked for.

    Raises
    ------
    commands.UsageError
        If no encoder is named.
    """
    if not options.checkpoints and not options.factory:
        raise commands.UsageError("no CHECKPOINT given; name a file or folder, or a function with --factory")
    return tuple(source(options, path) for path in options.checkpoints or [None])


def source(options: argparse.Namespace, path: str | None, name: str | None = None) -> Source:
    """One encoder, read as :func:`add_foreign_arguments` asked for."""
    names = ("arch", "format", "head", "branch", "mean", "std", "image_size")
    given = {key: value for key in names if (value := getattr(options, key)) is not None}
    return Source(path, name, options.factory, options=given)


def load_listed(options: argparse.Namespace) -> list[Checkpoint]:
    """Load the encoders; with ``--list``, print how each key was read and end the command."""
    loaded = [source.load() for source in sources(options)]
    for checkpoint in loaded:
        if checkpoint.preprocessing is not None:  # what is printed is what is done
            done = checkpoint.preprocessing.overridden(**override(options))
            checkpoint = replace(checkpoint, preprocessing=done)
        if options.list:
            print(commands.as_options(checkpoint.describe(every_key=True)))
        elif checkpoint.format != "lipcomp":
            print(commands.as_options(checkpoint.describe()), file=sys.stderr)
    if options.list:
        raise SystemExit(0)
    return loaded


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Which images to measure on, and how to prepare them."""
    group = parser.add_argument_group("images")
    # fmt: off
    group.add_argument("--data",
        help=f"images to measure on: {', '.join(SETS)}, a folder of images, or FILE.py:FUNCTION that returns a "
        f"dataset (default: {DEFAULT_DATA} for encoders trained on it, otherwise required)")
    group.add_argument("--data-root", metavar="FOLDER", help="dataset directory of a known set such as CIFAR")
    group.add_argument("--split", default="test", choices=("train", "test", "val"), help="split to measure on")
    group.add_argument("--limit", type=positive(int),
        help="use this many random images, chosen by --seed (default: all)")
    group.add_argument("--seed", type=seed, default=0, help="random seed")
    group.add_argument("--labels", metavar="FILE",
        help="table with the label of each file: .csv, .tsv or .jsonl (default: class folders)")
    group.add_argument("--label-column", metavar="NAME",
        help="column of --labels that holds the label (default: found by common names such as label)")
    group.add_argument("--holdout", type=float,
        help="for a folder without splits: share of each class to use as the test split, such as 0.2")
    group.add_argument("--skip-unreadable", action="store_true",
        help="skip image files that cannot be read, and list them (without it, they are an error)")
    group.add_argument("--convert-channels", action="store_true",
        help="convert grey images to three channels and colour images to one, as the encoder needs")
    group.add_argument("--resize", type=_side, metavar="SIZE",
        help="resize to this shorter side in pixels, or to HxW (default: as the model's library does)")
    group.add_argument("--crop", type=_side, metavar="SIZE",
        help="centre crop: side in pixels, or HxW (default: as the model's library does)")
    group.add_argument("--interpolation", choices=INTERPOLATIONS,
        help="interpolation of the resize (default: as the model's library does)")
    # fmt: on


def _side(text: str) -> int | tuple[int, int]:
    """One or two sizes in pixels."""
    sizes = _sizes(text)
    if len(sizes) > 2:
        raise argparse.ArgumentTypeError(f"must be SIDE or HxW with positive integers, got {text!r}")
    return sizes[0] if len(sizes) == 1 else (sizes[0], sizes[1])


def is_no_direction(options: argparse.Namespace) -> bool:
    """Whether the map that is measured does not end on the unit sphere."""
    return bool(options.unnormalised or options.layer == LOGITS)


def add_run_arguments(parser: commands.Parser) -> None:
    """Device, precision, workers and outputs."""
    group = add_machine_arguments(parser)
    # fmt: off
    group.add_argument("--out", type=Path, metavar="FILE",
        help="append the results to this file, one JSON line per record")
    group.add_argument("--cache", type=Path, metavar="FOLDER",
        help="where to keep intermediate results (default: next to --out)")
    group.add_argument("--table", type=Path, metavar="FILE",
        help="write per-image values to this .csv or .parquet file")
    group.add_argument("--json", action="store_true", help="print the results as JSON lines instead of a table")
    group.add_argument("--shards", type=positive(int), default=1,
        help="split the images of each encoder over this many jobs")
    # fmt: on
    parser.ignores(
        "without --workers, --engine or --shards", lambda given: not _has_jobs(given), "--cores", "--gpus"
    )


def _has_jobs(options: argparse.Namespace) -> bool:
    return options.workers is not None or options.engine != "local" or options.shards > 1


def add_machine_arguments(parser: commands.Parser) -> Any:
    """Device, precision, workers and the engine; the group, for more."""
    group = parser.add_argument_group("device and output")
    # fmt: off
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    group.add_argument("--precision", default="float32", choices=tuple(DTYPES), help="floating-point precision")
    group.add_argument("--batch-size", type=positive(int), help="images per batch (default: as many as fit in memory)")
    group.add_argument("--dry-run", action="store_true",
        help="print what would be measured, what exists already and how long it takes, then stop")
    # fmt: on
    add_engine_arguments(parser)
    return group


def images(options: argparse.Namespace, metadata: Sequence[Metadata]) -> Images:
    """The images that :func:`add_data_arguments` asked for, for encoders with these metadata.

    Raises
    ------
    commands.UsageError
        If no data are named and an encoder was not trained on the default set.
    """
    data = options.data
    if data is None:
        trained = {str(told.data.get("name", "")).split("/")[0] for told in metadata}
        if trained != {DEFAULT_DATA}:
            raise commands.UsageError(
                f"no --data given; name the images to measure on: a folder, or one of {', '.join(SETS)}"
            )
        data = DEFAULT_DATA
    told = {
        "labels": options.labels,
        "label_column": options.label_column,
        "holdout": options.holdout,
        "skip_unreadable": options.skip_unreadable,
        "convert_channels": options.convert_channels,
        "override": override(options),
    }
    chosen = {name: value for name, value in told.items() if value is not None and value is not False}
    return Images(data, options.split, options.data_root, options.limit, options.seed, chosen)


def override(options: argparse.Namespace) -> dict[str, Any]:
    """What of the model's own preprocessing the options change; without data arguments nothing."""
    crop = getattr(options, "crop", None)
    told = {
        "resize": getattr(options, "resize", None),
        "crop": (crop, crop) if isinstance(crop, int) else crop,
        "interpolation": getattr(options, "interpolation", None),
    }
    return {name: value for name, value in told.items() if value is not None}


def run_command(
    options: argparse.Namespace,
    quantities: Sequence[Any],
    head: Row,
    rows: Callable[[Done], Iterable[Row]],
    probe: Probe | None = None,
) -> int:
    """Measure what the options ask for, show progress, and print a table or records.

    ``options`` are those of a parser with encoder, data and run arguments; ``rows`` gives a measured unit's table rows.
    """
    loaded = load_listed(options)
    plan = Plan(
        sources(options),
        images(options, [checkpoint.metadata for checkpoint in loaded]),
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
    if _has_jobs(options):
        if options.out is None:
            raise commands.UsageError(
                "--workers, --engine and --shards need --out, the file that collects the results of all jobs"
            )
        engine = engine_choice(options, outputs.cells_folder)
        outputs.check()
        run_parallel(plan, lambda source: outputs, shards=options.shards, tell=_to_stderr, **engine)
    told: list[Row] = []
    left_out: set[str] = set()
    for done in run(plan, outputs, progress=commands.progress):
        for note in dict.fromkeys(done.bench.left_out):
            if note not in left_out:
                print(commands.as_options(note), file=sys.stderr)
        left_out |= set(done.bench.left_out)
        label = f"{done.bench.label} {done.unit.label}"
        if not done.fresh:
            print(
                f"{label}: {f'already in {options.out}' if options.out else 'asked for twice'}",
                file=sys.stderr,
            )
        for note in done.notes:
            print(f"{label}: {commands.as_options(note)}", file=sys.stderr)
        if options.json:
            print("\n".join(record.to_json() for record in done.records), flush=True)
        told += rows(done)
    if not options.json:
        print(commands.table(head, told))
    return 0


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def tell_plan(plan: Plan, outputs: Outputs, more: int = 0) -> int:
    """Print what would be measured, what exists, the time and the disk space (``more`` bytes beside); return 0."""
    found = list(dry_run(plan, outputs))
    told = [
        (e.bench.label, e.unit.label, str(e.unit.count), "done" if e.there else f"about {e.seconds:.0f} s")
        for e in found
    ]
    print(commands.table(("encoder", "quantity", "count", "time"), told))
    seconds, size = sum(e.seconds for e in found), more + sum(e.size for e in found)
    missing = sum(not e.there for e in found)
    device = found[0].bench.device if found else plan.device
    print(
        f"{missing} of {len(found)} to measure, about {commands.duration(seconds)} on {device}, "
        f"{size / 2**20:.1f} MiB on disk. Times are extrapolated from one batch; searches, "
        "certificates and the fit of a probe vary more."
    )
    return 0
