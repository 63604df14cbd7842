"""python -m lipcomp.jacobian: the local Lipschitz constant of encoders at every image, side by side.

sigma_max of the Jacobian of the mean direction (or of the embedding, --unnormalised) in the raw pixels, with the
residual reached; on request the k largest singular values, the Frobenius norm with its standard error and the Fisher
trace. Blocks of images are kept as they are done: run the same command again after an interruption and it goes on
there.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from lipcomp import _commands as commands
from lipcomp.measure import Done, Frobenius, Map, Sigma
from lipcomp.measure import _options as options

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
    """What the options ask for."""
    of = Map(given.layer, not given.unnormalised, given.concentration)
    yield Sigma(of, None, given.rtol, given.method, given.max_iterations, given.k)
    if given.frobenius is not None:
        if given.frobenius < 2:
            raise commands.UsageError(f"--frobenius takes at least 2 probes, got {given.frobenius}")
        yield Frobenius(of, given.frobenius)


def rows(done: Done) -> Iterator[options.Row]:
    """A row per number; exclusions only where there are some."""
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
    what = parser.add_argument_group("what is measured")
    what.add_argument(
        "--layer",
        default="latent",
        help="backbone, projection, prediction, latent or logits (default latent)",
    )
    what.add_argument("--unnormalised", action="store_true", help="the embedding h instead of h / |h|")
    what.add_argument("--k", type=count, default=1, help="how many singular values (default 1)")
    what.add_argument(
        "--frobenius", type=count, metavar="PROBES", help="the Frobenius norm, by this many probes"
    )
    what.add_argument(
        "--concentration", type=number, help="kappa_e of the Fisher trace (default: the checkpoint's)"
    )
    how = parser.add_argument_group("how")
    how.add_argument("--rtol", type=number, default=1e-4, help="relative tolerance (default 1e-4)")
    how.add_argument(
        "--max-iterations", type=count, help="Lanczos steps (default: the dimension, at most 200)"
    )
    how.add_argument("--method", default="auto", choices=("auto", "lanczos", "rows"), help="default auto")
    options.add_run_arguments(parser)
    return parser


if __name__ == "__main__":
    sys.exit(commands.run(main))
