"""python -m lipcomp.robustness: how accuracy holds where the data move.

A probe is fitted on the frozen features of the training images; then come the conditions, one after the other. Each is
kept as soon as it is done: run the same command again after an interruption and it goes on there.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from lipcomp import _commands as commands
from lipcomp.measure import (
    ClassAccuracy,
    CleanAccuracy,
    CorruptionAccuracy,
    Done,
    EmbeddingRobustness,
    FlipRate,
    LeaderboardRow,
    OutOfDistribution,
    Probe,
    RobustAccuracy,
    ShapeBias,
    ShiftAccuracy,
    StreamAccuracy,
    VideoAccuracy,
    WatermarkGap,
)
from lipcomp.measure import (
    _options as options,
)
from lipcomp.measure._accuracy import VIDEOS
from lipcomp.robustness._compare import SOURCE, place_among, published_rows
from lipcomp.robustness._shifts import SHIFTS
from lipcomp.robustness.corruptions import SEVERITIES, TABLES

EXAMPLE = """examples:
  python -m lipcomp.robustness runs/simclr.safetensors runs/c-simclr.safetensors --data mnist5k \\
      --corruptions mnist --shift uci_digits --out robustness.jsonl
  python -m lipcomp.robustness resnet50.pth --data /data/imagenet --corruptions none --corrupted ImageNet-C \\
      --shift imagenet-v2=imagenetv2-matched-frequency-format-val --shift imagenet-a=imagenet-a \\
      --videos vid-robust=imagenet-vid-robust --attack auto --norm l2 --radius 0.5 --attack-images 1000 --out r.jsonl
"""
HEAD = ("encoder", "condition", "quantity", "value", "95% interval", "n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit the probes, run the conditions, print a table, write the records."""
    given = build_parser().parse_args(arguments)
    probe = Probe(given.probe, given.neighbours, given.temperature, given.seed)
    asked = list(quantities(given))

    def rows(done: Done) -> Iterator[options.Row]:
        if given.all or done.unit.kind != "accuracy.corruption":
            yield from (_row(done, record) for record in done.records)

    told: dict[str, dict[str, Any]] = {}

    def followed(done: Done) -> Iterator[options.Row]:
        told.setdefault(done.bench.label, {}).update({r.quantity: r for r in done.records})
        return rows(done)

    if given.compare:
        published_rows(given.compare)  # named before the long work
    code = options.run_command(given, asked, HEAD, followed, probe)
    if given.compare and not given.json:
        print(_compared(given.compare, told))
    return code


def _compared(dataset: str, told: dict[str, dict[str, Any]]) -> str:
    """The published rows around each encoder's, by corrupted accuracy."""
    published = published_rows(dataset)
    rows: list[options.Row] = []
    for label, records in told.items():
        clean = records.get("robustbench.clean", records.get("accuracy.clean"))
        shifted = records.get("robustbench.corruptions", records.get("accuracy.corruption.mean"))
        if clean is None or shifted is None:
            continue
        if shifted.settings.get("comparable") is False:
            label += " (another protocol)"
        placed = place_among(published, label, clean=clean.value, shifted=shifted.value)
        rank = placed.attrs["rank"]
        around = placed[max(0, rank - 4) : rank + 3]
        rows += [
            (str(max(0, rank - 4) + k), str(row.model), f"{row.clean:.4f}", f"{row.shifted:.4f}")
            for k, row in enumerate(around.itertuples(), 1)
        ]
    return commands.table(("rank", f"{dataset}, corruptions", "clean", "corrupted"), rows) + f"\n{SOURCE}"


def _row(done: Done, record: Any) -> options.Row:
    interval = "-" if record.interval is None else "{:.4f} .. {:.4f}".format(*record.interval)
    value = "none" if record.value is None else f"{record.value:.4f}"
    told = [str(record.settings[key]) for key in ("score", "class", "block") if key in record.settings]
    return (
        done.bench.label,
        done.unit.label,
        " ".join([record.quantity, *told]),
        value,
        interval,
        str(record.n),
    )


def quantities(given: argparse.Namespace) -> Iterator[Any]:
    """What the options ask for; clean accuracy always."""
    yield CleanAccuracy()
    if given.corruptions != "none":
        table = None if given.corruptions == "auto" else given.corruptions
        yield CorruptionAccuracy(
            table, None, given.only, given.severities, None, given.all_corruptions, given.jpeg, given.frost
        )
    elif given.jpeg or given.frost:
        raise commands.UsageError(
            "--jpeg and --frost are of corruptions that are made, and --corruptions is none"
        )
    for folder in given.corrupted:
        yield CorruptionAccuracy(None, folder, given.only, everything=given.all_corruptions)
    if given.per_class:
        yield ClassAccuracy()
    for near, name, place in given.ood:
        yield OutOfDistribution(name, place, near)
    for name, place in given.shift:
        yield ShiftAccuracy(name, place, given.baselines)
    for name, place in given.videos:
        if name not in VIDEOS or place is None:
            raise commands.UsageError(
                f"--videos takes NAME=FOLDER, NAME one of {', '.join(VIDEOS)}; got {name!r}"
            )
        yield VideoAccuracy(name, place)
    for folder in given.perturbations:
        yield FlipRate(folder, given.limit, given.flip_reference)
    if given.cue_conflict:
        yield ShapeBias(given.cue_conflict)
    if given.watermark:
        yield WatermarkGap(given.watermark)
    for folder in given.ccc:
        yield StreamAccuracy(folder, given.limit)
    if given.protocol:
        yield LeaderboardRow(given.protocol[1])
    if given.attack:
        if given.radius is None:
            raise commands.UsageError(
                "--attack needs --radius, in pixels: 0.0314 for 8/255 in linf, 0.5 in l2"
            )
        if given.attack == "embedding":
            yield EmbeddingRobustness(given.norm, given.radius, limit=given.attack_images)
        else:
            yield RobustAccuracy(given.attack, given.norm, given.radius, given.attack_images)


