"""Measure the accuracy of frozen encoders under corruptions, distribution shifts and attacks.

A probe is fitted on the features of the training images and evaluated under each condition. Results are written after
each condition; after an interruption, run the same command again to continue.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from lipcomp import _commands as commands
from lipcomp.data._known import ON_DISK
from lipcomp.measure import (
    CleanAccuracy,
    CorruptionAccuracy,
    _options as options,
)
from lipcomp.measure._accuracy import RobustAccuracy
from lipcomp.measure._beyond import (
    ClassAccuracy,
    EmbeddingRobustness,
    LeaderboardRow,
    OutOfDistribution,
    ShapeBias,
    StreamAccuracy,
    WatermarkGap,
)
from lipcomp.measure._plan import Probe
from lipcomp.measure._run import Done
from lipcomp.measure._shifted import VIDEOS, FlipRate, ShiftAccuracy, VideoAccuracy
from lipcomp.robustness._compare import SOURCE, place_among, published_rows
from lipcomp.robustness._shifts import SHIFTS
from lipcomp.robustness.corruptions._corrupt import SEVERITIES
from lipcomp.robustness.corruptions._tables import COMMON, TABLES

EXAMPLE = """examples:
  python -m lipcomp.robustness runs/simclr.safetensors runs/c-simclr.safetensors --data mnist5k \\
      --corruptions mnist --shift uci_digits --out robustness.jsonl
  python -m lipcomp.robustness resnet50.pth --data /data/imagenet --corruptions none --corrupted ImageNet-C \\
      --shift imagenet-v2=imagenetv2-matched-frequency-format-val --shift imagenet-a=imagenet-a \\
      --videos vid-robust=imagenet-vid-robust --attack auto --norm l2 --radius 0.5 --attack-images 1000 --out r.jsonl
"""
# Quantities that stand beside published rows, each with its clean accuracy.
BESIDE = {"accuracy.corruption.mean": "accuracy.clean", "robustbench.corruptions": "robustbench.clean"}
BOARD_CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}
HEAD = ("encoder", "condition", "quantity", "value", "95% interval", "n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit the probes, run the conditions, print a table, write the records."""
    given = build_parser().parse_args(arguments)
    probe = Probe(given.probe, given.neighbours, given.temperature, given.seed)
    asked = list(quantities(given))

    def rows(done: Done) -> Iterator[options.Row]:
        if given.all or done.unit.kind != "accuracy.corruption":
            yield from (_row(done, record) for record in done.records)

    told: dict[str, list[tuple[bool, Any]]] = {}

    def followed(done: Done) -> Iterator[options.Row]:
        fits = len(done.bench.images.classes) == BOARD_CLASSES.get(given.compare)
        told.setdefault(done.bench.label, []).extend((fits, record) for record in done.records)
        return rows(done)

    if given.compare:
        published_rows(given.compare)  # fail before the long work
    code = options.run_command(given, asked, HEAD, followed, probe)
    if given.compare and not given.json and not given.dry_run:
        print(_compared(given.compare, told))
    return code


def _compared(dataset: str, told: dict[str, list[tuple[bool, Any]]]) -> str:
    """The published rows around each encoder's corrupted accuracies."""
    published = published_rows(dataset)
    rows: list[options.Row] = []
    for label, records in told.items():
        clean = {record.quantity: record.value for _, record in records}
        for fits, shifted in records:
            if shifted.quantity not in BESIDE:
                continue
            own, settings = label, shifted.settings
            if shifted.quantity == "accuracy.corruption.mean":
                own += f" {settings['data'].partition('/')[0]}" if settings["made"] == "disk" else ""
                if not (fits and settings["comparable"] and settings["corruptions"] == len(COMMON)):
                    own += " (another protocol)"
            placed = place_among(published, own, clean=clean[BESIDE[shifted.quantity]], shifted=shifted.value)
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
    """The quantities that the options select; clean accuracy is always measured."""
    yield CleanAccuracy()
    if given.corruptions != "none":
        table = None if given.corruptions == "auto" else given.corruptions
        yield CorruptionAccuracy(
            table, None, given.only, given.severities, None, given.all_corruptions, given.jpeg, given.frost
        )
    for folder in given.corrupted:
        yield CorruptionAccuracy(None, folder, given.only, given.severities, everything=given.all_corruptions)
    if given.per_class:
        yield ClassAccuracy()
    for near, name, place in given.ood:
        _needs_folder("--ood", name, place, name in ON_DISK)
        yield OutOfDistribution(name, place, near)
    for name, place in given.shift:
        _needs_folder("--shift", name, place, name in SHIFTS and SHIFTS[name].source is not None)
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


def _needs_folder(option: str, name: str, place: str | None, on_disk: bool) -> None:
    if on_disk and place is None:
        raise commands.UsageError(
            f"{option} {name} is read from disk; give its folder: {option} {name}=FOLDER"
        )


