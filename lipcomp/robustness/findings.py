"""What an evaluation reports: each group of conditions as named values with their intervals.

Every function takes a classifier and what to run it on, and yields :class:`Finding` objects; the command turns them
into records. Names are those of records: ``accuracy.clean``, ``accuracy.corruption``, ``accuracy.corruption.mean``,
``mce``, ``mce.relative``, ``accuracy.shift``, ``effective_robustness``, ``accuracy.pm10``, ``flip_rate``,
``accuracy.robust``, ``ece``.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lipcomp.robustness.attacks import auto_attack, pgd
from lipcomp.robustness.calibration import calibration_error
from lipcomp.robustness.corruptions import COMMON, VALIDATION
from lipcomp.robustness.effective import CLEAN_COLUMN, BaselineFit, baseline_fit, effective_robustness
from lipcomp.robustness.estimates import Estimate, bootstrap, top_k_correct
from lipcomp.robustness.evaluate import Advance, Condition, all_logits, answer, cell, clean_condition
from lipcomp.robustness.features import evaluation_mode, load_array, save_array
from lipcomp.robustness.metrics import (
    ALEXNET,
    estimate_corruption_accuracy,
    estimate_mce,
    estimate_relative_mce,
    flip_rate,
    means_with_interval,
)
from lipcomp.robustness.shifted import Shift
from lipcomp.robustness.videos import FrameSet, sequences

ALL_NINETEEN = (*COMMON, *VALIDATION)
NOTHING: Advance = lambda n: None  # noqa: E731
_BASELINES = {name.replace("_", "-"): name for name in CLEAN_COLUMN} | {"objectnet": "objectnet"}


@dataclass(frozen=True)
class Finding:
    """One value: its name, estimate, and what it was measured on."""

    quantity: str
    estimate: Estimate
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Runner:
    """A classifier with how to run it.

    Parameters
    ----------
    classifier
        Pixels in [0, 1] -> logits.
    identity
        Its fingerprint.
    batch_size
        Images at a time.
    cache
        Folder in which finished conditions are kept, or None.
    """

    classifier: nn.Module
    identity: str
    batch_size: int = 256
    cache: Path | None = None

    def options(self, advance: Advance) -> dict[str, Any]:
        """The keyword arguments of :func:`~lipcomp.robustness.evaluate.answer`."""
        return {
            "batch_size": self.batch_size,
            "cache": self.cache,
            "identity": self.identity,
            "advance": advance,
        }


def clean_findings(runner: Runner, condition: Condition, advance: Advance = NOTHING) -> Iterator[Finding]:
    """Accuracy, top-5 accuracy (from ten classes on), and calibration error."""
    logits = all_logits(runner.classifier, condition, **runner.options(advance))
    labels = condition.labels()
    yield Finding("accuracy.clean", bootstrap(top_k_correct(logits, labels, 1)[None]), condition.settings)
    if logits.shape[1] >= 10:
        yield Finding("accuracy.top5", bootstrap(top_k_correct(logits, labels, 5)[None]), condition.settings)
    yield Finding("ece", calibration_error(logits, labels), condition.settings)


def corruption_findings(
    runner: Runner,
    conditions: Sequence[Condition],
    clean: Condition | None = None,
    advance: Advance = NOTHING,
) -> Iterator[Finding]:
    """Accuracy of every condition, their mean, and for ImageNet's fifteen corruptions mCE and relative mCE.

    For all nineteen of ImageNet-C on disk, which the published baselines average, effective robustness too.

    Parameters
    ----------
    runner
        What to run.
    conditions
        Of one set: the same images in each.
    clean
        The same images without corruption, for relative mCE.
    advance
        Told how many images are done.
    """
    right: dict[str, list[np.ndarray]] = {}
    for condition in conditions:
        found = answer(runner.classifier, condition, **runner.options(advance))
        right.setdefault(condition.settings["corruption"], []).append(found.right)
        (estimate,) = means_with_interval(found.right)
        yield Finding("accuracy.corruption", estimate, condition.settings)
    table = {name: np.stack(rows) for name, rows in right.items()}
    common = {k: v for k, v in conditions[0].settings.items() if k not in ("corruption", "severity")}
    common |= {"corruptions": len(table)}
    yield Finding("accuracy.corruption.mean", estimate_corruption_accuracy(table), common)
    thousand = len(conditions[0].images.classes) == 1000
    if clean is not None and thousand and set(table) == set(ALL_NINETEEN) and common.get("table") == "disk":
        before = answer(runner.classifier, clean, **runner.options(NOTHING)).right
        fit = baseline_fit("imagenet_c_disk")
        after = np.mean([rows.mean(0) for rows in table.values()], 0)
        told = common | {
            "slope": fit.slope,
            "intercept": fit.intercept,
            "scale": fit.scale,
            "baselines": fit.n,
        }
        yield Finding("effective_robustness", effective_robustness(before, after, fit), told)
    fifteen = {name: rows for name, rows in table.items() if name in ALEXNET and len(rows) == 5}
    if len(fifteen) < len(ALEXNET) or not thousand:
        return
    yield Finding("mce", estimate_mce(fifteen), common)
    if clean is not None and len(clean.indices) == next(iter(fifteen.values())).shape[1]:
        before = answer(runner.classifier, clean, **runner.options(NOTHING)).right
        yield Finding("mce.relative", estimate_relative_mce(fifteen, before), common)


def shift_findings(
    runner: Runner,
    shift: Shift,
    clean: Condition | None = None,
    fit: BaselineFit | None = None,
    advance: Advance = NOTHING,
) -> Iterator[Finding]:
    """Accuracy on a shift, on the clean images of its classes, and effective robustness where baselines exist.

    ``fit`` is a line on baselines of your own; without it the published ones are used, if the shift has any.
    """
    logits = all_logits(runner.classifier, clean_condition(shift.images), **runner.options(advance))
    right = shift.right(logits)
    settings = {"shift": shift.name}
    yield Finding("accuracy.shift", bootstrap(right[None]), settings)
    if clean is None:
        return
    before = shift.right_clean(
        all_logits(runner.classifier, clean, **runner.options(NOTHING)), clean.labels()
    )
    yield Finding("accuracy.clean.shift_classes", bootstrap(before[None]), settings)
    if fit is None and shift.name in _BASELINES:
        fit = baseline_fit(_BASELINES[shift.name])
    if fit is not None and 0 < before.mean() < 1:
        told = settings | {
            "slope": fit.slope,
            "intercept": fit.intercept,
            "scale": fit.scale,
            "baselines": fit.n,
        }
        yield Finding("effective_robustness", effective_robustness(before, right, fit), told)


def video_findings(
    runner: Runner,
    frames: FrameSet,
    ks: Sequence[int] = (0, 10),
    clean: Condition | None = None,
    advance: Advance = NOTHING,
) -> Iterator[Finding]:
    """Accuracy of anchor frames, and where every frame within +-k must be right; effective robustness of both."""
    logits = all_logits(runner.classifier, clean_condition(frames.images), **runner.options(advance))
    settings = {"shift": frames.name}
    before = None
    if clean is not None and len(clean.images.classes) == 1000:
        plain = all_logits(runner.classifier, clean, **runner.options(NOTHING))
        before = frames.as_shift().right_clean(plain, clean.labels())
        yield Finding("accuracy.clean.shift_classes", bootstrap(before[None]), settings)
    for k in ks:
        yield Finding(f"accuracy.pm{k}", frames.pm_k(logits, k), settings)
        baseline = f"{frames.name.split('-')[0]}_pm{k}"
        if before is not None and baseline in CLEAN_COLUMN and 0 < before.mean() < 1:
            fit = baseline_fit(baseline)
            told = settings | {"k": k, "slope": fit.slope, "intercept": fit.intercept, "scale": fit.scale}
            yield Finding(
                "effective_robustness", effective_robustness(before, frames.held(logits, k), fit), told
            )


def flip_findings(
    runner: Runner,
    places: Mapping[str, Path],
    device: torch.device,
    limit: int | None = None,
    advance: Advance = NOTHING,
) -> Iterator[Finding]:
    """Flip rate of every perturbation (of its first ``limit`` sequences), and their mean; ``advance`` counts them."""
    rates = []
    for name, place in places.items():
        path = None
        if runner.cache is not None:
            stat = place.stat()
            key = f"{runner.identity}/{place.resolve()}/{stat.st_size}/{stat.st_mtime_ns}/{limit}"
            path = runner.cache / f"flips-{hashlib.sha256(key.encode()).hexdigest()[:24]}.npy"
        predicted = None if path is None else load_array(path)
        if predicted is None:
            predicted = _predict_sequences(runner, place, device, limit)
            if path is not None:
                save_array(path, predicted)
        advance(1)
        estimate = flip_rate(predicted, noise="noise" in name)
        rates.append(estimate.value)
        yield Finding("flip_rate", estimate, {"perturbation": name})
    n = len(rates)
    yield Finding("flip_rate.mean", Estimate(float(np.mean(rates)), None, n), {"perturbations": n})


def _predict_sequences(runner: Runner, place: Path, device: torch.device, limit: int | None) -> np.ndarray:
    rows = []
    with evaluation_mode(runner.classifier):
        for frames in islice(sequences(place), limit):
            parts = frames.split(runner.batch_size)
            rows.append(torch.cat([runner.classifier(x.to(device)).argmax(1).cpu() for x in parts]))
    if len({len(row) for row in rows}) != 1:
        raise ValueError(f"{str(place)!r} has sequences of different lengths; one is cut off, get it again")
    return torch.stack(rows).numpy()


def attack_findings(
    runner: Runner,
    condition: Condition,
    method: str,
    norm: str,
    radius: float | int,
    *,
    seed: int = 0,
    device: torch.device,
    advance: Advance = NOTHING,
) -> Iterator[Finding]:
    """Accuracy under PGD ("pgd") or AutoAttack ("auto") in a ball of ``radius`` pixels; kept batch by batch."""
    if method not in ("pgd", "auto"):
        raise ValueError(f'an attack must be "pgd" or "auto", got {method!r}')
    attack = pgd if method == "pgd" else auto_attack
    settings = condition.settings | {"attack": method, "norm": norm, "radius": radius, "attack_seed": seed}
    right = []
    for part in condition.indices.split(runner.batch_size):
        piece = Condition(condition.images, part, settings)
        path = None if runner.cache is None else cell(runner.cache, runner.identity, piece, "attack")
        held = None if path is None else load_array(path)
        if held is None:
            batch, labels = condition.images.batch(part).to(device), piece.labels().to(device)
            held = attack(runner.classifier, batch, labels, norm=norm, radius=radius, seed=seed).right
            if path is not None:
                save_array(path, held)
        right.append(held)
        advance(len(part))
    yield Finding("accuracy.robust", bootstrap(np.concatenate(right)[None]), settings)
