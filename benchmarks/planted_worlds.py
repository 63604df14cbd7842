"""Whether the paired study's report says what is true, in made-up worlds whose truth is known.

    python -m benchmarks.planted_worlds                              200 draws of every world, about an hour
    python -m benchmarks.planted_worlds --draws 20 --only control
    python -m benchmarks.planted_worlds --shard 3/16 --out worlds-3.jsonl
    python -m benchmarks.planted_worlds --join worlds-*.jsonl        the table of several shards

A draw writes a study's folder (records, bits, images, plan with its design) and reads it as a report does, up to the
verdicts and the words of the page. Per draw and primary outcome it notes whether an effect was credited to
compression, with which sign, and whether that is right; and of all rows whether each "no larger than" is true.

The unit of noise is the standard deviation of one seed's difference between C-SimCLR and its control on the default
study: 6% of sigma of the features, 1.6 points of corruption accuracy, besides what the sampling of test images adds.
"""

import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.special

from analyses.paired_study.answer import Answered, answer_study
from analyses.paired_study.design import Design, write_design
from analyses.paired_study.frames import load_study
from analyses.paired_study.study import CREDIT, METHODS
from benchmarks._harness import add_part, append_lines, read_lines
from lipcomp._commands import Parser, run, table
from lipcomp.records import Record, append_records
from lipcomp.statistics._verdict import Verdict

OBJECTIVES = {label: name for name, label in METHODS.items()}
TRIPLE = ("SimCLR", "SimCLR ×(1+β)", "C-SimCLR")
CORRUPTIONS = ("fog", "snow", "blur", "noise", "glass", "spatter", "shear", "rotate")
SEVERITIES = (1, 5)
LAYERS = ("latent", "backbone", "logits")
SIGMA_NOISE, POINTS_NOISE = 0.06, 1.6  # of one seed's difference, as measured on the default study


@dataclass(frozen=True)
class World:
    """What is true, by method; whatever is not named is zero."""

    name: str
    sigma: dict[str, float] = field(default_factory=dict)  # log ratio to SimCLR of the features' constant
    latent: dict[str, float] = field(default_factory=dict)  # the same of the latent's
    corruption: dict[str, float] = field(default_factory=dict)  # points over SimCLR at equal clean accuracy
    clean: dict[str, float] = field(default_factory=dict)  # points over SimCLR
    slope: float = 1.0  # points of corruption accuracy that follow a point of clean accuracy
    seeds: int = 5
    noise: float = 1.0  # as a multiple of the unit
    loud: tuple[str, ...] = ()  # methods whose own noise is three times as large
    # what a right report says of (features, given_clean): "yes", "no larger", "cannot tell", or several by "/"; ""
    # where nothing is demanded. "yes" means credited with the true sign
    right: tuple[str, str] = ("", "")
    more: str = ""  # what else is done to the records
    triple: bool = True  # only SimCLR, its control and C-SimCLR; else BYOL and C-BYOL too

    def truth(self, key: str, treated: str, control: str) -> float | None:
        """The true effect on an outcome, in log ratios or points; None where the world does not say."""

        def gap(values: dict[str, float]) -> float:
            return values.get(treated, 0.0) - values.get(control, 0.0)

        known = {
            "features": gap(self.sigma),
            "logits": gap(self.sigma),
            "latent": gap(self.latent or self.sigma),
            "clean": gap(self.clean),
            "given_clean": gap(self.corruption),
            "corruption": gap(self.corruption) + self.slope * gap(self.clean),
        }
        return known.get(key)


C, W = "C-SimCLR", "SimCLR ×(1+β)"
DOWN, UP = math.log(0.65), math.log(1.5)
STRONG = World(
    "strong",
    {C: DOWN, "C-BYOL": DOWN},
    corruption={C: 4.0, "C-BYOL": 4.0},
    right=("yes", "yes"),
    triple=False,
)
OPEN = "no larger/cannot tell"
WORLDS = (
    STRONG,
    World("none", right=(OPEN, OPEN)),
    World("opposite", {C: UP, "C-BYOL": UP}, corruption={C: -4.0, "C-BYOL": -4.0}, right=("yes", "yes")),
    World("explained by clean accuracy", clean={C: -2.5}, slope=1.5, right=(OPEN, OPEN)),
    World("explained by the control", {C: DOWN, W: DOWN}, corruption={C: 4.0, W: 4.0}, right=(OPEN, OPEN)),
    World("only at the latent", latent={C: math.log(0.4), "C-BYOL": math.log(0.4)}, right=(OPEN, OPEN)),
    replace(STRONG, triple=True, name="Simpson", more="simpson"),
    replace(STRONG, triple=True, name="collapsed run", seeds=6, more="collapsed"),
    replace(STRONG, triple=True, name="missing runs", seeds=6, more="missing"),
    replace(
        STRONG, triple=True, name="outlier seed", more="outlier", right=("yes/cannot tell", "yes/cannot tell")
    ),
    replace(STRONG, triple=True, name="mixed data", more="mixed"),
    replace(STRONG, triple=True, name="floor", more="floor"),
    World("confounded by class", more="class", right=(OPEN, OPEN)),
    replace(STRONG, triple=True, name="dose-response", more="dose"),
    World("twice the zone", {C: math.log(0.8)}, corruption={C: 2.0}, right=("yes", "yes/cannot tell")),
    World(
        "twice the zone, third look", {C: math.log(0.8)}, corruption={C: 2.0}, seeds=13, right=("yes", "yes")
    ),
    World("negligible", {C: -0.02}, corruption={C: 0.1}, noise=0.3, right=("no larger", OPEN)),
    World("edge of the zone", {C: math.log(0.9)}, corruption={C: 1.0}, noise=0.4),
    World("one method is noisier", loud=(C,), right=(OPEN, OPEN)),
    World("three seeds", {C: DOWN}, corruption={C: 4.0}, seeds=3),
)


