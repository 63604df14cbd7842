"""What a study's folder holds, and which of its runs are pairs.

    STUDY/study.json            what was planned (written by train.sweep; absent for a folder of your own checkpoints)
    STUDY/runs/NAME/model.safetensors
    STUDY/records.jsonl         everything measured, one value per line
    STUDY/images/NAME.csv       what was measured per image
    STUDY/bits/NAME.npz         which images the probe has right under each condition, packed
    STUDY/figures/*.svg, report.html, report.md     drawn from the records alone

Which runs are pairs is in :mod:`analyses.paired_study.pairs`; what was planned in :mod:`analyses.paired_study.design`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    "CosineClassifier": "cosine classifier",
    "SupervisedCEB": "supervised CEB",
    "Random": "random encoder",
    "RawPixels": "raw pixels",
}
BASELINES = ("random encoder", "raw pixels")
# Methods whose runs differ in the objective alone, so that their noise may be pooled.
FAMILIES = (
    ("SimCLR", "SimCLR ×(1+β)", "SimCLR + noise", "C-SimCLR"),
    ("BYOL", "C-BYOL"),
    ("cosine classifier", "supervised CEB"),
)


@dataclass(frozen=True)
class Contrast:
    """A difference between two methods, and what it isolates; ``same_beta`` where the control has a beta too."""

    treated: str
    control: str
    meaning: str
    same_beta: bool = False

    @property
    def name(self) -> str:
        """As tables call it."""
        return f"{self.treated} − {self.control}"

    @property
    def family(self) -> tuple[str, ...]:
        """The methods that it belongs to."""
        return next((f for f in FAMILIES if self.treated in f), (self.treated, self.control))


CREDIT = Contrast(
    "C-SimCLR", "SimCLR ×(1+β)", "compression beyond its re-weighting: the vMF noise", same_beta=True
)
PLAIN = Contrast("C-SimCLR", "SimCLR", "the published pair: compression and re-weighting")
WEIGHT = Contrast("SimCLR ×(1+β)", "SimCLR", "re-weighting of the positive pair alone")
CONTRASTS = (
    CREDIT,
    PLAIN,
    WEIGHT,
    Contrast("C-BYOL", "BYOL", "the published pair; BYOL has no control of equal weight"),
    Contrast("SimCLR + noise", "SimCLR", "the vMF noise alone, at β = 0"),
    Contrast("supervised CEB", "cosine classifier", "compression of a supervised encoder"),
)


def read_plan(study: Path) -> dict[str, Any]:
    """study.json, or nothing for a folder without one."""
    file = study / "study.json"
    if not file.exists():
        return {}
    try:
        return dict(json.loads(file.read_text()))
    except (TypeError, ValueError) as error:  # no JSON, or no object
        raise ValueError(f"{file} is damaged ({error}); restore it or train the study again") from error


def models_table(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per run: who it is, how it came about, and its headline values by quantity."""
    identity = frame.drop_duplicates("subject.run").set_index("subject.run")
    table = pd.DataFrame(index=identity.index)
    table.index.name = "run"
    objective, architecture = (_column(identity, f"subject.{name}") for name in ("objective", "architecture"))
    table["method"] = [
        METHODS.get(str(name), str(name)) if pd.notna(name) else str(other) if pd.notna(other) else str(run)
        for run, name, other in zip(identity.index, objective, architecture, strict=True)
    ]
    for name in SUBJECT:
        table[name] = _column(identity, f"subject.{name}")
    shorter = lambda b: float(f"{b:.6g}")  # noqa: E731  (0.1 may have been float32)
    table["beta"] = table["beta"].map(shorter, na_action="ignore")
    for column, (quantity, settings) in HEADLINES.items():
        rows = frame[frame["quantity"] == quantity]
        for key, value in settings.items():
            rows = rows[_column(rows, f"settings.{key}") == value]
        values = rows.drop_duplicates("subject.run", keep="last").set_index("subject.run")["value"]
        table[column] = values.reindex(table.index).astype(float)
    for column, quantity in (("clean", "accuracy.clean"), ("corruption", "accuracy.corruption.mean")):
        again = frame[frame["quantity"] == f"{quantity}.refit"].groupby("subject.run")["value"]
        count, total = (part.reindex(table.index).fillna(0.0) for part in (again.count(), again.sum()))
        mean = (table[column] + total) / (1 + count)  # a probe fitted once has an error of its own (7.7)
        table[f"{column}_refitted"] = mean - table[column]
        if column == "clean":
            table["clean"], table["refit"] = mean, again.std().reindex(table.index)
    order = list(METHODS.values())
    rank = table["method"].map(lambda m: order.index(m) if m in order else len(order))
    return table.assign(_rank=rank).sort_values(["_rank", "beta", "seed"]).drop(columns="_rank")


def _column(frame: pd.DataFrame, name: str) -> pd.Series:
    return frame[name] if name in frame else pd.Series(index=frame.index, dtype=object)


# What a subject says of how a run came about.
SUBJECT = ("beta", "seed", "data", "data_hash", "recipe_hash", "architecture", "epochs", "perturb")

COMMON_KAPPA = 1024.0  # kappa_e at which the bounds of all models are compared

# Column of the models' table -> (quantity, settings) of the record that fills it.
HEADLINES: dict[str, tuple[str, dict[str, Any]]] = {
    "clean": ("accuracy.clean", {}),
    "corruption": ("accuracy.corruption.mean", {}),
    "shift": ("accuracy.shift", {}),
    "resolution": ("accuracy.resolution", {}),
    "residual": ("compression.residual_information", {"kappa": "common"}),
    "excess": ("compression.residual_excess", {"kappa": "common"}),
    "i_yz": ("compression.i_yz", {"kappa": "common"}),
    "published": ("bound.published.max", {"pairs": "views", "kappa_e": COMMON_KAPPA}),
    "mean_direction": ("bound.direction.max", {"pairs": "views", "kappa_e": COMMON_KAPPA}),
    "stretch": ("bound.direction.median", {"pairs": "corruptions", "kappa_e": COMMON_KAPPA}),
    "latent": ("sigma_max.median", {"layer": "latent"}),
    "features": ("sigma_max.median", {"layer": "backbone"}),
    "logits": ("sigma_max.median", {"layer": "logits"}),
    "rank": ("effective_rank", {}),
}
