"""The five pictures: smoothness by encoder, bounds and certificates, accuracy, and the one against the other."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeAlias, cast, runtime_checkable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from lipcomp._arguments import checked
from lipcomp.plots._frames import rows_of
from lipcomp.plots._palette import fitting, styles
from lipcomp.records import Record


@runtime_checkable
class Drawable(Protocol):
    """A result: its columns, and what the picture calls those that are constants."""

    constants: ClassVar[Mapping[str, str]]

    def columns(self) -> dict[str, np.ndarray]:
        """What there is one of per image or pair."""


Records: TypeAlias = Iterable[Record] | pd.DataFrame
Values: TypeAlias = Drawable | Sequence[float] | np.ndarray | pd.Series
FEW = 12  # images that are drawn one by one; more become a violin
CONSTANT = "Lipschitz constant, 1 per pixel L2"


@checked
def local_constants(given: Values | Mapping[str, Values] | Records, *, ax: Axes | None = None) -> Axes:
    """Draw the local constants of every encoder over its images, on a logarithmic axis.

    Parameters
    ----------
    given
        A result of ``spectral_norm``, ``search_ball``, ``certified_bound`` or ``lipschitz``; or results, or values per
        image, by the encoder's name; or records of ``sigma_max``, of which the median, the range from there to the 90%
        quantile and the maximum are drawn.
    ax
        Axes to draw on; new axes if not given.

    Raises
    ------
    ValueError
        If nothing to draw is given, or records of several layers or sets of images.

    Examples
    --------
    >>> import lipcomp
    >>> ax = lipcomp.plots.local_constants({"plain": [0.8, 1.1, 1.9], "compressed": [0.3, 0.4, 0.7]})
    >>> ax.get_xscale()
    'log'
    """
    if isinstance(given, Drawable | Mapping):
        table = pd.concat([_long(name, values) for name, values in _named(given).items()])
        table = table[np.isfinite(table["value"]) & (table["value"] > 0)]
        look = styles(table["name"])
        ax = _axes(ax, height=0.6 * len(look) + 1.0)
        shared: dict[str, Any] = {
            "x": "value",
            "y": "name",
            "hue": "name",
            "legend": False,
            "log_scale": True,
            "ax": ax,
        }
        shared |= {"palette": {name: colour for name, (colour, _) in look.items()}}
        if table["name"].value_counts().min() > FEW:
            sns.violinplot(table, inner="quart", cut=0, linewidth=0.9, **shared)
        else:
            sns.stripplot(table, jitter=False, **shared)
        ax.set_yticks(range(len(look)), list(fitting(look).values()))
    else:
        rows = rows_of(cast(Records, given), *(f"sigma_max.{q}" for q in ("median", "q90", "max")))
        wide = rows.pivot_table("value", "name", "quantity", aggfunc="last", sort=False)
        median, upper, largest = (
            wide.reindex(columns=[f"sigma_max.{q}"]).to_numpy(float)[:, 0] for q in ("median", "q90", "max")
        )
        ax = _axes(ax, height=0.6 * len(wide) + 1.0)
        for y, (colour, marker) in enumerate(styles(map(str, wide.index)).values()):
            ax.plot([median[y], upper[y]], [y, y], color=colour, lw=4, alpha=0.4)
            ax.plot([median[y]], [y], marker, color=colour)
            ax.plot([largest[y]], [y], "|", color=colour, ms=12)
        ax.set(
            xscale="log",
            yticks=range(len(wide)),
            yticklabels=list(fitting(wide.index).values()),
            ylim=(len(wide) - 0.5, -0.5),
        )
    records = not isinstance(given, Drawable | Mapping)
    ax.set(xlabel=f"{CONSTANT}{': median, to 90%, maximum' if records else ''}", ylabel="")
    return _done(ax, left=True)


@checked
def bounds_against_distance(given: Any, *, bound: str = "direction", ax: Axes | None = None) -> Axes:
    """Draw the bound of each pair against the distance of its images; stars mark the pairs that attain the maximum.

    Parameters
    ----------
    given
        The result of ``lower_bounds``, ``measure_pairs`` or ``all_pairs``; or results by the name of the encoder or the
        pairs; or records of ``bound``, which contain only the stars.
    bound
        Name of one of the bounds (3.1) to (3.5).
    ax
        Axes to draw on; new axes if not given.

    Raises
    ------
    ValueError
        If nothing to draw is given, or records of several layers or sets of images.

    Examples
    --------
    >>> import torch, lipcomp
    >>> images = torch.rand(2, 8, 3, generator=torch.Generator().manual_seed(0))
    >>> mu = torch.nn.functional.normalize(images, dim=2)
    >>> found = lipcomp.lower_bounds(mu[0], mu[1], (images[0] - images[1]).norm(dim=1))
    >>> len(lipcomp.plots.bounds_against_distance(found).collections)
    2
    """
    ax = _axes(ax)
    if hasattr(given, "bounds") or isinstance(given, Mapping):
        points = _named(given)
        stars = {
            name: [(r[bound].witness.distance, r[bound].maximum)]
            for name, r in points.items()
            if r[bound].witness
        }
        unit = next(iter(points.values()))[bound].unit
    else:
        rows = rows_of(given, f"bound.{bound}.max", alike=("data", "layer", "normalised"))
        stars = {
            str(name): [*zip(part["provenance.witness_distance"], part["value"], strict=True)]
            for name, part in rows.groupby("name", sort=False)
        }
        points, unit = {}, rows["unit"].iloc[0]
    told_as = fitting(stars)
    for name, (colour, marker) in styles(stars).items():
        if name in points:
            one = points[name]
            ax.scatter(one.distance, one[bound].values, s=9, color=colour, marker=marker, alpha=0.4, lw=0)
        x, y = np.array(stars[name], dtype=float).reshape(-1, 2).T
        told = told_as[name] or "attains the bound"
        ax.scatter(x, y, s=120, color=colour, marker="*", edgecolor="white", label=told, zorder=3)
    ax.set(xscale="log", yscale="log", xlabel="distance of the two images, pixel L2")
    ax.set_ylabel(f"lower bound, {unit}")
    return _done(ax, legend=True)


@checked
def certificate_against_radius(given: Any, *, ax: Axes | None = None) -> Axes:
    """Draw the lower, searched and certified constant against the radius of the ball: thin per image, thick the median.

    Parameters
    ----------
    given
        Results of ``lipschitz`` (or of ``certified_bound``) for the same images, one per radius; or such lists by the
        encoder's name; or records of ``ball``, which have the median alone. A median is drawn where half of the images
        have a certificate.
    ax
        Axes to draw on; new axes if not given.

    Raises
    ------
    ValueError
        If nothing to draw is given, or records of several layers or sets of images.

    Examples
    --------
    >>> import torch, lipcomp
    >>> encoder = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
    >>> images = torch.rand(4, 3)
    >>> found = [lipcomp.lipschitz(encoder, images, radius=r, steps=3) for r in (0.01, 0.1)]
    >>> ax = lipcomp.plots.certificate_against_radius(found)
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['lower', 'searched', 'certified']
    """
    ax = _axes(ax)
    dashes = {"lower": ":", "searched": "--", "certified": "-"}
    table = _curves(given, dashes).sort_values("radius")
    names, told_as = styles(table["name"]), fitting(table["name"])
    for name, look in names.items():
        for what, (own, mark), dash in zip(dashes, styles(dashes).values(), dashes.values(), strict=True):
            colour, marker = look if len(names) > 1 else (own, mark)
            rows = table[(table["name"] == name) & (table["what"] == what)]
            if what != "certified":  # what is found in a ball is in every larger one as well
                rows = rows.assign(value=rows.groupby("image")["value"].cummax())
            for _, image in rows[np.isfinite(rows["value"])].groupby("image"):
                if rows["image"].nunique() > 1:
                    ax.plot(image["radius"], image["value"], ls=dash, lw=0.6, alpha=0.4, color=colour)
            medians = rows.groupby("radius")["value"].median()
            medians = medians[np.isfinite(medians)]
            if len(medians):
                label = what if len(names) == 1 else f"{told_as[name]}, {what}"
                x, y = medians.index.to_numpy(), medians.to_numpy()
                ax.plot(x, y, ls=dash, lw=2, marker=marker, ms=5, color=colour, label=label)
    ax.set(xscale="log", yscale="log", xlabel="radius of the ball, pixel L2", ylabel=CONSTANT)
    return _done(ax, legend=True)


def _curves(given: Any, kinds: Iterable[str]) -> pd.DataFrame:
    """Name, radius, image, what, value: of every image of results, or the median of records."""
    if isinstance(given, Iterable) and not isinstance(given, Mapping | pd.DataFrame):
        given = list(given)
    results = {"": given} if isinstance(given, list) and isinstance((*given, None)[0], Drawable) else given
    if isinstance(results, Mapping):
        rows = [
            (name, one.radius, image, label, float(value))
            for name, found in results.items()
            for one in found
            for column, label in one.constants.items()
            for image, value in enumerate(one.columns()[column])
        ]
        return pd.DataFrame(rows, columns=["name", "radius", "image", "what", "value"])
    table = rows_of(given, *(f"ball.{kind}.median" for kind in kinds), drawn=("radius",))
    return table.assign(
        what=table["quantity"].str.split(".").str[1], radius=table["settings.radius"], image=0
    )


@checked
def accuracy_against_severity(records: Records, *, ax: Axes | None = None) -> Axes:
    """Draw the accuracy of every encoder against the severity of corruption; bands hold the middle half of corruptions.

    Parameters
    ----------
    records
        Records of ``accuracy.corruption``; ``accuracy.clean`` is drawn at severity 0.
    ax
        Axes to draw on; new axes if not given.

    Raises
    ------
    ValueError
        If nothing to draw is given, or records of several layers or sets of images.

    Examples
    --------
    >>> import lipcomp
    >>> from lipcomp.records import Record
    >>> fog = {s: {"corruption": "fog", "severity": s} for s in (1, 5)}
    >>> found = [Record("accuracy.corruption", 0.9 - s / 10, settings=fog[s]) for s in fog]
    >>> lipcomp.plots.accuracy_against_severity(found).get_ylabel()
    'accuracy, %'
    """
    rows = rows_of(records, "accuracy.corruption", "accuracy.clean", drawn=("corruption", "severity"))
    severity = rows.get("settings.severity", pd.Series(np.nan, rows.index)).where(
        rows["quantity"] != "accuracy.clean", 0
    )
    rows = rows.assign(severity=pd.to_numeric(severity), value=100 * rows["value"]).dropna(
        subset=["severity"]
    )
    look, told_as = styles(rows["name"]), fitting(rows["name"])
    ax = _axes(ax)
    for name, (colour, marker) in look.items():
        by = rows[rows["name"] == name].groupby("severity")["value"]
        ax.plot(by.mean(), color=colour, marker=marker, ms=5, label=told_as[name])
        ax.fill_between(by.mean().index, by.quantile(0.25), by.quantile(0.75), color=colour, alpha=0.15, lw=0)
    ax.set(xlabel="severity", ylabel="accuracy, %", xticks=sorted(rows["severity"].unique()))
    return _done(ax, legend=True)


@checked
def smoothness_against_robustness(
    records: Records,
    *,
    smoothness: str = "sigma_max.median",
    robustness: str = "accuracy.corruption.mean",
    ax: Axes | None = None,
) -> Axes:
    """Draw one quantity of every encoder against another, with their intervals.

    Parameters
    ----------
    records
        Records of both quantities.
    smoothness, robustness
        Names of the two quantities.
    ax
        Axes to draw on; new axes if not given.

    Raises
    ------
    ValueError
        If nothing to draw is given, or records of several layers or sets of images.

    Examples
    --------
    >>> import lipcomp
    >>> from lipcomp.records import Record
    >>> found = [Record("sigma_max.median", 0.4, subject={"run": "mine"}),
    ...          Record("accuracy.corruption.mean", 0.8, subject={"run": "mine"})]
    >>> lipcomp.plots.smoothness_against_robustness(found).get_xlabel()
    'sigma_max.median'
    """
    rows = rows_of(records, smoothness, robustness)
    if not {smoothness, robustness} <= set(rows["quantity"]):
        raise ValueError(
            f"records must hold {smoothness} and {robustness}; only {rows['quantity'].iloc[0]} is there"
        )
    ax = _axes(ax)
    sides = [rows[rows["quantity"] == quantity].set_index("name") for quantity in (smoothness, robustness)]
    both = pd.concat(sides, axis=1, join="inner", keys=("x", "y"))
    x, y = (both[side][["value", "low", "high"]].to_numpy(float) for side in ("x", "y"))
    ax.plot(x[:, 1:].T, y[:, [0, 0]].T, color="grey", lw=1, alpha=0.6, zorder=1)
    ax.plot(x[:, [0, 0]].T, y[:, 1:].T, color="grey", lw=1, alpha=0.6, zorder=1)
    kinds = both["x"].get("subject.objective", pd.Series(both.index, both.index))
    scatter(ax, x[:, 0], y[:, 0], [str(kind) for kind in kinds])
    ax.set(xlabel=smoothness, ylabel=robustness)
    return _done(ax, legend=True)


def scatter(ax: Axes, x: np.ndarray, y: np.ndarray, kinds: Sequence[str]) -> None:
    """A mark per row in the colour of its kind."""
    told_as = fitting(kinds)
    for kind, (colour, marker) in styles(kinds).items():
        mine = np.array([k == kind for k in kinds])
        ax.scatter(x[mine], y[mine], s=44, color=colour, marker=marker, label=told_as[kind], zorder=2)


def _named(given: Any) -> dict[str, Any]:
    if isinstance(given, Mapping) and not given:
        raise ValueError("given must hold something to draw, got {}; give a result, or results by name")
    return dict(given) if isinstance(given, Mapping) else {"": given}


def _long(name: str, values: Values) -> pd.DataFrame:
    """A row per image and constant."""
    if not isinstance(values, Drawable):
        return pd.DataFrame({"name": name, "value": np.asarray(values, dtype=float)})
    columns = values.columns()
    parts = [
        pd.DataFrame({"name": f"{name} {label}".strip(), "value": columns[column].astype(float)})
        for column, label in values.constants.items()
    ]
    return pd.concat(parts)


def _axes(ax: Axes | None, *, height: float = 3.6) -> Axes:
    if ax is not None:
        return ax
    with sns.axes_style("whitegrid"):
        return plt.subplots(figsize=(5.2, height), layout="constrained")[1]


def _done(ax: Axes, *, legend: bool = False, left: bool = False) -> Axes:
    if legend and len(ax.get_legend_handles_labels()[1]):
        ax.legend(frameon=False, fontsize=8.5)
    for axis, scale in ((ax.xaxis, ax.get_xscale()), (ax.yaxis, ax.get_yscale())):
        if scale == "log":
            number(axis)
    sns.despine(ax=ax, left=left)
    return ax


def number(axis: Axis) -> None:
    """Number a logarithmic axis with as many numbers as its range needs and no two that touch."""
    lower, upper = axis.get_view_interval()
    decades = math.log10(upper / lower)
    if decades < 0.7:
        axis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
    else:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2 else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
