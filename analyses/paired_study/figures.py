"""The study's figures: functions from tidy frames to matplotlib figures, narrow enough for a phone."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses.paired_study.pairs import Pairing
from analyses.paired_study.study import CONTRASTS, FAMILIES, METHODS
from analyses.paired_study.verdicts import Row
from lipcomp.plots import local_constants
from lipcomp.plots._palette import fitting, styles
from lipcomp.plots._pictures import number, scatter
from lipcomp.report._drawn import WIDTH, ZONE
from lipcomp.report._figures import dots as report_dots, name_cells


def _present(frame: pd.DataFrame) -> list[str]:
    """The methods of a frame: ours in their order, then the others."""
    found = list(dict.fromkeys(frame["method"]))
    return [*(m for m in METHODS.values() if m in found), *(m for m in found if m not in METHODS.values())]


def _finished(figure: Figure, axis: Axes) -> Figure:
    """The figure with its legend below, where it takes no width."""
    figure.tight_layout()
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=2, columnspacing=1.2)
    sns.despine(figure)
    return figure


def forest(rows: Sequence[Row], axis_label: str) -> Figure:
    """Effects of one kind (ratios, drawn as percentages, or points) with intervals and zone; a tick per seed."""
    figure, axis = plt.subplots(figsize=(WIDTH, 0.52 * len(rows) + 0.9))
    ratio = rows[0].outcome.ratio

    def shown(values: object) -> np.ndarray:
        array = np.asarray(values, dtype=float)
        return np.exp(array) if ratio else array

    zone = rows[0].zone
    axis.axvspan(*shown((zone.low, zone.high)), color=ZONE, lw=0, zorder=0)
    axis.axvline(float(shown(0.0)), color=plt.rcParams["text.color"], lw=0.8, ls=":")
    for y, row in enumerate(rows):
        colour = styles([row.contrast.treated])[row.contrast.treated][0]
        if row.effect.interval is not None:
            axis.plot(shown(row.effect.interval), [y, y], color=colour, lw=2.6 if row.primary else 1.6)
        axis.plot(float(shown(row.effect.value)), y, "D" if row.primary else "o", color=colour, ms=6)
        axis.plot(shown(row.effect.differences), np.full(row.effect.n, y + 0.2), "|", color=colour, alpha=0.7)
        star = " ★" if row.primary else ""
        label = f"{row.contrast.name}: {row.outcome.short}{star}"
        axis.annotate(label, (0, y - 0.26), xycoords=("axes fraction", "data"), fontsize=8.5, va="bottom")
    if ratio:
        axis.set_xscale("log")
        ends = axis.get_xlim()
        ticks = [0.0625, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0]
        for reach, finer in ((4, [0.5, 0.75, 1.0, 1.5, 2.0]), (1.5, [0.8, 0.9, 1.0, 1.1, 1.2, 1.3])):
            ticks = finer if ends[1] < reach * ends[0] else ticks
        ticks = [t for t in ticks if ends[0] <= t <= ends[1]]
        axis.set_xticks(ticks, [f"{100 * (t - 1):+.0f}%".replace("-", "−") if t != 1 else "0" for t in ticks])
        axis.minorticks_off()
    axis.set_yticks([])
    axis.set_ylim(len(rows) - 0.5, -0.8)
    axis.set_xlabel(axis_label)
    axis.grid(visible=False, axis="y")
    sns.despine(figure, left=True)
    return figure


def seed_lines(
    models: pd.DataFrame, column: str, label: str, scale: float, *, logarithm: bool = False
) -> Figure:
    """One line per seed over the methods of each family; the mean over seeds in black (white on dark)."""
    families = [[m for m in family if (models["method"] == m).any()] for family in FAMILIES]
    families = [family for family in families if len(family) > 1]
    figure, axes = plt.subplots(
        1, len(families), figsize=(WIDTH, 2.9), sharey=True, squeeze=False,
        gridspec_kw={"width_ratios": [len(f) for f in families]},
    )  # fmt: skip
    for axis, family in zip(axes[0], families, strict=True):
        rows = models[models["method"].isin(family)].dropna(subset=[column, "seed"])
        table = scale * rows.pivot_table(column, "seed", "method", aggfunc="mean").reindex(columns=family)
        for _, seed in table.iterrows():
            axis.plot(range(len(family)), seed, color="#8C8C8C", lw=0.9, marker=".", ms=4)
        mean = np.exp(np.log(table).mean()) if logarithm else table.mean()
        axis.plot(range(len(family)), mean, color=plt.rcParams["text.color"], lw=2.2, marker="o", ms=5)
        axis.set_xticks(
            range(len(family)), family, rotation=30, ha="right", rotation_mode="anchor", fontsize=8.5
        )
        axis.set_xlim(-0.3, len(family) - 0.7)
    if logarithm:
        axes[0][0].set_yscale("log")
        number(axes[0][0].yaxis)
    axes[0][0].set_ylabel(label)
    sns.despine(figure)
    figure.tight_layout()
    return figure


def scatter_with_pairs(models: pd.DataFrame, x: str, y: str, x_label: str, y_label: str) -> Figure:
    """Smoothness against robustness, a point per model, twins joined."""
    figure, axis = plt.subplots(figsize=(WIDTH, 3.6))
    pairs = Pairing(models)
    for contrast in (c for c in CONTRASTS if c.treated.startswith("C-") and not c.same_beta):
        rows = pairs.of(contrast).main.dropna(subset=[x, y])
        for _, seed in rows.groupby("seed"):
            control = seed[seed["method"] == contrast.control]
            for _, treated in seed[seed["method"] == contrast.treated].iterrows():
                if len(control):
                    axis.plot(
                        [control[x].mean(), treated[x]], [100 * control[y].mean(), 100 * treated[y]],
                        color=plt.rcParams["text.color"], lw=0.8, alpha=0.35, zorder=1,
                    )  # fmt: skip
    models = models.set_index("method").loc[_present(models)].reset_index()
    scatter(axis, models[x].to_numpy(), 100 * models[y].to_numpy(), list(models["method"]))
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    return _finished(figure, axis)


def corruption_differences(table: pd.DataFrame, dull: Sequence[str]) -> Figure:
    """Difference from the twin under each corruption, in points; corruptions at chance in grey.

    Parameters
    ----------
    table
        Rows corruptions, columns contrasts, values points.
    dull
        The corruptions under which every run is at chance.
    """
    table = table.loc[table.fillna(0.0).abs().mean(axis=1).sort_values(ascending=False).index]
    table = pd.concat([table.drop(index=list(dull)), table.loc[list(dull)]])
    figure, axis = plt.subplots(figsize=(WIDTH, 0.3 * len(table) + 1.5))
    reach = float(np.nanmax(np.abs(table.drop(index=list(dull)).to_numpy()), initial=1.0))
    mask = table.isna() | np.isin(table.index, list(dull))[:, None]
    sns.heatmap(
        table, ax=axis, annot=True, fmt="+.1f", cmap="PuOr", vmin=-reach, vmax=reach, mask=mask,
        annot_kws={"size": 8.5}, cbar_kws={"label": "points", "shrink": 0.6}, linewidths=0.5,
        xticklabels=False, yticklabels=False,
    )  # fmt: skip
    for row, name in enumerate(table.index):
        if name in dull:
            axis.axhspan(row, row + 1, color="#8C8C8C", alpha=0.25, lw=0)
            axis.text(table.shape[1] / 2, row + 0.5, "at chance", ha="center", va="center", fontsize=8.5)
    name_cells(axis, table.index, [c.replace(" − ", "\n− ") for c in table.columns])
    return figure


def dots(frame: pd.DataFrame, row: str, label: str) -> Figure:
    """A row per category, a dot per run in its method's colour, on a logarithmic axis where values span decades.

    Parameters
    ----------
    frame
        Columns method, value, the one of the categories, and subject.run if there are runs to tell apart.
    row
        Column of the categories.
    label
        What the axis shows.
    """
    order = {method: rank for rank, method in enumerate(_present(frame))}
    frame = frame.iloc[frame["method"].map(order).argsort(kind="stable")]
    subject = frame.get("subject.run", frame["method"])
    told = frame.assign(subject=subject, kind=frame["method"], name=frame[row], low=np.nan, high=np.nan)
    return report_dots(told, label)


def distributions(images: pd.DataFrame, column: str) -> Figure:
    """How the local constant is spread over the test images, by method."""
    methods = _present(images)
    figure, axis = plt.subplots(figsize=(WIDTH, 0.5 * len(methods) + 0.9))
    local_constants({m: images.loc[images["method"] == m, column] for m in methods}, ax=axis)
    axis.set_xlabel("σ_max(J) at a test image, 1 per pixel L2")
    return figure


def dose_response(models: pd.DataFrame, column: str, label: str, factor: float) -> Figure:
    """What changes with beta: a thin line per seed, the mean thick; the uncompressed twin's mean dotted."""
    twins = {"C-SimCLR": "SimCLR", "SimCLR ×(1+β)": "SimCLR", "C-BYOL": "BYOL"}
    figure, axis = plt.subplots(figsize=(WIDTH, 3.2))
    look = styles(METHODS.values())
    for method, base in twins.items():
        rows = models[models["method"] == method].dropna(subset=["beta", column])
        if rows["beta"].nunique() < 2:
            continue
        colour, marker = look[method]
        for _, seed in rows.groupby("seed"):
            ordered = seed.sort_values("beta")
            axis.plot(ordered["beta"], factor * ordered[column], color=colour, lw=0.6, alpha=0.5)
        mean = factor * rows.groupby("beta")[column].mean()
        axis.plot(mean.index, mean, color=colour, marker=marker, lw=2, label=method)
        axis.axhline(
            factor * models.loc[models["method"] == base, column].mean(), color=look[base][0], ls=":"
        )
    axis.set_xscale("log")
    number(axis.xaxis)
    axis.set(xlabel="β", ylabel=label)
    return _finished(figure, axis)


def flips_by_smoothness(images: pd.DataFrame, column: str) -> Figure:
    """Share of corruptions that change the prediction, by decile of the local constant within a model and class."""
    by = ["run", "label"] if "label" in images else ["run"]
    ranks = images.groupby(by)[column].rank(method="first", pct=True)
    deciles = np.ceil(10 * ranks).astype(int)
    methods = _present(images)
    look, told_as = styles(methods), fitting(methods)
    figure, axis = plt.subplots(figsize=(WIDTH, 3.2))
    for method in methods:
        rows = images[images["method"] == method].assign(decile=deciles)
        means = 100 * rows.groupby(["run", "decile"])["flipped"].mean().groupby("decile").mean()
        axis.plot(
            means.index, means, marker=look[method][1], color=look[method][0], label=told_as[method], ms=5
        )
    axis.set_xlabel("decile of σ_max(J) among images of one class and model")
    axis.set_ylabel("corruptions that flip it, %")
    axis.set_xticks(range(1, 11))
    return _finished(figure, axis)
