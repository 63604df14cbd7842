"""python -m lipcomp.robustness: how accuracy holds where the data move.

A probe is fitted on the frozen features of the training images; then come the sets, one after the other. Each
condition is kept as soon as it is done: run the same command again after an interruption and it goes on there.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lipcomp import commands
from lipcomp.checkpoints import Checkpoint
from lipcomp.data import load_set
from lipcomp.records import Record, append_records, provenance, read_records
from lipcomp.robustness import findings as f
from lipcomp.robustness.attacks import load_autoattack
from lipcomp.robustness.corruptions import SEVERITIES, TABLES
from lipcomp.robustness.effective import BaselineFit, read_baselines
from lipcomp.robustness.evaluate import (
    Condition,
    clean_condition,
    disk_conditions,
    generated_conditions,
)
from lipcomp.robustness.features import cached_linear_probe, extract_features, fingerprint
from lipcomp.robustness.linear_evaluation import DIGITS, PAPER, linear_evaluation
from lipcomp.robustness.probes import NearestNeighbours, Probe
from lipcomp.robustness.sets import open_corruption_set
from lipcomp.robustness.shifts import SHIFTS, load_shift
from lipcomp.robustness.videos import load_vid_robust, load_ytbb_robust, open_perturbations

EXAMPLE = """examples:
  python -m lipcomp.robustness runs/simclr.safetensors runs/c-simclr.safetensors --data mnist5k \\
      --corruptions mnist --shift uci_digits --out robustness.jsonl
  python -m lipcomp.robustness resnet50.pth --data /data/imagenet --corruptions none --corrupted ImageNet-C \\
      --shift imagenet-v2=imagenetv2-matched-frequency-format-val --shift imagenet-a=imagenet-a \\
      --videos vid-robust=imagenet-vid-robust --attack auto --norm L2 --radius 0.5 --attack-images 1000 --out r.jsonl
"""
VIDEOS = {"vid-robust": load_vid_robust, "ytbb-robust": load_ytbb_robust}


@dataclass(frozen=True)
class Work:
    """A set, opened and checked: what it is called, how much there is to do, how it is measured."""

    label: str
    count: int
    measure: Callable[..., Iterator[f.Finding]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit the probes, run the sets, print a table, write the records."""
    options = build_parser().parse_args(arguments)
    device = commands.choose_device(options.device)
    checkpoints = commands.load_encoders(options)
    plans = [
        _plan(options, checkpoint, device) for checkpoint in checkpoints
    ]  # all are checked before any runs
    cache = options.cache or (options.out.with_name(options.out.name + ".cells") if options.out else None)
    written = set()
    if options.out and options.out.exists():
        written = {record.identity for record in read_records(options.out)}
    rows: list[tuple[str, ...]] = []
    for checkpoint, plan in zip(checkpoints, plans, strict=True):
        checkpoint.encoder.to(device)
        probe, told = _probe(options, checkpoint, cache)
        classifier = probe.on(checkpoint.encoder).to(device)
        runner = f.Runner(classifier, fingerprint(classifier), options.batch_size or 256, cache)
        origin, subject = provenance(device, seed=options.seed), checkpoint.subject()
        for work in plan:
            with commands.progress(work.count, f"{checkpoint.path.name} {work.label}") as advance:
                found = list(work.measure(runner, advance=advance))
            records = [
                Record(x.quantity, e.value, "", e.n, e.interval, subject, x.settings | told, origin)
                for x in found
                for e in (x.estimate,)
            ]
            if options.out:
                append_records(options.out, [r for r in records if r.identity not in written])
            if options.json:
                print("\n".join(record.to_json() for record in records), flush=True)
            rows += [
                _row(checkpoint, work.label, r)
                for r in records
                if options.all or len(records) <= 20 or r.quantity != "accuracy.corruption"
            ]
    if not options.json:
        print(commands.table(("encoder", "set", "quantity", "value", "95% interval", "n"), rows))
    return 0


