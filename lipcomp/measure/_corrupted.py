"""Accuracy of a probe on corrupted images, and of the probe fitted again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lipcomp._arguments import checked
from lipcomp.data._folders import FolderImages
from lipcomp.data._pictures import read_picture
from lipcomp.measure._accuracy import check_fit, effective_finding, probe_unit, right_of
from lipcomp.measure._bench import Bench
from lipcomp.measure._conditions import Condition, disk_conditions, generated_conditions
from lipcomp.measure._unit import Advance, Finding, Result, Unit
from lipcomp.robustness._effective import baseline_fit
from lipcomp.robustness._estimates import proportion
from lipcomp.robustness._metrics import estimate_corruption_accuracy, estimate_mce, estimate_relative_mce
from lipcomp.robustness._protocols import Protocol, literature
from lipcomp.robustness._sets import open_corruption_set
from lipcomp.robustness._shifted import CIFAR10, check_cifar_order
from lipcomp.robustness.corruptions import corruption_names
from lipcomp.robustness.corruptions._corrupt import SEVERITIES, table_for
from lipcomp.robustness.corruptions._tables import COMMON, VALIDATION

TINY = 200, (64, 64)  # classes and pictures of Tiny-ImageNet-C
ALL_NINETEEN = (*COMMON, *VALIDATION)


@checked
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

    Raises
    ------
    ValueError
        By :func:`lipcomp.measure.run`, before anything is measured, if a corruption or severity does not exist for the
        images, or the folder does not hold the same images in every condition.

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
        found = open_corruption_set(
            Path(self.folder),
            classes=bench.images.classes,
            image_shape=shape,
            corruptions=self.names,
            severities=self.severities,
        )
        made = disk_conditions(found, bench.plan.images.limit, bench.plan.images.seed)
        own = bench.images.classes
        named = len(set(own) & set(CIFAR10)) > 5  # arrays of other images may lie as CIFAR-10-C's do
        if found.kind == "cifar" and named and made[0].images.image_shape == (3, 32, 32):
            check_cifar_order(self.folder, own)
        wanted = self.names or literature(found.corruptions, all_found=self.everything)
        made = [
            replace(c, images=bench.prepared(c.images, cropped=True))
            for c in made
            if c.settings["corruption"] in wanted and c.settings["severity"] in (None, *self.severities)
        ]
        if not made:
            known = sorted({c.settings["severity"] for c in disk_conditions(found)})
            raise ValueError(
                f"{self.folder} has no severity {list(self.severities)}, only {known}; choose among these"
            )
        check_fit(self.folder, made[0].images.image_shape, shape)
        return made

    def units(self, bench: Bench) -> Iterator[Unit]:
        """One unit per condition, and one for their summary."""
        made = self.conditions(bench)
        of = "" if self.folder is None else f"{Path(self.folder).name} "
        for condition in made:

            def measure(advance: Advance, condition: Condition = condition) -> Result:
                found = proportion(right_of(bench, condition, advance))
                return Result([Finding.of("accuracy.corruption", found)])

            told = {k: v for k, v in condition.settings.items() if k != "data"}
            severity = "" if told["severity"] is None else told["severity"]
            label = f"{of}{told['corruption']} {severity}".rstrip()
            settings = bench.data_settings(condition.images, condition.indices) | told
            yield probe_unit(bench, "accuracy.corruption", [condition], measure, label, settings)
        clean = bench.clean.first(len(made[0])) if self.folder is None else bench.clean

        def summarise(advance: Advance) -> Result:
            return _summary(bench, made, clean, advance)

        common = protocol_of(made, len(bench.images.classes)).settings() | {"conditions": len(made)}
        common |= {k: v for k, v in made[0].settings.items() if k in ("table", "corruption_seed")}
        common |= bench.data_settings(made[0].images, made[0].indices)
        yield probe_unit(
            bench, "corruption.mean", [clean, *made], summarise, f"{of}corruptions, mean", common
        )


def protocol_of(made: Sequence[Condition], classes: int) -> Protocol:
    """What a mean over these conditions is a mean of."""
    told = [c.settings for c in made]
    on_disk = told[0]["table"] == "disk"
    names = tuple(dict.fromkeys(t["corruption"] for t in told))
    frosted = next((t["frost"] for t in told if "frost" in t), None)
    kind: Any = None if frosted is None else "textures" if frosted == "textures" else "photographs"
    table = told[0].get("layout", "imagenet") if on_disk else told[0]["table"]
    images = made[0].images
    if on_disk and isinstance(images, FolderImages) and (classes, read_picture(images.files[0]).size) == TINY:
        table = "tiny"  # it has ImageNet-C's layout, as 200 of ImageNet's classes may
    return Protocol(
        table,
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
    on_disk = made[0].settings.get("table") == "disk"
    predicted = bench.logits(clean).argmax(1)
    before = (predicted == clean.labels()).numpy()
    rows: dict[str, list[np.ndarray]] = {}
    changed: list[np.ndarray] = []
    for condition in made:
        found = bench.logits(condition).argmax(1)
        right = (found == condition.labels()).numpy()
        rows.setdefault(condition.settings["corruption"], []).append(right)
        if not on_disk:
            changed.append((found != predicted).double().numpy())
        advance(len(condition))
    advance(len(clean))
    table = {name: np.stack(right) for name, right in rows.items()}
    findings = [Finding.of("accuracy.corruption.mean", estimate_corruption_accuracy(table))]
    protocol = protocol_of(made, len(made[0].images.classes))
    notes = [protocol.label, *(f"not the published protocol: {words}" for words in protocol.deviations())]
    notes += getattr(made[0].images, "notes", ())
    if len(made[0].images) != len(bench.images):
        notes.append(
            f"the corrupted images are {len(made[0].images)}, those of {bench.images.name} {len(bench.images)}: the "
            f"clean accuracy is of other images"
        )
    same_labels = torch.equal(clean.labels(), made[0].labels())  # as the same images have in their order
    thousand = len(made[0].images.classes) == 1000
    if thousand and on_disk and set(table) == set(ALL_NINETEEN):
        fit = baseline_fit("imagenet_c_disk")
        after = np.mean([right.mean(0) for right in table.values()], 0)
        findings.append(effective_finding(before, after, fit))
    if {*COMMON} <= {*table}:
        fifteen = {name: table[name] for name in COMMON}
        try:
            differs = replace(protocol, corruptions=COMMON).check_reference()
        except ValueError as error:
            notes.append(str(error))
        else:
            findings.append(Finding.of("mce", estimate_mce(fifteen), differs=differs))
            if same_labels:
                relative = estimate_relative_mce(fifteen, before)
                findings.append(Finding.of("mce.relative", relative, differs=differs))
    columns = {}
    if not on_disk:
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


@dataclass(frozen=True)
class ProbeRefits:
    """Accuracy of the linear probe fitted again on bootstrap samples of the training images (theory (7.7))."""

    refits: int  # how many samples; the plan's probe must be asked for as many
    corruptions: CorruptionAccuracy | None = None  # their mean over these conditions too, if given

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
