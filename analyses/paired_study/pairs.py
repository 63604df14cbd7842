"""Which runs are pairs: by identity, never by seed alone (theory 7.3).

Two runs are a pair if they agree in everything that a subject says of how a run came about (:data:`IDENTITY`) and
differ in the objective. A folder may hold several data sets or recipes: runs that agree in all but seed and objective
are one *stratum*, and strata are never mixed: the headline is on the stratum with the most pairs of the primary
contrast, and all that is said beside it is on the same data. A treated run without a partner of its seed and kind is
refused, and the reason says what is missing or differs.
"""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analyses.paired_study.study import BASELINES, CONTRASTS, CREDIT, PLAIN, Contrast

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
DATA = ["data", "data_hash"]


@dataclass(frozen=True)
class Pairs:
    """The runs of one contrast that may be compared."""

    # by name of the stratum ("" if there is one): the runs of both methods, rows of the models' table
    strata: dict[str, pd.DataFrame]
    refused: tuple[str, ...]  # a sentence per treated run that has no partner of its kind
    # the stratum of the headline, or of another family the first on the same data; no row if there is none
    main: pd.DataFrame


class Pairing:
    """The pairs of a models' table.

    Parameters
    ----------
    models
        The models' table: method, beta, seed, and the columns of :data:`IDENTITY` as far as they are known.
    beta
        Take runs at this beta where there are any, and otherwise all, each with the control of its beta.
    """

    def __init__(self, models: pd.DataFrame, beta: float | None = None) -> None:
        self.models = models
        self._known = [name for name in IDENTITY if name in models and models[name].notna().any()]
        table = models.loc[models["seed"].notna(), ["method", "beta", "seed", *self._known]]
        self._rows = _at_beta(
            [
                _Run(str(run), method, told, number, tuple(map(_text, kind)))
                for run, method, told, number, *kind in table.itertuples()
            ],
            beta,
        )
        self._first = next((kinds for c in (CREDIT, PLAIN) if (kinds := self._strata(c)[0])), None)
        self._found: dict[str, Pairs] = {}

    def of(self, contrast: Contrast) -> Pairs:
        """The pairs of a contrast."""
        if contrast.name not in self._found:
            self._found[contrast.name] = self._pairs(contrast)
        return self._found[contrast.name]

    @functools.cached_property
    def headline(self) -> pd.DataFrame:
        """The paired runs that the headline is on."""
        found = self.of(CREDIT).main
        return found if len(found) else self.of(PLAIN).main

    @functools.cached_property
    def paired(self) -> pd.DataFrame:
        """The runs that verdicts are on: of one recipe in each family."""
        runs = {run for contrast in CONTRASTS for run in self.of(contrast).main.index}
        return self.models[self.models.index.isin(runs)]

    @functools.cached_property
    def main(self) -> pd.DataFrame:
        """Trained runs on the data of the headline, or that most share; of paired methods, of the paired recipe."""
        models, paired = self.models, self.paired.index
        method = models["method"]
        kind = models[["method", *WITHIN]].astype(object).fillna("").astype(str).agg(" ".join, axis=1)
        others = method.isin(method[paired]) & ~kind.isin(kind[paired])
        trained = models[~method.isin(BASELINES) & ~others]
        keys = [
            f"{data}/{content}" for data, content in zip(trained["data"], trained["data_hash"], strict=True)
        ]
        first = set(self.headline.index)
        chosen = [key for run, key in zip(trained.index, keys, strict=True) if run in first] or keys
        most = max(dict.fromkeys(chosen), key=chosen.count, default="")
        return trained[np.array([key == most for key in keys], dtype=bool)]

    def _pairs(self, contrast: Contrast) -> Pairs:
        known = self._known
        found, refused = self._strata(contrast)
        first = self._first or found
        # methods of one family share all but the objective; of another one, the data
        shared = WITHIN if contrast.family == CREDIT.family else DATA
        like = [i for i, name in enumerate(known) if name in shared]
        wanted = next(([kind[i] for i in like] for kind in first), [])
        main = next((runs for kind, runs in found.items() if [kind[i] for i in like] == wanted), [])
        varying = [
            i
            for i, name in enumerate(known)
            if name in WITHIN and len({k[i] for k in (*found, *(first if name in shared else ()))}) > 1
        ]
        tables = {
            ", ".join(f"{IDENTITY[known[i]]} {kind[i]}" for i in varying): self.models.loc[runs]
            for kind, runs in sorted(found.items(), key=lambda each: each[1] is not main)
        }
        return Pairs(tables, refused, self.models.loc[main])

    def _strata(self, contrast: Contrast) -> tuple[dict[tuple[str, ...], list[str]], tuple[str, ...]]:
        """The paired runs by kind, the one with the most seeds first; and why the others are not paired."""
        known, paired, refused = self._known, dict[str, _Run](), []
        controls = [r for r in self._rows if r.method == contrast.control]
        for one in (r for r in self._rows if r.method == contrast.treated):
            partners = [r for r in controls if r.seed == one.seed]
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
            elif controls and not partners:
                refused.append(f"{one.run} is not paired: there is no {contrast.control} of its seed")
        within = [i for i, name in enumerate(known) if name in WITHIN]
        kinds: dict[tuple[str, ...], list[_Run]] = {}
        for r in paired.values():
            kinds.setdefault(tuple(k if i in within else "" for i, k in enumerate(r.kind)), []).append(r)
        order = sorted(kinds, key=lambda kind: (-len({r.seed for r in kinds[kind]}), kind))
        return {kind: [r.run for r in kinds[kind]] for kind in order}, tuple(refused)


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
