"""What a study's folder holds, and which of its runs are pairs.

    STUDY/study.json            what was planned (written by train.sweep; absent for a folder of your own checkpoints)
    STUDY/runs/NAME/model.safetensors
    STUDY/records.jsonl         everything measured, a value a line
    STUDY/images/NAME.csv       what was measured image by image
    STUDY/figures/*.svg, report.html, report.md     drawn from the records alone

A *pair* is two runs of one seed that share initial weights, data order and augmentation draws and differ in the
objective. Which member stands for what is in the names of their objectives.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

RECORDS = "records.jsonl"

# Objective -> how it is called in figures and tables, in the order they are shown.
METHODS = {
    "SimCLR": "SimCLR",
    "WeightedSimCLR": "SimCLR ×(1+β)",
    "NoisySimCLR": "SimCLR + noise",
    "CSimCLR": "C-SimCLR",
    "BYOL": "BYOL",
    "CBYOL": "C-BYOL",
    "SupervisedCE": "supervised",
    "SupervisedCEB": "supervised CEB",
}


@dataclass(frozen=True)
class Contrast:
    """A difference between two members of a pair, and what it isolates."""

    name: str
    treated: str
    control: str
    compression: bool
    meaning: str


CONTRASTS = (
    Contrast("C-SimCLR − SimCLR", "C-SimCLR", "SimCLR", True, "compression, as published"),
    Contrast("C-BYOL − BYOL", "C-BYOL", "BYOL", True, "compression, as published"),
    Contrast(
        "SimCLR ×(1+β) − SimCLR",
        "SimCLR ×(1+β)",
        "SimCLR",
        False,
        "the weight of the positive pair alone, without latent noise",
    ),
    Contrast(
        "C-SimCLR − SimCLR ×(1+β)",
        "C-SimCLR",
        "SimCLR ×(1+β)",
        False,
        "what compression does beyond re-weighting: the vMF noise",
    ),
    Contrast("SimCLR + noise − SimCLR", "SimCLR + noise", "SimCLR", False, "the vMF noise alone, at β = 0"),
)


def read_plan(study: Path) -> dict[str, Any]:
    """study.json, or nothing for a folder without one."""
    file = study / "study.json"
    if not file.exists():
        return {}
    try:
        plan = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}); restore it or train the study again") from error
    return dict(plan)


def models_table(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a run: who it is, and its headline values by quantity.

    Parameters
    ----------
    frame
        The records (``lipcomp.records.to_frame``).
    """
    identity = frame.drop_duplicates("subject.run").set_index("subject.run")
    table = pd.DataFrame(index=identity.index)
    table.index.name = "run"
    objective = identity.get("subject.objective", pd.Series(index=identity.index, dtype=object))
    architecture = identity.get("subject.architecture", pd.Series(index=identity.index, dtype=object))
    table["method"] = [
        METHODS.get(str(name), str(name)) if pd.notna(name) else str(other) if pd.notna(other) else str(run)
        for run, name, other in zip(identity.index, objective, architecture, strict=True)
    ]
    for name in ("beta", "seed", "data"):
        table[name] = identity.get(f"subject.{name}", pd.Series(index=identity.index, dtype=object))
    for column, (quantity, settings) in HEADLINES.items():
        rows = frame[frame["quantity"] == quantity]
        for key, value in settings.items():
            rows = rows[rows.get(f"settings.{key}", pd.Series(index=rows.index, dtype=object)) == value]
        table[column] = rows.drop_duplicates("subject.run", keep="last").set_index("subject.run")["value"]
    order = list(METHODS.values())
    rank = table["method"].map(lambda m: order.index(m) if m in order else len(order))
    return table.assign(_rank=rank).sort_values(["_rank", "beta", "seed"]).drop(columns="_rank")


# Column of the models' table -> (quantity, settings) of the record that fills it.
HEADLINES: dict[str, tuple[str, dict[str, Any]]] = {
    "clean": ("accuracy.clean", {}),
    "corruption": ("accuracy.corruption.mean", {}),
    "shift": ("accuracy.shift", {}),
    "resolution": ("accuracy.resolution", {}),
    "residual": ("compression.residual_information", {"kappa": "common"}),
    "excess": ("compression.residual_excess", {"kappa": "common"}),
    "i_yz": ("compression.i_yz", {}),
    "published": ("bound.published.max", {"pairs": "views", "kappa_e": 1024.0}),
    "mean_direction": ("bound.direction.max", {"pairs": "views", "kappa_e": 1024.0}),
    "stretch": ("bound.direction.median", {"pairs": "corruptions", "kappa_e": 1024.0}),
    "sigma": ("sigma_max.median", {"layer": "latent"}),
    "sigma_top": ("sigma_max.max", {"layer": "latent"}),
    "sigma_backbone": ("sigma_max.median", {"layer": "backbone"}),
    "rank": ("effective_rank", {}),
}


def pair_table(
    models: pd.DataFrame, contrast: Contrast, column: str, *, logarithm: bool = False
) -> pd.DataFrame:
    """The two members of every pair of a contrast, side by side: seed, beta, treated, control.

    The uncompressed member has no beta; it is the control of every beta of its seed.
    """
    treated = models[models["method"] == contrast.treated]
    control = models[models["method"] == contrast.control].set_index(["seed"])
    rows = []
    for run, row in treated.iterrows():
        if row["seed"] not in control.index:
            continue
        partner = control.loc[[row["seed"]]]
        if contrast.control == "SimCLR ×(1+β)":
            partner = partner[partner["beta"] == row["beta"]]
        if len(partner):
            rows.append((run, row["seed"], row["beta"], row[column], partner.iloc[0][column]))
    table = pd.DataFrame(rows, columns=["run", "seed", "beta", "treated", "control"]).dropna(
        subset=["treated", "control"]
    )
    if logarithm:
        table[["treated", "control"]] = np.log(table[["treated", "control"]])
    return table
