"""Draw a study's report from its records alone: one self-contained HTML file, the same as Markdown, the figures.

    python -m analyses.paired_study.report studies/default

Reads records.jsonl and images/*.csv in the study's folder (what the measuring stage wrote) and nothing else; writes
report.html, report.md and figures/. The place of the report is the last line printed.
"""

import base64
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from analyses.paired_study import figures
from analyses.paired_study.answer import (
    Effect,
    answer,
    associations,
    corruption_effects,
    image_findings,
    paired_effects,
)
from analyses.paired_study.methods import methods_text
from analyses.paired_study.study import METHODS, RECORDS, models_table, read_plan
from lipcomp.checkpoints.native import atomic_file
from lipcomp.commands import Parser, run
from lipcomp.records import read_records, to_frame
from lipcomp.statistics import Estimate

BOUND_ROWS = (
    ("published", "(3.1) published, √KL"),
    ("mean", "(3.2) mean, KL"),
    ("second_moment", "(3.3) second moment, typical z"),
    ("supremum", "(3.4) supremum, worst z"),
)


@dataclass(frozen=True)
class Cell:
    """A table's cell: what is shown, and the number it sorts by."""

    text: str
    sort: float | None = None
    words: bool = False


@dataclass(frozen=True)
class Table:
    """A table of the report."""

    name: str
    title: str
    caption: str
    head: list[str]
    rows: list[list[Cell]]


@dataclass(frozen=True)
class Study:
    """The tidy frames that figures and tables are drawn from."""

    frame: pd.DataFrame
    models: pd.DataFrame
    images: pd.DataFrame
    corruptions: pd.DataFrame
    plan: dict[str, Any]


def load_study(folder: Path) -> Study:
    """Read a study's records.

    Raises
    ------
    FileNotFoundError
        If nothing has been measured in the folder.
    """
    file = folder / RECORDS
    if not file.exists():
        raise FileNotFoundError(
            f"{folder} holds no {RECORDS}: measure it first with: python -m analyses.paired_study.measure {folder}"
        )
    frame = to_frame(read_records(file))
    if frame.empty or "subject.run" not in frame:
        raise ValueError(f"{file} holds no record of a study's run; measure the study again")
    if "subject.sha256" in frame:  # a run that was trained anew: its last measurement counts
        last = frame.groupby("subject.run")["subject.sha256"].transform("last")
        frame = frame[frame["subject.sha256"].isna() | (frame["subject.sha256"] == last)].copy()
    models = models_table(frame[frame["subject.run"].notna()])
    method = models["method"]
    parts = []
    for name in models.index:
        path = folder / "images" / f"{name}.csv"
        if path.exists():
            parts.append(pd.read_csv(path).assign(run=name, method=method[name]))
    images = pd.DataFrame(columns=["run", "method", "image", "sigma", "flipped"])
    if parts:  # an image counts once it was measured in every stage
        images = pd.concat([images, *parts]).dropna(subset=["sigma", "flipped"]).reset_index(drop=True)
    corrupted = frame[frame["quantity"] == "accuracy.corruption"]
    corruptions = pd.DataFrame(
        {
            "run": corrupted["subject.run"],
            "method": corrupted["subject.run"].map(method),
            "corruption": corrupted.get("settings.corruption", pd.Series(dtype=object)),
            "severity": corrupted.get("settings.severity", pd.Series(dtype=float)),
            "value": corrupted["value"],
        }
    )
    return Study(frame, models, images, corruptions, read_plan(folder))


def number(value: float | None, form: str = "{:.3g}") -> Cell:
    """A cell that holds a number, or a dash."""
    if value is None or not np.isfinite(value):
        return Cell("–")
    return Cell(form.format(value), float(value))


def interval(estimate: Estimate, form: str = "{:+.3g}") -> Cell:
    """A cell that holds an interval."""
    if estimate.interval is None:
        return Cell("–")
    return Cell(" to ".join(form.format(end) for end in estimate.interval), float(estimate.interval[0]))


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
        "isolates",
    ]
    caption = (
        "Mean of the differences within pairs; p by sign-flip permutation, next to the smallest p that so many "
        "pairs allow."
    )
    return Table("effects", "Paired effects", caption, head, rows)


