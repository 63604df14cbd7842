"""The study's figures: functions from tidy frames to matplotlib figures."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from analyses.paired_study.answer import Effect
from analyses.paired_study.study import CONTRASTS, METHODS, pair_table

# Okabe-Ito, told apart by colour-blind readers, on white and on near-black.
COLOURS = dict(
    zip(
        METHODS.values(),
        ["#0072B2", "#56B4E9", "#CC79A7", "#D55E00", "#009E73", "#E69F00", "#8C8C8C", "#B8860B"],
        strict=True,
    )
)
MARKERS = dict(zip(METHODS.values(), ["o", "^", "v", "s", "D", "P", "X", "*"], strict=True))


def _present(frame: pd.DataFrame) -> list[str]:
    """The methods of a frame: ours in their order, then the others."""
    found = list(dict.fromkeys(frame["method"]))
    return [*(m for m in METHODS.values() if m in found), *(m for m in found if m not in METHODS.values())]


def _colour(method: str) -> str:
    return COLOURS.get(method, "#8C8C8C")


def forest(effects: Sequence[Effect]) -> Figure:
    """Paired effects with their intervals; one panel a quantity, one row a contrast."""
    quantities = list(dict.fromkeys(effect.label for effect in effects))
    contrasts = list(dict.fromkeys(effect.contrast for effect in effects))
    figure, axes = plt.subplots(
        1,
        len(quantities),
        figsize=(2.1 * len(quantities) + 2.0, 0.55 * len(contrasts) + 1.3),
        sharey=True,
        squeeze=False,
    )
    for axis, label in zip(axes[0], quantities, strict=True):
        for effect in (e for e in effects if e.label == label):
            row = contrasts.index(effect.contrast)
            pooled = effect.contrast.startswith("all")
            colour = plt.rcParams["text.color"] if pooled else "#0072B2"
            if effect.interval is not None:
                axis.plot(
                    effect.interval,
                    [row, row],
                    color=colour,
                    lw=2.4 if pooled else 1.6,
                    solid_capstyle="round",
                )
            axis.plot(effect.value, row, "D" if pooled else "o", color=colour, ms=7)
            axis.plot(
                effect.estimate.differences,
                np.full(len(effect.estimate.differences), row + 0.22),
                "|",
                color=colour,
                alpha=0.7,
                ms=7,
            )
        axis.axvline(0, color=plt.rcParams["text.color"], lw=0.8, ls=":")
        axis.set_xlabel(f"{label}\n({effects[[e.label for e in effects].index(label)].unit})")
        axis.margins(x=0.12)
    axes[0][0].set_yticks(range(len(contrasts)), contrasts)
    axes[0][0].set_ylim(len(contrasts) - 0.5, -0.6)
    sns.despine(figure, left=True)
    return figure


def scatter_with_pairs(models: pd.DataFrame, x: str, targets: dict[str, str], x_label: str) -> Figure:
    """Smoothness against robustness, a point a model, pairs joined."""
    figure, axes = plt.subplots(1, len(targets), figsize=(4.6 * len(targets), 3.9), squeeze=False)
    for axis, (column, label) in zip(axes[0], targets.items(), strict=True):
        for contrast in (c for c in CONTRASTS if c.compression):
            pairs = pair_table(models, contrast, column).merge(
                pair_table(models, contrast, x), on=["run", "seed", "beta"], suffixes=("", "_x")
            )
            for _, pair in pairs.iterrows():
                axis.plot(
                    [pair["control_x"], pair["treated_x"]],
                    [100 * pair["control"], 100 * pair["treated"]],
                    color=plt.rcParams["text.color"],
                    lw=0.8,
                    alpha=0.35,
                    zorder=1,
                )
        for method in _present(models):
            rows = models[models["method"] == method]
            axis.scatter(
                rows[x],
                100 * rows[column],
                s=52,
                color=_colour(method),
                marker=MARKERS.get(method, "o"),
                label=method,
                zorder=2,
                edgecolor="none",
            )
        axis.set_xlabel(x_label)
        axis.set_ylabel(f"{label}, %")
    axes[0][-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), title="method")
    sns.despine(figure)
    figure.tight_layout()
    return figure


def corruption_heat_map(accuracies: pd.DataFrame) -> Figure:
    """Accuracy under each corruption (mean over severities), by method.

    Parameters
    ----------
    accuracies
        Columns method, corruption, value (in [0, 1]).
    """
    table = 100 * accuracies.pivot_table("value", "corruption", "method", aggfunc="mean")
    table = table[_present(accuracies)]
    table = table.loc[table.mean(axis=1).sort_values(ascending=False).index]
    figure, axis = plt.subplots(figsize=(1.0 * table.shape[1] + 2.6, 0.34 * len(table) + 1.2))
    sns.heatmap(
        table,
        ax=axis,
        annot=True,
        fmt=".1f",
        cmap="viridis",
        vmin=10,
        vmax=100,
        cbar_kws={"label": "accuracy, %"},
    )
    axis.set(xlabel="", ylabel="")
    axis.tick_params(axis="x", rotation=25)
    axis.grid(visible=False)
    return figure


def bound_sandwich(bounds: pd.DataFrame) -> Figure:
    """Every lower bound of one constant on one logarithmic axis.

    Parameters
    ----------
    bounds
        Columns method, bound, value: lower bounds of the Lipschitz constant of the log density at one common
        concentration, in nats per pixel L2.
    """
    order = list(dict.fromkeys(bounds["bound"]))
    figure, axis = plt.subplots(figsize=(7.4, 0.5 * len(order) + 1.4))
    methods = _present(bounds)
    for shift, method in zip(np.linspace(-0.28, 0.28, len(methods)), methods, strict=True):
        rows = bounds[bounds["method"] == method]
        axis.scatter(
            rows["value"],
            [order.index(b) + shift for b in rows["bound"]],
            color=_colour(method),
            marker=MARKERS.get(method, "o"),
            s=34,
            label=method,
        )
    axis.set_xscale("log")
    axis.set_yticks(range(len(order)), order)
    axis.set_ylim(len(order) - 0.5, -0.5)
    axis.set_xlabel("lower bound of the Lipschitz constant of log e(z|x), nats per pixel L2 (log scale)")
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    sns.despine(figure, left=True)
    return figure


def distributions(images: pd.DataFrame) -> Figure:
    """How the local constant is spread over the test images, by method.

    Parameters
    ----------
    images
        Columns method, sigma: a row an image and run.
    """
    methods = _present(images)
    figure, axis = plt.subplots(figsize=(7.2, 0.55 * len(methods) + 1.2))
    sns.violinplot(
        images,
        x="sigma",
        y="method",
        hue="method",
        order=methods,
        hue_order=methods,
        palette={m: _colour(m) for m in methods},
        inner="quart",
        cut=0,
        linewidth=0.9,
        log_scale=True,
        legend=False,
        ax=axis,
    )
    axis.set(
        xlabel="local Lipschitz constant σ_max(J) at a test image, 1 per pixel L2 (log scale)", ylabel=""
    )
    sns.despine(figure, left=True)
    return figure


def compression_and_smoothness(models: pd.DataFrame) -> Figure:
    """Excess residual information against the local constant, a point a model."""
    figure, axis = plt.subplots(figsize=(5.4, 3.9))
    for method in _present(models):
        rows = models[models["method"] == method]
        axis.scatter(
            rows["excess"],
            rows["sigma"],
            s=52,
            color=_colour(method),
            marker=MARKERS.get(method, "o"),
            label=method,
        )
    axis.set_xlabel("excess residual information at the common κ, nats (held-out views)")
    axis.set_ylabel("median σ_max(J), 1 per pixel L2")
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    sns.despine(figure)
    return figure


def dose_response(models: pd.DataFrame, targets: dict[str, tuple[str, float]]) -> Figure:
    """What changes with beta: a thin line a seed, the mean thick, the uncompressed twin dotted.

    Parameters
    ----------
    models
        The models' table.
    targets
        Column -> (label, factor).
    """
    swept = {"C-SimCLR": "SimCLR", "SimCLR ×(1+β)": "SimCLR", "C-BYOL": "BYOL"}
    figure, axes = plt.subplots(1, len(targets), figsize=(4.4 * len(targets), 3.7), squeeze=False)
    for axis, (column, (label, factor)) in zip(axes[0], targets.items(), strict=True):
        for method, base in swept.items():
            rows = models[models["method"] == method].dropna(subset=["beta", column])
            if rows["beta"].nunique() < 2:
                continue
            for _, seed in rows.groupby("seed"):
                seed = seed.sort_values("beta")
                axis.plot(seed["beta"], factor * seed[column], color=_colour(method), lw=0.6, alpha=0.5)
            mean = factor * rows.groupby("beta")[column].mean()
            axis.plot(mean.index, mean, color=_colour(method), marker=MARKERS[method], lw=2, label=method)
            control = models.loc[models["method"] == base, column].mean()
            axis.axhline(factor * control, color=_colour(base), ls=":", lw=1.4)
        axis.set_xscale("log")
        axis.set_xlabel("β")
        axis.set_ylabel(label)
    axes[0][-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    sns.despine(figure)
    figure.tight_layout()
    return figure


def flips_by_smoothness(images: pd.DataFrame) -> Figure:
    """Share of corruptions that change the prediction, by decile of the local constant within a model."""
    images = images.copy()
    images["decile"] = images.groupby("run")["sigma"].transform(
        lambda s: pd.qcut(s.rank(method="first"), min(10, len(s)), labels=False) + 1
    )
    methods = _present(images)
    figure, axis = plt.subplots(figsize=(6.0, 3.8))
    for method in methods:
        rows = images[images["method"] == method]
        means = 100 * rows.groupby(["run", "decile"])["flipped"].mean().groupby("decile").mean()
        axis.plot(
            means.index, means, marker=MARKERS.get(method, "o"), color=_colour(method), label=method, ms=5
        )
    axis.set_xlabel("decile of σ_max(J) among the images of a model")
    axis.set_ylabel("corruptions that change the prediction, %")
    axis.set_xticks(range(1, 11))
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    sns.despine(figure)
    return figure
