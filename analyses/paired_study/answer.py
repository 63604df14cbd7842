"""From the models' table to paired effects and correlations.

Three questions, in this order: does compression make the encoder smoother; does it make it more robust; and do
smoothness and robustness go together (across models, within pairs, across the images of one model). An effect is
called present only if its 95% interval leaves out zero *and* its permutation p-value is below 0.05; otherwise the
answer is "not enough evidence", with the smallest p-value that so few pairs could have given.
"""

import functools
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analyses.paired_study.study import CONTRASTS, METHODS, pair_table
from lipcomp.statistics import (
    Estimate,
    LogisticEffect,
    PairedEffect,
    adjust,
    auroc,
    clustered_logistic,
    correlation,
    paired_effect,
    partial_correlation,
    smallest_detectable_effect,
    within_pairs,
)

ALPHA = 0.05
ALL_PAIRS = "all: compressed − not"


@dataclass(frozen=True)
class Outcome:
    """A column of the models' table whose paired differences are tested."""

    column: str
    label: str
    unit: str
    logarithm: bool = False
    scale: float = 1.0


OUTCOMES = (
    Outcome("sigma", "σ_max(J), median", "log ratio", logarithm=True),
    Outcome("stretch", "‖Δμ‖/‖Δx‖, corruptions", "log ratio", logarithm=True),
    Outcome("clean", "clean accuracy", "points", scale=100),
    Outcome("corruption", "corruption accuracy", "points", scale=100),
    Outcome("shift", "shift accuracy", "points", scale=100),
)


@dataclass(frozen=True)
class Effect:
    """A paired effect: treated minus control, its interval, and every pair's own difference."""

    contrast: str
    meaning: str
    label: str
    column: str
    unit: str
    logarithm: bool
    estimate: PairedEffect
    detectable: float | None

    @property
    def value(self) -> float:
        """The mean difference."""
        return float("nan") if self.estimate.value is None else self.estimate.value

    @property
    def interval(self) -> tuple[float, float] | None:
        """Its 95% interval."""
        return self.estimate.interval

    @property
    def present(self) -> bool:
        """Whether the interval leaves out zero and the permutation test agrees."""
        return is_present(self.estimate)


def is_present(estimate: Estimate) -> bool:
    """Interval without zero and p below 0.05."""
    if estimate.interval is None or estimate.p_value is None:
        return False
    low, high = estimate.interval
    return (low > 0 or high < 0) and estimate.p_value < ALPHA


def paired_effects(models: pd.DataFrame) -> list[Effect]:
    """Every contrast's effect on every outcome, and the compression contrasts pooled, where there are pairs.

    A contrast is estimated for each beta apart. In the pooled effect a family and seed counts once, with the mean
    over its betas: runs of one seed at several betas share their control, and are no independent pairs.
    """
    effects = []
    for outcome in OUTCOMES:
        pooled: list[pd.DataFrame] = []
        for contrast in CONTRASTS:
            pairs = pair_table(models, contrast, outcome.column, logarithm=outcome.logarithm)
            several = pairs["beta"].nunique() > 1
            for beta, group in pairs.groupby("beta", dropna=False):
                name = f"{contrast.name}, β = {beta:g}" if several else contrast.name
                effects.append(_effect(name, contrast.meaning, outcome, group))
            if contrast.compression and len(pairs):
                pooled.append(pairs.groupby("seed")[["treated", "control"]].mean())
        if sum(map(len, pooled)) > 1:
            meaning = "compression, all families" + (" and betas" if models["beta"].nunique() > 1 else "")
            effects.append(_effect(ALL_PAIRS, meaning, outcome, pd.concat(pooled)))
    return effects


def _effect(name: str, meaning: str, outcome: Outcome, pairs: pd.DataFrame) -> Effect:
    treated, control = (outcome.scale * pairs[side].to_numpy(float) for side in ("treated", "control"))
    effect = paired_effect(treated, control)
    units = detectable_in_deviations(effect.n)
    spread = float(np.std(effect.differences, ddof=1)) if effect.n > 1 else 0.0
    found = None if units is None or not spread else units * spread
    return Effect(
        name, meaning, outcome.label, outcome.column, outcome.unit, outcome.logarithm, effect, found
    )


@functools.cache
def detectable_in_deviations(n: int) -> float | None:
    """The smallest effect that n pairs find with a probability of 80%, in standard deviations of the differences."""
    return smallest_detectable_effect(n).value


@dataclass(frozen=True)
class Association:
    """How smoothness and a robustness measure go together, at one level."""

    level: str
    x: str
    y: str
    estimate: Estimate


ROBUSTNESS = {"corruption": "mean corruption accuracy", "shift": "shift accuracy"}
SMOOTHNESS = {"sigma": "median σ_max(J)", "stretch": "median ‖Δμ‖/‖Δx‖ over corruptions"}


