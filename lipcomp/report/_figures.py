"""Figures that any page may use: dots with intervals, a heat map; narrow enough for a phone."""

from collections.abc import Iterable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lipcomp.plots._palette import fitting, plain, styles
from lipcomp.report._drawn import WIDTH

SUBJECTS = 6  # that fit side by side; more become rows of a table, and share a colour by kind in a figure
DECADES = 1e12  # on a longer axis all that counts is at its end; near zero is then drawn as zero
LEGEND = 2 * SUBJECTS  # kinds at most that a legend names


def dots(rows: pd.DataFrame, label: str, everyone: Iterable[str] = ()) -> Figure:
    """A row per quantity and setting, a mark per subject with its interval.

    Parameters
    ----------
    rows
        Columns subject, kind (what shares a colour), name, value, low, high.
    label
        Of the axis.
    everyone
        The kinds of the whole page, in order: each has one colour in all of its figures.
    """
    names, subjects, kinds = (list(dict.fromkeys(rows[c])) for c in ("name", "subject", "kind"))
    look, told_as = styles([*everyone, *kinds]), fitting(kinds)
    height = 0.34 + 0.1 * min(len(subjects), 8)
    figure, axis = plt.subplots(figsize=(WIDTH, height * len(names) + 1.0))
    shifts = np.linspace(-0.05, 0.36, len(subjects)) if len(subjects) > 1 else [0.15]
    for shift, subject in zip(shifts, subjects, strict=True):
        mine = rows[rows["subject"] == subject]
        y = [names.index(n) + shift for n in mine["name"]]
        kind = str(mine["kind"].iloc[0])
        colour, marker = look[kind]
        for at, low, high in zip(y, mine["low"], mine["high"], strict=True):
            axis.plot([low, high], [at, at], color=colour, lw=1.4)
        axis.scatter(mine["value"], y, color=colour, marker=marker, s=24, label=told_as[kind])
    for row, name in enumerate(names):
        axis.annotate(
            plain(name), (0, row - 0.14), xycoords=("axes fraction", "data"), fontsize=8.5, va="bottom"
        )
    values, lows = rows["value"].to_numpy(float), rows["low"].to_numpy(float)
    least = min(values.min(), np.nanmin(lows, initial=np.inf))
    if least > 0 and least * DECADES > values.max() > 20 * values.min():
        axis.set_xscale("log")
    axis.set_yticks([])
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_xlabel(plain(label))
    figure.tight_layout()
    if len(kinds) <= LEGEND:
        told = dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
        figure.legend(list(told.values()), list(told), loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=2)
    sns.despine(figure, left=True)
    return figure


def heat_map(table: pd.DataFrame) -> Figure:
    """Values by row and column, from the largest mean down."""
    table = table.loc[table.mean(axis=1).sort_values(ascending=False).index]
    figure, axis = plt.subplots(figsize=(WIDTH, 0.28 * len(table) + 1.4))
    sns.heatmap(
        table, ax=axis, annot=table.shape[1] <= SUBJECTS, fmt=".3g", cmap="viridis", annot_kws={"size": 8.5},
        cbar_kws={"shrink": 0.6}, xticklabels=False, yticklabels=False,
    )  # fmt: skip
    name_cells(axis, table.index, list(fitting(table.columns).values()))
    return figure


def name_cells(axis: Axes, rows: Iterable[object], columns: Sequence[str]) -> None:
    """Write the names of a heat map's rows and columns beside its cells."""
    axis.set(xlabel="", ylabel="")
    told = [plain(name).replace("_", " ") for name in rows]
    axis.set_yticks(np.arange(len(told)) + 0.5, told, rotation=0)
    axis.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=30, ha="right", fontsize=8.5)
    axis.grid(visible=False)
