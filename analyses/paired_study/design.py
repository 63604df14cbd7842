"""Write the design of a paired study before its data: primary outcomes, equivalence zones, exclusion rules.

    python -m analyses.paired_study.design studies/default

Writes the key "design" into STUDY/study.json once; `make study` does this before training. An existing design is
never changed, and no design is added to a study that has already been measured, since it would not have been planned
beforehand.
"""

import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from analyses.paired_study.study import CREDIT, RECORDS, read_plan
from lipcomp._atomic import atomic_file, check_writable
from lipcomp._commands import Parser, run
from lipcomp.statistics._verdict import Zone


@dataclass(frozen=True)
class Design:
    """What was decided before the data."""

    treated: str = "C-SimCLR"  # of the primary contrast, by method
    control: str = "SimCLR ×(1+β)"  # the same
    primary: tuple[str, ...] = ("features", "given_clean")  # the primary outcomes, by key
    zone_sigma: float = 0.10  # relative change of a local constant that would make no difference
    zone_accuracy: float = 1.0  # the same of an accuracy, in points
    # level of the primary intervals at every look: with two outcomes and one look 95% for both together; over
    # ``looks`` looks 95% for each (simulated in ``tests/statistics/test_verdict.py``)
    primary_level: float = 0.975
    level: float = 0.95  # level of all other intervals, which are exploratory
    beta: float = 1.0  # the beta at which methods are compared where several were trained
    # points of corruption accuracy that a point of clean accuracy may be worth. An effect "at equal clean accuracy"
    # is one that holds for every slope in this range
    clean_slope: tuple[float, float] = (0.0, 2.0)
    # a corruption counts only if at least one run is more than this above chance under it (points)
    chance_margin: float = 5.0
    # a run whose clean accuracy is no more than this above chance (points) has collapsed and is left out, by name
    collapse_margin: float = 5.0
    first_seeds: int | None = None  # planned when the design was written, if study.json named them
    more_seeds: int = 4  # added where the study cannot tell
    looks: int = 4  # at most
    written: str = ""  # when; empty if no design was written before the data

    @property
    def sigma(self) -> Zone:
        """The zone of a local constant, in log ratios."""
        return Zone(float(np.log1p(-self.zone_sigma)), float(np.log1p(self.zone_sigma)))

    @property
    def accuracy(self) -> Zone:
        """The zone of an accuracy, in points."""
        return Zone(-self.zone_accuracy, self.zone_accuracy)


def read_design(plan: dict[str, Any]) -> Design:
    """The design in a study's plan; the default one, unwritten, where there is none."""
    told = plan.get("design") or {}
    try:
        told = {name: tuple(value) if isinstance(value, list) else value for name, value in told.items()}
    except AttributeError as error:
        raise ValueError(f"study.json: the design must be an object, got {told!r}") from error
    known = {f.name: f.default for f in fields(Design)}
    if unknown := sorted(told.keys() - known.keys()):
        raise ValueError(
            f"study.json: the design has unknown fields {', '.join(unknown)}; known are {', '.join(sorted(known))}"
        )
    for name, value in told.items():
        like = known[name]
        kind: Any = type(like) if isinstance(like, (str, tuple)) else (int, float, type(like))
        if not isinstance(value, kind):
            raise ValueError(  # noqa: TRY004
                f"study.json: the design's {name} is {value!r}; it must be like {like!r}"
            )
    design = Design(**told)
    for name, fits, needed in _rules(design):
        if not fits:
            raise ValueError(
                f"study.json: the design's {name} is {getattr(design, name)!r}; it must be {needed}"
            )
    return design


def design_text(design: Design) -> str:
    """The design as measuring keeps it beside its values."""
    return json.dumps(asdict(design))


def changes(design: Design, kept: str) -> tuple[str, ...]:
    """What the design says otherwise than when values were measured (:func:`design_text`)."""
    now, before = json.loads(design_text(design)), json.loads(kept).items()
    return tuple(f"{name} was {old!r}, is {now[name]!r}" for name, old in before if now.get(name, old) != old)


def _rules(design: Design) -> Iterator[tuple[str, bool, str]]:
    """(field, whether its value can be judged by, what it must be)."""
    yield "treated", design.treated == CREDIT.treated, f"{CREDIT.treated!r}, the method with a control"
    yield "control", design.control == CREDIT.control, f"{CREDIT.control!r}, of equal gradient weight"
    known = Design.primary
    fits = list(design.primary) in ([*known], [*known[::-1]], *([name] for name in known))
    yield "primary", fits, f"{' or '.join(known)}, or both; other outcomes are judged as exploratory"
    yield "zone_sigma", 0 < design.zone_sigma < 1, "between 0 and 1, such as 0.1 for ±10%"
    yield "zone_accuracy", 0 < design.zone_accuracy < 100, "between 0 and 100 points, such as 1.0"
    for name in ("chance_margin", "collapse_margin"):
        yield name, 0 <= getattr(design, name) < 100, "from 0 to 100 points, such as 5.0"
    yield "beta", 0 <= design.beta < math.inf, "0 or more, such as 1.0"
    yield "looks", design.looks >= 1, "at least 1"
    for name in ("primary_level", "level"):
        yield name, 0 < getattr(design, name) < 1, "between 0 and 1, such as 0.95"
    slopes = [s for s in design.clean_slope if isinstance(s, (int, float)) and math.isfinite(s)]
    ordered = len(slopes) == len(design.clean_slope) == 2 and slopes[0] <= slopes[1]
    yield "clean_slope", ordered, "its lowest and highest slope, such as [0.0, 2.0]"
    try:
        dated = not design.written or datetime.fromisoformat(design.written).tzinfo is not None
    except ValueError:
        dated = False
    yield "written", dated, "a time with its zone, such as '2026-01-31T12:00:00+00:00', or empty"


def write_design(folder: Path) -> Design:
    """Write the default design into a study's plan, unless it has one; return the design."""
    plan = read_plan(folder)
    if "design" in plan:
        return read_design(plan)
    if (folder / RECORDS).exists():
        raise ValueError(
            f"{folder} is measured already, so no design can be written before its data; the report calls all of "
            f"its verdicts exploratory. Give a new folder to plan a study"
        )
    design = Design(first_seeds=plan.get("seeds"), written=datetime.now(UTC).isoformat(timespec="seconds"))
    with atomic_file(folder / "study.json") as temporary:
        temporary.write_text(json.dumps({**plan, "design": asdict(design)}, indent=1))
    return design


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the design."""
    parser = Parser(prog="python -m analyses.paired_study.design", description=__doc__)
    parser.add_argument("study", type=Path, help="folder of the study")
    options = parser.parse_args(arguments)
    check_writable(options.study / "study.json", "design")
    options.study.mkdir(parents=True, exist_ok=True)
    if (options.study / RECORDS).exists() and "design" not in read_plan(options.study):
        print("design: none was written before the data; every verdict of this study is exploratory")
        return 0
    design = write_design(options.study)
    print(
        f"design: {design.treated} against {design.control}; ±{design.zone_accuracy:g} point, "
        f"±{100 * design.zone_sigma:g}% of σ; written {design.written}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
