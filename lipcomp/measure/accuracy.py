"""What a probe on the encoder gets right: clean, corrupted, shifted, in videos, under attack.

Class scores of a condition are computed once (:meth:`Bench.logits`) and read by every quantity that needs them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lipcomp.data import SETS, load_set
from lipcomp.identity import digest, hash_files
from lipcomp.measure.bench import Advance, Bench, nothing
from lipcomp.measure.conditions import (
    Condition,
    clean_condition,
    default_table,
    disk_conditions,
    generated_conditions,
)
from lipcomp.measure.unit import Finding, Result, Unit
from lipcomp.robustness.attacks import auto_attack, load_autoattack, pgd
from lipcomp.robustness.calibration import brier_score, calibration_error, negative_log_likelihood
from lipcomp.robustness.corruptions import COMMON, SEVERITIES, VALIDATION
from lipcomp.robustness.effective import (
    CLEAN_COLUMN,
    BaselineFit,
    baseline_fit,
    effective_robustness,
    read_baselines,
)
from lipcomp.robustness.estimates import Estimate, proportion, top_k_correct
from lipcomp.robustness.features import evaluation_mode
from lipcomp.robustness.metrics import (
    ALEXNET,
    estimate_corruption_accuracy,
    estimate_mce,
    estimate_relative_mce,
    flip_rate,
    means_with_interval,
)
from lipcomp.robustness.probes import NearestNeighbours
from lipcomp.robustness.sets import open_corruption_set
from lipcomp.robustness.shifted import Shift
from lipcomp.robustness.shifts import SHIFTS, load_shift
from lipcomp.robustness.videos import (
    FrameSet,
    load_vid_robust,
    load_ytbb_robust,
    open_perturbations,
    sequences,
)

VERSION = 2
ALL_NINETEEN = (*COMMON, *VALIDATION)
VIDEOS = {"vid-robust": load_vid_robust, "ytbb-robust": load_ytbb_robust}
_BASELINES = {name.replace("_", "-"): name for name in CLEAN_COLUMN} | {"objectnet": "objectnet"}


def _unit(
    bench: Bench,
    kind: str,
    conditions: Sequence[Condition],
    measure: Any,
    label: str,
    settings: dict[str, Any],
    extra: Any = None,
) -> Unit:
    """A unit that reads the scores of some conditions; ``extra`` is what else can change its numbers."""
    content = (bench.probe_identity(), [c.identity for c in conditions], extra)
    told = {**bench.plan.probe.settings(), "train": bench.train.images.name, **settings}
    count = sum(len(c) for c in conditions)
    return Unit(kind, content, told, label, count, measure, 1.0, VERSION, per_image=kind == "corruption.mean")


def right_of(bench: Bench, condition: Condition, advance: Advance = nothing) -> np.ndarray:
    """Which images of a condition the probe gets right."""
    return (bench.logits(condition, advance).argmax(1) == condition.labels()).numpy()


@dataclass(frozen=True)
class CleanAccuracy:
    """Top-1 and, from ten classes on, top-5 accuracy on the plan's images, and calibration."""

    def units(self, bench: Bench) -> Iterator[Unit]:
        """One unit."""

        def measure(advance: Advance) -> Result:
            logits, labels = bench.logits(bench.clean, advance), bench.clean.labels()
            findings = [Finding.of("accuracy.clean", proportion(top_k_correct(logits, labels, 1)))]
            if logits.shape[1] >= 10:
                findings.append(Finding.of("accuracy.top5", proportion(top_k_correct(logits, labels, 5))))
            findings.append(Finding.of("ece", calibration_error(logits, labels)))
            findings.append(Finding.of("brier", brier_score(logits, labels)))
            findings.append(Finding.of("nll", negative_log_likelihood(logits, labels), "nats"))
            return Result(findings)

        yield _unit(bench, "accuracy.clean", [bench.clean], measure, "clean", bench.data_settings())


