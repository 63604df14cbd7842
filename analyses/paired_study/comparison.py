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
    """The runs of one contrast, and the others of its family, whose noise has the same spread."""

    contrast: Contrast  # which methods
    runs: pd.DataFrame  # rows of the models' table
    # by column ("corruption", "clean") and seed: points by test image, treated minus control; of seeds with bits
    hits: dict[str, dict[str, Float[np.ndarray, " images"]]]
    clean_slope: tuple[float, float]  # the design's range

    @functools.cached_property
    def labels(self) -> tuple[Shaped[np.ndarray, " runs"], Shaped[np.ndarray, " runs"]]:
        """Method and seed of each run."""
        return (
            np.array([str(m) for m in self.runs["method"]]),
            np.array([str(s) for s in self.runs["seed"]]),
        )

    def without(self, seed: str) -> "Comparison":
        """The same without one seed."""
        hits = {key: {s: h for s, h in found.items() if s != seed} for key, found in self.hits.items()}
        return replace(self, runs=self.runs[self.labels[1] != seed], hits=hits)

    def effect(self, key: str, level: float) -> Effect | None:
        """The effect on an outcome with its interval; None where no run of the contrast has it."""
        if key != "given_clean":
            return self.at_slope(key, level, 0.0)
        low, high = self.clean_slope
        middle = self.with_clean.at_slope("corruption", level, (low + high) / 2)
        if middle is None:
            return None
        ends = self.ends(level)
        intervals = [e.interval for e in ends if e.interval is not None]
        if len(intervals) < 2:
            note = next((e.note for e in ends if e.interval is None), middle.note)
            return replace(middle, interval=None, p_value=None, note=note)
        # value and half width are linear and convex in the slope, so the union over the range ends at its ends
        whole = (min(i[0] for i in intervals), max(i[1] for i in intervals))
        p_value = None
        if ends[0].p_value is not None and ends[1].p_value is not None:
            crosses = (ends[0].value or 0.0) * (ends[1].value or 0.0) <= 0
            p_value = 1.0 if crosses else max(ends[0].p_value, ends[1].p_value)
        method = f"{middle.method}; every slope on clean accuracy from {low:g} to {high:g}"
        widest = max(ends, key=lambda e: e.error or 0.0)  # so many units as decide at either end
        return replace(
            middle, interval=whole, p_value=p_value, method=method,
            spread=widest.spread, shared=widest.shared, error=widest.error, freedom=widest.freedom,
        )  # fmt: skip

    @functools.cached_property
    def with_clean(self) -> "Comparison":
        """The same of the runs whose clean accuracy is known: those that count at every slope."""
        return replace(self, runs=self.runs.dropna(subset=[CLEAN]))

    def ends(self, level: float) -> list[Effect]:
        """The effect on corruption accuracy at both ends of the range of slopes."""
        found = (self.with_clean.at_slope("corruption", level, k) for k in self.clean_slope)
        return [e for e in found if e is not None]

    def margin(self, key: str) -> float:
        """How far the range of slopes alone moves the effect to either side, without any noise."""
        values = [e.value for e in self.ends(0.95) if e.value is not None] if key == "given_clean" else []
        return (max(values) - min(values)) / 2 if values else 0.0

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
        hits, clean = self.hits.get(key, {}), self.hits.get(CLEAN, {})
        rows = [h - slope * clean[s] if slope else h for s, h in hits.items() if not slope or s in clean]
        if rows:
            shared, freedom = shared_image_variance(np.stack(rows))
        return contrast(
            values[known], list(seeds), list(methods), self.contrast.treated, self.contrast.control,
            pool=pool, shared=shared, shared_freedom=freedom, level=level,
        )  # fmt: skip


def compare(study: Study, members: pd.DataFrame, contrast: Contrast) -> Comparison:
    """The comparison of a contrast's paired runs (:class:`analyses.paired_study.pairs.Pairing`)."""
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
) -> dict[str, dict[str, Float[np.ndarray, " images"]]]:
    """Treated minus control, in points, by seed and image, of the seeds with bits of the images of the first."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for key, wanted in (("corruption", set(study.informative)), (CLEAN, {CLEAN})):
        images = None
        for seed in dict.fromkeys(members["seed"]):
            of_seed = members[members["seed"] == seed]
            sides = [
                [study.bits[r] for r in of_seed.index[of_seed["method"] == m] if r in study.bits]
                for m in (contrast.treated, contrast.control)
            ]
            labels = {
                b.labels.tobytes() if np.isin(b.corruption, list(wanted)).any() else None
                for b in (*sides[0], *sides[1])
            }
            images = images or next(iter(labels), None)
            if images is not None and all(sides) and labels == {images}:
                treated, control = (np.mean([b.hits(wanted) for b in side], axis=0) for side in sides)
                found.setdefault(key, {})[str(seed)] = 100 * (treated - control)
    return found
