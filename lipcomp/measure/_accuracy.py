"""Accuracy of a probe on the encoder, clean and under attack, and what every accuracy shares.

Class scores of a condition are computed once (:meth:`Bench.logits`) and read by every quantity that needs them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lipcomp._arguments import checked
from lipcomp._identity import digest
from lipcomp.measure._bench import Bench
from lipcomp.measure._conditions import Condition
from lipcomp.measure._unit import Advance, Finding, Result, Unit, nothing
from lipcomp.robustness._attacks import Rounding, pgd
from lipcomp.robustness._auto_attack import auto_attack, load_autoattack
from lipcomp.robustness._calibration import brier_score, calibration_error, negative_log_likelihood
from lipcomp.robustness._effective import BaselineFit, effective_robustness
from lipcomp.robustness._estimates import proportion, top_k_correct
from lipcomp.robustness._probes import NO_VOTE, NearestNeighbours

VERSION = 5  # intervals where few images hold the most of a mean
OF_SOME_CLASSES = ("accuracy.shift", "accuracy.video", "shape_bias")  # neighbours of none of them answer none


def probe_unit(
    bench: Bench,
    kind: str,
    conditions: Sequence[Condition],
    measure: Any,
    label: str,
    settings: dict[str, Any],
    extra: Any = None,
    cost: float = 0.0,
) -> Unit:
    """A unit that reads the scores of some conditions; ``extra`` is what else can change its numbers."""
    content = (bench.probe_identity(), [c.identity for c in conditions], extra)
    told = {**bench.plan.probe.settings(), "train": bench.train.images.name, **settings}
    if "k" in bench.plan.probe.settings():  # as many as there are
        told["k"] = min(bench.plan.probe.neighbours, len(bench.train))
    reads = (*bench.probe_reads(), *((c.identity, len(c)) for c in conditions))
    count, per_image = sum(len(c) for c in conditions), kind == "corruption.mean"
    newer = kind == "accuracy.robust" or (kind in OF_SOME_CLASSES and bench.plan.probe.kind == "knn")
    version = VERSION + newer  # attacks ascend along the right gradient through norms
    return Unit(kind, content, told, label, count, measure, cost, version, per_image, reads=reads)


def right_of(bench: Bench, condition: Condition, advance: Advance = nothing) -> np.ndarray:
    """Which images of a condition the probe classifies correctly."""
    return (bench.logits(condition, advance).argmax(1) == condition.labels()).numpy()


def check_fit(what: str, found: tuple[int, int, int], wanted: tuple[int, int, int]) -> None:
    """Refuse images that the encoder does not take."""
    if found != wanted:
        raise ValueError(
            f"{what} holds images of shape {found}, the encoder takes {wanted}; give images of that shape"
        )


def effective_finding(before: np.ndarray, after: np.ndarray, fit: BaselineFit, **settings: Any) -> Finding:
    """Effective robustness over a line, with the line."""
    line: dict[str, Any] = {
        "slope": fit.slope,
        "intercept": fit.intercept,
        "scale": "logit",
        "baselines": fit.n,
    }
    return Finding.of("effective_robustness", effective_robustness(before, after, fit), **settings, **line)


def attacked(dtype: torch.dtype) -> torch.dtype:
    """The precision of attacked images: an attack's steps are finer than bfloat16's, so float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def attack_settings(attack: str, norm: str, radius: float, seed: int) -> dict[str, Any]:
    """What records say of an attack; refuses a radius that leaves nothing to attack."""
    if not radius > 0:
        raise ValueError(f"radius must be positive, in pixels (8/255 in linf, 0.5 in l2), got {radius}")
    return {"attack": attack, "norm": norm, "radius": radius, "attack_seed": seed}


@checked
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
            voted = logits.gather(1, labels[:, None]).squeeze(1) > np.log(2 * NO_VOTE)
            if bench.plan.probe.kind != "knn" or voted.all():
                findings.append(Finding.of("nll", negative_log_likelihood(logits, labels), "nats"))
                return Result(findings)
            none = int((~voted).sum())
            findings.append(Finding("nll", None, "nats", len(labels)))
            note = f"no nll: {none} of {len(labels)} images have no neighbour of their class, whose likelihood is 0"
            return Result(findings, notes=[note])

        yield probe_unit(bench, "accuracy.clean", [bench.clean], measure, "clean", bench.data_settings())


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

        reads = ((bench.train.identity, len(bench.train)),)
        yield Unit("accuracy.knn", content, told, "kNN", len(bench.clean), measure, 1.0, VERSION, reads=reads)


@dataclass(frozen=True)
class RobustAccuracy:
    """Accuracy under PGD ("pgd") or AutoAttack ("auto") in a ball, kept batch by batch."""

    attack: str  # "pgd" or "auto"
    norm: str  # "linf" or "l2"
    radius: float  # in pixels: 8/255 in linf, 0.5 in l2, say
    limit: int | None = None  # use only this many images of the plan, from the first

    block: ClassVar[int] = 64

    def units(self, bench: Bench) -> Iterator[Unit]:
        """One unit."""
        if self.attack not in ("pgd", "auto"):
            raise ValueError(f'an attack must be "pgd" or "auto", got {self.attack!r}')
        if self.attack == "auto":
            load_autoattack()
        condition = bench.clean.first(self.limit or len(bench.clean))
        told = attack_settings(self.attack, self.norm, self.radius, bench.plan.seed)

        def measure(advance: Advance) -> Result:
            run, classifier = (pgd if self.attack == "pgd" else auto_attack), bench.classifier()
            parts: list[dict[str, np.ndarray]] = []
            for places in torch.arange(len(condition)).split(self.block):

                def compute(places: Tensor = places) -> dict[str, np.ndarray]:
                    batch = condition.batch(places, bench.device, attacked(bench.dtype))
                    labels = condition.labels()[places].to(bench.device)
                    found = run(
                        Rounding(classifier, bench.dtype),
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
        cost = 500.0 if self.attack == "pgd" else 1000.0  # of an encoder that is soon fooled
        yield probe_unit(bench, "accuracy.robust", [condition], measure, label, told_of, told, cost)
