"""Accuracy of a probe on natural shifts and in videos, and how often its answer changes between frames."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lipcomp._identity import digest
from lipcomp._identity_files import hash_files
from lipcomp.data import load_set
from lipcomp.data._known import SETS
from lipcomp.measure._accuracy import VERSION, check_fit, effective_finding, probe_unit
from lipcomp.measure._bench import Bench
from lipcomp.measure._conditions import Condition, clean_condition
from lipcomp.measure._unit import Advance, Finding, Result, Unit
from lipcomp.robustness._arrays import read_array
from lipcomp.robustness._effective import CLEAN_COLUMN, BaselineFit, baseline_fit, read_baselines
from lipcomp.robustness._estimates import Estimate, bootstrap, proportion
from lipcomp.robustness._features import evaluation_mode
from lipcomp.robustness._metrics import flip_rate, mean_flip_rate, read_flip_reference, top5_distances
from lipcomp.robustness._protocols import averaged_perturbations
from lipcomp.robustness._shifted import (
    Shift,
    check_cifar_order,
    check_imagenet_order,
    imagenet_wnids,
    project,
)
from lipcomp.robustness._shifts import SHIFTS, load_shift
from lipcomp.robustness._videos import (
    FrameSet,
    load_vid_robust,
    load_ytbb_robust,
    open_perturbations,
    sequences,
)

VIDEOS = {"vid-robust": load_vid_robust, "ytbb-robust": load_ytbb_robust}
_BASELINES = {name.replace("_", "-"): name for name in CLEAN_COLUMN} | {"objectnet": "objectnet"}


@dataclass(frozen=True)
class ShiftAccuracy:
    """Accuracy on a natural shift, on the clean images of its classes, and effective robustness if there is a line."""

    shift: str  # a name of :data:`lipcomp.robustness._shifts.SHIFTS`
    folder: str | None = None  # where it lies; None for one that comes with a package
    # "CSV[:CLEAN:SHIFTED]": your own reference models for effective robustness; by default the published models
    baselines: str | None = None
    quantity: str = "accuracy.shift"  # what its accuracy is called

    def units(self, bench: Bench) -> Iterator[Unit]:
        """One unit."""
        shape = bench.checkpoint.image_shape
        shift = self._open(bench)
        shift = replace(shift, images=bench.prepared(shift.images))
        check_fit(f"shift {self.shift}", shift.images.image_shape, shape)
        classes = len(bench.images.classes)
        if shift.model_classes != classes:
            raise ValueError(
                f"shift {self.shift} is for a probe of {shift.model_classes} classes, {bench.images.name} has "
                f"{classes}; give the training set that the shift belongs to"
            )
        if self.shift in SHIFTS:
            check_imagenet_order(f"shift {self.shift}", bench.images.classes)
        if self.shift.startswith("cifar10."):
            check_cifar_order(f"shift {self.shift}", bench.images.classes)
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
            images = load_set(self.shift, root=folder)
            if images.classes != bench.images.classes:
                raise ValueError(
                    f"shift {self.shift} has classes {images.classes}, {bench.images.name} has {bench.images.classes}"
                )
            return Shift(self.shift, images, None, len(images.classes))
        return load_shift(
            self.shift, folder, image_shape=shape, classes=_some_of_imagenet(self.shift, bench.images.classes)
        )


def _some_of_imagenet(shift: str, classes: Sequence[str]) -> Sequence[str] | None:
    """The classes of a probe of a part of ImageNet (ImageNet-100), for shifts that can be cut to them."""
    of_imagenet = shift in SHIFTS and SHIFTS[shift].subset is not None
    return classes if of_imagenet and {*classes} < {*imagenet_wnids()} else None


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
    if fit is None and shift.name in _BASELINES and shift.model_classes == 1000:
        fit = baseline_fit(_BASELINES[shift.name])
    if fit is not None and 0 < before.mean() < 1:
        yield effective_finding(before, right, fit)


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
        check_imagenet_order(self.name, bench.images.classes)
        frames = VIDEOS[self.name](self.folder, image_shape=bench.checkpoint.image_shape)
        frames = replace(frames, images=bench.prepared(frames.images))
        project(torch.zeros(1, len(bench.images.classes)), frames.class_map)  # fail before the long work
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
                yield effective_finding(before, frames.held(logits, k), baseline_fit(baseline), k=k)


@dataclass(frozen=True)
class FlipRate:
    """How often the prediction, and how far the top five, change between frames (ImageNet-P, CIFAR-10-P)."""

    folder: str  # the set
    limit: int | None = None  # use only this many sequences per perturbation, from the first
    # CSV of a reference model's ``perturbation``, ``flip_rate`` and ``top5_distance``, for mFR and mT5D
    reference: str | None = None

    def units(self, bench: Bench) -> Iterator[Unit]:
        """One unit per perturbation, and the mean of those of the literature."""
        given = None if self.reference is None else read_flip_reference(self.reference)
        places, passes = open_perturbations(Path(self.folder)), dict[str, float]()
        for name, place in places.items():
            frames, *shape = next(sequences(place)).shape
            check_fit(f"perturbation {name}", (shape[0], shape[1], shape[2]), bench.checkpoint.image_shape)
            if frames < 2:
                raise ValueError(
                    f"perturbation {name} has sequences of one frame, which cannot flip; get it again"
                )
            found = len(read_array(place) if place.suffix == ".npy" else _files(place))
            passes[name] = float(frames * min(found, self.limit or found))
        cifar = any(place.suffix == ".npy" for place in places.values())
        averaged, deviations = averaged_perturbations(list(places), cifar=cifar)
        for values in (given or {}).values():
            mean_flip_rate(dict.fromkeys(averaged, 0.0), values)  # fail before the long work
        files = {name: _files(place) for name, place in places.items()}
        hashes = {name: digest(hash_files(listed)) for name, listed in files.items()}

        def measured(name: str) -> dict[str, Estimate]:
            noise = "noise" in name.lower()
            key = digest("flips", VERSION, bench.probe_identity(), name, hashes[name], self.limit)
            held = bench.cells.get(key, lambda: self._predict(bench, places[name], noise))
            found = {"flip_rate": flip_rate(held["predicted"], noise=noise)}
            if held["distance"].size:
                found["top5_distance"] = bootstrap(held["distance"], limits=(0.0, 15.0))
            return found

        for name in places:

            def measure(advance: Advance, name: str = name) -> Result:
                found = measured(name)
                advance(1)
                return Result([Finding.of(quantity, value) for quantity, value in found.items()])

            told = {"perturbation": name, "data_hash": hashes[name], "sequences": self.limit}
            content: tuple[Any, ...] = (name, hashes[name], self.limit)
            unit = probe_unit(bench, "flip_rate", [], measure, name, told, content, passes[name])
            yield replace(unit, count=1)

        def mean(advance: Advance) -> Result:
            found = {name: measured(name) for name in averaged}
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
            return Result(findings, notes=notes)

        reference = None if self.reference is None else hash_files([self.reference])[0]

        if self.limit is not None:
            deviations.append(f"at most {self.limit} sequences of each")
        notes = [f"not the published protocol: {words}" for words in deviations]
        if others := [name for name in places if name not in averaged]:
            notes.append(f"not in the mean, as in the literature: {', '.join(others)}")
        common: dict[str, Any] = {"perturbations": sorted(averaged), "sequences": self.limit}
        common["comparable"] = not deviations
        content = ({name: hashes[name] for name in averaged}, self.limit, reference)
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
