"""python -m lipcomp.bound: lower bounds of the Lipschitz constant of encoders, side by side.

Pairs come from positive views, corruptions, random directions, nearest neighbours, all pairs of the set, or ascent in a
ball. Models are compared by the mean direction (3.5), or at one common --concentration. Each source of pairs is written
as soon as it is done: run the same command again after an interruption and it goes on there.
"""

import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lipcomp import commands
from lipcomp.bound import LowerBounds
from lipcomp.bound.sources import MEASURES, Subject
from lipcomp.bound.summary import findings, per_image, save_witness, table_rows
from lipcomp.checkpoints import Checkpoint
from lipcomp.data import DigitViews, ImageSet, PhotoViews
from lipcomp.jacobian.checks import check_layer
from lipcomp.records import Record, append_records, provenance, read_records

EXAMPLE = """example:
  python -m lipcomp.bound runs/simclr.safetensors runs/c-simclr.safetensors --data mnist5k \\
      --pairs views,corruptions,all --concentration 1024 --out bounds.jsonl --table per_image.csv
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, write the records."""
    options = build_parser().parse_args(arguments)
    _check(options)
    device = commands.choose_device(options.device)
    written = set()
    if options.out and options.out.exists():
        written = {record.identity for record in read_records(options.out)}
    rows: list[tuple[str, ...]] = []
    for checkpoint in commands.load_encoders(options):
        for measurement in measurements(options, checkpoint, device):
            rows += measurement.run(written)
    if not options.json:
        print(
            commands.table(
                ("encoder, pairs", "lower bound", "median", "q99", "max", "witness", "pairs"), rows
            )
        )
    return 0


def measurements(options: Any, checkpoint: Checkpoint, device: torch.device) -> Iterator["Measurement"]:
    """What the options ask for of one encoder, ready to be run."""
    dtype = {"float32": torch.float32, "float64": torch.float64}[options.precision]
    checkpoint.encoder.to(device, dtype)
    check_layer(checkpoint.encoder, options.layer)
    images, indices = commands.load_images(options, checkpoint.encoder.image_shape)
    if len(indices) < 2:
        raise ValueError(f"--data {options.data}: need at least two images, got {len(indices)}")
    subject = _subject(options, checkpoint, images, indices, device, dtype)
    for source, how in _sources(options, checkpoint):
        yield Measurement(options, checkpoint, images, indices, device, subject, source, how)


def _subject(
    options: Any,
    checkpoint: Checkpoint,
    images: ImageSet,
    indices: Tensor,
    device: torch.device,
    dtype: torch.dtype,
) -> Subject:
    """The map and the images that the options ask for."""
    encoder = checkpoint.encoder
    given = checkpoint.concentration if options.concentration is None else options.concentration

    def corrupted(places: Tensor, how: dict[str, Any]) -> Tensor:
        from lipcomp.robustness.corruptions import corrupt

        ids = indices[places]
        made = corrupt(images.batch(ids), how["corruption"], how["severity"], how["table"], options.seed, ids)
        return made.to(device, dtype)

    return Subject(
        fn=partial(encoder.embedding if options.unnormalised else encoder, layer=options.layer),
        load=lambda places: images.batch(indices[places.cpu()]).to(device, dtype),
        n=len(indices),
        concentration=None if options.unnormalised else given,
        normalised=not options.unnormalised,
        views=PhotoViews() if encoder.image_shape[0] == 3 else DigitViews(),
        corrupted=corrupted,
        seed=options.seed,
        batch_size=options.batch_size,
    )