def build(world: World, rng: np.random.Generator, folder: Path, images: int = 1000) -> None:
    """Write a draw of a world as a measured study."""
    methods = TRIPLE if world.triple else (*TRIPLE, "BYOL", "C-BYOL")
    betas = {C: (0.1, 1.0, 10.0), W: (0.1, 1.0, 10.0)} if world.more == "dose" else {}
    planned = [
        (method, beta, seed, data)
        for data in (("A", "B") if world.more == "mixed" else ("A",))
        for seed in range(world.seeds)
        for method in methods
        for beta in betas.get(method, (1.0 if method in (C, W, "C-BYOL") else None,))
    ]
    names = {plan: _name(*plan, betas) for plan in planned}
    folder.mkdir(parents=True, exist_ok=True)
    plan = {"seeds": world.seeds, "runs": {name: {} for name in names.values()}}
    (folder / "study.json").write_text(json.dumps(plan))
    write_design(folder)
    draw = _Draw(world, rng, images)
    records: list[Record] = []
    for planned_run in rng.permutation(len(planned)):  # the order of records must not matter
        method, beta, seed, data = planned[planned_run]
        name = names[method, beta, seed, data]
        if world.more == "missing" and name in ("C-SimCLR-0", "SimCLR-1"):
            continue
        records += draw.run(folder, name, method, beta, seed, data)
    append_records(folder / "records.jsonl", records)


def _name(method: str, beta: float | None, seed: int, data: str, betas: dict[str, Any]) -> str:
    return f"{method}{f'-b{beta:g}' if method in betas else ''}-{seed}{'' if data == 'A' else data}"


