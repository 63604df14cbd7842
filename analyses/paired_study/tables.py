"""The report's tables: rows of cells that show a text and sort by a number."""

from collections.abc import Sequence

import pandas as pd

from analyses.paired_study.answer import Answered
from analyses.paired_study.associations import Association, ImageFinding, on_main_data
from analyses.paired_study.frames import Study
from analyses.paired_study.study import BASELINES
from analyses.paired_study.verdicts import Row, corruption_rows
from analyses.paired_study.words import number_text, shown_value
from lipcomp.report._cells import Cell, Table, interval, number, split

COLUMNS = [
    ("clean", "clean, %", "{:.1f}", 100),
    ("corruption", "corruption, %", "{:.1f}", 100),
    ("shift", "UCI shift, %", "{:.1f}", 100),
    ("resolution", "8×8 control, %", "{:.1f}", 100),
    ("refit", "± refits, points", "{:.2f}", 100),
    ("features", "σ features", "{:.3f}", 1),
    ("logits", "σ logits", "{:.3f}", 1),
    ("latent", "σ latent", "{:.3f}", 1),
    ("residual", "residual, nats", "{:.2f}", 1),
    ("excess", "excess, nats", "{:.2f}", 1),
    ("i_yz", "I(Y;Z) ≥, nats", "{:.2f}", 1),
    ("published", "bound (3.1)", "{:.2f}", 1),
    ("mean_direction", "Lip(μ) ≥ (3.5)", "{:.3f}", 1),
    ("rank", "effective rank", "{:.1f}", 1),
]


def models_table(models: pd.DataFrame) -> list[Table]:
    """What was measured: a row per run, baselines last."""
    shown = [c for c in COLUMNS if c[0] in models and models[c[0]].notna().any()]
    rows = [
        [
            Cell(str(name)),
            Cell(str(row["method"])),
            number(float(row["beta"]) if pd.notna(row["beta"]) else None, "{:g}"),
            *(number(scale * row[key], form) for key, _, form, scale in shown),
        ]
        for name, row in models.iterrows()
    ]
    caption = (
        "One row per run. σ: median σ_max(J) over test images, 1 per pixel L2. Bounds and residual information at one "
        "common concentration (κ_e = 1024, κ_b = 10). ± refits: standard deviation of clean accuracy over "
        "refitted probes."
    )
    head = ["run", "method", "β", *(c[1] for c in shown)]
    return split(Table("models", "What was measured", caption, head, rows), keys=3, columns=9)


def effects_table(rows: Sequence[Row]) -> Table:
    """Every verdict."""
    cells = [
        [
            Cell(r.contrast.name + (f" ({r.stratum})" if r.stratum else ""), words=True),
            Cell(r.outcome.label, words=True),
            Cell(
                shown_value(r).replace(f", {100 * r.effect.level:.4g}% interval", ";"),
                r.effect.value,
                words=True,
            ),
            Cell(f"{r.verdict}{f': {r.word}' if r.word else ''}", whole=True),
            number(r.effect.n, "{:.0f}"),
            number(r.needed, "{:.0f}"),
            Cell("primary") if r.primary else number(r.adjusted_p, "{:.2g}"),
        ]
        for r in rows
    ]
    head = ["contrast", "outcome", "difference; interval", "verdict", "seeds", "seeds needed", "p, Holm"]
    caption = (
        "Mean over seeds of the difference within a seed, in % change of σ or points of accuracy. The primary ones "
        "were named before the data, with intervals of a higher level (see Methods); all others are exploratory, "
        "with 95% intervals, and their p-values adjusted over all of them. Seeds needed: with which the verdict "
        "would no longer be “cannot tell” (probability 80%, effect and spread as estimated)."
    )
    return Table("effects", "Verdicts", caption, head, cells)


