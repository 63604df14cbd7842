"""Does smoothness go with robustness: across methods, from run to run, over beta, across the images of a model.

Slopes are in points of corruption accuracy per 10% lower sigma of the probed features (of the map that the probe
reads, 7.6). *Across methods* their means over seeds are compared, so n is the number of methods: seeds of a method
are its replicates. *From run to run* what a seed and what a method have in common is taken out; what is left are
independent draws. The two may disagree (Simpson); then neither is told as the answer.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analyses.paired_study.comparison import compare
from analyses.paired_study.frames import Study
from analyses.paired_study.study import BASELINES, CONTRASTS, CREDIT, METHODS
from lipcomp.statistics import decide, paired_effect
from lipcomp.statistics._estimate import Estimate
from lipcomp.statistics._hierarchical import HierarchicalEffect, hierarchical_effect
from lipcomp.statistics._mediation import Mediation, mediation
from lipcomp.statistics._per_image import auroc
from lipcomp.statistics._slopes import block_slope
from lipcomp.statistics._verdict import Verdict, Zone

TEN_PERCENT = float(-np.log(0.9))
ACROSS, RUNS = "across methods", "from run to run, seed and method held fixed"
ALL_MODELS = "all models"


@dataclass(frozen=True)
class Association:
    """One relation at one level, with its verdict; ``units`` says what n counts."""

    level: str
    x: str
    y: str
    estimate: Estimate
    units: str
    verdict: Verdict
    zone: Zone


def associations(study: Study) -> list[Association]:
    """Points of corruption accuracy per 10% lower sigma, across methods and from run to run, clean accuracy too."""
    found = []
    models = study.pairs.main
    zone = study.design.accuracy
    for y, label in (("corruption", "corruption accuracy"), ("clean", "clean accuracy")):
        rows = models.dropna(subset=["features", y]).query("features > 0")
        if len(rows) < 3:
            continue
        smooth = pd.Series(-np.log(rows["features"]) / TEN_PERCENT, rows.index)
        points = 100 * rows[y]
        kind = rows["method"] + rows["beta"].map(lambda b: "" if pd.isna(b) else f"/{b:g}")
        means = pd.DataFrame({"x": smooth, "y": points}).groupby(kind).mean()
        if len(means) > 2:
            across = block_slope(means["x"], means["y"])
            found.append(_told(ACROSS, label, across, "methods", zone))
        seeded = rows["seed"].notna()
        if seeded.sum() > 3:
            inside = block_slope(
                smooth[seeded], points[seeded], [list(kind[seeded]), [str(s) for s in rows["seed"][seeded]]]
            )
            found.append(_told(RUNS, label, inside, "runs", zone))
    return found


def _told(level: str, y: str, estimate: Estimate, units: str, zone: Zone) -> Association:
    return Association(
        level, "10% lower σ of the features", y, estimate, units, decide(estimate.interval, zone), zone
    )


def on_main_data(study: Study) -> Study:
    """The study of its main data alone, and of the baselines whose data is the same or not known."""
    trained = study.pairs.main
    if not len(trained):
        return study
    baselines = study.models[study.models["method"].isin(BASELINES)]
    alike = baselines["data_hash"].isna() | baselines["data_hash"].isin(trained["data_hash"])
    runs = {*trained.index, *baselines.index[alike]}
    return replace(
        study,
        models=study.models[study.models.index.isin(runs)],
        images=study.images[study.images["run"].isin(runs)],
        corruptions=study.corruptions[study.corruptions["run"].isin(runs)],
    )


def dose_response(study: Study) -> list[Association]:
    """Where beta was swept: the change of log sigma, and of accuracy, per tenfold beta within a seed.

    A seed's slope is one number, and seeds are the unit: Student's interval over their slopes.
    """
    found = []
    models = study.pairs.main
    for method in dict.fromkeys(c.treated for c in CONTRASTS):
        rows = models[(models["method"] == method) & (models["beta"] > 0) & models["seed"].notna()]
        if rows["beta"].nunique() < 3:
            continue
        for key, label in (
            ("features", "log σ of the features"),
            ("corruption", "corruption accuracy, points"),
        ):
            slopes = []
            for _, seed in rows.dropna(subset=[key]).groupby("seed"):
                if seed["beta"].nunique() > 1:
                    y = np.log(seed[key]) if key == "features" else 100 * seed[key]
                    slopes.append(float(np.polyfit(np.log10(seed["beta"].astype(float)), y, 1)[0]))
            if len(slopes) > 1:
                zone = study.design.sigma if key == "features" else study.design.accuracy
                estimate = paired_effect(slopes, [0.0] * len(slopes), interval="t")
                verdict = decide(estimate.interval, zone)
                found.append(
                    Association(f"{method}, over β", "tenfold β", label, estimate, "seeds", verdict, zone)
                )
    return found


@dataclass(frozen=True)
class ImageFinding:
    """Within one model: does a larger local constant at an image go with corruptions changing its prediction."""

    run: str  # whose images
    method: str  # of the run
    # AUROC among images of one class: what is left once hard classes are not compared with easy ones
    within_class: Estimate
    pooled: Estimate  # AUROC over all images, for comparison
    images: int  # how many different images
    layer: str  # whose sigma


def image_findings(images: pd.DataFrame, together: Collection[str] | None = None) -> list[ImageFinding]:
    """AUROC of sigma for "more corruptions than the median flip this image", over all models and one by one.

    Parameters
    ----------
    images
        Columns run, method, image, flipped (share of corruptions that change the prediction), sigma_backbone or
        sigma, and label where it is known.
    together
        The runs that are taken as all models: those of one data set. All of them if not given.
    """
    if not len(images):
        return []
    layer = (
        "sigma_backbone" if "sigma_backbone" in images and images["sigma_backbone"].notna().any() else "sigma"
    )
    images = images.dropna(subset=[layer, "flipped"]).reset_index(drop=True)
    if not len(images):
        return []
    often = images["flipped"] > images.groupby("run")["flipped"].transform("median")
    classes = images["label"] if "label" in images else pd.Series(0, index=images.index)
    codes, kinds = pd.factorize(classes)
    name = "probed features" if layer == "sigma_backbone" else "latent"

    def finding(run: str, method: str, rows: pd.DataFrame, groups: list[np.ndarray] | None) -> ImageFinding:
        score, label = rows[layer].to_numpy(float), often[rows.index].to_numpy()
        runs = pd.factorize(rows["run"])[0]
        strata = runs * (len(kinds) + 1) + codes[rows.index]
        within = auroc(score, label, groups, within=strata)
        pooled = auroc(score, label, groups, within=runs)
        return ImageFinding(run, method, within, pooled, int(rows["image"].nunique()), name)

    found = [
        finding(str(run), str(method), rows, None)
        for (run, method), rows in images.groupby(["run", "method"], sort=False)
    ]
    order = list(METHODS.values())
    found.sort(key=lambda f: (order.index(f.method) if f.method in order else len(order), f.run))
    chosen = images if together is None else images[images["run"].isin(together)]
    if chosen["run"].nunique() > 1:  # rows of one image, and rows of one model, are not independent
        groups = [pd.factorize(chosen[c])[0] for c in ("image", "run")]
        found.insert(0, finding(ALL_MODELS, "all", chosen, groups))
    return found


def through_smoothness(study: Study) -> Mediation | None:
    """Points of corruption accuracy that would run through the smoothness of the features; None without pairs.

    The slope is that of corruption accuracy, less the middle of the design's slopes times clean accuracy, on log sigma
    from run to run.
    """
    members = study.pairs.of(CREDIT).main
    rows = study.pairs.main.dropna(subset=["features", "corruption", "clean", "seed"]).query("features > 0")
    if not len(members) or len(rows) < 4:
        return None
    effect = compare(study, members, CREDIT).effect("features", study.design.level)
    if effect is None:
        return None
    kind = rows["method"] + rows["beta"].map(lambda b: "" if pd.isna(b) else f"/{b:g}")
    robust = 100 * (rows["corruption"] - float(np.mean(study.design.clean_slope)) * rows["clean"])
    slope = block_slope(np.log(rows["features"]), robust, [list(kind), [str(s) for s in rows["seed"]]])
    return mediation(effect, slope)


def bits_model(study: Study) -> HierarchicalEffect | None:
    """The primary contrast by the hierarchical model of the correctness bits; None without bits of pairs."""
    members = study.pairs.of(CREDIT).main
    runs = [r for r in members.index if r in study.bits]
    alike = {
        (b.right.shape, b.labels.tobytes(), b.corruption.tobytes()) for b in map(study.bits.get, runs) if b
    }
    if len(alike) != 1:  # none, or of other images
        return None
    kept = np.isin(study.bits[runs[0]].corruption, list(study.informative))
    if not kept.any():
        return None
    treated = [bool(members.loc[r, "method"] == CREDIT.treated) for r in runs]
    return hierarchical_effect(
        [study.bits[r].right[kept] for r in runs],
        study.bits[runs[0]].corruption[kept],
        treated,
        [str(members.loc[r, "seed"]) for r in runs],
    )
