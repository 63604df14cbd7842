"""python -m lipcomp.bound: lower bounds of the Lipschitz constant of encoders, side by side."""

import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lipcomp import commands
from lipcomp.bound import LABELS, LowerBounds, PairBlock, measure_pairs, random_pairs, view_pairs
from lipcomp.data import DigitViews, PhotoViews, batches
from lipcomp.records import Record, append_records, provenance

EXAMPLE = """example:
  python -m lipcomp.bound runs/simclr.safetensors runs/c-simclr.safetensors --data mnist5k \\
      --pairs views,random --concentration 1024 --out bounds.jsonl
"""

SOURCES = ("views", "random")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, write the records."""
    options = _parser().parse_args(arguments)
    sources = _sources(options.pairs)
    device = commands.choose_device(options.device)
    dtype = {"float32": torch.float32, "float64": torch.float64}[options.precision]
    rows = []
    for checkpoint in commands.load_encoders(options):
        encoder = checkpoint.encoder.to(device, dtype)
        images, indices = commands.load_images(options, encoder.image_shape)
        concentration = options.concentration or checkpoint.concentration
        for source in sources:
            started = time.monotonic()
            size = options.batch_size or 128
            stream = (batch.to(device, dtype) for batch in batches(images, size, indices))
            with commands.progress(len(indices), f"{checkpoint.path.name} {source}") as advance:
                result = measure_pairs(
                    partial(encoder, layer=options.layer),
                    _pairs(source, stream, options, encoder.image_shape, dtype),
                    concentration,
                    advance=advance,
                )
            settings = {
                "data": images.name,
                "data_hash": images.content_hash(),
                "images": len(indices),
                "layer": options.layer,
                "pairs": source,
                "concentration": concentration,
                **({"radius": options.radius} if source == "random" else {}),
            }
            origin = provenance(device, options.precision, options.seed, seconds=time.monotonic() - started)
            records = list(_records(result, indices, checkpoint.subject(), settings, origin))
            if options.out:
                append_records(options.out, records)
            if options.json:
                print("\n".join(record.to_json() for record in records))
            rows += [
                (f"{checkpoint.path.stem} {source}", LABELS[name], *_row(bound))
                for name, bound in result.bounds.items()
            ]
            for reason, count in result.excluded.items():
                if count:
                    print(
                        f"{checkpoint.path.stem} {source}: left out {count} pairs ({reason})", file=sys.stderr
                    )
    if not options.json:
        print(commands.table(("encoder, pairs", "lower bound", "median", "q99", "max", "pair", "n"), rows))
    return 0


def _row(bound: Any) -> tuple[str, ...]:
    pair = "-" if bound.witness is None else "{}, {}".format(*bound.witness.pair)
    return (
        f"{bound.quantiles[0.5]:.4g}", f"{bound.quantiles[0.99]:.4g}", f"{bound.maximum:.4g}", pair, str(bound.n)
    )  # fmt: skip


def _records(
    result: LowerBounds,
    indices: Tensor,
    subject: dict[str, Any],
    settings: dict[str, Any],
    origin: dict[str, Any],
) -> Iterator[Record]:
    for name, bound in result.bounds.items():
        if bound.witness is None:
            yield Record(f"bound.{name}.max", None, bound.unit, 0, None, subject, settings, origin)
            continue
        witness = bound.witness
        found = {
            "witness": [int(indices[i]) for i in witness.pair],
            "witness_distance": witness.distance,
            "witness_chord": witness.chord,
        }
        yield Record(
            f"bound.{name}.max", bound.maximum, bound.unit, bound.n, None, subject, settings, origin | found
        )
        for q, value in bound.quantiles.items():
            yield Record(
                f"bound.{name}.q{100 * q:g}", value, bound.unit, bound.n, None, subject, settings, origin
            )
    for reason, count in (*result.excluded.items(), ("measured by the Jacobian", result.jacobian)):
        quantity = (
            "bound.jacobian_pairs" if reason.startswith("measured") else f"bound.excluded.{_key(reason)}"
        )
        yield Record(quantity, count, "pairs", len(result.distance), None, subject, settings, origin)


def _key(reason: str) -> str:
    return reason.replace(" ", "_").replace("-", "_")


def _pairs(
    source: str, stream: Iterator[Tensor], options: Any, shape: tuple[int, int, int], dtype: torch.dtype
) -> Iterator[PairBlock]:
    generator = torch.Generator().manual_seed(options.seed)
    if source == "views":
        return view_pairs(stream, DigitViews() if shape[0] == 1 else PhotoViews(), generator)
    return random_pairs(stream, options.radius, generator)


def _sources(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in SOURCES]
    if unknown or not names:
        raise ValueError(f"--pairs takes a comma-separated list of {', '.join(SOURCES)}; got {text!r}")
    return names


def _parser() -> commands.Parser:
    parser = commands.Parser(prog="python -m lipcomp.bound", description=__doc__, epilog=EXAMPLE)
    commands.add_encoder_arguments(parser)
    commands.add_data_arguments(parser, default="mnist5k")
    parser.add_argument(
        "--pairs", default="views", help=f"comma-separated: {', '.join(SOURCES)} (default views)"
    )
    parser.add_argument(
        "--layer", default="latent", help="backbone, projection, prediction, latent (default)"
    )
    parser.add_argument("--concentration", type=float, help="one common kappa (default: the checkpoint's)")
    parser.add_argument(
        "--radius", type=float, default=0.5, help="of random directions, pixel L2 (default 0.5)"
    )
    parser.add_argument("--precision", default="float32", choices=("float32", "float64"))
    commands.add_run_arguments(parser)
    return parser


if __name__ == "__main__":
    sys.exit(commands.run(main))
