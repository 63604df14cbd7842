"""Accuracy of a probe on the encoder: clean, corrupted, shifted, in videos, under attack.

Class scores of a condition are computed once (:meth:`Bench.logits`) and read by every quantity that needs them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lipcomp._identity import digest, hash_files
from lipcomp.data import load_set
from lipcomp.data._known import SETS
from lipcomp.measure._bench import Advance, Bench, nothing
from lipcomp.measure._conditions import (
    Condition,
    clean_condition,
    disk_conditions,
    generated_conditions,
)
from lipcomp.measure._unit import Finding, Result, Unit
from lipcomp.robustness._attacks import auto_attack, load_autoattack, pgd
from lipcomp.robustness._calibration import brier_score, calibration_error, negative_log_likelihood
from lipcomp.robustness._effective import (
    CLEAN_COLUMN,
    BaselineFit,
    baseline_fit,
    effective_robustness,
    read_baselines,
)
from lipcomp.robustness._estimates import Estimate, bootstrap, proportion, top_k_correct
from lipcomp.robustness._features import evaluation_mode
from lipcomp.robustness._metrics import (
    estimate_corruption_accuracy,
    estimate_mce,
    estimate_relative_mce,
    flip_rate,
    mean_flip_rate,
    read_flip_reference,
    top5_distances,
)
from lipcomp.robustness._probes import NearestNeighbours
from lipcomp.robustness._protocols import Protocol, literature
from lipcomp.robustness._sets import open_corruption_set
from lipcomp.robustness._shifted import Shift
from lipcomp.robustness._shifts import SHIFTS, load_shift
from lipcomp.robustness._videos import (
    FrameSet,
    load_vid_robust,
    load_ytbb_robust,
    open_perturbations,
    sequences,
)
from lipcomp.robustness.corruptions import corruption_names
from lipcomp.robustness.corruptions._corrupt import SEVERITIES, table_for
from lipcomp.robustness.corruptions._tables import COMMON, VALIDATION

VERSION = 3
ALL_NINETEEN = (*COMMON, *VALIDATION)
VIDEOS = {"vid-robust": load_vid_robust, "ytbb-robust": load_ytbb_robust}
_BASELINES = {name.replace("_", "-"): name for name in CLEAN_COLUMN} | {"objectnet": "objectnet"}


def probe_unit(
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
    """Which images of a condition the probe classifies correctly."""
    return (bench.logits(condition, advance).argmax(1) == condition.labels()).numpy()


@dataclass(frozen=True)
class CleanAccuracy:
    """Top-1 and, from ten classes on, top-5 accuracy on the plan's images, and calibration.

    Examples
    --------
    >>> from lipcomp.measure import CleanAccuracy, Images, Plan, Source
    >>> plan = Plan((Source("model.safetensors"),), Images("mnist5k"), (CleanAccuracy(),))
    """

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

        yield probe_unit(bench, "accuracy.clean", [bench.clean], measure, "clean", bench.data_settings())


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
        yield probe_unit(
            bench, "refits", [bench.clean, *made], measure, "probe refits", settings, self.refits
        )


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
        Table of corruptions: "mnist", "cifar", "imagenet" ...; None chooses the one that fits the images.
    folder
        A corrupted set on disk, instead of generated corruptions.
    names, severities
        Only these; by default the fifteen corruptions of the literature (all, for a set that is not ImageNet-C's).
    everything
        All nineteen of ImageNet-C's; the published lines of effective robustness on disk are of these.
    jpeg
        Compress generated images as JPEG of this quality; the published ImageNet-C has 85.
    frost
        Folder of the published frost photographs.
    limit
        Use only this many images of the plan, from the first.

    Examples
    --------
    >>> from lipcomp.measure import CorruptionAccuracy
    >>> CorruptionAccuracy(names=("fog", "motion_blur"), severities=(3,)).severities
    (3,)
    """

    table: str | None = None
    folder: str | None = None
    names: tuple[str, ...] | None = None
    severities: tuple[int, ...] = SEVERITIES
    limit: int | None = None
    everything: bool = False
    jpeg: int | None = None
    frost: str | None = None

    def conditions(self, bench: Bench) -> list[Condition]:
        """The conditions, opened and checked."""
        shape = bench.checkpoint.image_shape
        if self.folder is None:
            table = self.table or table_for(shape)
            return generated_conditions(
                bench.images,
                bench.indices[: self.limit],
                table=table,
                names=self.names or literature(corruption_names(table), all_found=self.everything),
                severities=self.severities,
                seed=bench.plan.seed,
                jpeg=self.jpeg,
                frost=self.frost,
            )
        classes = bench.images.classes
        known = classes if classes[0].startswith("n0") else len(classes)
        found = open_corruption_set(
            Path(self.folder), classes=known, image_shape=shape, corruptions=self.names
        )
        made = disk_conditions(found, bench.plan.images.limit, bench.plan.images.seed)
        wanted = self.names or literature(found.corruptions, all_found=self.everything)
        made = [c for c in made if c.settings["corruption"] in wanted]
        check_fit(self.folder, made[0].images.image_shape, shape)
        return made

    def units(self, bench: Bench) -> Iterator[Unit]:
        """One unit per condition, and one for their summary."""
        made = self.conditions(bench)
        for condition in made:

            def measure(advance: Advance, condition: Condition = condition) -> Result:
                found = proportion(right_of(bench, condition, advance))
                return Result([Finding.of("accuracy.corruption", found)])

            told = {k: v for k, v in condition.settings.items() if k != "data"}
            label = (
                f"{told['corruption']} {told['severity'] if told['severity'] is not None else ''}".rstrip()
            )
            settings = bench.data_settings(condition.images, condition.indices) | told
            yield probe_unit(bench, "accuracy.corruption", [condition], measure, label, settings)
        clean = bench.clean.first(len(made[0])) if self.folder is None else bench.clean

        def summarise(advance: Advance) -> Result:
            return _summary(bench, made, clean, advance)

        common = protocol_of(made, len(bench.images.classes)).settings() | {"conditions": len(made)}
        common |= {k: v for k, v in made[0].settings.items() if k in ("table", "corruption_seed")}
        common |= bench.data_settings(made[0].images, made[0].indices)
        yield probe_unit(bench, "corruption.mean", [clean, *made], summarise, "corruptions, mean", common)