def associations(models: pd.DataFrame) -> list[Association]:
    """Across models, across models with clean accuracy partialled out, and within pairs."""
    found = []
    for x, x_label in SMOOTHNESS.items():
        for y, y_label in ROBUSTNESS.items():
            complete = models.dropna(subset=[x, y, "clean"])
            if len(complete) < 3:
                continue
            smooth, robust, clean = (complete[c].to_numpy(float) for c in (x, y, "clean"))
            shared = family_and_seed(complete).to_numpy()
            # the seeds of a method are its replicates, so across models whole methods are exchanged
            method = replicates(complete).to_numpy()
            across = correlation(np.log(smooth), robust, groups=method)
            partial = partial_correlation(np.log(smooth), robust, clean, groups=method)
            found += [
                Association("across models", x_label, y_label, across),
                Association("across models, clean accuracy held fixed", x_label, y_label, partial),
            ]
            if len(set(shared)) < len(shared):
                inside = within_pairs(np.log(smooth), robust, shared)
                found.append(Association("within pairs", x_label, y_label, inside.within))
                found.append(Association("between pairs (their means)", x_label, y_label, inside.between))
    return found


def replicates(models: pd.DataFrame) -> pd.Series:
    """Which models differ in nothing but their seed: one label a method and beta; a model without seed is its own."""
    rows = zip(models.index, models["method"], models["beta"], models["seed"], strict=True)
    labels = [run if pd.isna(seed) else f"{method}/{beta}" for run, method, beta, seed in rows]
    return pd.Series(labels, models.index)


def family_and_seed(models: pd.DataFrame) -> pd.Series:
    """Which models share weights, data order and draws: one label a family and seed; none known, one a model."""
    family = models["method"].map(lambda m: "BYOL" if "BYOL" in m else "SimCLR" if "SimCLR" in m else m)
    own = pd.Series(models.index, index=models.index).astype(str)
    return (family + "/" + models["seed"].astype(str)).where(models["seed"].notna(), own)


def dose_response(models: pd.DataFrame) -> list[Association]:
    """Where beta was swept: does smoothness, and does robustness, follow log beta within a seed."""
    found = []
    for contrast in (c for c in CONTRASTS if c.compression):
        rows = models[(models["method"] == contrast.treated) & models["beta"].notna()]
        for outcome in OUTCOMES:
            swept = rows.dropna(subset=[outcome.column])
            if swept["beta"].nunique() < 3:
                continue
            y = swept[outcome.column].to_numpy(float)
            beta = np.log(swept["beta"].to_numpy(float))
            inside = within_pairs(beta, np.log(y) if outcome.logarithm else y, swept["seed"].to_numpy())
            level = f"{contrast.treated}, over β within a seed"
            found.append(Association(level, "log β", outcome.label, inside.within))
    return found


ALL_MODELS = "all models"


@dataclass(frozen=True)
class ImageFinding:
    """Within one model: does a larger local constant at an image go with corruptions changing its prediction."""

    run: str
    method: str
    estimate: Estimate
    odds: LogisticEffect | None = None


def image_findings(images: pd.DataFrame) -> list[ImageFinding]:
    """AUROC of sigma_max for "more corruptions than the median flip this image", a run at a time.

    Parameters
    ----------
    images
        Columns run, method, image, sigma, flipped (share of corruptions that change the prediction).
    """
    images = images.dropna(subset=["sigma", "flipped"]).reset_index(drop=True)
    often = images["flipped"] > images.groupby("run")["flipped"].transform("median")
    found = []
    for (run, method), rows in images.groupby(["run", "method"], sort=False):
        label = often[rows.index].to_numpy()
        if label.any() and not label.all():
            found.append(ImageFinding(str(run), str(method), auroc(rows["sigma"].to_numpy(float), label)))
    order = list(METHODS.values())
    found.sort(key=lambda f: (order.index(f.method) if f.method in order else len(order), f.run))
    if len(found) > 1:
        rows = images[images["run"].isin([f.run for f in found])]
        sigma, label, runs = (
            rows["sigma"].to_numpy(float),
            often[rows.index].to_numpy(),
            rows["run"].to_numpy(),
        )
        groups = [
            rows["image"].to_numpy(),
            runs,
        ]  # rows of one image, and rows of one model, are not independent
        estimate = auroc(sigma, label, groups=groups, within=runs)
        odds = clustered_logistic(np.log(sigma), label, groups, within=runs)
        found.insert(0, ImageFinding(ALL_MODELS, "all", estimate, odds))
    return found


def corruption_effects(accuracies: pd.DataFrame, models: pd.DataFrame) -> pd.DataFrame:
    """Compressed minus not, corruption by corruption, p-values adjusted over the corruptions (Holm).

    Parameters
    ----------
    accuracies
        Columns run, corruption, value: mean over severities.
    """
    wide = accuracies.pivot_table("value", "run", "corruption", aggfunc="mean")
    rows = []
    for corruption in wide:
        joined = models.assign(value=100 * wide[corruption])
        pairs = pd.concat([pair_table(joined, c, "value") for c in CONTRASTS if c.compression])
        if len(pairs):
            estimate = paired_effect(pairs["treated"].to_numpy(float), pairs["control"].to_numpy(float))
            rows.append((corruption, estimate))
    table = pd.DataFrame(rows, columns=["corruption", "estimate"])
    table["adjusted_p"] = list(adjust([e.p_value for e in table["estimate"]], "holm").adjusted)
    return table
