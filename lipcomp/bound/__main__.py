"""Compute lower bounds of the Lipschitz constant of one or more encoders from pairs of images.

The pairs are positive views, corruptions, random steps, nearest neighbours, shuffled pairs, all pairs of the set, or
the result of a search in a ball. "certified" also computes upper bounds on balls and shows lower, searched and
certified constants together. Compare models by the bound of the mean direction, or at one common --concentration.
Results are written after each source of pairs; after an interruption, run the same command again to continue.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lipcomp import _commands as commands
from lipcomp.bound._results import LABELS
from lipcomp.measure import Pairs, _options as options
from lipcomp.measure._local import Ball
from lipcomp.measure._map import Map
from lipcomp.measure._run import Done
from lipcomp.records import Record

EXAMPLE = """example:
  python -m lipcomp.bound runs/simclr.safetensors runs/c-simclr.safetensors --data mnist5k \\
      --pairs views,corruptions,all --concentration 1024 --out bounds.jsonl --table per_image.csv
"""
SOURCES = (*Pairs.sources, "certified")
HEAD = ("encoder, pairs", "bound", "median", "q99", "max", "witness", "pairs")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, write the records."""
    given = build_parser().parse_args(arguments)
    return options.run_command(given, list(quantities(given)), HEAD, rows)


def quantities(given: argparse.Namespace) -> Iterator[Any]:
    """The quantities that the options select."""
    unknown = [name for name in given.pairs if name not in SOURCES]
    if unknown:
        raise commands.UsageError(
            f"--pairs takes a comma-separated list of {', '.join(SOURCES)}; got {unknown[0]!r}"
        )
    of = Map(given.layer, not given.unnormalised, given.concentration)
    for source in given.pairs:
        if source == "certified":
            yield Ball(of, given.radii, given.starts, given.steps)
            continue
        yield Pairs(
            source,
            of,
            radius=given.radius,
            norm=given.norm,
            neighbours=given.neighbours,
            search=given.search,
            starts=given.starts,
            steps=given.steps,
            corruptions=given.corruptions,
            severities=(given.severity,),
            table=given.corruption_table,
        )


def rows(done: Done) -> Iterator[options.Row]:
    """One row per bound, from the records alone."""
    label = f"{done.bench.label} {done.unit.label}"
    found = {record.quantity: record for record in done.records}
    named = {name.rsplit(".", 1)[0] for name in found}
    for name in [f"bound.{key}" for key in (*LABELS, "embedding")]:
        if name in named:
            yield _row(label, name.removeprefix("bound."), found, name)
    for name in sorted(named):
        kind = name.split(".")[1] if "." in name else ""
        if name.startswith("ball.") or kind.startswith("sigma"):
            yield _row(label, name, found, name)


def _row(label: str, name: str, found: dict[str, Record], key: str) -> options.Row:
    def number(statistic: str) -> str:
        record = found.get(f"{key}.{statistic}")
        return "" if record is None else "none" if record.value is None else f"{record.value:.4g}"

    best = found.get(f"{key}.max") or found.get(f"{key}.median") or next(iter(found.values()))
    told = best.provenance
    witness = ", ".join(map(str, told.get("witness_files", told.get("witness", [])))) or "-"
    title = LABELS.get(name, "embedding, not normalised" if name == "embedding" else name)
    return label, title, number("median"), number("q99"), number("max"), witness, str(best.n)


def build_parser() -> commands.Parser:
    """The command's options."""
    parser = commands.Parser(prog="python -m lipcomp.bound", description=__doc__, epilog=EXAMPLE)
    options.add_encoder_arguments(parser)
    options.add_data_arguments(parser)
    number, count = options.positive(float), options.positive(int)
    pairs = parser.add_argument_group("pairs")
    # fmt: off
    pairs.add_argument("--pairs", type=options.words, default=("views",), metavar="NAME,...",
        help=f"sources of pairs, comma-separated: {', '.join(SOURCES)}")
    pairs.add_argument("--corruptions", type=options.words, metavar="NAME,...",
        help="corruptions of the corrupted pairs, comma-separated (default: all of the table)")
    pairs.add_argument("--severity", type=int, default=3, choices=range(1, 6), help="severity of the corruptions")
    pairs.add_argument("--corruption-table", choices=("mnist", "cifar", "imagenet"),
        help="table of corruptions (default: fits the images)")
    pairs.add_argument("--neighbours", type=count, default=1, help="nearest neighbours per image")
    pairs.add_argument("--radius", type=number, default=0.5,
        help="radius of random steps and of the searched ball, in pixels in [0, 1]")
    pairs.add_argument("--radii", type=options.numbers, default=Ball.radii, metavar="FLOAT,...",
        help="radii of the certified balls, comma-separated, in pixel L2")
    pairs.add_argument("--norm", default="l2", choices=("l2", "linf"), help="norm of the searched ball")
    pairs.add_argument("--search", default="pair", choices=("pair", "chord"),
        help="search over pairs inside the ball (pair) or pairs that contain the image (chord)")
    pairs.add_argument("--starts", type=count, default=3, help="random starts of the search per image")
    pairs.add_argument("--steps", type=count, default=30, help="steps of the search per start")
    what = parser.add_argument_group("map to measure")
    what.add_argument("--layer", default="latent",
        help="layer to measure: backbone, projection, prediction, latent or logits")
    what.add_argument("--unnormalised", action="store_true",
        help="measure the embedding h instead of the unit direction h / |h|")
    what.add_argument("--concentration", type=number,
        help="one concentration kappa_e for all encoders (default: each checkpoint's)")
    # fmt: on
    options.add_run_arguments(parser)
    # fmt: off
    parser.add_argument("--witnesses", type=Path, metavar="FOLDER",
        help="save the pairs that attain the bounds as PNG files in this folder")
    # fmt: on

    for sources, ignored in (
        (("corruptions",), ("--corruptions", "--severity", "--corruption-table")),
        (("neighbours",), ("--neighbours",)),
        (("random", "search"), ("--radius",)),
        (("search",), ("--norm", "--search")),
        (("search", "certified"), ("--starts", "--steps")),
        (("certified",), ("--radii",)),
        (Pairs.sources, ("--witnesses",)),
    ):
        holds = lambda given, sources=sources: not {*sources} & {*given.pairs}  # noqa: E731
        parser.ignores(f"without --pairs {' or '.join(sources)}", holds, *ignored)
    parser.ignores("with --unnormalised or --layer logits", options.is_no_direction, "--concentration")
    return parser


if __name__ == "__main__":
    sys.exit(commands.run(main))