def _row(checkpoint: Checkpoint, label: str, record: Record) -> tuple[str, ...]:
    told = [record.settings.get(key) for key in ("corruption", "severity", "perturbation")]
    name = " ".join([record.quantity, *(str(word) for word in told if word is not None)])
    interval = "-" if record.interval is None else "{:.4f} .. {:.4f}".format(*record.interval)
    return checkpoint.label, label, name, f"{record.value:.4f}", interval, str(record.n)


def _probe(
    options: argparse.Namespace, checkpoint: Checkpoint, cache: Path | None
) -> tuple[Probe, dict[str, Any]]:
    """The probe on the training images, and what records say of it."""
    encoder = checkpoint.encoder
    images = load_set(options.data, "train", root=options.data_root, image_shape=encoder.image_shape)
    told = {"probe": options.probe, "train": images.name}
    if options.probe == "augmented":
        recipe = DIGITS if encoder.image_shape[0] == 1 else PAPER
        total = recipe.epochs * len(images)
        with commands.progress(total, f"{checkpoint.path.name} linear evaluation") as advance:
            return linear_evaluation(encoder, images, recipe, seed=options.seed, advance=advance), told
    with commands.progress(len(images), f"{checkpoint.path.name} features") as advance:
        features = extract_features(
            encoder, images, batch_size=options.batch_size or 256, cache=cache, advance=advance
        )
    labels, classes = images.labels.to(features.device), len(images.classes)
    if options.probe == "knn":
        k = min(options.neighbours, len(images))
        return NearestNeighbours(features, labels, k=k, classes=classes), told | {"k": k}
    probe = cached_linear_probe(features, labels, classes=classes, seed=options.seed, cache=cache)
    return probe, told | {"penalty": probe.penalty}


def _plan(options: argparse.Namespace, checkpoint: Checkpoint, device: torch.device) -> list[Work]:
    """Every set that was asked for, opened and checked."""
    shape = checkpoint.encoder.image_shape
    images, indices = commands.load_images(options, shape)
    clean = clean_condition(images, indices)
    plan = [Work("clean", len(indices), partial(f.clean_findings, condition=clean))]

    def corrupted(label: str, conditions: list[Condition]) -> Work:
        count = sum(len(condition.indices) for condition in conditions)
        return Work(label, count, partial(f.corruption_findings, conditions=conditions, clean=clean))

    table = _table(options.corruptions, shape)
    if table is not None:
        generated = generated_conditions(
            images, indices, table=table, names=options.only, severities=options.severities, seed=options.seed
        )
        plan.append(corrupted(f"corruptions ({table})", generated))
    for folder in options.corrupted:
        names = images.classes if images.classes[0].startswith("n0") else len(images.classes)
        found = open_corruption_set(folder, classes=names, image_shape=shape, corruptions=options.only)
        conditions = disk_conditions(found, options.limit, options.seed)
        _check_fit(str(folder), conditions[0].images.image_shape, shape)
        plan.append(corrupted(found.name, conditions))
    fit = _baselines(options.baselines)
    for name, place in options.shift:
        shift = load_shift(name, place, image_shape=shape)
        _check_fit(f"shift {name}", shift.images.image_shape, shape)
        if shift.model_classes != len(images.classes):
            raise ValueError(
                f"shift {name} is for a probe of {shift.model_classes} classes, --data {options.data} has "
                f"{len(images.classes)}; give the training set that the shift belongs to"
            )
        measure = partial(f.shift_findings, shift=shift, clean=clean, fit=fit)
        plan.append(Work(f"shift {name}", len(shift.images), measure))
    for name, place in options.videos:
        if name not in VIDEOS or place is None:
            raise ValueError(f"--videos takes NAME=FOLDER, NAME one of {', '.join(VIDEOS)}; got {name!r}")
        frames = VIDEOS[name](place, image_shape=shape)
        plan.append(Work(name, len(frames.images), partial(f.video_findings, frames=frames, clean=clean)))
    for folder in options.perturbations:
        places = open_perturbations(folder)
        measure = partial(f.flip_findings, places=places, device=device, limit=options.limit)
        plan.append(Work(folder.name, len(places), measure))
    if options.attack:
        if options.radius is None:
            raise ValueError("--attack needs --radius, in pixels: 0.0314 for 8/255 in Linf, 0.5 in L2")
        if options.attack == "auto":
            load_autoattack()
        measure = partial(
            f.attack_findings,
            condition=Condition(images, indices[: options.attack_images], clean.settings),
            method=options.attack,
            norm=options.norm,
            radius=options.radius,
            seed=options.seed,
            device=device,
        )
        count = len(indices[: options.attack_images])
        plan.append(Work(f"{options.attack} {options.norm} {options.radius:g}", count, measure))
    return plan


