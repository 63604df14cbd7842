"""A study's records as the tidy frames that verdicts, tables and figures are drawn from."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Shaped

from analyses.paired_study.design import Design, changes, read_design
from analyses.paired_study.pairs import Pairing
from analyses.paired_study.study import BASELINES, COMMON_KAPPA, RECORDS, models_table, read_plan
from analyses.runs import Measured, last_values, read_measured

BOUND_ROWS = (
    ("published", "(3.1) published, √KL"),
    ("mean", "(3.2) mean, KL"),
    ("second_moment", "(3.3) second moment, typical z"),
    ("supremum", "(3.4) supremum, worst z"),
)
CLEAN = "clean"
_LOOK = ("subject.seed", "settings.stage")


@dataclass(frozen=True)
class Bits:
    """Which images the probe of one run has right, condition by condition."""

    right: Bool[np.ndarray, "conditions images"]
    labels: Shaped[np.ndarray, " images"]
    corruption: Shaped[np.ndarray, " conditions"]
    severity: Shaped[np.ndarray, " conditions"]
    _means: dict[frozenset[str], np.ndarray] = field(default_factory=dict, repr=False)

    def hits(self, corruptions: set[str]) -> Float[np.ndarray, " images"]:
        """Share of the conditions under these corruptions that each image is right in."""
        key = frozenset(corruptions)
        if key not in self._means:
            self._means[key] = self.right[np.isin(self.corruption, list(key))].mean(0)
        return self._means[key]


@dataclass(frozen=True)
class Study:
    """The tidy frames that figures and tables are drawn from."""

    frame: pd.DataFrame  # the records; of what was measured again, the last
    # one row per run that counts (``study.models_table``); ``corruption`` is the mean over ``informative``
    models: pd.DataFrame
    collapsed: dict[str, str]  # the runs left out by the design's rule, and why
    images: pd.DataFrame  # values per image: run, method, image, label, sigma of the layers, flipped
    # accuracy by run, corruption and severity; ``chance`` marks corruptions that carry no information
    corruptions: pd.DataFrame
    informative: tuple[str, ...]  # the corruptions that count
    plan: dict[str, Any]
    design: Design
    measured: Measured = field(repr=False)  # all records that were read, and the runs that do not count
    bits: dict[str, Bits] = field(repr=False, default_factory=dict)  # by run
    again: int = 0  # how many values became others when they were measured again
    # numbers of seeds with which the study was measured to the end: with each it may have been looked at
    looks: tuple[int, ...] = ()
    redesigned: tuple[str, ...] = ()  # what the design says otherwise than when the study was measured first

    @cached_property
    def pairs(self) -> Pairing:
        """The pairs among ``models``; ``pairs.main`` are the rows that everything beside the headline is on."""
        return Pairing(self.models, self.design.beta)


def load_study(folder: Path) -> Study:
    """Read a study's records."""
    measured = read_measured(folder / RECORDS, "analyses.paired_study.measure")
    frame = measured.frame
    plan = read_plan(folder)
    design = read_design(plan)
    kept = frame.get("provenance.design", pd.Series(dtype=object)).dropna()
    redesigned = changes(design, kept.iloc[0]) if len(kept) and plan.get("design") else ()
    if design.written and "provenance.time" in frame:
        first = pd.to_datetime(frame["provenance.time"], utc=True, format="ISO8601").min()
        if pd.notna(first) and first < pd.Timestamp(design.written):
            design = replace(design, written="")  # it may have been written to fit the data
    if redesigned:
        design = replace(design, written="")
    looks = find_looks(frame)
    frame, again = last_values(frame)
    _check_shares(frame, folder / RECORDS)
    models = models_table(frame[frame["subject.run"].notna()])
    bits = {name: found for name in models.index if (found := read_bits(folder / "bits" / f"{name}.npz"))}
    images = _images(folder, models)
    chance = _chance(models, bits, images)
    corruptions = _corruptions(frame, models)
    collapsed = find_collapsed(models, design, chance)
    models = models.drop(index=list(collapsed))
    corruptions, informative = _informative(corruptions[~corruptions["run"].isin(collapsed)], design, chance)
    models = models.assign(corruption=_counted(models, corruptions, informative)).copy()  # one block: faster
    return Study(
        frame, models, collapsed, images[~images["run"].isin(collapsed)], corruptions, informative,
        plan, design, measured, {run: b for run, b in bits.items() if run not in collapsed},
        again, looks, redesigned,
    )  # fmt: skip


def _check_shares(frame: pd.DataFrame, file: Path) -> None:
    """Refuse accuracies in percent: beside shares of other runs they would be differences of thousands of points."""
    wrong = frame[frame["quantity"].str.startswith("accuracy.") & ~frame["value"].fillna(0.0).between(0, 1)]
    for row in wrong[["quantity", "subject.run", "value"]].itertuples(index=False, name=None):
        raise ValueError(
            f"{file}: {row[0]} of {row[1]} is {row[2]:g}; an accuracy must be a share between 0 and 1, not in percent"
        )


def find_looks(frame: pd.DataFrame) -> tuple[int, ...]:
    """How many seeds had been measured whenever measuring came to its end, and now."""
    seed, stage = (frame.get(name, pd.Series(index=frame.index, dtype=object)) for name in _LOOK)
    known = (seed.notna() & ~seed.duplicated()).cumsum()
    ended = (frame["quantity"] == "time.wall") & (stage == "measure")
    return tuple(sorted({int(n) for n in (*known[ended], *known.tail(1)) if n}))


