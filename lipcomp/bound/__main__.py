"""python -m lipcomp.bound: lower bounds of the Lipschitz constant of encoders, side by side.

Pairs come from positive views, corruptions, random directions, nearest neighbours, all pairs of the set, or ascent in a
ball. Models are compared by the mean direction (3.5), or at one common --concentration. Each source of pairs is written
as soon as it is done: run the same command again after an interruption and it goes on there.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lipcomp import commands
from lipcomp.bound import (
    LowerBounds,
    SearchResult,
    all_pairs,
    bounds_from_chords,
    indexed_pairs,
    measure_pairs,
    measure_sandwich,
    nearest_neighbours,
    paired,
    random_pairs,
    search_ball,
    view_pairs,
)
from lipcomp.bound.summary import findings, per_image, table_rows
from lipcomp.checkpoints import Checkpoint
from lipcomp.data import DigitViews, ImageSet, PhotoViews
from lipcomp.jacobian.batching import forward_batch_size
from lipcomp.jacobian.checks import check_layer, check_map
from lipcomp.records import Record, append_records, provenance, read_records

EXAMPLE = """example:
  python -m lipcomp.bound runs/simclr.safetensors runs/c-simclr.safetensors --data mnist5k \\
      --pairs views,corruptions,all --concentration 1024 --out bounds.jsonl --table per_image.csv