@dataclass(frozen=True)
class ProbeRefits:
    """Accuracy of the linear probe fitted again on bootstrap samples of the training images (theory (7.7)).

    Parameters
    ----------
    refits
        How many samples; the plan's probe must be asked for as many.
    corruptions
        Their mean over these conditions too, if given.
    """

    refits: int
    corruptions: "CorruptionAccuracy | None" = None

    def units(self, bench: Bench) -> Iterator[Unit]:
        """One unit."""
        if bench.plan.probe.kind != "linear" or bench.plan.probe.refits < self.refits:
            raise ValueError(
                f"refits need a linear probe that is asked for {self.refits} of them, got {bench.plan.probe}"
            )
        made = [] if self.corruptions is None else self.corruptions.conditions(bench)

        def accuracy(condition: Condition, refit: int) -> float:
            right = bench.refit_logits(condition, refit).argmax(1) == condition.labels()
            return float(right.double().mean())

        def measure(advance: Advance) -> Result:
            findings = []
            for r in range(1, self.refits + 1):
                told = {"refit": r}
                value = accuracy(bench.clean, r)
                findings.append(Finding("accuracy.clean.refit", value, n=len(bench.clean), settings=told))
                if made:
                    mean = float(np.mean([accuracy(c, r) for c in made]))
                    name = "accuracy.corruption.mean.refit"
                    findings.append(Finding(name, mean, n=len(made[0]), settings=told))
            advance(len(bench.clean) + sum(len(c) for c in made))
            return Result(findings)

        settings = {**bench.data_settings(), "refits": self.refits, "conditions": len(made)}
        yield _unit(bench, "refits", [bench.clean, *made], measure, "probe refits", settings, self.refits)


@dataclass(frozen=True)
class KNNAccuracy:
    """Accuracy of k nearest neighbours on the features (Wu et al. 2018), beside a linear probe."""

    neighbours: int = 20
    temperature: float = 0.07

    def units(self, bench: Bench) -> Iterator[Unit]:
        """One unit."""
        k = min(self.neighbours, len(bench.train))
        told = {**bench.data_settings(), "probe": "knn", "k": k, "temperature": self.temperature}
        content = (bench.identity, bench.train.identity, bench.clean.identity, k, self.temperature)

        def measure(advance: Advance) -> Result:
            train, labels = bench.train, bench.train.labels()
            classes = len(train.images.classes)
            probe = NearestNeighbours(
                bench.features(train), labels, k=k, temperature=self.temperature, classes=classes
            )
            with torch.no_grad():
                right = probe(bench.features(bench.clean, advance)).argmax(1) == bench.clean.labels()
            return Result([Finding.of("accuracy.knn", proportion(right.numpy()))])

        yield Unit("accuracy.knn", content, told, "kNN", len(bench.clean), measure, 1.0, VERSION)


@dataclass(frozen=True)
class CorruptionAccuracy:
    """Accuracy under every corruption and severity, their mean, mCE where its reference fits, and flips per image.

    Parameters
    ----------
    table
        Whose severities are made: "mnist", "cifar", "imagenet" ...; None takes what fits the images.
    folder
        A corrupted set on disk instead.
    names, severities
        Only these; all by default.
    limit
        Only the first so many of the plan's images.
    """

    table: str | None = None
    folder: str | None = None
    names: tuple[str, ...] | None = None
    severities: tuple[int, ...] = SEVERITIES
    limit: int | None = None

    def conditions(self, bench: Bench) -> list[Condition]:
        """The conditions, opened and checked."""
        shape = bench.checkpoint.image_shape
        if self.folder is None:
            return generated_conditions(
                bench.images,
                bench.indices[: self.limit],
                table=self.table or default_table(shape),
                names=self.names,
                severities=self.severities,
                seed=bench.plan.seed,
            )
        classes = bench.images.classes
        known = classes if classes[0].startswith("n0") else len(classes)
        found = open_corruption_set(
            Path(self.folder), classes=known, image_shape=shape, corruptions=self.names
        )
        made = disk_conditions(found, bench.plan.images.limit, bench.plan.images.seed)
        _check_fit(self.folder, made[0].images.image_shape, shape)
        return made

    def units(self, bench: Bench) -> Iterator[Unit]:
        """One unit per condition, and one for what is told of all of them."""
        made = self.conditions(bench)
        for condition in made:

            def measure(advance: Advance, condition: Condition = condition) -> Result:
                (found,) = means_with_interval(right_of(bench, condition, advance))
                return Result([Finding.of("accuracy.corruption", found)])

            told = {k: v for k, v in condition.settings.items() if k != "data"}
            label = (
                f"{told['corruption']} {told['severity'] if told['severity'] is not None else ''}".rstrip()
            )
            settings = bench.data_settings(condition.images, condition.indices) | told
            yield _unit(bench, "accuracy.corruption", [condition], measure, label, settings)
        clean = bench.clean.first(len(made[0])) if self.folder is None else bench.clean

        def summarise(advance: Advance) -> Result:
            return _summary(bench, made, clean, advance)

        common = {k: v for k, v in made[0].settings.items() if k not in ("data", "corruption", "severity")}
        common |= bench.data_settings(made[0].images, made[0].indices)
        common |= {"corruptions": len({c.settings["corruption"] for c in made}), "conditions": len(made)}
        yield _unit(bench, "corruption.mean", [clean, *made], summarise, "corruptions, mean", common)