def read_bits(path: Path) -> Bits | None:
    """The correctness bits that measuring kept, or None where it kept none."""
    if not path.exists():
        return None
    try:
        with np.load(path) as held:
            right = np.unpackbits(held["right"], axis=-1, count=int(held["n"])).astype(bool)
            return Bits(right, held["labels"], held["corruption"].astype(str), held["severity"])
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove it and measure the study again") from error


def find_collapsed(models: pd.DataFrame, design: Design, chance: pd.Series) -> dict[str, str]:
    """Runs that the design's rule leaves out: a constant that is zero, or clean accuracy at chance.

    The random encoder and raw pixels are no trained runs and cannot collapse.
    """
    found = {}
    trained = models[models["seed"].notna() & ~models["method"].isin(BASELINES)]
    for run, row in trained.iterrows():
        flat = [
            name for name in ("features", "latent", "logits") if not row[name] > 0 and pd.notna(row[name])
        ]
        if flat:
            found[str(run)] = f"σ of its {flat[0]} is 0"
        elif row["clean"] <= chance[str(run)] + design.collapse_margin / 100:
            found[str(run)] = (
                f"clean accuracy {100 * row['clean']:.0f}%, chance is {100 * chance[str(run)]:.0f}%"
            )
    return found


def _images(folder: Path, models: pd.DataFrame) -> pd.DataFrame:
    parts = [
        pd.read_csv(path).assign(run=name, method=models.loc[name, "method"])
        for name in models.index
        if (path := folder / "images" / f"{name}.csv").exists()
    ]
    if not parts:
        return pd.DataFrame(columns=["run", "method", "image", "sigma", "flipped"])
    images = pd.concat(parts, ignore_index=True)
    measured = [c for c in ("sigma", "sigma_backbone", "flipped") if c in images]
    return images.dropna(subset=measured).reset_index(drop=True)


def _chance(models: pd.DataFrame, bits: dict[str, Bits], images: pd.DataFrame) -> pd.Series:
    """Share of the most frequent class among each run's test images; where a run has no labels, that of most others."""
    labels = (
        {str(run): rows.dropna() for run, rows in images.groupby("run")["label"]} if "label" in images else {}
    )
    labels |= {run: pd.Series(found.labels) for run, found in bits.items()}
    found = {run: value.value_counts(normalize=True).max() for run, value in labels.items() if len(value)}
    chance = pd.Series(found, index=models.index, dtype=float)
    return chance.fillna(chance.mode().min())


def _corruptions(frame: pd.DataFrame, models: pd.DataFrame) -> pd.DataFrame:
    corrupted = frame[(frame["quantity"] == "accuracy.corruption") & frame["value"].notna()]
    return pd.DataFrame(
        {
            "run": corrupted["subject.run"],
            "method": corrupted["subject.run"].map(models["method"]),
            "corruption": corrupted.get("settings.corruption", pd.Series(dtype=object)).map(str),
            "severity": corrupted.get("settings.severity", pd.Series(dtype=float)),
            "value": corrupted["value"],
        }
    )


def _informative(
    corruptions: pd.DataFrame, design: Design, chance: pd.Series
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Mark the corruptions under which no run is above chance (7.8); the rule looks at all methods alike."""
    means = corruptions.groupby(["corruption", "run"])["value"].mean()
    above = means - chance.reindex(means.index.get_level_values("run")).to_numpy()
    best = above.fillna(np.inf).groupby("corruption").max()
    dull = set(best.index[best <= design.chance_margin / 100])
    marked = corruptions.assign(chance=corruptions["corruption"].isin(dull))
    return marked, tuple(str(c) for c in best.index if c not in dull)


def _counted(models: pd.DataFrame, corruptions: pd.DataFrame, informative: tuple[str, ...]) -> pd.Series:
    """Corruption accuracy: the mean over those that count (none: no value), and over the probe's refits.

    Refits are recorded as means over all corruptions; those at chance are so for every refit, and move nothing.
    """
    mean, share = models["corruption"], 1.0
    count = corruptions["corruption"].nunique()
    if count and not informative:
        return mean * np.nan  # equal accuracies at chance are no equivalence
    if len(informative) < count:
        counted = corruptions[corruptions["corruption"].isin(informative)]
        share = count / len(informative)
        mean = (
            counted.groupby(["run", "corruption"])["value"].mean().groupby("run").mean().reindex(models.index)
        )
        mean = mean.fillna(models["corruption"])
    return mean + share * models["corruption_refitted"]


def bound_rows(study: Study) -> pd.DataFrame:
    """The lower bounds at the common concentration over positive pairs, and kappa times the largest sigma_max."""
    frame, rows = study.frame, []
    for quantity, label in BOUND_ROWS:
        chosen = frame[frame["quantity"] == f"bound.{quantity}.max"]
        if len(chosen):
            at = chosen.get("settings.kappa_e", pd.Series(index=chosen.index, dtype=float))
            chosen = chosen[(chosen["settings.pairs"] == "views") & (at == COMMON_KAPPA)]
        rows += [
            (run, label, value) for run, value in zip(chosen["subject.run"], chosen["value"], strict=True)
        ]
    sigma = frame[frame["quantity"] == "sigma_max.max"]
    sigma = sigma[sigma["settings.layer"] == "latent"] if len(sigma) else sigma
    rows += [
        (run, "κ·σ_max, largest at a test image", COMMON_KAPPA * value)
        for run, value in zip(sigma["subject.run"], sigma["value"], strict=True)
    ]
    table = pd.DataFrame(rows, columns=["run", "bound", "value"])
    table = table[table["run"].isin(study.models.index)].dropna()
    return table.assign(method=table["run"].map(study.models["method"]))
