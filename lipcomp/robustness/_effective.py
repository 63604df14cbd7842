"""Effective robustness: accuracy under a shift beyond what clean accuracy predicts (Taori et al. 2020).

On most shifts the accuracies of standard models lie on a line once both axes are stretched by the logit,

    f(shifted accuracy) = slope f(clean accuracy) + intercept,

and effective robustness is a model's shifted accuracy minus the line's prediction, in accuracy. ImageNet-A, -R,
ObjectNet and the video sets have fewer classes; their clean accuracy is the one on those classes.

The table that ships holds the published accuracies of imagenet-testbed; the line is fitted on its models of standard
training. Your own table works too: one row per model, a column of clean and one of shifted accuracy, in [0, 1].

>>> from lipcomp.robustness._effective import baseline_fit
>>> fit = baseline_fit("imagenet_v2")
>>> round(fit.slope, 3), round(fit.intercept, 3), round(fit.r_squared, 3), fit.n
(0.923, -0.498, 0.996, 85)
"""

from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Shaped
from scipy import special

from lipcomp._messages import nearest
from lipcomp.robustness._estimates import RESAMPLES, Estimate, weighted_means
from lipcomp.robustness._metrics import numbers, read_table

# The column of the table with the clean accuracy that belongs to a shift.
CLEAN_COLUMN = {
    "imagenet_v2": "clean",
    "imagenet_sketch": "clean",
    "imagenet_c_disk": "clean",
    "imagenet_c_memory": "clean",
    "imagenet_a": "clean_a_classes",
    "imagenet_r": "clean_r_classes",
    "objectnet": "clean_objectnet_classes",
    "vid_pm0": "clean_vid_classes",
    "vid_pm10": "clean_vid_classes",
    "ytbb_pm0": "clean_ytbb_classes",
    "ytbb_pm10": "clean_ytbb_classes",
}


@dataclass(frozen=True)
class BaselineFit:
    """A line between stretched accuracies."""

    slope: float  # this and the next two: of the line, on the stretched axes
    intercept: float
    r_squared: float
    n: int  # how many models it rests on
    slope_interval: tuple[float, float]  # 95%, bootstrap over models
    intercept_interval: tuple[float, float]  # the same

    def predict(self, clean: float | np.floating | np.ndarray) -> np.ndarray:
        """The shifted accuracy that a standard model of this clean accuracy has."""
        stretched = special.logit(np.asarray(clean, dtype=float))
        return np.asarray(special.expit(self.slope * stretched + self.intercept))


def fit_baselines(
    clean: Shaped[np.ndarray, " models"],
    shifted: Shaped[np.ndarray, " others"],
) -> BaselineFit:
    """Fit the line by least squares on models' clean and shifted accuracies, in [0, 1].

    Models with a missing accuracy, or one of exactly 0 or 1 (whose stretch is infinite), are left out.

    Raises
    ------
    ValueError
        If fewer than three models remain, or their clean accuracies are all alike.
    """
    clean, shifted = np.asarray(clean, dtype=float), np.asarray(shifted, dtype=float)
    if clean.shape != shifted.shape or clean.ndim != 1:
        raise ValueError(
            f"clean and shifted must hold one accuracy per model, got {clean.shape} and {shifted.shape}"
        )
    if np.nanmax(np.concatenate([clean, shifted]), initial=0) > 1:
        raise ValueError("accuracies must lie in [0, 1], got some above 1; divide percent by 100")
    usable = (clean > 0) & (clean < 1) & (shifted > 0) & (shifted < 1)
    x, y = special.logit(clean[usable]), special.logit(shifted[usable])
    n = len(x)
    if n < 3 or np.ptp(x) == 0:
        raise ValueError(f"a line needs at least three baseline models of different accuracy, got {n}")
    slopes, intercepts = _lines(x[None], y[None])
    drawn = np.random.default_rng(0).integers(0, n, (RESAMPLES, n))
    many = [values[np.isfinite(values)] for values in _lines(x[drawn], y[drawn])]
    ends = [np.quantile(values, [0.025, 0.975]) for values in many]
    return BaselineFit(
        float(slopes[0]),
        float(intercepts[0]),
        float(np.corrcoef(x, y)[0, 1] ** 2),
        n,
        (float(ends[0][0]), float(ends[0][1])),
        (float(ends[1][0]), float(ends[1][1])),
    )


def _lines(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least-squares slope and intercept of every row."""
    dx, dy = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        slope = (dx * dy).sum(1) / (dx * dx).sum(1)
    return slope, y.mean(1) - slope * x.mean(1)


@lru_cache(maxsize=1)
def published_accuracies() -> pd.DataFrame:
    """The accuracies that ship with the package, in percent, one row per model."""
    tables = files("lipcomp.robustness") / "tables"
    with (tables / "imagenet_testbed_top1.csv").open() as table:
        frame = pd.read_csv(table).set_index("model")
    standard = (tables / "imagenet_testbed_standard.txt").read_text().split("\n")
    return frame.assign(standard=frame.index.isin(standard))


def baseline_fit(shift: str) -> BaselineFit:
    """The line of the table that ships, on its models of standard training, for a key of :data:`CLEAN_COLUMN`."""
    if shift not in CLEAN_COLUMN:
        hint = nearest(shift, CLEAN_COLUMN)
        raise ValueError(
            f"no published baselines for shift {shift!r}{hint} There are: {', '.join(CLEAN_COLUMN)}; "
            f"for another shift give a table of your own"
        )
    frame = published_accuracies()
    frame = frame[frame.standard]
    return fit_baselines(frame[CLEAN_COLUMN[shift]].to_numpy() / 100, frame[shift].to_numpy() / 100)


def read_baselines(path: Path | str, clean: str, shifted: str) -> BaselineFit:
    """Fit on a CSV table of your own, by the names of its two columns (accuracies in [0, 1]).

    Raises
    ------
    FileNotFoundError
        If the file is missing.
    ValueError
        If a column is missing or holds no accuracies.
    """
    frame = read_table(path, "baselines", "model")
    missing = [name for name in (clean, shifted) if name not in frame]
    if missing:
        raise ValueError(
            f"baselines {str(path)!r} have no column {missing[0]!r}, only: {', '.join(map(str, frame))}"
        )
    return fit_baselines(numbers(path, frame, clean), numbers(path, frame, shifted))


def effective_robustness(
    clean: Shaped[np.ndarray, " n"],
    shifted: Shaped[np.ndarray, " m"],
    fit: BaselineFit,
) -> Estimate:
    """Shifted accuracy minus the line's prediction from clean accuracy, with its interval over images of both sets.

    Parameters
    ----------
    clean, shifted
        Whether each image is right, on the clean set (on the shift's classes) and on the shifted one.
    fit
        The line; its own uncertainty is in its fields, not in this interval.
    """
    clean, shifted = np.asarray(clean, dtype=float), np.asarray(shifted, dtype=float)
    value = shifted.mean() - fit.predict(clean.mean())
    ends = []
    for limit, share in ((0.0, 0.025), (1.0, 0.975)):  # as the intervals of both accuracies have them
        before, after = weighted_means(clean, 1 - limit), weighted_means(shifted, limit, seed=1)
        count = min(len(before), len(after))
        ends.append(float(np.quantile(after[:count] - fit.predict(before[:count]), share)))
    return Estimate(float(value), (ends[0], ends[1]), len(shifted))
