"""Which runs are pairs: by identity, never by seed alone (theory 7.3).

Two runs are a pair if they agree in everything that a subject says of how a run came about (:data:`IDENTITY`) and
differ in the objective. A folder may hold several data sets or recipes: runs that agree in all but seed and objective
are one *stratum*, and strata are never mixed. A run that finds partners of its seed but none of its kind is refused,
and the reason names what differs.
"""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from analyses.paired_study.study import Contrast

# Field of the subject -> how a reason calls it.
IDENTITY = {
    "data": "data",
    "data_hash": "training images",
    "recipe_hash": "recipe",
    "architecture": "architecture",
    "epochs": "schedule",
    "perturb": "perturbation",
}
WITHIN = [field for field in IDENTITY if field != "perturb"]  # what a stratum shares


@dataclass(frozen=True)
class Pairs:
    """The runs of one contrast that may be compared.

    Parameters
    ----------
    strata
        By name of the stratum ("" if there is one): the runs of both methods, rows of the models' table.
    refused
        A sentence per treated run that has no partner of its kind.
    nothing
        The models' table without a row.
    """

    strata: dict[str, pd.DataFrame]
    refused: tuple[str, ...]
    nothing: pd.DataFrame

    @property
    def main(self) -> pd.DataFrame:
        """The stratum with the most seeds that hold both methods, the first of several; no row without any."""
        return next(iter(self.strata.values()), self.nothing)


def find_pairs(models: pd.DataFrame, contrast: Contrast, beta: float | None = None) -> Pairs:
    """Pair the runs of a contrast.

    Parameters
    ----------
    models
        The models' table: method, beta, seed, and the columns of :data:`IDENTITY` as far as they are known.
    contrast
        Which methods.
    beta
        Take runs at this beta where there are any, and otherwise all, each with the control of its beta.
    """
    known = [field for field in IDENTITY if field in models and models[field].notna().any()]
    chosen = models["method"].isin([contrast.treated, contrast.control]) & models["seed"].notna()
    rows = _at_beta(
        [
            _Run(str(run), method, told, number, tuple(map(_text, kind)))
            for run, method, told, number, *kind in models.loc[
                chosen, ["method", "beta", "seed", *known]
            ].itertuples()
        ],
        beta,
    )
    paired: dict[str, _Run] = {}
    refused = []
    for one in (r for r in rows if r.method == contrast.treated):
        partners = [r for r in rows if r.method == contrast.control and r.seed == one.seed]
        at_beta = [r for r in partners if r.beta == one.beta or not contrast.same_beta]
        same = [r for r in at_beta if r.kind == one.kind]
        partners = at_beta or partners
        paired |= {r.run: r for r in (one, *same)} if same else {}
        if partners and not same:
            differs = [
                IDENTITY[name]
                for i, name in enumerate(known)
                if any(r.kind[i] != one.kind[i] for r in partners)
            ]
            differs += [] if at_beta else ["β"]
            others = ", ".join(r.run for r in partners)
            refused.append(f"{one.run} is not paired with {others}: they differ in {', '.join(differs)}")
    shared = [i for i, name in enumerate(known) if name in WITHIN]
    varying = [i for i in shared if len({r.kind[i] for r in paired.values()}) > 1]
    strata: dict[str, list[_Run]] = {}
    for r in paired.values():
        strata.setdefault(", ".join(f"{IDENTITY[known[i]]} {r.kind[i]}" for i in varying), []).append(r)
    order = sorted(strata, key=lambda name: (-len({r.seed for r in strata[name]}), name))
    tables = {name: models.loc[[r.run for r in strata[name]]] for name in order}
    return Pairs(tables, tuple(refused), models.iloc[:0])


@dataclass(frozen=True)
class _Run:
    """A run as far as pairing asks: ``kind`` holds the fields of :data:`IDENTITY` that are known."""

    run: str
    method: str
    beta: float | None
    seed: Any
    kind: tuple[str, ...]


def _at_beta(runs: list[_Run], beta: float | None) -> list[_Run]:
    """Of every method that was trained at several betas, the runs at ``beta`` if it has them."""
    held = {r.method for r in runs if r.beta == beta}
    return [r for r in runs if beta is None or r.method not in held or r.beta == beta]


def _text(value: object) -> str:
    return "" if pd.isna(value) else str(value)  # type: ignore[call-overload]
