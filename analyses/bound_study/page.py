"""The page on how tight the bounds are, from the records: the gaps, in words, figures and a table."""

from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from analyses.bound_study.measure import KAPPAS, RADIUS, RECORDS, TABLE
from analyses.paired_study.figures import dots
from analyses.paired_study.study import METHODS
from analyses.runs import Measured, last_values, read_measured
from lipcomp.bound._results import LABELS
from lipcomp.measure._local import Ball
from lipcomp.measure._outputs import ImageTable
from lipcomp.report._cells import Cell, Table, number, provenance_rows
from lipcomp.report._drawn import WIDTH, Drawn, draw
from lipcomp.report._page import Page, write_page

BALL = {
    "ball.lower.median": "lower: a random pair, (3.5)",
    "ball.searched.median": "searched: the largest σ_max found",
    "ball.certified.median": "certified: an upper bound",
}
SOURCES = {
    "views": "two views of an image",
    "shuffled": "two images, at random",
    "neighbours": "nearest neighbours",
    "random": f"random direction, radius {RADIUS}",
    "all": "all pairs",
}
RADII = Ball.radii
# What the headline and the figures are made of.
NEEDED = (
    "sigma_max.max",
    "sigma_max.median",
    "bound.direction.max",
    "bound.published.max",
    "bound.supremum.max",
    "ball.searched.median",
)


def load(folder: Path) -> Measured:
    """The records, with each run's method."""
    measured = read_measured(folder / RECORDS, "analyses.bound_study.measure")
    frame, _ = last_values(measured.frame)
    held = set(frame.loc[frame["value"].notna(), "quantity"])
    if lacking := [name for name in NEEDED if name not in held]:
        raise ValueError(
            f"{folder / RECORDS} holds no value of {', '.join(lacking)}; measure it to the end: "
            f"python -m analyses.bound_study.measure {folder}"
        )
    objective = frame.get("subject.objective", pd.Series(index=frame.index, dtype=object))
    frame["method"] = [
        METHODS.get(str(o), str(o) if pd.notna(o) else str(r))
        for o, r in zip(objective, frame["subject.run"], strict=True)
    ]
    if not ratios(frame)["supremum"].notna().any():
        raise ValueError(
            f"{folder / RECORDS} holds no model with bounds of positive pairs at κ = 1024 and a σ_max above 0, so "
            f"there is no gap to report"
        )
    return replace(measured, frame=frame)


def ratios(frame: pd.DataFrame) -> dict[str, pd.Series]:
    """The gaps in the answer, one per run; NaN where a constant or a bound is zero."""

    def of(quantity: str, **settings: object) -> pd.Series:
        rows = frame[frame["quantity"] == quantity]
        for key, wanted in settings.items():
            rows = rows[rows.get(f"settings.{key}", pd.Series(index=rows.index, dtype=object)) == wanted]
        return rows.set_index("subject.run")["value"]

    sigma = of("sigma_max.max", layer="latent")
    gap = {radius: of("ball.gap.median", radius=radius) for radius in RADII}
    found = {
        "published": 1024 * sigma / of("bound.published.max", kappa_e=1024.0, pairs="views"),
        "supremum": 1024 * sigma / of("bound.supremum.max", kappa_e=1024.0, pairs="views"),
        "all_pairs": sigma / of("bound.direction.max", pairs="all"),
        "search": of("ball.searched.median", radius=RADII[-1]) / of("ball.searched.median", radius=RADII[0]),
        **{f"gap_{radius:g}": values for radius, values in gap.items()},
    }
    return {name: values.where(np.isfinite(values)) for name, values in found.items()}


def without_gap(frame: pd.DataFrame) -> list[str]:
    """Which models the answer does not count."""
    told = pd.DataFrame({name: ratios(frame)[name] for name in ("published", "supremum", "all_pairs")})
    none = told.index[told.isna().any(axis=1)]
    return (
        [f"Not counted, since a bound or σ_max is 0 or was not measured: {', '.join(none)}."]
        if len(none)
        else []
    )


