"""The report's tables: rows of cells that show a text and sort by a number."""

from collections.abc import Sequence

import pandas as pd

from analyses.page.cells import Cell, Table, interval, number
from analyses.paired_study.answer import Association, Effect, ImageFinding, corruption_effects
from analyses.paired_study.frames import Study


def models_rows(models: pd.DataFrame) -> Table:
    """The measured table: a row a model."""
    columns = [
        ("clean", "clean, %", "{:.1f}", 100),
        ("corruption", "corruption, %", "{:.1f}", 100),
        ("shift", "UCI shift, %", "{:.1f}", 100),
        ("resolution", "8×8 control, %", "{:.1f}", 100),
        ("residual", "residual, nats", "{:.2f}", 1),
        ("excess", "excess, nats", "{:.2f}", 1),
        ("i_yz", "I(Y;Z) ≥, nats", "{:.2f}", 1),
        ("published", "published bound (3.1)", "{:.2f}", 1),
        ("mean_direction", "Lip(μ) ≥ (3.5)", "{:.3f}", 1),
        ("sigma", "σ_max median", "{:.3f}", 1),
        ("sigma_top", "σ_max largest", "{:.3f}", 1),
        ("sigma_backbone", "σ_max backbone", "{:.3f}", 1),
        ("rank", "effective rank", "{:.1f}", 1),
    ]
    shown = [c for c in columns if c[0] in models and models[c[0]].notna().any()]
    rows = [
        [
            Cell(str(name)),
            Cell(str(row["method"])),
            number(row["beta"] if row["beta"] is not None else None, "{:g}"),
            *(number(scale * row[key], form) for key, _, form, scale in shown),
        ]
        for name, row in models.iterrows()
    ]
    caption = (
        "A row a model. Bounds and residual information at one common concentration for all models (κ_e = 1024, "
        "κ_b = 10), since κ is a hyperparameter; σ_max and Lip(μ) in 1 per pixel L2."
    )
    return Table("models", "What was measured", caption, ["run", "method", "β", *(c[1] for c in shown)], rows)


def effects_rows(effects: Sequence[Effect]) -> Table:
    """Every paired effect."""
    rows = [
        [
            Cell(e.contrast),
            Cell(e.label),
            number(e.estimate.value, "{:+.3g}"),
            interval(e.estimate),
            Cell(e.unit),
            number(e.estimate.p_value, "{:.3g}"),
            number(e.estimate.smallest_p, "{:.3g}"),
            number(e.estimate.n, "{:.0f}"),
            number(e.detectable, "{:.3g}"),
            Cell(e.meaning, words=True),
        ]
        for e in effects
    ]
    head = [
        "contrast",
        "outcome",
        "difference",
        "95% interval",
        "unit",
        "p",
        "smallest p",
        "pairs",
        "detectable",
        "isolates",
    ]
    caption = (
        "Mean of the differences within pairs; p by sign-flip permutation, next to the smallest p that so many "
        "pairs allow; detectable is the effect that so many pairs with this spread find with a probability of 80% "
        "(a dash: none, however large)."
    )
    return Table("effects", "Paired effects", caption, head, rows)


def build_tables(
    study: Study, effects: Sequence[Effect], found: Sequence[Association], per_image: Sequence[ImageFinding]
) -> list[Table]:
    """All tables of the report."""
    tables = [models_rows(study.models)]
    if effects:
        tables.append(effects_rows(effects))
    if found:
        rows = [
            [
                Cell(a.level),
                Cell(a.x),
                Cell(a.y),
                Cell(a.estimate.name),
                number(a.estimate.value, "{:+.2f}"),
                interval(a.estimate, "{:+.2f}"),
                number(a.estimate.p_value, "{:.3g}"),
                number(a.estimate.n, "{:.0f}"),
            ]
            for a in found
        ]
        head = ["level", "of", "with", "measure", "value", "95% interval", "p", "n"]
        caption = "For accuracies with smoothness, a negative value means: smoother goes with more accurate."
        tables.append(Table("associations", "What goes together", caption, head, rows))
    if len(study.corruptions) and effects:
        table = corruption_effects(study.corruptions, study.models)
        rows = [
            [
                Cell(str(row["corruption"])),
                number(row["estimate"].value, "{:+.1f}"),
                interval(row["estimate"], "{:+.1f}"),
                number(row["estimate"].p_value, "{:.3g}"),
                number(row["adjusted_p"], "{:.3g}"),
                number(row["estimate"].n, "{:.0f}"),
            ]
            for _, row in table.iterrows()
        ]
        head = ["corruption", "compressed − not, points", "95% interval", "p", "p, Holm", "pairs"]
        caption = "Mean over severities; p-values adjusted for looking at every corruption."
        tables.append(Table("corruptions", "Corruption by corruption", caption, head, rows))
    if per_image:
        rows = [
            [
                Cell(f.run),
                Cell(f.method),
                number(f.estimate.value, "{:.3f}"),
                interval(f.estimate, "{:.3f}"),
                number(f.estimate.p_value, "{:.2g}"),
                number(f.estimate.n, "{:.0f}"),
            ]
            for f in per_image
        ]
        head = ["run", "method", "AUROC", "95% interval", "p", "images"]
        caption = (
            "Does σ_max at an image tell whether more corruptions than the median change its prediction?"
        )
        tables.append(Table("images", "Across the images of a model", caption, head, rows))
    times = study.frame[study.frame["quantity"].isin(("time", "time.wall"))]
    if len(times):
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
        head = ["stage", "seconds", "which", "times run"]
        tables.append(
            Table(
                "times", "Where the time went", "Measuring runs its stages in several processes.", head, rows
            )
        )
    return tables