def _named(text: str) -> tuple[str, str | None]:
    name, _, place = text.partition("=")
    return name, place or None


def _outside(text: str) -> tuple[bool, str, str | None]:
    near, name = text.startswith("near:"), text.removeprefix("near:")
    return near, *_named(name)


def _protocol(text: str) -> tuple[str, str]:
    name, _, place = text.partition("=")
    if name != "robustbench-corruptions" or not place:
        raise argparse.ArgumentTypeError(f"must be robustbench-corruptions=FOLDER, got {text!r}")
    return name, place


def build_parser() -> commands.Parser:
    """The command's options."""
    parser = commands.Parser(prog="python -m lipcomp.robustness", description=__doc__, epilog=EXAMPLE)
    options.add_encoder_arguments(parser)
    options.add_data_arguments(parser)
    number, count = options.positive(float), options.positive(int)
    probe = parser.add_argument_group("probe (fitted on the training split of --data)")
    probe.add_argument(
        "--probe",
        default="linear",
        choices=("linear", "knn", "augmented"),
        help="linear: L-BFGS on features (default); augmented: the paper's SGD on augmented images",
    )
    probe.add_argument(
        "--neighbours", type=count, default=20, metavar="K", help="of --probe knn (default 20)"
    )
    probe.add_argument("--temperature", type=number, default=0.07, help="of --probe knn (default 0.07)")
    sets = parser.add_argument_group("conditions (clean accuracy always)")
    sets.add_argument(
        "--corruptions",
        default="auto",
        choices=("auto", "none", *TABLES),
        help="corrupt the images of --data, by this table (default: what fits the images)",
    )
    sets.add_argument("--only", type=options.words, metavar="NAME,...", help="only these corruptions")
    sets.add_argument(
        "--severities", type=options.severities, default=SEVERITIES, metavar="S,...", help="default 1,2,3,4,5"
    )
    more: dict[str, Any] = {"action": "append", "default": []}
    sets.add_argument(
        "--all-corruptions",
        action="store_true",
        help="all nineteen of ImageNet-C's corruptions (default: the fifteen of the literature)",
    )
    sets.add_argument(
        "--jpeg",
        type=count,
        metavar="QUALITY",
        help="save made images as JPEG and read them again; 85 as the published ImageNet-C (default: no JPEG)",
    )
    sets.add_argument(
        "--frost", metavar="FOLDER", help="folder with frost1 .. frost5 (default: generated textures)"
    )
    sets.add_argument("--per-class", action="store_true", help="accuracy of each class, and of the worst")
    sets.add_argument("--corrupted", metavar="FOLDER", help="a corrupted dataset directory", **more)
    sets.add_argument("--shift", type=_named, metavar="NAME[=FOLDER]", help=", ".join(SHIFTS), **more)
    sets.add_argument(
        "--baselines",
        metavar="CSV[:CLEAN:SHIFTED]",
        help="models of your own for effective robustness, and their columns (default: the published ones)",
    )
    sets.add_argument("--videos", type=_named, metavar="NAME=FOLDER", help=", ".join(VIDEOS), **more)
    sets.add_argument("--perturbations", metavar="FOLDER", help="ImageNet-P or CIFAR-10-P", **more)
    sets.add_argument(
        "--flip-reference",
        metavar="CSV",
        help="a reference model's perturbation, flip_rate, top5_distance, for mFR and mT5D (default: none)",
    )
    beyond = parser.add_argument_group("beyond corruptions")
    beyond.add_argument(
        "--ood",
        type=_outside,
        metavar="[near:]NAME[=FOLDER]",
        help="a data set to be told apart from --data: AUROC and FPR95 of five scores",
        **more,
    )
    beyond.add_argument("--cue-conflict", metavar="FOLDER", help="shape bias on the cue-conflict images")
    beyond.add_argument("--watermark", metavar="FONT", help="ImageNet-W, with the published font")
    beyond.add_argument(
        "--ccc", metavar="FOLDER", help="a stream of continually changing corruptions", **more
    )
    beyond.add_argument(
        "--protocol",
        type=_protocol,
        metavar="robustbench-corruptions=FOLDER",
        help="RobustBench's own evaluation, and the rank among its published rows",
    )
    beyond.add_argument(
        "--compare", metavar="BOARD", help="the published rows beside it: cifar10, cifar100 or imagenet"
    )
    attack = parser.add_argument_group("attack")
    attack.add_argument(
        "--attack",
        choices=("pgd", "auto", "embedding"),
        help="auto: AutoAttack; embedding: moves the mean direction, without labels",
    )
    attack.add_argument("--norm", type=str.lower, default="linf", choices=("linf", "l2"), help="default linf")
    attack.add_argument("--radius", type=number, help="of the ball, in pixels")
    attack.add_argument(
        "--attack-images", type=count, metavar="N", help="only the first N images (default: all)"
    )
    options.add_run_arguments(parser)
    parser.add_argument("--all", action="store_true", help="a table row for every corruption and severity")
    return parser


if __name__ == "__main__":
    sys.exit(commands.run(main))
