"""Per image: does a larger local constant at x go with a prediction that a corruption of x changes.

One row is one image seen by one model under one corruption: a score (sigma_max at x), a label (1 if the
prediction flipped). Rows are not independent: an image is hard for every model, a model is rough on every
image. Both are given as ``groups``, and the variance is that of Cameron, Gelbach and Miller (2011),

    V = V_images + V_models - V_(images, models),

each term from the sums of the influence function over its groups, with t quantiles at the smaller number of
groups minus one (of an AUROC: of those that hold the rarer label, since ten flipped images among a thousand are ten).
``within`` compares only rows of one model with each other, so that a difference between models cannot pass for a
relation across images (Simpson again).

- :func:`auroc`: the chance that a flipped image has the larger score. Influence function of the two-sample
  U-statistic (DeLong et al. 1988; clustered as by Obuchowski 1997); interval on the logit scale.
- :func:`clustered_logistic`: log-odds of a flip per standard deviation of the score, with cluster-robust
  errors, by statsmodels (``pip install 'lipcomp[statistics]'``).
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.special
from jaxtyping import Float, Int

from lipcomp._messages import needed
from lipcomp.statistics._estimate import (
    Estimate,
    Values,
    check_level,
    check_order,
    group_codes,
    is_constant,
    vector,
)
from lipcomp.statistics._slopes import student

FEW_GROUPS = 10
FEWEST = 3  # rows, or groups, of the rarer label; below, an interval errs whatever its quantile

Groups = Values | Sequence[Values]


@dataclass(frozen=True)
class LogisticEffect(Estimate):
    """Log-odds of label 1 per standard deviation of the score."""

    odds_ratio: float | None = None  # the exponential of the value
    odds_interval: tuple[float, float] | None = None  # the exponential of the interval


def auroc(
    score: Values,
    label: Values,
    groups: Groups | None = None,
    *,
    within: Values | None = None,
    level: float = 0.95,
) -> Estimate:
    """Area under the ROC curve of a score for a binary label; the p-value is against 1/2.

    Parameters
    ----------
    score
        One value per row; larger should mean label 1.
    label
        0 or 1 (or booleans) a row.
    groups
        What makes rows dependent: one sequence of labels (the image), or two (image and model). None:
        nothing.
    within
        Compare only rows that share this label (the model).
    level
        Nominal coverage of the interval.

    Raises
    ------
    ValueError
        If lengths differ, values are not finite, or a label is not 0 or 1.

    Examples
    --------
    >>> auroc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]).value
    0.75
    """
    check_level(level)
    check_order(score=score, label=label, within=within, groups=groups)
    values, flags = vector("score", score), _flags(label, score)
    n = values.size
    clusters = _clusters(groups, n)
    strata, _ = (np.zeros(n, dtype=np.int64), 1) if within is None else group_codes("within", within, n)
    where = "" if within is None else " inside strata"
    method = f"Mann-Whitney AUROC{where}; {_how(clusters)}; logit-scale interval"
    name = "AUROC"
    # how many rows of the other class a row beats (ties half), and how many it is compared with
    series, cell = pd.Series(values), 2 * strata + flags.astype(np.int64)
    above = (series.groupby(strata).rank() - series.groupby(cell).rank()).to_numpy()
    sizes = np.bincount(cell, minlength=2 * (int(strata.max()) + 1))
    opponents = sizes[2 * strata + 1 - flags.astype(np.int64)].astype(np.float64)
    beaten = np.where(flags == 1, above, opponents - above)
    own = (np.bincount(strata, beaten * flags) / np.maximum(1, sizes[::2] * sizes[1::2]))[strata]
    comparisons = opponents[flags == 1].sum()
    if comparisons == 0:
        where = "" if within is None else " in any stratum"
        reason = f"labels 0 and 1 do not both occur{where} ({int(flags.sum())} of {n} are 1)"
        return Estimate(name, None, None, None, n, method, level, note=reason)
    area = float(beaten[flags == 1].sum() / comparisons)
    # A row's deviation from its stratum's area, and half of the stratum's own deviation: positives and
    # negatives each carry it, and together they must carry it once.
    influence = (beaten - (own + area) / 2 * opponents) / comparisons
    variance, freedom, note = _clustered_variance(influence[:, None], clusters)
    compared = opponents > 0
    held = [
        min(np.unique(codes[compared & (flags == flag)]).size for flag in (0, 1))
        for codes in (clusters or [np.arange(n)])
    ]
    rarer = max(held)
    freedom = min(freedom, min(held) - 1)  # few rows of a label: the error is that of those few
    spread = math.sqrt(max(0.0, float(variance[0, 0])))
    if is_constant(values):
        note = "the score is constant"
        return Estimate(name, 0.5, None, None, n, method, level, note=note)
    if spread <= 1e-12 or not 0 < area < 1 or rarer < FEWEST or freedom < 1:
        why = "the score separates the labels, or there is no spread"
        if rarer < FEWEST:
            why = f"only {rarer} rows or groups hold the rarer label, {FEWEST} are needed"
        note = "; ".join(filter(None, [note, f"no interval: {why}"]))
        return Estimate(name, area, None, None, n, method, level, note=note)
    logit, error = math.log(area / (1 - area)), spread / (area * (1 - area))
    ends, p_value = student(logit, error, freedom, level)
    low, high = (float(scipy.special.expit(end)) for end in ends)
    return Estimate(name, area, (low, high), p_value, n, method, level, note=note)


def clustered_logistic(
    score: Values,
    label: Values,
    groups: Groups | None = None,
    *,
    controls: Sequence[Values] = (),
    within: Values | None = None,
    level: float = 0.95,
) -> LogisticEffect:
    """Logistic regression of a binary label on a score, with cluster-robust errors.

    Parameters
    ----------
    score, label, groups, level
        As in :func:`auroc`. The score enters standardised.
    controls
        Further columns, one value per row (the clean margin, say); standardised too.
    within
        A separate intercept for each of these labels (the model).

    Raises
    ------
    ValueError
        As :func:`auroc`.
    ImportError
        If statsmodels is not installed.
    """
    with needed("clustered_logistic", "lipcomp[statistics]"):
        from statsmodels.discrete.discrete_model import Logit
    check_level(level)
    check_order(score=score, label=label, within=within, groups=groups)
    values, flags = vector("score", score), _flags(label, score)
    n = values.size
    clusters = _clusters(groups, n)
    method = f"logistic regression on the standardised score; {_how(clusters)}"
    name = "log-odds per standard deviation"

    def missing(reason: str) -> LogisticEffect:
        return LogisticEffect(name, None, None, None, n, method, level, note=reason)

    if flags.min() == flags.max():
        return missing(f"labels 0 and 1 do not both occur ({int(flags.sum())} of {n} are 1)")
    if is_constant(values):
        return missing("the score is constant")
    keep = np.ones(n, dtype=bool)
    columns = [np.ones(n), _standard(values)]
    columns += [_standard(vector("controls", control, n)) for control in controls]
    if within is not None:
        codes, count = group_codes("within", within, n)
        share = np.bincount(codes, flags) / np.bincount(codes)
        # a model that flips all or none says nothing about the slope
        keep = (share[codes] > 0) & (share[codes] < 1)
        kept = np.unique(codes[keep])
        columns += [(codes == code).astype(np.float64) for code in kept[1:]]
        method += f"; an intercept for each of {kept.size} (of {count}) strata"
        if not keep.any():
            return missing("labels 0 and 1 do not both occur in any stratum")
    design = np.column_stack(columns)[keep]
    if design.shape[0] <= design.shape[1] or np.linalg.matrix_rank(design) < design.shape[1]:
        return missing("the score, the controls and the intercepts are collinear")
    model = Logit(flags[keep], design)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            fit = model.fit(disp=0, maxiter=100)
        except Exception as error:
            # statsmodels raises its own kinds for separation, numpy's for a singular Hessian
            return missing(f"the fit failed ({error}); the score may separate the labels")
    coefficient = float(fit.params[1])
    if not fit.mle_retvals["converged"] or not np.isfinite(fit.params).all() or np.abs(fit.params).max() > 50:
        return missing("the fit does not converge: the score separates the labels")
    bread = np.linalg.inv(-model.hessian(fit.params))
    influence = model.score_obs(fit.params) @ bread
    variance, freedom, note = _clustered_variance(influence, [codes[keep] for codes in clusters])
    spread = math.sqrt(max(0.0, float(variance[1, 1])))
    if freedom < 1 or spread == 0:
        note = "; ".join(filter(None, [note, "no interval: too few groups"]))
        return LogisticEffect(
            name, coefficient, None, None, n, method, level, None, note, math.exp(coefficient)
        )
    ends, p_value = student(coefficient, spread, freedom, level)
    return LogisticEffect(
        name=name,
        value=coefficient,
        interval=ends,
        p_value=p_value,
        n=n,
        method=method,
        level=level,
        note=note,
        odds_ratio=math.exp(coefficient),
        odds_interval=(math.exp(ends[0]), math.exp(ends[1])),
    )


def _flags(label: Values, score: Values) -> Float[np.ndarray, " n"]:
    flags = vector("label", label, np.size(score))
    if not np.isin(flags, (0, 1)).all():
        raise ValueError(f"label must be 0 or 1 (or booleans), got {np.unique(flags)[:5].tolist()}")
    return flags


def _standard(column: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    spread = column.std()
    return (column - column.mean()) / (spread if spread > 0 else 1.0)


def _clusters(groups: Groups | None, n: int) -> list[Int[np.ndarray, " n"]]:
    if groups is None:
        return []
    given: Any = groups
    sequences = list(given) if np.ndim(next(iter(given))) > 0 else [given]
    if len(sequences) > 2:
        raise ValueError(f"groups must be one or two sequences of labels, got {len(sequences)}")
    return [group_codes("groups", sequence, n)[0] for sequence in sequences]


def _how(clusters: list[Int[np.ndarray, " n"]]) -> str:
    if not clusters:
        return "rows taken as independent"
    counts = " and ".join(str(np.unique(codes).size) for codes in clusters)
    return f"cluster-robust over {counts} groups, t quantiles"


def _clustered_variance(
    influence: Float[np.ndarray, "n k"], clusters: list[Int[np.ndarray, " n"]]
) -> tuple[Float[np.ndarray, "k k"], int, str]:
    """Variance from sums of the influence function over groups; degrees of freedom; a note on few groups."""

    def one(codes: Int[np.ndarray, " n"]) -> tuple[np.ndarray, int]:
        labels, compact = np.unique(codes, return_inverse=True)
        sums = np.zeros((labels.size, influence.shape[1]))
        np.add.at(sums, compact.reshape(-1), influence)
        return sums.T @ sums * (labels.size / max(1, labels.size - 1)), labels.size

    n = influence.shape[0]
    if not clusters:
        variance, count = one(np.arange(n))
        return variance, count - 1, ""
    parts = [one(codes) for codes in clusters]
    variance = np.sum([part for part, _ in parts], axis=0)
    smallest = min(count for _, count in parts)
    if len(parts) == 2:
        both, _ = one(clusters[0] * (int(clusters[1].max()) + 1) + clusters[1])
        combined = variance - both
        # the difference may lose positivity; then the larger of the two one-way variances stands
        fallback = max((part for part, _ in parts), key=lambda v: float(np.trace(v)))
        variance = np.where(np.diag(combined).min() > 0, combined, fallback)
    note = f"only {smallest} groups, so the interval is approximate" if smallest < FEW_GROUPS else ""
    return variance, smallest - 1, note