class _Draw:
    """One draw of a world: what its seeds and images share, and then run after run."""

    def __init__(self, world: World, rng: np.random.Generator, images: int) -> None:
        self.world, self.rng, self.images = world, rng, images
        self.seed_sigma = 0.3 * rng.standard_normal(world.seeds)
        self.seed_clean = 0.3 * rng.standard_normal(world.seeds)
        self.difficulty = rng.standard_normal(images)
        self.labels = np.arange(images) % 10
        dull = 5 if world.more == "floor" else 1
        self.level = np.where(np.arange(len(CORRUPTIONS)) < dull, 10.0, np.linspace(55, 85, len(CORRUPTIONS)))
        self.dull = np.arange(len(CORRUPTIONS)) < dull
        if world.more == "simpson":  # seeds with a larger constant are the more accurate ones
            self.seed_sigma = np.linspace(-1, 1, world.seeds)
            self.seed_clean = np.linspace(-1, 1, world.seeds)

    def run(
        self, folder: Path, name: str, method: str, beta: float | None, seed: int, data: str
    ) -> list[Record]:
        """One run's records; its bits and images go to the folder."""
        world, rng = self.world, self.rng
        dose = 1.0 if beta is None or world.more != "dose" else (1 + math.log10(beta)) / 1.0
        other = data == "B"
        noise = world.noise * (3.0 if method in world.loud else 1.0) / math.sqrt(2)
        outlier = world.more == "outlier" and method == C and seed == world.seeds - 1
        sigma = self.seed_sigma[seed] + (math.log(5) if other else 0.0) + (math.log(3) if outlier else 0.0)
        sigma += SIGMA_NOISE * noise * rng.standard_normal()
        feature = sigma + dose * world.sigma.get(method, 0.0)
        latent = (
            sigma
            + dose * (world.latent or world.sigma).get(method, 0.0)
            + 0.05 * noise * rng.standard_normal()
        )
        logits = feature + 0.05 * noise * rng.standard_normal()
        family = -2.0 if "BYOL" in method else 0.0
        clean = 96.0 + family + self.seed_clean[seed] + world.clean.get(method, 0.0) - (6.0 if other else 0.0)
        clean += 0.25 * noise * rng.standard_normal()
        shift = (
            world.slope * (clean - 96.0)
            + dose * world.corruption.get(method, 0.0)
            - (8.0 if outlier else 0.0)
        )
        shift += POINTS_NOISE * noise * rng.standard_normal()
        collapsed = world.more == "collapsed" and name == "C-SimCLR-0"
        levels = np.where(self.dull, self.level, self.level + shift)
        if collapsed:
            clean, levels = 10.0, np.full(len(CORRUPTIONS), 10.0)
        right, corruption, severity = self._bits(clean, levels)
        (folder / "bits").mkdir(exist_ok=True)
        np.savez(
            folder / "bits" / f"{name}.npz", right=np.packbits(right, axis=-1), n=self.images, labels=self.labels,
            corruption=corruption, severity=severity,
        )  # fmt: skip
        self._images(folder, name)
        subject: dict[str, Any] = {
            "run": name, "objective": OBJECTIVES[method], "seed": seed, "sha256": sha256(name.encode()).hexdigest(),
            "data": f"set {data}", "data_hash": data, "recipe_hash": "byol" if "BYOL" in method else "simclr",
            "architecture": "small_cnn", "epochs": 12,
        }  # fmt: skip
        if beta is not None:
            subject["beta"] = beta
        rows = right.mean(1)
        values: list[tuple[str, float | None, dict[str, Any]]] = [
            ("accuracy.clean", float(rows[0]), {}),
            ("accuracy.corruption.mean", float(rows[1:].mean()), {}),
        ]
        values += [
            ("accuracy.corruption", float(v), {"corruption": str(c), "severity": int(s)})
            for v, c, s in zip(rows[1:], corruption[1:], severity[1:], strict=True)
        ]
        for layer, value in zip(LAYERS, (latent, feature, logits), strict=True):
            gone = 0.0 if collapsed else 0.2 * math.exp(value)
            lost = world.more == "collapsed" and name == f"{W}-1"
            values.append(("sigma_max.median", None if lost else gone, {"layer": layer}))
        return [Record(q, v, n=self.images, subject=subject, settings=s) for q, v, s in values]

    def _bits(self, clean: float, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Hits with these accuracies in expectation; the difficulty of an image is the same for every run."""
        steps = np.array([5.0, -5.0])
        percent = np.r_[clean, levels.repeat(len(SEVERITIES))]
        percent[1:] += np.where(self.dull.repeat(len(SEVERITIES)), 0.0, np.tile(steps, len(levels)))
        threshold = scipy.special.ndtri(np.clip(percent / 100, 0.01, 0.999))
        own = self.rng.standard_normal((percent.size, self.images))
        easy = np.where(np.r_[False, self.dull.repeat(len(SEVERITIES))], 0.0, math.sqrt(0.8))[:, None]
        right = threshold[:, None] > easy * self.difficulty + np.sqrt(1 - easy**2) * own
        corruption = np.array(["clean", *np.repeat(CORRUPTIONS, len(SEVERITIES))])
        return right, corruption, np.array([0, *np.tile(SEVERITIES, len(CORRUPTIONS))])

    def _images(self, folder: Path, name: str) -> None:
        """Local constants and flips image by image: independent, or alike only because of the class."""
        n = min(self.images, 200)
        by_class = self.labels[:n] / 10 if self.world.more == "class" else np.zeros(n)
        sigma = np.exp(by_class + 0.3 * self.difficulty[:n] + 0.3 * self.rng.standard_normal(n))
        flipped = np.clip(0.3 + 0.3 * by_class + 0.1 * self.rng.standard_normal(n), 0, 1)
        (folder / "images").mkdir(exist_ok=True)
        np.savetxt(
            folder / "images" / f"{name}.csv", np.column_stack([np.arange(n), self.labels[:n], sigma, flipped]),
            fmt="%.5g", delimiter=",", header="image,label,sigma_backbone,flipped", comments="",
        )  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What a report said in one draw of one world."""

    world: str
    draw: int
    said: tuple[str, str]
    wrong: bool
    right: tuple[bool, bool]
    no_larger: int
    no_larger_false: int
    senseless: int
    seconds: float
    error: str = ""


def judge_draw(world: World, number: int) -> Outcome:
    """Draw a world, let the study's report judge it, and hold that against the truth."""
    rng = np.random.default_rng([number, *world.name.encode()])
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        build(world, rng, folder)
        started = time.perf_counter()
        try:
            answered = answer_study(load_study(folder))
        except Exception as error:  # a crash is counted, and named
            return Outcome(world.name, number, ("", ""), True, (False, False), 0, 0, 0, 0.0, repr(error))
        seconds = time.perf_counter() - started
    said, right, wrong = [], [], False
    for key, demanded in zip(Design().primary, world.right, strict=True):
        credit = next((c for c in answered.credits if c.row.outcome.key == key), None)
        truth = world.truth(key, CREDIT.treated, CREDIT.control) or 0.0
        word = "missing" if credit is None else "cannot tell"
        if credit is not None and credit.credited:
            word = "yes"
            wrong |= credit.row.direction != np.sign(truth)
        elif credit is not None and credit.row.verdict is Verdict.NO_LARGER:
            word = "no larger"
        said.append(word)
        fits = not demanded or word in demanded.split("/")
        right.append(bool(fits and not (word == "yes" and credit and credit.row.direction != np.sign(truth))))
    claims = [r for r in answered.verdicts.rows if r.verdict is Verdict.NO_LARGER]
    truths = [(r, world.truth(r.outcome.key, r.contrast.treated, r.contrast.control)) for r in claims]
    false = sum(t is not None and not (r.zone.low < t < r.zone.high) for r, t in truths)
    return Outcome(
        world.name, number, (said[0], said[1]), bool(wrong), (right[0], right[1]),
        len(claims), false, senseless(answered), seconds,
    )  # fmt: skip


def senseless(answered: Answered) -> int:
    """Numbers that no reader could believe: an interval out of order, beyond a factor of 1000 or 100 points."""
    shown = [(r.effect, 7.0 if r.outcome.ratio else 101.0) for r in answered.verdicts.rows]
    shown += [(a.estimate, 1e4) for a in answered.associations]
    shown += [(f.within_class, 1.0) for f in answered.images]
    count = 0
    for estimate, limit in shown:
        ends = [*(estimate.interval or ()), *([estimate.value] if estimate.value is not None else [])]
        ordered = estimate.interval is None or estimate.interval[0] <= estimate.interval[1]
        count += not ordered or not all(math.isfinite(e) and abs(e) <= limit for e in ends)
    return count


def outcomes(worlds: Sequence[World], draws: int, shard: slice = slice(None)) -> Iterator[Outcome]:
    """Every draw of every world that belongs to a shard."""
    jobs = [(world, draw) for world in worlds for draw in range(draws)]
    for world, draw in jobs[shard]:
        yield judge_draw(world, draw)


def summary(found: Sequence[Outcome]) -> str:
    """The table: a row a world."""
    rows = []
    for name in dict.fromkeys(o.world for o in found):
        mine = [o for o in found if o.world == name]
        said = [pd.Series([o.said[i] for o in mine]).value_counts().to_dict() for i in (0, 1)]
        count = sum(o.no_larger for o in mine)
        rows.append(
            [
                name,
                str(len(mine)),
                *(" ".join(f"{k} {v}" for k, v in counts.items()) for counts in said),
                f"{100 * np.mean([o.wrong for o in mine]):.1f}",
                *(f"{100 * np.mean([o.right[i] for o in mine]):.0f}" for i in (0, 1)),
                f"{100 * sum(o.no_larger_false for o in mine) / count:.1f} of {count}" if count else "-",
                str(sum(bool(o.error) for o in mine)),
                str(sum(o.senseless for o in mine)),
            ]
        )
    head = ["world", "draws", "σ of the features", "corruption | clean", "wrong %", "right σ %", "right acc. %",
            "false no larger %", "crashes", "senseless"]  # fmt: skip
    return table(head, rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge the worlds."""
    parser = Parser(prog="python -m benchmarks.planted_worlds", description=__doc__)
    parser.add_argument("--draws", type=int, default=200, help="draws of each world (default 200)")
    parser.add_argument("--only", default="", help="only worlds whose name contains this")
    add_part(parser)
    parser.add_argument("--out", type=Path, help="append every draw to this file as JSON lines")
    parser.add_argument("--join", type=Path, nargs="+", metavar="FILE", help="print the table of these files")
    options = parser.parse_args(arguments)
    if options.join:
        lines = read_lines(options.join)
        print(
            summary(
                [Outcome(**{k: tuple(v) if isinstance(v, list) else v for k, v in o.items()}) for o in lines]
            )
        )
        return 0
    worlds = [world for world in WORLDS if options.only in world.name]
    if options.draws < 1 or not worlds:
        raise ValueError(
            f"--draws must be at least 1 and --only match a world, got {options.draws}, {options.only!r}"
        )
    found = []
    for outcome in outcomes(worlds, options.draws, options.shard):
        found.append(outcome)
        append_lines(options.out, [outcome.__dict__])
        if outcome.error:
            print(f"{outcome.world}, draw {outcome.draw}: {outcome.error}", file=sys.stderr, flush=True)
    print(summary(found))
    print(f"{1000 * float(np.mean([o.seconds for o in found])):.0f} ms a draw for reading and judging")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