def build_tables(
    study: Study, effects: Sequence[Effect], found: Sequence[Any], per_image: Sequence[Any]
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
        head = ["level", "smoothness", "robustness", "measure", "value", "95% interval", "p", "n"]
        caption = "A negative value: smoother goes with more accurate."
        tables.append(Table("associations", "Smoothness and robustness", caption, head, rows))
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
    times = study.frame[study.frame["quantity"] == "time"]
    if len(times):
        sums = times.groupby("settings.stage", sort=False)["value"].agg(["sum", "count"])
        rows = [
            [Cell(str(stage)), number(row["sum"], "{:.0f}"), number(row["count"], "{:.0f}")]
            for stage, row in sums.iterrows()
        ]
        head = ["stage", "seconds of one process", "times run"]
        tables.append(Table("times", "Where the time went", "Added over all processes.", head, rows))
    return tables


def build_figures(study: Study, effects: Sequence[Effect]) -> list[figures.Drawn]:
    """All figures for which there is data."""
    models, drawn = study.models, []
    wanted = [e for e in effects if e.estimate.value is not None]
    if wanted:
        drawn.append(
            figures.draw(
                "forest",
                "Paired effects",
                "Mean difference within pairs (same seed, weights, data order and draws) with its 95% interval; ticks "
                "are the single pairs. Left of zero in the first two panels is smoother, right of zero in the "
                "others better.",
                "Forest plot of paired effects: "
                + "; ".join(f"{e.contrast}, {e.label}: {e.value:+.2f} {e.unit}" for e in wanted),
                lambda: figures.forest(wanted),
            )
        )
    targets = {"corruption": "mean corruption accuracy", "shift": "accuracy on UCI digits"}
    targets = {k: v for k, v in targets.items() if models[k].notna().any()}
    if targets and models["sigma"].notna().any():
        drawn.append(
            figures.draw(
                "scatter",
                "Smoothness against robustness",
                "A point a model; a line joins a compressed model with its uncompressed twin.",
                f"Scatter plot of the median local Lipschitz constant against {' and '.join(targets.values())}, "
                f"{len(models)} models",
                lambda: figures.scatter_with_pairs(
                    models, "sigma", targets, "median σ_max(J), 1 per pixel L2"
                ),
            )
        )
    if models["excess"].notna().any() and models["sigma"].notna().any():
        drawn.append(
            figures.draw(
                "compression",
                "Compression and smoothness",
                "Excess residual information over the floor that the two concentrations set, on held-out views.",
                "Scatter plot of the excess residual information against the median local Lipschitz constant",
                lambda: figures.compression_and_smoothness(models),
            )
        )
    if len(study.corruptions):
        drawn.append(
            figures.draw(
                "corruptions",
                "Accuracy under each corruption",
                "Linear probe on the pooled features; mean over five severities and the seeds.",
                "Heat map of accuracy by corruption and method",
                lambda: figures.corruption_heat_map(study.corruptions),
            )
        )
    bounds = bound_rows(study)
    if len(bounds):
        drawn.append(
            figures.draw(
                "bounds",
                "How tight each lower bound is",
                "Largest value over the positive pairs of the test images, all at κ = 1024; κ·σ_max is the largest "
                "local constant at a test image. The supremum bound's constant is the one that the Jacobian measures.",
                "Dot plot of the lower bounds (3.1) to (3.4) and of kappa times the largest spectral norm, by method",
                lambda: figures.bound_sandwich(bounds),
            )
        )
    if len(study.images):
        drawn += [
            figures.draw(
                "distributions",
                "The local constant over the test images",
                "Distribution of σ_max(J) of the mean direction; lines are the quartiles.",
                "Violin plots of the spectral norm of the Jacobian, by method",
                lambda: figures.distributions(study.images),
            ),
            figures.draw(
                "flips",
                "Image by image: does a larger local constant mean a less stable prediction?",
                "Share of the corruptions (all kinds and severities) that change the probe's prediction of an image.",
                "Line plot of the share of corruptions that change the prediction by decile of the local constant",
                lambda: figures.flips_by_smoothness(study.images),
            ),
        ]
    return drawn


def bound_rows(study: Study) -> pd.DataFrame:
    """The lower bounds at the common concentration over positive pairs, and kappa times the largest sigma_max."""
    frame, rows = study.frame, []
    for quantity, label in BOUND_ROWS:
        chosen = frame[frame["quantity"] == f"bound.{quantity}.max"]
        chosen = chosen[
            (chosen.get("settings.pairs") == "views") & (chosen.get("settings.kappa") == "common")
        ]
        rows += [
            (run, label, value) for run, value in zip(chosen["subject.run"], chosen["value"], strict=True)
        ]
    sigma = frame[(frame["quantity"] == "sigma_max.max") & (frame.get("settings.layer") == "latent")]
    kappa = 1024.0
    rows += [
        (run, "κ·σ_max, largest at a test image", kappa * value)
        for run, value in zip(sigma["subject.run"], sigma["value"], strict=True)
    ]
    table = pd.DataFrame(rows, columns=["run", "bound", "value"])
    return table.assign(method=table["run"].map(study.models["method"]))


def provenance_rows(study: Study) -> list[tuple[str, str]]:
    """Versions, device and times that the records name."""
    rows = []
    for column in sorted(c for c in study.frame if c.startswith("provenance.")):
        values = sorted({str(v) for v in study.frame[column].dropna()})
        name = column.removeprefix("provenance.")
        if name == "time":
            rows.append(("measured", f"{values[0]} to {values[-1]}"))
        else:
            rows.append((name, ", ".join(values[:6])))
    if "subject.sha256" in study.frame:
        hashes = study.frame.drop_duplicates("subject.run").set_index("subject.run")["subject.sha256"]
        rows.append(("checkpoints", ", ".join(f"{run} {value[:12]}" for run, value in hashes.items())))
    return rows


def make_report(folder: Path) -> tuple[Path, list[str]]:
    """Write report.html, report.md and figures/ into a study's folder; returns the HTML's path and the answer."""
    study = load_study(folder)
    effects = paired_effects(study.models)
    found = associations(study.models)
    per_image = image_findings(study.images)
    drawn = build_figures(study, effects)
    tables = build_tables(study, effects, found, per_image)
    methods = [m for m in METHODS.values() if m in set(study.models["method"])]
    seeds = study.models["seed"].nunique()
    cautions = []
    if study.plan.get("preset") == "quick":
        cautions.append(f"This study is {study.plan['purpose']}.")
    missing = sorted(set(study.plan.get("runs", {})) - set(study.models.index))
    if missing:
        cautions.append(f"{len(missing)} planned runs are missing here: {', '.join(missing)}.")
    records = (folder / RECORDS).read_bytes()
    images_csv = study.images.to_csv(index=False).encode() if len(study.images) else b""
    values: dict[str, Any] = {
        "title": "Does compression make the encoder smoother, and does smoothness make it robust?",
        "subtitle": f"{len(study.models)} models: {', '.join(methods)}; {seeds} seed{'s' if seeds != 1 else ''}.",
        "answer": answer(effects, found, per_image),
        "cautions": cautions,
        "figures": drawn,
        "tables": tables,
        "methods": methods_text(study.frame),
        "provenance": provenance_rows(study),
        "record_count": len(study.frame),
        "records_uri": _data_uri("application/jsonl", records),
        "images_uri": _data_uri("text/csv", images_csv) if images_csv else "",
    }
    for figure in drawn:
        _write(folder / "figures" / f"{figure.name}.png", figure.png)
        _write(folder / "figures" / f"{figure.name}.svg", figure.light.encode())
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for target in ("report.md", "report.html"):
        text = environment.get_template(f"{target}.j2").render(values)
        _write(folder / target, text.encode())
    return folder / "report.html", values["answer"]


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _write(path: Path, content: bytes) -> None:
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the report."""
    parser = Parser(prog="python -m analyses.paired_study.report", description=__doc__)
    parser.add_argument("study", type=Path, help="the study's folder")
    options = parser.parse_args(arguments)
    path, sentences = make_report(options.study)
    print(textwrap.fill(" ".join(sentences), 100))
    print(path.resolve())
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