def answer(frame: pd.DataFrame) -> tuple[str, list[str]]:
    """How tight each bound is, as a range over the models."""
    gaps = {name: series.dropna() for name, series in ratios(frame).items()}

    def span(name: str, form: str = "{:.1f}") -> str:
        found = gaps[name]
        return f"{form.format(found.median())} ({form.format(found.min())} to {form.format(found.max())})"

    count = len(gaps["supremum"])
    headline = (
        f"At κ = 1024 the published bound (3.1) over positive pairs lies {span('published', '{:.0f}')} times below κ "
        f"times the largest local constant at a test image, the supremum bound (3.4) of the same pairs "
        f"{span('supremum')} times (median over {count} model{'s' if count != 1 else ''}, and the range)."
    )
    findings = [
        f"Looking at all pairs of test images instead of positive ones still leaves a factor of {span('all_pairs')}: "
        f"the mean direction's bound (3.5) of a finite pair averages the local constant along its segment.",
    ]
    if len(gaps["search"]):
        findings.append(
            f"Search in the L2 ball of radius {RADII[-1]:g} raises the median local constant "
            f"{span('search', '{:.2f}')} times over its value in the ball of radius {RADII[0]:g}."
        )
    told = [f"{span(f'gap_{r:g}', '{:.2f}')} times at radius {r:g}" for r in RADII if len(gaps[f"gap_{r:g}"])]
    if told:
        findings.append(
            f"The certificate lies above what search finds by {'; '.join(told)} (median image of each model)."
        )
    none = [f"{r:g}" for r in RADII if not len(gaps[f"gap_{r:g}"])]
    if none:
        findings.append(f"At radius {' and '.join(none)} no model has a certificate for its median image.")
    findings.append(
        "The ratio of (3.4) to (3.1) of a pair is √(2κ/A): the published bound falls behind as κ grows, whatever the "
        "encoder; only (3.5), which has no κ, compares encoders."
    )
    return headline, findings


def image_by_image(folder: Path, frame: pd.DataFrame) -> pd.DataFrame:
    """The three constants of every image and radius, one row each; empty where they were not kept."""
    table = ImageTable(folder / TABLE).read()
    if not {"certified", "radius"} <= set(table):
        return pd.DataFrame({name: [] for name in ("method", "run", "image", "radius", "quantity", "value")})
    names = {key.split(".")[1]: label for key, label in BALL.items()}
    table = table.dropna(subset=["certified", "radius"])
    last = table.drop_duplicates(["run", "image", "radius"], keep="last")
    long = last.melt(["run", "image", "radius"], list(names), var_name="quantity", value_name="value")
    method = frame.drop_duplicates("subject.run").set_index("subject.run")["method"]
    return long.assign(method=long["run"].map(method), quantity=long["quantity"].map(names))


def figures(frame: pd.DataFrame, images: pd.DataFrame) -> list[Drawn]:
    """Pair sources, layers, kappas and the sandwich."""
    pairs = frame[(frame["quantity"] == "bound.direction.max") & (frame["settings.kappa_e"] == 1024.0)]
    top = frame[(frame["quantity"] == "sigma_max.max") & (frame["settings.layer"] == "latent")]
    sources = pd.concat(
        [
            pairs.assign(source=pairs["settings.pairs"].map(SOURCES)),
            top.assign(source="largest σ_max at an image"),
        ]
    )
    layers = frame[frame["quantity"] == "sigma_max.median"].rename(columns={"settings.layer": "layer"})
    kappas = frame[frame["quantity"].str.match(r"bound\.(published|mean|second_moment|supremum)\.max")]
    kappas = kappas[kappas["settings.pairs"] == "views"].copy()
    kappas["bound"] = kappas["quantity"].str.split(".").str[1].map(LABELS)
    ball = frame[frame["quantity"].isin(BALL)].copy()
    ball["quantity"] = ball["quantity"].map(BALL)
    return [
        draw(
            "pair-sources",
            "Which pairs",
            "Largest δ/Δ over each source of pairs, beside the largest local constant at a test image.",
            "Dot plot of the mean direction's bound by pair source and method",
            lambda: dots(sources, "source", "lower bound of Lip(μ), 1 per pixel L2"),
        ),
        draw(
            "layers",
            "Which layer",
            "Median σ_max of the normalised embedding at each layer.",
            "Dot plot of the median spectral norm by layer and method",
            lambda: dots(layers, "layer", "median σ_max(J), 1 per pixel L2"),
        ),
        draw(
            "kappas",
            "What κ does",
            "Each bound over the same positive pairs as κ varies, mean over the models: (3.1) grows as √κ, (3.4) as κ.",
            f"Line plot of the four bounds against the concentration from {KAPPAS[0]:g} to {KAPPAS[-1]:g}",
            lambda: kappa_lines(kappas),
        ),
        draw(
            "sandwich",
            "Lower, searched, certified",
            "Balls of growing L2 radius: thin lines are images, thick ones the median, per model and estimate. "
            "Where a line of the certificate ends, the image, or half of the images, has none.",
            "Line plot of the lower, the searched and the certified constant against the radius of the ball",
            lambda: ball_lines(ball, images),
        ),
    ]