@dataclass
class Measurement:
    """One source of pairs of one encoder: measured, recorded, and as rows of the table."""

    options: Any
    checkpoint: Checkpoint
    images: ImageSet
    indices: Tensor
    device: torch.device
    subject: Subject
    source: str
    how: dict[str, Any]

    @property
    def label(self) -> str:
        """Encoder and source, for people."""
        special = [str(v) for k, v in self.how.items() if k in ("corruption", "severity")]
        return " ".join([self.checkpoint.label, self.source, *special])

    @property
    def settings(self) -> dict[str, Any]:
        """What tells this measurement from others in the records."""
        return {
            "data": self.images.name,
            "data_hash": self.images.content_hash(),
            "images": self.subject.n,
            "seed": self.options.seed,
            "layer": self.options.layer,
            "normalised": self.subject.normalised,
            "pairs": self.source,
            "concentration": self.subject.concentration,
            **self.how,
        }

    def run(self, written: set[str]) -> list[tuple[str, ...]]:
        """Measure it, unless its records are written already."""
        options, n, label, settings = self.options, self.subject.n, self.label, self.settings
        told: dict[str, Any] = {"subject": self.checkpoint.subject(), "settings": settings}
        if Record("bound.images", float(n), **told).identity in written:
            print(f"{label}: already in {options.out}", file=sys.stderr)
            return []
        started = time.monotonic()
        with commands.progress(n * (n - 1) // 2 if self.source == "all" else n, label) as advance:
            found = MEASURES[self.source](self.subject, self.how, advance)
        if found.place is not None:
            print(f"{label}, image {int(self.indices[found.place])}, {found.line}", file=sys.stderr)
        seconds = round(time.monotonic() - started, 3)
        told["provenance"] = provenance(self.device, options.precision, options.seed, seconds=seconds)
        records = [Record("bound.images", float(n), "images", n, **told)]
        records += [Record(name, value, unit, n, **told) for name, value, unit in found.numbers]
        rows: list[tuple[str, ...]] = []
        if found.bounds is not None:
            records += self._tell(found.bounds, told)
            normalised = self.subject.normalised
            rows = [(label, *row) for row in table_rows(found.bounds, self.indices, normalised=normalised)]
        if options.out:
            append_records(options.out, records)
        if options.json:
            print("\n".join(record.to_json() for record in records))
        for name, value, _ in found.numbers:
            rows.append((label, name, "", "", "none" if value is None else f"{value:.4g}", "", str(n)))
        return rows

    def _tell(self, bounds: LowerBounds, told: dict[str, Any]) -> list[Record]:
        """The bounds' records; and, where asked for, the table of images and the pictures of the witnesses."""
        options, n, settings = self.options, self.subject.n, self.settings
        records = []
        for one in findings(bounds, self.indices, normalised=self.subject.normalised):
            more = told | {"provenance": told["provenance"] | one.witness}
            records.append(Record(one.quantity, one.value, one.unit, one.n, **more))
        for reason, count in bounds.excluded.items():
            if count:
                print(f"{self.label}: left out {count} pairs ({reason})", file=sys.stderr)
        if options.table:
            kind: dict[str, Any] = {k: [settings.get(k)] * n for k in ("pairs", "corruption", "severity")}
            told_of: dict[str, Any] = {"checkpoint": [str(self.checkpoint.path)] * n, **kind}
            commands.write_table(options.table, told_of | per_image(bounds, self.indices))
        if options.witnesses:
            for name, bound in bounds.bounds.items():
                if bound.witness is not None and bound.witness.images is not None:
                    stem = re.sub(r"[^\w.-]+", "_", f"{self.label} {name}")
                    save_witness(options.witnesses / f"{stem}.png", *bound.witness.images)
        return records


def _sources(options: Any, checkpoint: Checkpoint) -> Iterator[tuple[str, dict[str, Any]]]:
    """The sources that were asked for, with what tells one from another in the records."""
    for source in options.pairs:
        if source == "corruptions":
            yield from ((source, how) for how in _corruptions(options, checkpoint))
        elif source == "random":
            yield source, {"radius": options.radius}
        elif source == "neighbours":
            yield source, {"neighbours": options.neighbours}
        elif source == "search":
            names = ("radius", "norm", "search", "starts", "steps")
            yield source, {name: getattr(options, name) for name in names}
        elif source == "certified":
            yield source, {"steps": options.steps}
        else:
            yield source, {}


def _corruptions(options: Any, checkpoint: Checkpoint) -> Iterator[dict[str, Any]]:
    from lipcomp.robustness.corruptions import corruption_names

    channels, height, _ = checkpoint.encoder.image_shape
    table = options.corruption_table or (
        "mnist" if channels == 1 else "cifar" if height <= 64 else "imagenet"
    )
    known = corruption_names(table)
    names = known if options.corruptions is None else options.corruptions.split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(
            f"--corruptions: {', '.join(unknown)} not in the table {table!r}: {', '.join(known)}"
        )
    for name in names:
        yield {"corruption": name, "severity": options.severity, "table": table}


def _check(options: Any) -> None:
    """Refuse options that do not fit, before anything is loaded."""
    names = [name.strip() for name in options.pairs.split(",") if name.strip()]
    unknown = [name for name in names if name not in MEASURES]
    if unknown or not names:
        raise ValueError(
            f"--pairs takes a comma-separated list of {', '.join(MEASURES)}; got {options.pairs!r}"
        )
    options.pairs = names
    for name in ("batch_size", "radius", "concentration", "neighbours", "starts", "steps"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise ValueError(f"--{name.replace('_', '-')} must be positive, got {value}")
    if options.unnormalised and options.concentration is not None:
        raise ValueError("--concentration belongs to mean directions; leave it out with --unnormalised")
    if options.table:
        commands.check_table(options.table)
    if options.witnesses and options.witnesses.exists() and not options.witnesses.is_dir():
        raise ValueError(f"--witnesses must name a folder, got the file {str(options.witnesses)!r}")


def build_parser() -> commands.Parser:
    """The command's options."""
    parser = commands.Parser(prog="python -m lipcomp.bound", description=__doc__, epilog=EXAMPLE)
    commands.add_encoder_arguments(parser)
    commands.add_data_arguments(parser, default="mnist5k")
    pairs = parser.add_argument_group("pairs")
    pairs.add_argument("--pairs", default="views", help=f"list of {', '.join(MEASURES)} (default views)")
    pairs.add_argument("--corruptions", help="list of corruptions (default: all of the table)")
    pairs.add_argument("--severity", type=int, default=3, choices=range(1, 6), help="default 3")
    pairs.add_argument(
        "--corruption-table", choices=("mnist", "cifar", "imagenet"), help="default: by the images"
    )
    pairs.add_argument("--neighbours", type=int, default=1, help="nearest neighbours an image (default 1)")
    pairs.add_argument("--radius", type=float, default=0.5, help="of random, search (default 0.5 pixel L2)")
    pairs.add_argument("--norm", default="l2", choices=("l2", "linf"), help="the searched ball (default l2)")
    pairs.add_argument(
        "--search", default="pair", choices=("pair", "chord"), help="what ascends (default pair)"
    )
    pairs.add_argument("--starts", type=int, default=3, help="ascents an image (default 3)")
    pairs.add_argument("--steps", type=int, default=30, help="steps an ascent (default 30)")
    what = parser.add_argument_group("what is measured")
    what.add_argument(
        "--layer", default="latent", help="backbone, projection, prediction or latent (default)"
    )
    what.add_argument("--unnormalised", action="store_true", help="the embedding h instead of h / |h|")
    what.add_argument("--concentration", type=float, help="one common kappa (default: each checkpoint's own)")
    what.add_argument(
        "--precision", default="float32", choices=("float32", "float64"), help="default float32"
    )
    commands.add_run_arguments(parser)
    parser.add_argument("--table", type=Path, help="per-image values to this .csv or .parquet file")
    parser.add_argument(
        "--witnesses", type=Path, help="a folder for pictures of the pairs that attain the bounds (PNG)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(commands.run(main))
