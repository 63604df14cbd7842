"""Which figures a report has: title, caption, alternative text, and what each is drawn from."""

from functools import partial

import numpy as np
import pandas as pd

from analyses.paired_study import figures
from analyses.paired_study.answer import Answered
from analyses.paired_study.associations import on_main_data
from analyses.paired_study.frames import Study, bound_rows
from analyses.paired_study.pairs import Pairing
from analyses.paired_study.study import BASELINES, CONTRASTS
from analyses.paired_study.verdicts import Row
from analyses.paired_study.words import shown_value
from lipcomp.report._drawn import Drawn, draw

SIGMA = "σ of the features, 1 per pixel L2"


def build_figures(study: Study, answered: Answered) -> list[Drawn]:
    """All figures for which there is data, of the headline's data set alone."""
    study = on_main_data(study)
    drawn: list[Drawn] = []
    rows = [r for r in answered.verdicts.rows if r.main and r.effect.value is not None]
    for name, title, wanted, label in (
        (
            "smoothness",
            "Does compression change smoothness?",
            ("features", "logits", "latent"),
            "change of σ_max(J)",
        ),
        (
            "accuracy",
            "Does it change accuracy?",
            ("given_clean", "corruption", "clean"),
            "difference, points",
        ),
    ):
        chosen = _ordered([r for r in rows if r.outcome.key in wanted])
        if chosen:
            drawn.append(
                draw(
                    name,
                    title,
                    "Mean over seeds with its interval; ticks are single seeds; green, the equivalence "
                    "zone. ★ primary.",
                    "Forest plot. "
                    + "; ".join(f"{r.contrast.name}, {r.outcome.label}: {shown_value(r)}" for r in chosen),
                    partial(figures.forest, chosen, label),
                )
            )
    drawn += _seed_figures(study)
    drawn += _beta_figures(study)
    drawn += _corruption_figure(study)
    bounds = bound_rows(study)
    if len(bounds):
        drawn.append(
            draw(
                "bounds",
                "How tight is each lower bound?",
                "Largest value over positive pairs of test images, all at κ = 1024; κ·σ_max is the largest local "
                "constant at a test image.",
                "Dot plot of the lower bounds (3.1) to (3.4) and of κ times the largest σ_max. Medians: "
                + "; ".join(
                    f"{b} {v:.3g}" for b, v in bounds.groupby("bound", sort=False)["value"].median().items()
                ),
                partial(figures.dots, bounds, "bound", "lower bound of Lip(log e(z|x)), nats per pixel L2"),
            )
        )
    return drawn + _image_figures(study, answered)


def _ordered(rows: list[Row]) -> list[Row]:
    """Contrast by contrast; of the exploratory contrasts only those with an interval."""
    order = [c.name for c in CONTRASTS]
    kept = [r for r in rows if r.effect.interval is not None or r.primary] or rows
    return sorted(kept, key=lambda r: (order.index(r.contrast.name), not r.primary))


def _seed_figures(study: Study) -> list[Drawn]:
    models, drawn = study.models, []
    paired = study.pairs.paired
    at = paired[paired["beta"].isna() | (paired["beta"] == study.design.beta)]
    for column, title, label, scale in (
        ("features", "Smoothness, per seed", SIGMA, 1.0),
        ("corruption", "Accuracy under corruptions, per seed", "corruption accuracy, %", 100.0),
    ):
        known = at.dropna(subset=[column, "seed"])
        if known["method"].nunique() > 1 and len(known):
            values = np.log(known[column]) if column == "features" else known[column]  # as the thick line
            means = values.groupby(known["method"], sort=False).mean()
            means = scale * (np.exp(means) if column == "features" else means)
            drawn.append(
                draw(
                    f"seeds-{column}",
                    title,
                    "One thin line per seed over the methods of a family; the thick line is the mean.",
                    f"Line plot of {label}. Means: " + "; ".join(f"{m} {v:.3g}" for m, v in means.items()),
                    partial(figures.seed_lines, at, column, label, scale, logarithm=column == "features"),
                )
            )
    both = models.dropna(subset=["features", "corruption"])
    if len(both) > 1:
        ranks = float(both["features"].rank().corr(both["corruption"].rank()))
        drawn.append(
            draw(
                "scatter",
                "Smoothness against robustness",
                "One point per run; a line joins a compressed run with its twin.",
                f"Scatter plot of {SIGMA} against corruption accuracy, {len(both)} runs, rank correlation {ranks:+.2f}",
                partial(
                    figures.scatter_with_pairs,
                    both,
                    "features",
                    "corruption",
                    SIGMA,
                    "corruption accuracy, %",
                ),
            )
        )
    return drawn


def _beta_figures(study: Study) -> list[Drawn]:
    models = Pairing(study.models).paired
    if models["beta"].nunique() < 3:
        return []
    told = [
        ("features", SIGMA, 1.0),
        ("corruption", "corruption accuracy, %", 100.0),
        ("excess", "excess residual information, nats", 1.0),
    ]
    return [
        draw(
            f"beta-{column}",
            f"Effect of β: {label.split(',')[0]}",
            "One thin line per seed; the thick line is the mean, the dotted line the mean of the uncompressed twin.",
            f"Line plot over β of {label}",
            partial(figures.dose_response, models, column, label, factor),
        )
        for column, label, factor in told
        if models[column].notna().any()
    ]


def _corruption_figure(study: Study) -> list[Drawn]:
    if not len(study.corruptions):
        return []
    wide = 100 * study.corruptions.pivot_table("value", "run", "corruption", aggfunc="mean")
    columns: dict[str, pd.Series] = {}
    for contrast in CONTRASTS:
        members = study.pairs.of(contrast).main
        if len(members) and len(columns) < 4:
            values = wide.reindex(members.index)
            sides = [values[members["method"] == m].mean() for m in (contrast.treated, contrast.control)]
            columns[contrast.name] = sides[0] - sides[1]
    if not columns:
        return []
    table = pd.DataFrame(columns)
    dull = sorted(set(map(str, table.index)) - set(study.informative))
    first = table.drop(index=dull).iloc[:, 0].dropna()
    return [
        draw(
            "corruptions",
            "Difference from the twin, per corruption",
            "Points of accuracy, mean over severities and seeds. Grey: at chance for every run, not counted.",
            f"Heat map of differences from the twin. {table.columns[0]}: "
            + "; ".join(f"{name} {value:+.1f}" for name, value in first.items()),
            partial(figures.corruption_differences, table, dull),
        )
    ]


def _image_figures(study: Study, answered: Answered) -> list[Drawn]:
    images = study.images
    if not answered.images or images["method"].isin(BASELINES).all():
        return []
    layer = answered.images[0].layer
    column = "sigma_backbone" if layer == "probed features" else "sigma"
    medians = images.groupby("method", sort=False)[column].median()
    return [
        draw(
            "distributions",
            "The local constant over the test images",
            f"Distribution of σ_max(J) of the {layer}; lines are the quartiles.",
            "Violin plots by method; medians: " + "; ".join(f"{m} {v:.3g}" for m, v in medians.items()),
            partial(figures.distributions, images, column),
        ),
        draw(
            "flips",
            "Per image: does a larger constant mean a less stable prediction?",
            "Share of corruptions (all kinds and severities) that change the probe's prediction of an image, by decile "
            "of its constant among images of its class.",
            f"Line plot of that share. {answered.images[0].within_class}",
            partial(figures.flips_by_smoothness, images, column),
        ),
    ]
