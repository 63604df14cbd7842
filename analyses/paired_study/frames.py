"""A study's records as the tidy frames that tables and figures are drawn from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analyses.paired_study.study import RECORDS, models_table, read_plan
from lipcomp.records import read_records, to_frame

BOUND_ROWS = (
    ("published", "(3.1) published, √KL"),
    ("mean", "(3.2) mean, KL"),
    ("second_moment", "(3.3) second moment, typical z"),
    ("supremum", "(3.4) supremum, worst z"),
)


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


def bound_rows(study: Study) -> pd.DataFrame:
    """The lower bounds at the common concentration over positive pairs, and kappa times the largest sigma_max."""
    frame, rows = study.frame, []
    for quantity, label in BOUND_ROWS:
        chosen = frame[frame["quantity"] == f"bound.{quantity}.max"]
        if len(chosen):
            chosen = chosen.query("`settings.pairs` == 'views' and `settings.kappa` == 'common'")
        rows += [
            (run, label, value) for run, value in zip(chosen["subject.run"], chosen["value"], strict=True)
        ]
    sigma = frame[frame["quantity"] == "sigma_max.max"]
    sigma = sigma[sigma["settings.layer"] == "latent"] if len(sigma) else sigma
    kappa = 1024.0
    rows += [
        (run, "κ·σ_max, largest at a test image", kappa * value)
        for run, value in zip(sigma["subject.run"], sigma["value"], strict=True)
    ]
    table = pd.DataFrame(rows, columns=["run", "bound", "value"])
    return table.assign(method=table["run"].map(study.models["method"]))
