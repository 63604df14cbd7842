"""The verdicts of a study: every outcome of every contrast, with seeds as the unit and credit against the control.

The primary rows are those that the design named before the data; all others are exploratory, and their p-values are
adjusted over all of them (Holm). ``given_clean`` is corruption accuracy at equal clean accuracy. A regression on few
seeds with a clean accuracy measured on some hundred images finds effects that are not there (7.7), so nothing is
fitted: the interval covers the difference in corruption accuracy minus k times that in clean accuracy for every k
between the ends of the design's range.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from analyses.paired_study.comparison import RATIOS, Comparison, compare
from analyses.paired_study.design import Design
from analyses.paired_study.frames import Study
from analyses.paired_study.study import CONTRASTS, CREDIT, PLAIN, Contrast
from lipcomp.statistics import adjust, contrast, decide
from lipcomp.statistics._units import Contrast as Effect
from lipcomp.statistics._verdict import Verdict, Zone, units_needed


@dataclass(frozen=True)
class Outcome:
    """A quantity whose difference between methods is judged; ``better`` is the sign of an improvement."""

    key: str
    label: str
    short: str
    better: int
    more: str
    less: str

    @property
    def ratio(self) -> bool:
        """Whether it is compared as a ratio (of local constants) and not in points (of accuracy)."""
        return self.key in RATIOS


OUTCOMES = (
    Outcome("features", "σ of the probed features", "features", -1, "less smooth", "smoother"),
    Outcome(
        "given_clean",
        "corruption accuracy at equal clean accuracy",
        "at equal clean accuracy",
        1,
        "more accurate",
        "less accurate",
    ),
    Outcome("corruption", "corruption accuracy", "corruptions", 1, "more accurate", "less accurate"),
    Outcome("clean", "clean accuracy", "clean", 1, "more accurate", "less accurate"),
    Outcome(
        "shift", "accuracy under the natural shift", "natural shift", 1, "more accurate", "less accurate"
    ),
    Outcome("logits", "σ of the probe's logits", "logits", -1, "less smooth", "smoother"),
    Outcome("latent", "σ of the latent", "latent", -1, "less smooth", "smoother"),
    Outcome("stretch", "‖Δμ‖/‖Δx‖ over corruptions", "‖Δμ‖/‖Δx‖", -1, "less smooth", "smoother"),
)


@dataclass(frozen=True)
class Row:
    """One verdict."""

    outcome: Outcome
    contrast: Contrast  # between which methods
    stratum: str  # which data or recipe, where the folder holds several; "" otherwise
    main: bool  # whether it is of the stratum that the headline is on
    primary: bool  # whether the design named it before the data
    effect: Effect  # the estimate over seeds, in log ratios or points
    zone: Zone  # the equivalence zone, in the same unit
    verdict: Verdict  # what the interval says
    needed: int | None = None  # how many seeds in all would decide; None if none is known to
    adjusted_p: float | None = None  # of an exploratory row, over all of them (Holm)
    note: str = ""  # what limits it; may be empty
    fragile: str = ""  # the seed without which the verdict would be another one; "" if there is none

    @property
    def direction(self) -> int:
        """Sign of a yes; 0 otherwise."""
        if self.verdict is not Verdict.YES or self.effect.value is None:
            return 0
        return 1 if self.effect.value > 0 else -1

    @property
    def word(self) -> str:
        """What a yes says of the treated method; "" if it is no yes."""
        return {1: self.outcome.more, -1: self.outcome.less, 0: ""}[self.direction]


@dataclass(frozen=True)
class Verdicts:
    """All rows, and the pairs that were refused."""

    rows: tuple[Row, ...]
    refused: tuple[str, ...]
    strata: tuple[str, ...]

    def find(self, key: str, contrast: Contrast) -> Row | None:
        """The row of an outcome and contrast in the main stratum."""
        return next(
            (r for r in self.rows if r.main and r.outcome.key == key and r.contrast == contrast), None
        )


def judge(study: Study) -> Verdicts:
    """Every verdict of a study: primary ones first, then contrast by contrast."""
    rows: list[Row] = []
    refused: dict[str, None] = {}
    strata: dict[str, None] = {}
    for found in CONTRASTS:
        pairs = study.pairs.of(found)
        refused |= dict.fromkeys(pairs.refused)
        for name, members in pairs.strata.items():
            strata |= {name: None} if name else {}
            comparison = compare(study, members, found)
            for outcome in OUTCOMES:
                row = judge_one(
                    comparison, outcome, name, study.design, main=members.index.equals(pairs.main.index)
                )
                if row is not None:
                    rows.append(row)
    rows.sort(key=lambda r: (not r.primary, study.design.primary.index(r.outcome.key) if r.primary else 0))
    exploratory = [i for i, r in enumerate(rows) if not r.primary]
    for i, p in zip(exploratory, adjust([rows[i].effect.p_value for i in exploratory]).adjusted, strict=True):
        rows[i] = replace(rows[i], adjusted_p=p)
    return Verdicts(tuple(rows), tuple(refused), tuple(strata))


def judge_one(
    comparison: Comparison, outcome: Outcome, stratum: str, design: Design, *, main: bool
) -> Row | None:
    """The verdict on one outcome of one contrast in one stratum; None where nothing was measured."""
    found = comparison.contrast
    named = (found.treated, found.control) == (
        design.treated,
        design.control,
    ) and outcome.key in design.primary
    level = design.primary_level if main and named else design.level
    zone = design.sigma if outcome.ratio else design.accuracy
    effect = comparison.effect(outcome.key, level)
    if effect is None:
        return None
    verdict = decide(effect.interval, zone)
    needed, note, fragile = None, effect.note, ""
    if verdict is Verdict.CANNOT_TELL and effect.value is not None:
        margin = comparison.margin(outcome.key)
        needed = units_needed(effect, zone, margin=margin)
        if margin and decide((effect.value - margin, effect.value + margin), zone) is Verdict.CANNOT_TELL:
            note = "clean accuracy differs, and may explain it; more seeds would not decide"
    if main and named and effect.n > 3 and verdict is not Verdict.CANNOT_TELL:
        for unit in effect.units:
            without = comparison.without(unit).effect(outcome.key, level)
            if without is not None and decide(without.interval, zone) is not verdict:
                fragile = unit
                break
    primary = main and named and bool(design.written)
    return Row(outcome, found, stratum, main, primary, effect, zone, verdict, needed, None, note, fragile)


@dataclass(frozen=True)
class Credit:
    """What may be said of compression for one primary outcome."""

    row: Row  # against the control of equal gradient weight (or against the plain twin where there is no control)
    plain: Row | None  # against the plain twin; None if there is none
    credited: bool  # whether it is compression's: it holds against the control and against the plain twin


def credits(verdicts: Verdicts, design: Design) -> list[Credit]:
    """One an outcome that the design calls primary, as far as it was measured."""
    found = []
    for key in design.primary:
        control, plain = verdicts.find(key, CREDIT), verdicts.find(key, PLAIN)
        row = control or plain
        if row is None:
            continue
        both = control is not None and plain is not None
        credited = both and control.direction != 0 and control.direction == plain.direction  # type: ignore[union-attr]
        found.append(Credit(row, plain, credited))
    return found


def corruption_rows(study: Study, members: pd.DataFrame) -> Sequence[tuple[str, Effect, float | None]]:
    """The primary contrast over its runs, corruption by corruption, p-values adjusted over those that count (Holm)."""
    found = CREDIT if (members["method"] == CREDIT.control).any() else PLAIN
    if not len(members) or not len(study.corruptions):
        return []
    wide = 100 * study.corruptions.pivot_table("value", "run", "corruption", aggfunc="mean")
    effects = []
    for corruption in study.informative:
        rows = members.assign(value=wide[corruption].reindex(members.index)).dropna(subset=["value"])
        effects.append(
            contrast(
                rows["value"].to_numpy(float),
                list(rows["seed"]),
                list(rows["method"]),
                found.treated,
                found.control,
            )
        )
    adjusted = adjust([e.p_value for e in effects]).adjusted
    return list(zip(study.informative, effects, adjusted, strict=True))