def _summary(bench: Bench, made: Sequence[Condition], clean: Condition, advance: Advance) -> Result:
    """Mean accuracy over corruptions, mCE, effective robustness, refits; per image how often its class changes."""
    rows: dict[str, list[np.ndarray]] = {}
    for condition in made:
        rows.setdefault(condition.settings["corruption"], []).append(right_of(bench, condition))
        advance(len(condition))
    table = {name: np.stack(right) for name, right in rows.items()}
    findings = [Finding.of("accuracy.corruption.mean", estimate_corruption_accuracy(table))]
    thousand = len(made[0].images.classes) == 1000
    on_disk = made[0].settings.get("table") == "disk"
    before = right_of(bench, clean)
    advance(len(clean))
    if thousand and on_disk and set(table) == set(ALL_NINETEEN):
        fit = baseline_fit("imagenet_c_disk")
        after = np.mean([right.mean(0) for right in table.values()], 0)
        findings.append(_effective(before, after, fit))
    fifteen = {
        name: right for name, right in table.items() if name in ALEXNET and len(right) == len(SEVERITIES)
    }
    if thousand and len(fifteen) == len(ALEXNET):
        findings.append(Finding.of("mce", estimate_mce(fifteen)))
        if len(before) == next(iter(fifteen.values())).shape[1]:
            findings.append(Finding.of("mce.relative", estimate_relative_mce(fifteen, before)))
    columns = {}
    if not on_disk:
        predicted = bench.logits(clean).argmax(1)
        changed = [(bench.logits(c).argmax(1) != predicted).double().numpy() for c in made]
        columns = {
            "label": clean.labels().numpy(),
            "clean_correct": before.astype(int),
            "flipped": np.mean(changed, axis=0),
        }
    return Result(findings, columns)


def correctness_bits(bench: Bench, quantity: CorruptionAccuracy) -> dict[str, np.ndarray]:
    """Which images are right in each condition, packed: what a hierarchical model of accuracy reads.

    Returns
    -------
    ``right`` of shape (conditions, ceil(n / 8)) as :func:`numpy.packbits` gives it, clean first; ``n``; ``labels``;
    ``corruption`` and ``severity`` of each condition.
    """
    made = quantity.conditions(bench)
    clean = bench.clean.first(len(made[0]))
    right = np.stack([right_of(bench, condition) for condition in (clean, *made)])
    return {
        "right": np.packbits(right, axis=-1),
        "n": np.array(right.shape[1]),
        "labels": clean.labels().numpy(),
        "corruption": np.array(["clean", *(c.settings["corruption"] for c in made)]),
        "severity": np.array([0, *(c.settings["severity"] for c in made)]),
    }


def _effective(before: np.ndarray, after: np.ndarray, fit: BaselineFit, **settings: Any) -> Finding:
    line: dict[str, Any] = {
        "slope": fit.slope,
        "intercept": fit.intercept,
        "scale": fit.scale,
        "baselines": fit.n,
    }
    return Finding.of("effective_robustness", effective_robustness(before, after, fit), **settings, **line)