def protocol_of(made: Sequence[Condition], classes: int) -> Protocol:
    """What a mean over these conditions is a mean of."""
    told = [c.settings for c in made]
    on_disk = told[0]["table"] == "disk"
    names = tuple(dict.fromkeys(t["corruption"] for t in told))
    frosted = next((t["frost"] for t in told if "frost" in t), None)
    kind: Any = None if frosted is None else "textures" if frosted == "textures" else "photographs"
    return Protocol(
        told[0].get("layout", "imagenet") if on_disk else told[0]["table"],
        names,
        tuple(sorted({t["severity"] for t in told}, key=lambda s: s or 0)),
        "disk" if on_disk else "memory",
        told[0].get("jpeg"),
        kind,
        len(made[0]),
        classes,
    )


def _summary(bench: Bench, made: Sequence[Condition], clean: Condition, advance: Advance) -> Result:
    """Mean accuracy over corruptions, mCE, effective robustness, refits; per image how often its class changes."""
    rows: dict[str, list[np.ndarray]] = {}
    for condition in made:
        rows.setdefault(condition.settings["corruption"], []).append(right_of(bench, condition))
        advance(len(condition))
    table = {name: np.stack(right) for name, right in rows.items()}
    findings = [Finding.of("accuracy.corruption.mean", estimate_corruption_accuracy(table))]
    protocol = protocol_of(made, len(made[0].images.classes))
    notes = [protocol.label, *(f"not the published protocol: {words}" for words in protocol.deviations())]
    thousand = len(made[0].images.classes) == 1000
    on_disk = made[0].settings.get("table") == "disk"
    before = right_of(bench, clean)
    advance(len(clean))
    if thousand and on_disk and set(table) == set(ALL_NINETEEN):
        fit = baseline_fit("imagenet_c_disk")
        after = np.mean([right.mean(0) for right in table.values()], 0)
        findings.append(_effective(before, after, fit))
    if {*COMMON} <= {*table}:
        fifteen = {name: table[name] for name in COMMON}
        try:
            differs = replace(protocol, corruptions=COMMON).check_reference()
        except ValueError as error:
            notes.append(str(error))
        else:
            findings.append(Finding.of("mce", estimate_mce(fifteen), differs=differs))
            if len(before) == next(iter(fifteen.values())).shape[1]:
                relative = estimate_relative_mce(fifteen, before)
                findings.append(Finding.of("mce.relative", relative, differs=differs))
    columns = {}
    if not on_disk:
        predicted = bench.logits(clean).argmax(1)
        changed = [(bench.logits(c).argmax(1) != predicted).double().numpy() for c in made]
        columns = {
            "label": clean.labels().numpy(),
            "clean_correct": before.astype(int),
            "flipped": np.mean(changed, axis=0),
        }
    return Result(findings, columns, notes=notes)


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
        A name of :data:`lipcomp.robustness._shifts.SHIFTS`.
    folder
        Where it lies; None for one that comes with a package.
    baselines
        "CSV[:CLEAN:SHIFTED]": your own reference models for effective robustness; by default the published models.
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
        check_fit(f"shift {self.shift}", shift.images.image_shape, shape)
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
        extra = (
            self.quantity,
            shift.class_map,
            getattr(shift, "accepted", None),
            self.baselines and self.baselines.partition(":")[2],
            table,
        )
        label = f"shift {self.shift}"
        yield probe_unit(bench, "accuracy.shift", [condition, bench.clean], measure, label, told, extra)

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
        yield probe_unit(
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
    """How often the prediction, and how far the top five, change between frames (ImageNet-P, CIFAR-10-P).

    Parameters
    ----------
    folder
        The set.
    limit
        Use only this many sequences per perturbation, from the first.
    reference
        CSV of a reference model's ``perturbation``, ``flip_rate`` and ``top5_distance``, for mFR and mT5D.
    """

    folder: str
    limit: int | None = None
    reference: str | None = None

    def units(self, bench: Bench) -> Iterator[Unit]:
        """One unit per perturbation, and their mean."""
        given = None if self.reference is None else read_flip_reference(self.reference)
        places = open_perturbations(Path(self.folder))
        files = {name: _files(place) for name, place in places.items()}
        hashes = {name: digest(hash_files(listed)) for name, listed in files.items()}

        def measured(name: str) -> dict[str, Estimate]:
            key = digest("flips", VERSION, bench.probe_identity(), hashes[name], self.limit)
            held = bench.cells.get(key, lambda: self._predict(bench, places[name], "noise" in name))
            found = {"flip_rate": flip_rate(held["predicted"], noise="noise" in name)}
            if held["distance"].size:
                found["top5_distance"] = bootstrap(held["distance"][None])
            return found

        for name in places:

            def measure(advance: Advance, name: str = name) -> Result:
                found = measured(name)
                advance(1)
                return Result([Finding.of(quantity, value) for quantity, value in found.items()])

            told = {"perturbation": name, "data_hash": hashes[name], "sequences": self.limit}
            yield probe_unit(bench, "flip_rate", [], measure, name, told, (name, hashes[name], self.limit))

        def mean(advance: Advance) -> Result:
            found = {name: measured(name) for name in places}
            findings = []
            for quantity, ratio in (("flip_rate", "mfr"), ("top5_distance", "mt5d")):
                values = {name: told[quantity].value for name, told in found.items() if quantity in told}
                if not values:
                    continue
                findings.append(
                    Finding(f"{quantity}.mean", float(np.mean([*values.values()])), n=len(values))
                )
                if given is not None and quantity in given:
                    value = mean_flip_rate(values, given[quantity])
                    findings.append(Finding(ratio, value, n=len(values), settings={"reference": reference}))
            return Result(findings)

        reference = None if self.reference is None else hash_files([self.reference])[0]

        common: dict[str, Any] = {"perturbations": sorted(places), "sequences": self.limit}
        content = (hashes, self.limit, reference)
        yield probe_unit(bench, "flip_rate.mean", [], mean, "flip rate, mean", common, content)

    def _predict(self, bench: Bench, place: Path, noise: bool) -> dict[str, np.ndarray]:
        classifier, rows, distances = bench.classifier(), [], []
        with evaluation_mode(classifier):
            for frames in islice(sequences(place), self.limit):
                parts = frames.split(bench.batch_size)
                logits = torch.cat([classifier(x.to(bench.device, bench.dtype)).float().cpu() for x in parts])
                rows.append(logits.argmax(1))
                if logits.shape[1] > 5:
                    distances.append(top5_distances(logits[None].numpy(), noise=noise)[0])
        if len({len(row) for row in rows}) != 1:
            raise ValueError(
                f"{str(place)!r} has sequences of different lengths; one is cut off, get it again"
            )
        return {"predicted": torch.stack(rows).numpy(), "distance": np.array(distances)}


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
        Use only this many images of the plan, from the first.
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
            run, classifier = (pgd if self.attack == "pgd" else auto_attack), bench.classifier()
            parts: list[dict[str, np.ndarray]] = []
            for places in torch.arange(len(condition)).split(self.block):

                def compute(places: Tensor = places) -> dict[str, np.ndarray]:
                    batch = condition.batch(places, bench.device, bench.dtype)
                    labels = condition.labels()[places].to(bench.device)
                    found = run(
                        classifier,
                        batch,
                        labels,
                        norm=self.norm,
                        radius=self.radius,
                        generator=torch.Generator().manual_seed(bench.plan.seed),
                    )
                    return {"right": found.right, "blind": found.blind & found.clean}

                key = digest("attack", VERSION, bench.probe_identity(), condition.identity, told, places)
                parts.append(bench.cells.get(key, compute))
                advance(len(places))
            right, blind = (np.concatenate([part[name] for part in parts]) for name in ("right", "blind"))
            notes = []
            if blind.any():
                notes.append(
                    f"no gradient on {blind.mean():.1%} of the images, where a gradient attack says nothing; "
                    + (
                        "they were searched at random"
                        if self.attack == "pgd"
                        else "Square alone attacked them"
                    )
                )
            found = Finding.of("accuracy.robust", proportion(right), blind=round(float(blind.mean()), 6))
            return Result([found], notes=notes)

        told_of = bench.data_settings(condition.images, condition.indices) | told
        label = f"{self.attack} {self.norm} {self.radius:g}"
        yield probe_unit(bench, "accuracy.robust", [condition], measure, label, told_of, told)


def check_fit(what: str, found: tuple[int, int, int], wanted: tuple[int, int, int]) -> None:
    """Refuse images that the encoder does not take."""
    if found != wanted:
        raise ValueError(
            f"{what} holds images of shape {found}, the encoder takes {wanted}; give images of that shape"
        )