def corruptions_table(study: Study) -> Table | None:
    """The primary contrast, per corruption."""
    members = study.pairs.headline
    found = corruption_rows(study, members)
    if not found:
        return None
    treated, _, control = found[0][1].name.partition(" minus ")
    held = study.corruptions
    held = held[held["run"].isin(members.index) | held["method"].isin(BASELINES)]
    mean = 100 * held.pivot_table("value", "corruption", "method", aggfunc="mean")
    methods = [m for m in (treated, control, *BASELINES) if m in mean]
    rows = [
        [
            Cell(name.replace("_", " ")),
            *(number(float(mean[m][name]), "{:.1f}") for m in methods),
            number(e.value, "{:+.1f}"),
            interval(e, "{:+.1f}"),
            number(p, "{:.3g}"),
        ]
        for name, e, p in found
    ]
    head = ["corruption", *(f"{m}, %" for m in methods), "difference", "95% interval", "p, Holm"]
    caption = (
        f"Mean over severities and {found[0][1].n} seeds; exploratory, p-values adjusted for looking at every "
        "corruption that counts."
    )
    return Table("corruptions", "Corruption by corruption", caption, head, rows)


def associations_table(found: Sequence[Association]) -> Table:
    """Every association."""
    rows = [
        [
            Cell(a.level, words=True),
            Cell(f"{a.y} per {a.x}", words=True),
            number(a.estimate.value, "{:+.2f}"),
            Cell(_ends(a), (a.estimate.interval or (None,))[0]),
            Cell(str(a.verdict), whole=True),
            Cell(f"{a.estimate.n} {a.units}", a.estimate.n),
        ]
        for a in found
    ]
    head = ["level", "slope", "value", "95% interval", "verdict", "n"]
    caption = (
        "Exploratory. Points of accuracy per 10% lower σ; positive: smoother encoders are more accurate."
    )
    return Table("associations", "What goes together", caption, head, rows)


def _ends(found: Association) -> str:
    ends = found.estimate.interval or ()
    return " to ".join(number_text(end, ratio=False, zone=found.zone, digits=2) for end in ends) or "–"


def images_table(found: Sequence[ImageFinding]) -> Table:
    """AUROC of sigma for flips, within classes and over all."""
    rows = [
        [
            Cell(f.run),
            Cell(f.method),
            number(f.within_class.value, "{:.3f}"),
            interval(f.within_class, "{:.3f}"),
            number(f.pooled.value, "{:.3f}"),
            number(f.images, "{:.0f}"),
        ]
        for f in found
    ]
    head = ["run", "method", "AUROC within class", "95% interval", "over all classes", "images"]
    caption = (
        f"Does σ_max of the {found[0].layer} at an image predict whether more corruptions than the median change its "
        f"prediction? Errors are clustered by image and by model."
    )
    return Table("images", "Across the images of a model", caption, head, rows)


def times_table(frame: pd.DataFrame) -> Table | None:
    """Where the time went."""
    times = frame[frame["quantity"].isin(("time", "time.wall"))]
    if not len(times):
        return None
    sums = times.groupby(["quantity", "settings.stage"], sort=False)["value"].agg(["sum", "count"])
    kinds = {"time": "seconds of its processes, added", "time.wall": "seconds on the clock"}
    rows = [
        [
            Cell(str(stage)),
            number(float(total), "{:.0f}"),
            Cell(kinds[str(kind)]),
            number(int(count), "{:.0f}"),
        ]
        for (kind, stage), total, count in sums.itertuples()
    ]
    caption = "Measuring runs its stages in several processes."
    return Table("times", "Where the time went", caption, ["stage", "seconds", "which", "times run"], rows)


def build_tables(study: Study, answered: Answered) -> list[Table]:
    """All tables of the report."""
    tables: list[Table | None] = []
    if answered.verdicts.rows:
        tables.append(effects_table(answered.verdicts.rows))
    tables += models_table(study.models)
    if answered.associations:
        tables.append(associations_table(answered.associations))
    tables.append(corruptions_table(on_main_data(study)))
    if answered.images:
        tables.append(images_table(answered.images))
    tables.append(times_table(study.frame))
    return [t for t in tables if t is not None]