@dataclass(frozen=True)
class ShiftAccuracy:
    """Accuracy on a natural shift, on the clean images of its classes, and effective robustness where there is a line.

    Parameters
    ----------
    shift
        A name of :data:`lipcomp.robustness.shifts.SHIFTS`.
    folder
        Where it lies; None for one that comes with a package.
    baselines
        "CSV[:CLEAN:SHIFTED]": models of one's own for effective robustness; by default the published ones.
    quantity
        What its accuracy is called.
    """

    shift: str
    folder: str | None = None
    baselines: str | None = None
    quantity: str = "accuracy.shift"

    def units(self, bench: Bench) -> Iterator[Unit]:
        """One unit."""
        shape = bench.checkpoint.image_shape
        shift = self._open(bench)
        _check_fit(f"shift {self.shift}", shift.images.image_shape, shape)
        classes = len(bench.images.classes)
        if shift.model_classes != classes:
            raise ValueError(
                f"shift {self.shift} is for a probe of {shift.model_classes} classes, {bench.images.name} has "
                f"{classes}; give the training set that the shift belongs to"
            )
        condition = clean_condition(shift.images)

        def measure(advance: Advance) -> Result:
            return Result(list(_shift_findings(bench, shift, condition, self, advance)))

        told = {"shift": self.shift, **bench.data_settings(condition.images, condition.indices)}
        table = None if self.baselines is None else hash_files([self.baselines.partition(":")[0]])
        extra = (self.quantity, shift.class_map, self.baselines and self.baselines.partition(":")[2], table)
        label = f"shift {self.shift}"
        yield _unit(bench, "accuracy.shift", [condition, bench.clean], measure, label, told, extra)

    def _open(self, bench: Bench) -> Shift:
        """The shift; a known set of images with the same classes is one, too."""
        shape, folder = bench.checkpoint.image_shape, None if self.folder is None else Path(self.folder)
        if self.shift in SETS and self.shift not in SHIFTS:
            images = load_set(self.shift, root=folder, image_shape=shape)
            if images.classes != bench.images.classes:
                raise ValueError(
                    f"shift {self.shift} has classes {images.classes}, {bench.images.name} has {bench.images.classes}"
                )
            return Shift(self.shift, images, None, len(images.classes))
        return load_shift(self.shift, folder, image_shape=shape)


def _shift_findings(
    bench: Bench, shift: Shift, condition: Condition, asked: ShiftAccuracy, advance: Advance
) -> Iterator[Finding]:
    right = shift.right(bench.logits(condition, advance))
    yield Finding.of(asked.quantity, proportion(right))
    before = shift.right_clean(bench.logits(bench.clean), bench.clean.labels())
    if not len(before):
        return
    yield Finding.of("accuracy.clean.shift_classes", proportion(before))
    fit = _own_baselines(asked.baselines)
    if fit is None and shift.name in _BASELINES:
        fit = baseline_fit(_BASELINES[shift.name])
    if fit is not None and 0 < before.mean() < 1:
        yield _effective(before, right, fit)


def _own_baselines(text: str | None) -> BaselineFit | None:
    if text is None:
        return None
    path, _, columns = text.partition(":")
    clean, _, shifted = columns.partition(":")
    return read_baselines(path, clean or "clean", shifted or "shifted")


@dataclass(frozen=True)
class VideoAccuracy:
    """Accuracy of anchor frames, and where every frame within +-k must be right (Shankar et al. 2021)."""

    name: str
    folder: str
    ks: tuple[int, ...] = (0, 10)

    def units(self, bench: Bench) -> Iterator[Unit]:
        """One unit."""
        if self.name not in VIDEOS:
            raise ValueError(f"videos must be one of {', '.join(VIDEOS)}; got {self.name!r}")
        frames = VIDEOS[self.name](self.folder, image_shape=bench.checkpoint.image_shape)
        condition = clean_condition(frames.images)

        def measure(advance: Advance) -> Result:
            return Result(list(self._findings(bench, frames, condition, advance)))

        told = {"shift": frames.name, **bench.data_settings(condition.images, condition.indices)}
        yield _unit(
            bench, "accuracy.video", [condition, bench.clean], measure, self.name, told, (frames, self.ks)
        )

    def _findings(
        self, bench: Bench, frames: FrameSet, condition: Condition, advance: Advance
    ) -> Iterator[Finding]:
        logits = bench.logits(condition, advance)
        before = None
        if len(bench.images.classes) == 1000:
            before = frames.as_shift().right_clean(bench.logits(bench.clean), bench.clean.labels())
            yield Finding.of("accuracy.clean.shift_classes", proportion(before))
        for k in self.ks:
            yield Finding.of(f"accuracy.pm{k}", frames.pm_k(logits, k), k=k)
            baseline = f"{frames.name.split('-')[0]}_pm{k}"
            if before is not None and baseline in CLEAN_COLUMN and 0 < before.mean() < 1:
                yield _effective(before, frames.held(logits, k), baseline_fit(baseline), k=k)


