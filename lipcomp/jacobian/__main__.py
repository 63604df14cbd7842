"""Compute the local Lipschitz constant of one or more encoders at each image.

This is sigma_max, the largest singular value of the Jacobian of the mean direction (or of the embedding, with
--unnormalised) with respect to the pixels in [0, 1]. Options add the k largest singular values, the Frobenius norm with
its standard error, and the trace of the Fisher information. Results are kept after each block of images; after an
interruption, run the same command again to continue.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from lipcomp import _commands as commands
from lipcomp.measure import Sigma, _options as options
from lipcomp.measure._local import Frobenius
from lipcomp.measure._map import Map
from lipcomp.measure._run import Done

EXAMPLE = """example:
  python -m lipcomp.jacobian runs/simclr.safetensors runs/c-simclr.safetensors --data mnist5k --limit 500 \\
      --frobenius 16 --out jacobian.jsonl --table per_image.csv
"""
HEAD = ("encoder", "quantity", "value", "95% interval", "unit", "images")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, write the records."""
    given = build_parser().parse_args(arguments)
    return options.run_command(given, list(quantities(given)), HEAD, rows)


def quantities(given: argparse.Namespace) -> Iterator[Any]:
    """The quantities that the options select."""
    of = Map(given.layer, not given.unnormalised, given.concentration)
    yield Sigma(of, None, given.rtol, given.method, given.max_iterations, given.k)
    if given.frobenius is not None:
        if given.frobenius < 2:
            raise commands.UsageError(f"--frobenius takes at least 2 probes, got {given.frobenius}")
        yield Frobenius(of, given.frobenius)


def rows(done: Done) -> Iterator[options.Row]:
    """One row per number; exclusions only if there are any."""
    for record in done.records:
        if record.value or not record.quantity.startswith("sigma_max.excluded"):
            value = "none" if record.value is None else f"{record.value:.5g}"
            interval = "-" if record.interval is None else "{:.4g} .. {:.4g}".format(*record.interval)
            yield done.bench.label, record.quantity, value, interval, record.unit, str(record.n)


def build_parser() -> commands.Parser:
    """The command's options."""
    parser = commands.Parser(prog="python -m lipcomp.jacobian", description=__doc__, epilog=EXAMPLE)
    options.add_encoder_arguments(parser)
    options.add_data_arguments(parser)
    number, count = options.positive(float), options.positive(int)
    what = parser.add_argument_group("map to measure")
    # fmt: off
    what.add_argument("--layer", default="latent",
        help="layer to measure: backbone, projection, prediction, latent or logits")
    what.add_argument("--unnormalised", action="store_true",
        help="measure the embedding h instead of the unit direction h / |h|")
    what.add_argument("--k", type=count, default=1, help="number of largest singular values")
    what.add_argument("--frobenius", type=count,
        help="also estimate the Frobenius norm, with this many random probes (at least 2)")
    what.add_argument("--concentration", type=number,
        help="concentration kappa_e of the Fisher trace (default: the checkpoint's)")
    how = parser.add_argument_group("method")
    how.add_argument("--rtol", type=number, default=1e-4, help="relative tolerance of sigma_max")
    how.add_argument("--max-iterations", type=count,
        help="maximum number of Lanczos steps (default: the dimension, at most 200)")
    how.add_argument("--method", default="auto", choices=("auto", "lanczos", "rows"),
        help="lanczos, or rows: all rows of the Jacobian (few outputs)")
    # fmt: on
    options.add_run_arguments(parser)
    parser.ignores("with --unnormalised or --layer logits", options.is_no_direction, "--concentration")
    parser.ignores("without --frobenius", lambda given: given.frobenius is None, "--concentration")
    parser.ignores("with --method rows", lambda given: given.method == "rows", "--max-iterations")
    return parser


if __name__ == "__main__":
    sys.exit(commands.run(main))