def _baselines(text: str | None) -> BaselineFit | None:
    if text is None:
        return None
    path, _, columns = text.partition(":")
    clean, _, shifted = columns.partition(":")
    return read_baselines(path, clean or "clean", shifted or "shifted")


def _check_fit(what: str, found: tuple[int, int, int], wanted: tuple[int, int, int]) -> None:
    if found != wanted:
        raise ValueError(
            f"{what} holds images of shape {found}, the encoder takes {wanted}; give one that fits"
        )


def _table(wanted: str, shape: tuple[int, int, int]) -> str | None:
    if wanted == "none":
        return None
    if wanted != "auto":
        return wanted
    return "mnist" if shape[0] == 1 else "cifar" if max(shape) <= 64 else "imagenet"


def _named(text: str) -> tuple[str, Path | None]:
    name, _, place = text.partition("=")
    return name, Path(place) if place else None


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _severities(text: str) -> list[int]:
    try:
        return [int(word) for word in _words(text)]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"severities are numbers from 1 to 5, got {text!r}") from error


def build_parser() -> commands.Parser:
    """The command's options."""
    parser = commands.Parser(prog="python -m lipcomp.robustness", description=__doc__, epilog=EXAMPLE)
    commands.add_encoder_arguments(parser)
    commands.add_data_arguments(parser, default="mnist5k")
    probe = parser.add_argument_group("probe (fitted on the train split of --data)")
    probe.add_argument(
        "--probe",
        default="linear",
        choices=("linear", "knn", "augmented"),
        help="linear: L-BFGS on features (default); augmented: the paper's SGD on augmented images",
    )
    probe.add_argument("--neighbours", type=int, default=20, metavar="K", help="of --probe knn (default 20)")
    sets = parser.add_argument_group("sets (clean accuracy always)")
    sets.add_argument(
        "--corruptions",
        default="auto",
        choices=("auto", "none", *TABLES),
        help="corrupt the images of --data, by this table (default: by the images' shape)",
    )
    sets.add_argument("--only", type=_words, metavar="NAME,...", help="only these corruptions")
    sets.add_argument(
        "--severities", type=_severities, default=list(SEVERITIES), metavar="S,...", help="default 1,2,3,4,5"
    )
    sets.add_argument(
        "--corrupted",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="a corrupted set on disk",
    )
    sets.add_argument(
        "--shift", type=_named, action="append", default=[], metavar="NAME[=FOLDER]", help=", ".join(SHIFTS)
    )
    sets.add_argument(
        "--baselines",
        metavar="CSV[:CLEAN:SHIFTED]",
        help="models of your own for effective robustness, and their columns (default: the published ones)",
    )
    sets.add_argument(
        "--videos", type=_named, action="append", default=[], metavar="NAME=FOLDER", help=", ".join(VIDEOS)
    )
    sets.add_argument(
        "--perturbations",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="ImageNet-P or CIFAR-10-P",
    )
    attack = parser.add_argument_group("attack")
    attack.add_argument("--attack", choices=("pgd", "auto"), help="auto: AutoAttack")
    attack.add_argument("--norm", default="Linf", choices=("Linf", "L2"), help="default Linf")
    attack.add_argument("--radius", type=float, help="of the ball, in pixels")
    attack.add_argument(
        "--attack-images", type=int, metavar="N", help="only the first so many (default: all)"
    )
    commands.add_run_arguments(parser)
    parser.add_argument("--all", action="store_true", help="a line of the table for every condition")
    parser.add_argument(
        "--cache", type=Path, help="where finished conditions are kept (default: beside --out)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(commands.run(main))
