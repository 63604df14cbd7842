"""What the studies' tests share: made-up models whose truth is known, as a table and as records."""

import numpy as np
import pandas as pd
import pytest

from analyses.paired_study.study import METHODS
from lipcomp.records import Record, append_records

OBJECTIVES = ("SimCLR", "WeightedSimCLR", "CSimCLR", "BYOL", "CBYOL")


def made_up_models(seeds=4, smoother=0.5, more_robust=0.0, noise=0.02, seed=0):
    """A table in which compression multiplies sigma by ``smoother`` and adds ``more_robust`` to accuracy."""
    rng = np.random.default_rng(seed)
    rows = []
    for objective in OBJECTIVES:
        compressed = objective in ("CSimCLR", "CBYOL")
        for s in range(seeds):
            base = np.exp(0.3 * s)
            rows.append(
                {
                    "run": f"{objective}-{s}",
                    "method": METHODS[objective],
                    "beta": 1.0 if "C" in objective[:1] or objective == "WeightedSimCLR" else None,
                    "seed": s,
                    "data": "mnist5k/train",
                    "sigma": base * (smoother if compressed else 1.0) * np.exp(noise * rng.normal()),
                    "stretch": base * np.exp(noise * rng.normal()),
                    "clean": 0.95 + 0.01 * rng.normal(),
                    "corruption": 0.7 + (more_robust if compressed else 0.0) + 0.01 * rng.normal(),
                    "shift": 0.6 + 0.01 * rng.normal(),
                    "excess": 1.0 + rng.random(),
                }
            )
    return pd.DataFrame(rows).set_index("run")


def write_records(folder, table):
    """Records as the measuring stage writes them."""
    records = []
    for run, row in table.iterrows():
        objective = {label: name for name, label in METHODS.items()}[row["method"]]
        subject = {"run": run, "objective": objective, "seed": int(row["seed"]), "sha256": f"{run:0>16}"}
        if row["beta"] == row["beta"] and row["beta"] is not None:
            subject["beta"] = row["beta"]
        told = {"lipcomp": "test", "time": "2026-01-01T00:00:00+00:00"}
        values = [
            ("accuracy.clean", row["clean"], {}),
            ("accuracy.corruption.mean", row["corruption"], {}),
            ("accuracy.shift", row["shift"], {}),
            ("compression.residual_excess", row["excess"], {"kappa": "common"}),
            ("bound.direction.median", row["stretch"], {"pairs": "corruptions"}),
            ("sigma_max.median", row["sigma"], {"layer": "latent", "rtol": 1e-4}),
            ("sigma_max.max", 2 * row["sigma"], {"layer": "latent"}),
            ("time", 3.0, {"stage": "jacobian"}),
        ]
        values += [
            (f"bound.{n}.max", 1.0 + i, {"pairs": "views", "kappa": "common"})
            for i, n in enumerate(("published", "mean", "second_moment", "supremum"))
        ]
        values += [
            ("accuracy.corruption", row["corruption"] - 0.1 * i, {"corruption": c, "severity": s})
            for i, c in enumerate(("fog", "<b>&snow"))
            for s in (1, 5)
        ]
        records += [Record(q, v, n=100, subject=subject, settings=s, provenance=told) for q, v, s in values]
        rng = np.random.default_rng(1)
        frame = pd.DataFrame({"image": range(50), "sigma": rng.lognormal(size=50), "flipped": rng.random(50)})
        (folder / "images").mkdir(exist_ok=True, parents=True)
        frame.to_csv(folder / "images" / f"{run}.csv", index=False)
    records.append(Record("time.wall", 60.0, "s", settings={"stage": "train"}))  # of no single run
    append_records(folder / "records.jsonl", records)


@pytest.fixture(scope="session")
def models():
    """The function that makes a table of models."""
    return made_up_models


@pytest.fixture(scope="session")
def make_records():
    """The function that writes a table's records into a folder."""
    return write_records
