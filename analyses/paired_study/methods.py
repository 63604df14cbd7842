"""The methods section of the report, in words; numbers come from the records and the design."""

import pandas as pd

from analyses.paired_study.frames import Study
from analyses.paired_study.verdicts import OUTCOMES


def _one(frame: pd.DataFrame, column: str) -> str:
    values = frame.get(column, pd.Series(dtype=object)).dropna().unique()
    return ", ".join(str(v) for v in values) if len(values) else "not recorded"


def _latent(frame: pd.DataFrame) -> str:
    """What earlier versions put in place of z, so that their bound is another one."""
    told = frame.get("settings.z", pd.Series(dtype=object))
    return " at z = μ, which bounds I(Y;μ(X)), not I(Y;Z)" if (told == "mean direction").any() else ""


def methods_text(study: Study) -> list[str]:
    """Paragraphs that say what each number means and how it was computed."""
    frame, design = study.frame, study.design
    sigma = frame[frame["quantity"] == "sigma_max.median"]
    images = sigma["n"].dropna().astype(int).unique()
    count = ", ".join(str(n) for n in images) if len(images) else "the sampled"
    primary = " and for ".join(o.label for o in OUTCOMES if o.key in design.primary)
    written = f"was written on {design.written}, before" if design.written else "was not written before"
    written = "was changed after" if study.redesigned else written
    low, high = design.clean_slope
    return [
        f"Design. It {written} the data. Primary: {design.treated} against {design.control}, for {primary}. "
        f"Everything else is exploratory. The equivalence zones are ±{100 * design.zone_sigma:g}% of σ and "
        f"±{design.zone_accuracy:g} point of accuracy.",
        "Pairs. Two runs are a pair if they agree in data, recipe, architecture, schedule and seed and differ in the "
        "objective; all other runs are left unpaired and listed. Runs of one seed share initial weights, data order "
        "and every augmentation draw. The compression term re-weights alignment: its gradient is that of SimCLR with "
        "a positive weight of 1 + β, plus the noise of the vMF latent. So SimCLR ×(1+β) is the control, and an "
        "effect is credited to compression only if it holds against this control and, with the same sign, against "
        "the plain twin. BYOL has no such control here, so nothing is credited between C-BYOL and BYOL.",
        "Verdicts. “No larger than”: the interval lies inside the zone (two one-sided tests). “Yes”: it excludes 0. "
        f"“Cannot tell”: neither. Intervals are Student's over seeds, {100 * design.primary_level:g}% for each "
        f"primary outcome (so that two outcomes at one look, and each outcome over {design.looks} looks as seeds are "
        f"added, err in about 5%; simulated) and {100 * design.level:g}% for all others. The noise of the methods of "
        "one family is pooled, which supposes that its spread is the same. What the test images have in common for "
        "all seeds is added to the variance.",
        "The same seeds on another processor are another draw, because training amplifies rounding. On the default "
        "recipe, 30 runs trained twice with first weights 1e-7 apart differed by 8% in σ of the features and 0.8 "
        "points in corruption accuracy (standard deviations), about half of what other seeds do. The spread between "
        "seeds, which the intervals are made of, holds this draw, the probe's refits and the sampling of test images.",
        "At equal clean accuracy. Nothing is regressed on a clean accuracy that is itself measured with error: the "
        f"effect must hold for every slope from {low:g} to {high:g} points of corruption accuracy per point of clean "
        "accuracy.",
        f"Left out, by rules of the design: corruptions under which no run is more than {design.chance_margin:g} "
        f"points above chance; runs that collapsed (σ of 0, or clean accuracy within {design.collapse_margin:g} "
        "points of chance).",
        "Smoothness. σ_max(J) is the largest singular value of a map's Jacobian at an image, its local Lipschitz "
        f"constant (theory 4.4), by Lanczos iteration to a relative tolerance of {_one(sigma, 'settings.rtol')}, on "
        f"{count} test images; 1 per pixel L2. Features: the pooled features, normalised, which the probe reads; "
        "latent: the mean direction μ; logits: the linear probe's. Bounds (3.1) to (3.4) are on log e(z|x) at one "
        "common κ.",
        "Compression. Residual information is E KL(e(z|x) ‖ b(z|y)) in closed form (2.2), x and y two augmented views "
        "of a held-out image, at κ_e = 1024 and κ_b = 10 for every model; the excess is over the floor "
        f"(2.4). I(Y;Z) is the InfoNCE lower bound (2.3){_latent(frame)}.",
        "Accuracy. A linear probe (L-BFGS, regularisation chosen on held-out training images) on the pooled "
        "features, under the same corrupted images for every model. Shift: the UCI digits; the 8×8 control is "
        "MNIST's own test set at the same resolution.",
        "Association. Slopes in points of corruption accuracy per 10% lower σ: across methods over their means (n "
        "counts methods), from run to run with seed and method held fixed. Across images: area under the ROC curve "
        "among images of one class, errors clustered by image and by model.",
        "Hierarchical model: empirical logits of hits by run, corruption and block of images, REML, with seed, run, "
        "images, images by method and corruption by method as random intercepts; it is shown beside the paired "
        "analysis. Mediation: effect on log σ of the features times the slope of corruption accuracy (less a point "
        "per point of clean accuracy) on it from run to run; the robustness value says how strong a common cause "
        "would have to be to undo the slope.",
        "Limits. Digits, a small convolutional network and few seeds: the study shows how the quantities behave, not "
        "what holds on ImageNet.",
    ]