def kappa_lines(frame: pd.DataFrame) -> Figure:
    """The four bounds over kappa."""
    figure, axis = plt.subplots(figsize=(WIDTH, 3.6))
    sns.lineplot(
        frame,
        x="settings.kappa_e",
        y="value",
        hue="bound",
        style="bound",
        markers=True,
        palette="colorblind",
        ax=axis,
    )
    axis.set(xscale="log", yscale="log", xlabel="κ", ylabel="largest value over positive pairs")
    axis.legend(title="")
    sns.despine(figure)
    return figure


def ball_lines(frame: pd.DataFrame, images: pd.DataFrame) -> Figure:
    """Lower, searched and certified over the radius, a panel per method; every image as a thin line."""
    colours = dict(zip(BALL.values(), sns.color_palette("colorblind"), strict=False))
    methods = [m for m in dict.fromkeys([*METHODS.values(), *frame["method"]]) if m in set(frame["method"])]
    grid = sns.relplot(
        frame.dropna(subset=["value"]),
        x="settings.radius",
        y="value",
        hue="quantity",
        style="quantity",
        hue_order=list(colours),
        style_order=list(colours),
        col="method",
        col_order=methods,
        col_wrap=min(2, max(1, len(methods))),
        units="subject.run",
        estimator=None,
        kind="line",
        markers=True,
        palette=colours,
        height=2.3,
        aspect=1.0,
    )
    finite = images[np.isfinite(images["value"])]
    for (method, quantity, _, _), line in finite.groupby(["method", "quantity", "run", "image"]):
        line = line.sort_values("radius")
        grid.axes_dict[method].plot(line["radius"], line["value"], color=colours[quantity], lw=0.5, alpha=0.4)
    grid.set(xscale="log", yscale="log")
    grid.set_axis_labels("radius of the ball, pixel L2", "Lip(μ), 1 per pixel L2")
    grid.set_titles("{col_name}")
    if grid.legend is not None:
        sns.move_legend(grid, "lower center", bbox_to_anchor=(0.45, -0.12), ncol=3, title="")
    return grid.figure


def tables(frame: pd.DataFrame) -> list[Table]:
    """Everything, one row per model."""
    gaps = pd.DataFrame(ratios(frame))
    method = frame.drop_duplicates("subject.run").set_index("subject.run")["method"]
    heads = {
        "published": "κσ / (3.1)",
        "supremum": "κσ / (3.4)",
        "all_pairs": "σ / all pairs (3.5)",
        "search": f"searched at {RADII[-1]:g} / {RADII[0]:g}",
        **{f"gap_{radius:g}": f"certified / searched at {radius:g}" for radius in RADII},
    }
    rows = [
        [Cell(str(name)), Cell(str(method.loc[str(name)])), *(number(row[key], "{:.3g}") for key in heads)]
        for name, row in zip(gaps.index, gaps.to_dict("records"), strict=True)
    ]
    caption = "How far each bound lies from the next. κ = 1024; (3.1) and (3.4) over positive pairs."
    return [Table("gaps", "Gaps", caption, ["run", "method", *heads.values()], rows)]


METHOD = [
    "Every lower bound is over the pairs of one source; its largest value is what the pairs prove. σ_max(J) by Lanczos "
    "to a relative tolerance of 1e-4. Search is pair ascent from two starts with 20 steps, finished with σ_max at the "
    "best point, so what it returns is a lower bound too. The certificate is the least of the product of layer norms "
    "(5.1), (5.2) and the local certificate (5.4), (5.5). An estimate outside the order lower ≤ searched ≤ certified "
    "would be a bug.",
]


def make_page(folder: Path) -> tuple[Path, str]:
    """Write bounds.html and bounds.md; returns the HTML's path and the headline."""
    measured = load(folder)
    frame = measured.frame
    headline, findings = answer(frame)
    page = Page(
        title="How tight are the lower bounds of the Lipschitz constant?",
        subtitle=f"{frame['subject.run'].nunique()} encoders of {folder.name}",
        headline=headline,
        findings=findings,
        figures=figures(frame, image_by_image(folder, frame)),
        tables=tables(frame),
        methods=METHOD,
        provenance=provenance_rows(frame),
        records=[folder / RECORDS],
        record_count=measured.count,
        cautions=[*measured.cautions(), *without_gap(frame)],
    )
    return write_page(folder / "bounds.html", page), headline
