"""Which runs are pairs: by identity, never by seed alone (theory 7.3).

Two runs are a pair if they agree in everything that a subject says of how a run came about (:data:`IDENTITY`) and
differ in the objective. A folder may hold several data sets or recipes: runs that agree in all but seed and objective
are one *stratum*, and strata are never mixed. A run that finds partners of its seed but none of its kind is refused,
and the reason names what differs.
"""

from collections import Counter
from dataclasses import dataclass

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
    members = models[models["method"].isin([contrast.treated, contrast.control]) & models["seed"].notna()]
    members = _at_beta(members, beta)
    known = [field for field in IDENTITY if field in members and members[field].notna().any()]
    keys = pd.Series(
        [tuple(_text(v) for v in row) for row in members[known].itertuples(index=False)],
        index=members.index,
        dtype=object,
    )
    chosen: list[str] = []
    refused = []
    for run, row in zip(map(str, members.index), members.to_dict("records"), strict=True):
        if row["method"] != contrast.treated:
            continue
        partners = members[(members["method"] == contrast.control) & (members["seed"] == row["seed"])]
        if contrast.same_beta:
            partners = partners[partners["beta"] == row["beta"]]
        same = [p for p in partners.index if keys[p] == keys[run]]
        if same:
            chosen += [run, *same]
        elif len(partners):
            differs = Counter(
                IDENTITY[field]
                for p in partners.index
                for field, a, b in zip(known, keys[run], keys[p], strict=True)
                if a != b
            )
            refused.append(
                f"{run} is not paired with {', '.join(map(str, partners.index))}: they differ in {', '.join(differs)}"
            )
    table = members.loc[list(dict.fromkeys(chosen))]
    fields = [field for field in WITHIN if field in known]
    if not len(table):
        return Pairs({}, tuple(refused), models.iloc[:0])
    labels = pd.Series(
        [tuple(_text(v) for v in row) for row in table[fields].itertuples(index=False)],
        index=table.index,
        dtype=object,
    )
    varying = [i for i in range(len(fields)) if len({label[i] for label in labels}) > 1]
    names = labels.map(lambda label: ", ".join(f"{IDENTITY[fields[i]]} {label[i]}" for i in varying))
    strata = {str(name): rows for name, rows in table.groupby(names, sort=True)}
    order = sorted(strata, key=lambda name: (-strata[name]["seed"].nunique(), name))
    return Pairs({name: strata[name] for name in order}, tuple(refused), models.iloc[:0])


def _at_beta(members: pd.DataFrame, beta: float | None) -> pd.DataFrame:
    """Of every method that was trained at several betas, the runs at ``beta`` if it has them."""
    if beta is None or not len(members):
        return members
    parts = []
    for _, rows in members.groupby("method", sort=False):
        at = rows[rows["beta"] == beta]
        parts.append(at if len(at) else rows)
    return pd.concat(parts)


def _text(value: object) -> str:
    return "" if pd.isna(value) else str(value)  # type: ignore[call-overload]