@dataclass(frozen=True)
class FlipRate:
    """How often the prediction changes between neighbouring frames (ImageNet-P, CIFAR-10-P)."""

    folder: str
    limit: int | None = None

    def units(self, bench: Bench) -> Iterator[Unit]:
        """One unit per perturbation, and their mean."""
        places = open_perturbations(Path(self.folder))
        files = {name: _files(place) for name, place in places.items()}
        hashes = {name: digest(hash_files(listed)) for name, listed in files.items()}

        def predicted(name: str) -> Estimate:
            key = digest("flips", VERSION, bench.probe_identity(), hashes[name], self.limit)
            held = bench.cells.get(key, lambda: {"predicted": self._predict(bench, places[name])})
            return flip_rate(held["predicted"], noise="noise" in name)

        for name in places:

            def measure(advance: Advance, name: str = name) -> Result:
                found = predicted(name)
                advance(1)
                return Result([Finding.of("flip_rate", found)])

            told = {"perturbation": name, "data_hash": hashes[name], "sequences": self.limit}
            yield _unit(bench, "flip_rate", [], measure, name, told, (name, hashes[name], self.limit))

        def mean(advance: Advance) -> Result:
            values = [predicted(name).value for name in places]
            return Result([Finding("flip_rate.mean", float(np.mean(values)), n=len(values))])

        common: dict[str, Any] = {"perturbations": sorted(places), "sequences": self.limit}
        yield _unit(bench, "flip_rate.mean", [], mean, "flip rate, mean", common, (hashes, self.limit))

    def _predict(self, bench: Bench, place: Path) -> np.ndarray:
        classifier, rows = bench.classifier(), []
        with evaluation_mode(classifier):
            for frames in islice(sequences(place), self.limit):
                parts = frames.split(bench.batch_size)
                rows.append(
                    torch.cat([classifier(x.to(bench.device, bench.dtype)).argmax(1).cpu() for x in parts])
                )
        if len({len(row) for row in rows}) != 1:
            raise ValueError(
                f"{str(place)!r} has sequences of different lengths; one is cut off, get it again"
            )
        return torch.stack(rows).numpy()


def _files(place: Path) -> list[Path]:
    return sorted(p for p in place.rglob("*") if p.is_file()) if place.is_dir() else [place]


@dataclass(frozen=True)
class RobustAccuracy:
    """Accuracy under PGD ("pgd") or AutoAttack ("auto") in a ball, kept batch by batch.

    Parameters
    ----------
    attack
        "pgd" or "auto".
    norm
        "linf" or "l2".
    radius
        In pixels: 8/255 in linf, 0.5 in l2, say.
    limit
        Only the first so many of the plan's images.
    """

    attack: str
    norm: str
    radius: float
    limit: int | None = None

    block: ClassVar[int] = 64

    def units(self, bench: Bench) -> Iterator[Unit]:
        """One unit."""
        if self.attack not in ("pgd", "auto"):
            raise ValueError(f'an attack must be "pgd" or "auto", got {self.attack!r}')
        if not self.radius > 0:
            raise ValueError(
                f"radius must be positive, in pixels (8/255 in linf, 0.5 in l2), got {self.radius}"
            )
        if self.attack == "auto":
            load_autoattack()
        condition = bench.clean.first(self.limit or len(bench.clean))
        told = {
            "attack": self.attack,
            "norm": self.norm,
            "radius": self.radius,
            "attack_seed": bench.plan.seed,
        }

        def measure(advance: Advance) -> Result:
            run, classifier, right = (pgd if self.attack == "pgd" else auto_attack), bench.classifier(), []
            for places in torch.arange(len(condition)).split(self.block):

                def compute(places: Tensor = places) -> dict[str, np.ndarray]:
                    batch = condition.batch(places, bench.device, bench.dtype)
                    labels = condition.labels()[places].to(bench.device)
                    norm = {"linf": "Linf", "l2": "L2"}[self.norm]
                    found = run(
                        classifier, batch, labels, norm=norm, radius=self.radius, seed=bench.plan.seed
                    )
                    return {"right": np.asarray(found.right)}

                key = digest("attack", VERSION, bench.probe_identity(), condition.identity, told, places)
                right.append(bench.cells.get(key, compute)["right"])
                advance(len(places))
            return Result([Finding.of("accuracy.robust", proportion(np.concatenate(right)))])

        told_of = bench.data_settings(condition.images, condition.indices) | told
        label = f"{self.attack} {self.norm} {self.radius:g}"
        yield _unit(bench, "accuracy.robust", [condition], measure, label, told_of, told)


def _check_fit(what: str, found: tuple[int, int, int], wanted: tuple[int, int, int]) -> None:
    if found != wanted:
        raise ValueError(
            f"{what} holds images of shape {found}, the encoder takes {wanted}; give one that fits"
        )