def _named(text: str) -> tuple[str, str | None]:
    name, equals, place = text.partition("=")
    if not name or (equals and not place):
        raise argparse.ArgumentTypeError(
            f"must be NAME or NAME=FOLDER, got {text!r}; is a variable of the shell not set?"
        )
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
    # fmt: off
    probe.add_argument("--probe", default="linear", choices=("linear", "knn", "augmented"),
        help="linear: logistic regression on the features; knn: nearest neighbours; augmented: the paper's linear "
        "evaluation, SGD on augmented images")
    probe.add_argument("--neighbours", type=count, default=20, help="number of neighbours of --probe knn")
    probe.add_argument("--temperature", type=number, default=0.07, help="temperature of --probe knn")
    sets = parser.add_argument_group("conditions (clean accuracy is always measured)")
    sets.add_argument("--corruptions", default="auto", choices=("auto", "none", *TABLES),
        help="table of corruptions to apply to the images of --data; auto: the table that fits the images")
    sets.add_argument("--only", type=options.words, metavar="NAME,...",
        help="only these corruptions, comma-separated (default: all)")
    sets.add_argument("--severities", type=options.severities, default=SEVERITIES, metavar="INT,...",
        help="severities from 1 to 5, comma-separated")
    # fmt: on
    more: dict[str, Any] = {"action": "append", "default": []}
    # fmt: off
    sets.add_argument("--all-corruptions", action="store_true",
        help="all 19 corruptions of ImageNet-C (without it, the 15 that the literature averages)")
    sets.add_argument("--jpeg", type=count, metavar="QUALITY", help="compress generated corruptions as JPEG of this "
        "quality, 1 to 95; the published ImageNet-C has 85 (default: no compression)")
    sets.add_argument("--frost", metavar="FOLDER",
        help="folder with the published photographs frost1 to frost5 (default: generated textures)")
    sets.add_argument("--per-class", action="store_true",
        help="also report the accuracy of each class and of the worst class")
    sets.add_argument("--corrupted", metavar="FOLDER",
        help="dataset directory of a published corrupted set; repeatable", **more)
    sets.add_argument("--shift", type=_named, metavar="NAME[=FOLDER]",
        help=f"distribution shift, repeatable: {', '.join(SHIFTS)}", **more)
    sets.add_argument("--baselines", metavar="CSV[:CLEAN:SHIFTED]", help="reference models for effective robustness, "
        "with the names of the columns (default: the published models)")
    sets.add_argument("--videos", type=_named, metavar="NAME=FOLDER",
        help=f"video set, repeatable: {', '.join(VIDEOS)}", **more)
    sets.add_argument("--perturbations", metavar="FOLDER",
        help="dataset directory of ImageNet-P or CIFAR-10-P; repeatable", **more)
    sets.add_argument("--flip-reference", metavar="CSV", help="table of a reference model with columns perturbation, "
        "flip_rate, top5_distance; needed for mFR and mT5D")
    beyond = parser.add_argument_group("out-of-distribution detection, shape bias and leaderboards")
    beyond.add_argument("--ood", type=_outside, metavar="[near:]NAME[=FOLDER]",
        help="out-of-distribution set, repeatable: AUROC and FPR95 of five scores; near: marks a near-OOD set", **more)
    beyond.add_argument("--cue-conflict", metavar="FOLDER|fourier",
        help="folder of cue-conflict images, for the shape bias; fourier: made from the images measured, the phase "
        "of one with the amplitude of another")
    beyond.add_argument("--watermark", metavar="FONT", help="font file of ImageNet-W, for the watermark gap")
    beyond.add_argument("--ccc", metavar="FOLDER",
        help="folder of a CCC stream (continually changing corruptions); repeatable", **more)
    beyond.add_argument("--protocol", type=_protocol, metavar="robustbench-corruptions=FOLDER",
        help="run RobustBench's own evaluation and report the rank among its published models")
    beyond.add_argument("--compare", metavar="BOARD",
        help="show published leaderboard rows: cifar10, cifar100 or imagenet")
    attack = parser.add_argument_group("attack")
    attack.add_argument("--attack", choices=("pgd", "auto", "embedding"),
        help="pgd, auto (AutoAttack) or embedding (moves the mean direction as far as possible; needs no labels)")
    attack.add_argument("--norm", type=str.lower, default="linf", choices=("linf", "l2"), help="norm of the attack")
    attack.add_argument("--radius", type=number,
        help="radius of the attack, in pixels in [0, 1] (required with --attack, no default)")
    attack.add_argument("--attack-images", type=count,
        help="attack only this many images, from the first (default: all)")
    # fmt: on
    options.add_run_arguments(parser)
    # fmt: off
    parser.add_argument("--all", action="store_true", help="print one row per corruption and severity")
    # fmt: on
    none_made = lambda given: given.corruptions == "none"  # noqa: E731
    parser.ignores("with --corruptions none", none_made, "--jpeg", "--frost", "--table")
    parser.ignores(
        "with --corruptions none and without --corrupted",
        lambda given: none_made(given) and not given.corrupted,
        *("--only", "--severities", "--all-corruptions", "--all"),
    )
    parser.ignores(
        "with --corruptions none, and without --corrupted and --protocol",
        lambda given: none_made(given) and not given.corrupted and not given.protocol,
        "--compare",
    )
    parser.ignores("with --only", lambda given: given.only, "--all-corruptions")
    parser.ignores("with --json", lambda given: given.json, "--compare", "--all")
    parser.ignores("without --probe knn", lambda given: given.probe != "knn", "--neighbours", "--temperature")
    parser.ignores("without --shift", lambda given: not given.shift, "--baselines")
    parser.ignores("without --perturbations", lambda given: not given.perturbations, "--flip-reference")
    parser.ignores(
        "without --attack", lambda given: not given.attack, "--norm", "--radius", "--attack-images"
    )
    return parser


if __name__ == "__main__":
    sys.exit(commands.run(main))