"""
SOURCES = ("views", "corruptions", "random", "neighbours", "all", "search", "certified")


@dataclass
class Subject:
    """An encoder's map and the images it is measured on; the clean embeddings are computed once."""

    options: Any
    checkpoint: Checkpoint
    images: ImageSet
    indices: Tensor
    device: torch.device
    dtype: torch.dtype
    _known: Tensor | None = field(default=None, repr=False)

    @property
    def fn(self) -> Callable[[Tensor], Tensor]:
        """Pixels to the layer's mean direction, or to its embedding."""
        encoder = self.checkpoint.encoder
        method = encoder.embedding if self.options.unnormalised else encoder
        return partial(method, layer=self.options.layer)

    def load(self, places: Tensor) -> Tensor:
        """Images by their place among those that are measured."""
        return self.images.batch(self.indices[places.cpu()]).to(self.device, self.dtype)

    def batches(self) -> Iterator[Tensor]:
        """All of them, in order."""
        for places in torch.arange(len(self.indices)).split(self.size):
            yield self.load(places)

    @cached_property
    def size(self) -> int:
        """Images at a time."""
        return self.options.batch_size or forward_batch_size(self.fn, self.load(torch.arange(1)))

    def embeddings(self) -> Tensor:
        """Mean directions of all clean images."""
        if self._known is None:
            check_map(self.fn, self.load(torch.arange(min(3, len(self.indices)))))
            with torch.no_grad():
                self._known = torch.cat([self.fn(batch).flatten(1) for batch in self.batches()])
        return self._known

    @property
    def concentration(self) -> float | None:
        """The common kappa if there is one, else the checkpoint's."""
        if self.options.unnormalised:
            return None
        given = self.options.concentration
        return self.checkpoint.concentration if given is None else given


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, write the records."""
    options = build_parser().parse_args(arguments)
    _check(options)
    device = commands.choose_device(options.device)
    dtype = {"float32": torch.float32, "float64": torch.float64}[options.precision]
    written = set()
    if options.out and options.out.exists():
        written = {record.identity() for record in read_records(options.out)}
    rows: list[tuple[str, ...]] = []
    for checkpoint in commands.load_encoders(options):
        checkpoint.encoder.to(device, dtype)
        check_layer(checkpoint.encoder, options.layer)
        images, indices = commands.load_images(options, checkpoint.encoder.image_shape)
        if len(indices) < 2:
            raise ValueError(f"--data {options.data}: need at least two images, got {len(indices)}")
        subject = Subject(options, checkpoint, images, indices, device, dtype)
        for source, how in _sources(subject):
            rows += _measure(subject, source, how, written)
    if not options.json:
        print(
            commands.table(
                ("encoder, pairs", "lower bound", "median", "q99", "max", "witness", "pairs"), rows
            )
        )
    return 0


def _measure(subject: Subject, source: str, how: dict[str, Any], written: set[str]) -> list[tuple[str, ...]]:
    """One source of pairs: measured, recorded, and as rows of the table."""
    options, checkpoint = subject.options, subject.checkpoint
    settings = {
        "data": subject.images.name,
        "data_hash": subject.images.content_hash(),
        "images": len(subject.indices),
        "seed": options.seed,
        "layer": options.layer,
        "normalised": not options.unnormalised,
        "pairs": source,
        "concentration": subject.concentration,
        **how,
    }
    label = " ".join(
        [checkpoint.label, source, *(str(v) for k, v in how.items() if k in ("corruption", "severity"))]
    )
    probe = Record(
        "bound.images", float(len(subject.indices)), subject=checkpoint.subject(), settings=settings
    )
    if probe.identity() in written:
        print(f"{label}: already in {options.out}", file=sys.stderr)
        return []
    started = time.monotonic()
    n = len(subject.indices)
    total = n * (n - 1) // 2 if source == "all" else n
    with commands.progress(total, label) as advance:
        result, extra = MEASURES[source](subject, how, advance)
    origin = provenance(
        subject.device, options.precision, options.seed, seconds=round(time.monotonic() - started, 3)
    )
    told: dict[str, Any] = {"subject": checkpoint.subject(), "settings": settings, "provenance": origin}
    records = [Record("bound.images", float(n), "images", n, **told)]
    records += [Record(name, value, unit, n, **told) for name, value, unit in extra]
    rows: list[tuple[str, ...]] = []
    if result is not None:
        normalised = not options.unnormalised
        for found in findings(result, subject.indices, normalised=normalised):
            more = told | {"provenance": origin | found.witness}
            records.append(Record(found.quantity, found.value, found.unit, found.n, **more))
        rows = [(label, *row) for row in table_rows(result, subject.indices, normalised=normalised)]
        for reason, count in result.excluded.items():
            if count:
                print(f"{label}: left out {count} pairs ({reason})", file=sys.stderr)
        if options.table:
            kind: dict[str, Any] = {k: [settings.get(k)] * n for k in ("pairs", "corruption", "severity")}
            told_of: dict[str, Any] = {"checkpoint": [str(checkpoint.path)] * n, **kind}
            commands.write_table(options.table, told_of | per_image(result, subject.indices))
    if options.out:
        append_records(options.out, records)
    if options.json:
        print("\n".join(record.to_json() for record in records))
    elif extra:
        rows += [
            (label, name, "", "", "none" if value is None else f"{value:.4g}", "", str(n))
            for name, value, _ in extra
        ]
    return rows


Measured = tuple[LowerBounds | None, list[tuple[str, float | None, str]]]


def _stream(subject: Subject, how: dict[str, Any], advance: Callable[[int], object]) -> Measured:
    """Views, corruptions, random directions, neighbours: a stream of pairs."""
    options, source = subject.options, how.get("corruption")
    generator = torch.Generator().manual_seed(options.seed)
    if source is not None:
        known = subject.embeddings()
        blocks = paired(subject.batches(), _corrupted(subject, how), known)
    elif "radius" in how:
        blocks = random_pairs(subject.batches(), options.radius, generator, first_mu=subject.embeddings())
    elif "neighbours" in how:
        n = len(subject.indices)
        near = nearest_neighbours(subject.load, n, options.neighbours)
        pairs = torch.stack([torch.arange(n).repeat_interleave(near.shape[1]), near.flatten()], 1)
        blocks = indexed_pairs(subject.load, pairs, subject.size, subject.embeddings())
    else:
        colour = subject.checkpoint.encoder.image_shape[0] == 3
        blocks = view_pairs(subject.batches(), PhotoViews() if colour else DigitViews(), generator)
    result = measure_pairs(
        subject.fn, blocks, subject.concentration, normalised=not options.unnormalised, advance=advance
    )
    return result, []


def _corrupted(subject: Subject, how: dict[str, Any]) -> Iterator[Tensor]:
    from lipcomp.robustness.corruptions import corrupt

    for places in torch.arange(len(subject.indices)).split(subject.size):
        ids = subject.indices[places]
        made = corrupt(
            subject.images.batch(ids),
            how["corruption"],
            how["severity"],
            how["table"],
            subject.options.seed,
            ids,
        )
        yield made.to(subject.device, subject.dtype)


def _all(subject: Subject, how: dict[str, Any], advance: Callable[[int], object]) -> Measured:
    mu = subject.embeddings()
    normalised = not subject.options.unnormalised
    return (
        all_pairs(
            mu, subject.load, subject.concentration, fn=subject.fn, normalised=normalised, advance=advance
        ),
        [],
    )


def _search(subject: Subject, how: dict[str, Any], advance: Callable[[int], object]) -> Measured:
    options = subject.options
    found = search_ball(
        subject.fn,
        subject.load(torch.arange(len(subject.indices))),
        options.radius,
        norm=options.norm,
        kind=options.search,
        starts=options.starts,
        steps=options.steps,
        batch_size=options.batch_size,
        generator=torch.Generator().manual_seed(options.seed),
        advance=advance,
    )
    distance = (found.second.double() - found.first.double()).flatten(1).norm(dim=1)
    chord = (found.chord_ratio.double() * distance).masked_fill(found.sigma_at_image.isnan(), torch.nan)
    dim = subject.embeddings().shape[1]
    result = bounds_from_chords(chord, distance, dim, subject.concentration)
    return result, _searched(found)


def _searched(found: SearchResult) -> list[tuple[str, float | None, str]]:
    values = []
    for name, sigma in (("sigma_in_ball", found.sigma), ("sigma_at_image", found.sigma_at_image)):
        known = sigma[~sigma.isnan()].double()
        values += [
            (f"bound.{name}.max", float(known.max()) if len(known) else None, "1/pixel L2"),
            (f"bound.{name}.mean", float(known.mean()) if len(known) else None, "1/pixel L2"),
        ]
    return values


def _certified(subject: Subject, how: dict[str, Any], advance: Callable[[int], object]) -> Measured:
    """The sandwich (5.3) on balls that the certificate allows."""
    options = subject.options
    images = subject.load(torch.arange(len(subject.indices)))
    found = measure_sandwich(
        subject.fn,
        images,
        normalised=not options.unnormalised,
        steps=options.steps,
        batch_size=options.batch_size,
        generator=torch.Generator().manual_seed(options.seed),
        advance=advance,
    )
    i = found.worst
    where = f"{subject.checkpoint.label}, image {int(subject.indices[i])}, radius {found.radius:.3g}"
    print(f"{where}: {found.line()} {found.certificate.reason}".rstrip(), file=sys.stderr)
    certified, gap = float(found.certified[i]), found.gap_decades
    return None, [
        ("bound.sandwich.lower", float(found.lower[i]), "1/pixel L2"),
        ("bound.sandwich.searched", float(found.searched[i]), "1/pixel L2"),
        ("bound.sandwich.certified", certified if math.isfinite(certified) else None, "1/pixel L2"),
        ("bound.sandwich.radius", found.radius, "pixel L2"),
        ("bound.sandwich.gap_decades", gap if math.isfinite(gap) else None, "decades"),
    ]


MEASURES: dict[str, Callable[[Subject, dict[str, Any], Callable[[int], object]], Measured]] = {
    **dict.fromkeys(("views", "corruptions", "random", "neighbours"), _stream),
    "all": _all,
    "search": _search,
    "certified": _certified,
}


def _sources(subject: Subject) -> Iterator[tuple[str, dict[str, Any]]]:
    """The sources that were asked for, with what tells one from another in the records."""
    options = subject.options
    for source in options.pairs:
        if source == "corruptions":
            yield from ((source, how) for how in _corruptions(subject))
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


def _corruptions(subject: Subject) -> Iterator[dict[str, Any]]:
    from lipcomp.robustness.corruptions import corruption_names

    channels, height, _ = subject.checkpoint.encoder.image_shape
    table = subject.options.corruption_table or (
        "mnist" if channels == 1 else "cifar" if height <= 64 else "imagenet"
    )
    known = corruption_names(table)
    names = known if subject.options.corruptions is None else subject.options.corruptions.split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(
            f"--corruptions: {', '.join(unknown)} not in the table {table!r}: {', '.join(known)}"
        )
    for name in names:
        yield {"corruption": name, "severity": subject.options.severity, "table": table}


def _check(options: Any) -> None:
    """Refuse options that do not fit, before anything is loaded."""
    names = [name.strip() for name in options.pairs.split(",") if name.strip()]
    unknown = [name for name in names if name not in SOURCES]
    if unknown or not names:
        raise ValueError(
            f"--pairs takes a comma-separated list of {', '.join(SOURCES)}; got {options.pairs!r}"
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


def build_parser() -> commands.Parser:
    """The command's options."""
    parser = commands.Parser(prog="python -m lipcomp.bound", description=__doc__, epilog=EXAMPLE)
    commands.add_encoder_arguments(parser)
    commands.add_data_arguments(parser, default="mnist5k")
    pairs = parser.add_argument_group("pairs")
    pairs.add_argument("--pairs", default="views", help=f"list of {', '.join(SOURCES)} (default views)")
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
    return parser


if __name__ == "__main__":
    sys.exit(commands.run(main))
