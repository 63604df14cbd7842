"""One contrast in one stratum: its runs, their family's, and every effect over seeds that can be asked for."""

import functools
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Shaped

from analyses.paired_study.frames import CLEAN, Study
from analyses.paired_study.pairs import WITHIN
from analyses.paired_study.study import Contrast
from lipcomp.statistics import contrast
from lipcomp.statistics._units import Contrast as Effect, shared_image_variance

RATIOS = ("features", "logits", "latent", "stretch")  # compared as ratios, all else in points


@dataclass(frozen=True)
class Comparison:
    """The runs of one contrast, and the others of its family, whose noise has the same spread.

    Parameters
    ----------
    contrast
        Which methods.
    runs
        Rows of the models' table.
    hits
        By column ("corruption", "clean"): points by seed and test image, treated minus control; empty without bits.
    clean_slope
        The design's range.
    """

    contrast: Contrast
    runs: pd.DataFrame
    hits: dict[str, Float[np.ndarray, "seeds images"]]
    clean_slope: tuple[float, float]

    @functools.cached_property
    def labels(self) -> tuple[Shaped[np.ndarray, " runs"], Shaped[np.ndarray, " runs"]]:
        """Method and seed of each run."""
        return (
            np.array([str(m) for m in self.runs["method"]]),
            np.array([str(s) for s in self.runs["seed"]]),
        )

    def without(self, seed: str) -> "Comparison":
        """The same without one seed."""
        methods, seeds = self.labels
        sides = [set(seeds[methods == m]) for m in (self.contrast.treated, self.contrast.control)]
        held = [s for s in dict.fromkeys(seeds) if s in sides[0] & sides[1]]
        rows = np.array([s != seed for s in held], dtype=bool)
        hits = {key: values[rows] for key, values in self.hits.items()}
        return replace(self, runs=self.runs[seeds != seed], hits=hits)

    def effect(self, key: str, level: float) -> Effect | None:
        """The effect on an outcome with its interval; None where no run of the contrast has it."""
        if key != "given_clean":
            return self.at_slope(key, level, 0.0)
        low, high = self.clean_slope
        middle = self.at_slope("corruption", level, (low + high) / 2)
        if middle is None:
            return None
        ends = [e for e in (self.at_slope("corruption", level, k) for k in (low, high)) if e is not None]
        intervals = [e.interval for e in ends if e.interval is not None]
        if len(intervals) < 2:
            return middle
        # value and half width are linear and convex in the slope, so the union over the range ends at its ends
        whole = (min(i[0] for i in intervals), max(i[1] for i in intervals))
        p_value = None
        if ends[0].p_value is not None and ends[1].p_value is not None:
            crosses = (ends[0].value or 0.0) * (ends[1].value or 0.0) <= 0
            p_value = 1.0 if crosses else max(ends[0].p_value, ends[1].p_value)
        method = f"{middle.method}; every slope on clean accuracy from {low:g} to {high:g}"
        return replace(middle, interval=whole, p_value=p_value, method=method)

    def at_slope(self, key: str, level: float, slope: float) -> Effect | None:
        """The effect on one column, minus ``slope`` times that on clean accuracy."""
        ratio = key in RATIOS
        values = self.runs[key].to_numpy(float)
        with np.errstate(invalid="ignore", divide="ignore"):
            values = np.log(values) if ratio else 100 * values
        if slope:
            values = values - slope * 100 * self.runs[CLEAN].to_numpy(float)
        known = np.isfinite(values)
        methods, seeds = (labels[known] for labels in self.labels)
        if not np.isin(methods, (self.contrast.treated, self.contrast.control)).any():
            return None
        cells = np.unique(np.char.add(np.char.add(methods, "/"), seeds), return_counts=True)[1]
        pool = self.contrast.family if np.ptp(cells) == 0 else ()  # means of several runs have another spread
        shared, freedom = 0.0, np.inf
        if key in self.hits and not (slope and CLEAN not in self.hits):
            hits = self.hits[key] - slope * self.hits[CLEAN] if slope else self.hits[key]
            if len(hits):
                shared, freedom = shared_image_variance(hits)
        return contrast(
            values[known], list(seeds), list(methods), self.contrast.treated, self.contrast.control,
            pool=pool, shared=shared, shared_freedom=freedom, level=level,
        )  # fmt: skip


def compare(study: Study, members: pd.DataFrame, contrast: Contrast) -> Comparison:
    """The comparison of a contrast's paired runs (:func:`analyses.paired_study.pairs.find_pairs`)."""
    models = study.models
    others = models[
        models["method"].isin(contrast.family)
        & ~models["method"].isin([contrast.treated, contrast.control])
        & models["seed"].notna()
        & (models["beta"].isna() | (models["beta"] == study.design.beta))
    ]
    if len(members):
        kind = members.iloc[0]
        alike: Bool[np.ndarray, " runs"] = np.ones(len(others), dtype=bool)
        for name in (*WITHIN, "perturb"):
            column = others[name]
            alike &= (column.isna() if pd.isna(kind[name]) else column == kind[name]).to_numpy(bool)
        others = others[alike]
    return Comparison(
        contrast, pd.concat([members, others]), _hits(study, members, contrast), study.design.clean_slope
    )


def _hits(
    study: Study, members: pd.DataFrame, contrast: Contrast
) -> dict[str, Shaped[np.ndarray, "seeds images"]]:
    """Treated minus control, in points, by seed and image; nothing unless all have bits of the same images."""
    found = {}
    for key, wanted in (("corruption", set(study.informative)), (CLEAN, {CLEAN})):
        rows = []
        for seed in dict.fromkeys(members["seed"]):
            of_seed = members[members["seed"] == seed]
            sides = []
            for method in (contrast.treated, contrast.control):
                runs = [study.bits[r] for r in of_seed.index[of_seed["method"] == method] if r in study.bits]
                if runs and len({b.right.shape[1] for b in runs}) == 1:
                    sides.append(np.mean([b.hits(wanted) for b in runs], axis=0))
            if len(sides) < 2 or sides[0].shape != sides[1].shape:
                return {}
            rows.append(100 * (sides[0] - sides[1]))
        if not rows or len({len(r) for r in rows}) > 1:
            return {}
        found[key] = np.stack(rows)
    return found
