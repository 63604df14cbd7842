"""Whether a study's verdicts stay when rounding alone changes its training: first weights perturbed by 1e-7.

    python -m benchmarks.stability default --reruns 10 --out studies/stability                all ten, in turn
    python -m benchmarks.stability default --reruns 10 --shard 3/10 --out studies/stability   the third
    python -m benchmarks.stability fashion --primary --reruns 8 --out studies/stability       a published study
    python -m benchmarks.stability --out studies/stability                                    the table
    python -m benchmarks.stability --mix mnist mnist-again --reruns 10                        of published draws

Another processor or thread count rounds differently, and training amplifies that: the same seeds are another draw
(theory 7.9). A rerun trains, measures and judges the whole study with every first weight multiplied by 1 + 1e-7 e,
e normal and another one in each rerun. The table shows each rerun's verdicts and how often one flips between *yes* and
its opposite or *no larger than* (none should) or to *cannot tell*; and how far reruns of one seed lie apart, beside how
far seeds do.

``--mix`` trains nothing: rounding disturbs every run on its own, so a study that takes each run from one or the other
of two published draws is a rerun as well. Such mixtures of two draws lie 1/√2 as far apart as fresh reruns.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from analyses.paired_study.frames import Study, load_study
from analyses.paired_study.study import BASELINES, RECORDS
from analyses.paired_study.verdicts import Row, judge
from analyses.results import PUBLISHED, STUDIES, unpacked
from benchmarks._harness import add_part
from lipcomp._commands import Parser, run, table

PERTURBATION = 1e-7
PRIMARY = "weighted_simclr,c_simclr"


def rerun(name: str, folder: Path, number: int, workers: int, primary: bool = False) -> None:
    """Train and measure one perturbed copy of a study; what is there already is not done again.

    Parameters
    ----------
    name
        Preset of train.sweep, or a study of analyses.results, whose images must be there.
    primary
        Of a published study only C-SimCLR and its control.
    """
    scale = PERTURBATION * (1 + number / 100)  # another scale is another draw
    sweep, measured = [name], []
    if name in STUDIES:
        study = replace(STUDIES[name], methods=PRIMARY) if primary else STUDIES[name]
        sweep, measured = study.sweep(), ["--data", study.data, *study.measured]
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "study.json").exists():
            published = json.loads((PUBLISHED / name / "study.json").read_text())
            (folder / "study.json").write_text(json.dumps({"design": published["design"]}))
    for command in (
        ["analyses.paired_study.design", folder],
        ["train.sweep", *sweep, "--out", folder, "--workers", workers, "--perturb", f"{scale:.3g}"],
        ["analyses.paired_study.measure", folder, *measured, "--workers", workers],
    ):
        subprocess.run([sys.executable, "-m", *map(str, command)], check=True)


def flips(rows: Sequence[Row]) -> tuple[int, int]:
    """Pairs of reruns that contradict each other; and reruns that cannot tell where another can."""

    def said(row: Row) -> str:
        return f"{row.verdict} {row.word}"

    certain = [row for row in rows if row.verdict != "cannot tell"]
    against = sum(said(a) != said(b) for a, b in combinations(certain, 2))
    return against, len(rows) - len(certain) if certain else 0


def spreads(studies: dict[str, pd.DataFrame], column: str) -> tuple[float, float]:
    """Standard deviation over reruns of one seed and method, and over seeds of one method in one rerun."""
    whole = pd.concat([models.assign(rerun=name) for name, models in studies.items()])
    whole = whole[~whole["method"].isin(BASELINES)].dropna(subset=[column, "seed"])  # those are not trained
    value = np.log(whole[column]) if column in ("features", "latent", "logits") else 100 * whole[column]
    kind = [whole["method"], whole["beta"].fillna(0.0), whole["seed"]]
    again = value.groupby(kind).var(ddof=1).mean()
    seeds = value.groupby([whole["method"], whole["beta"].fillna(0.0), whole["rerun"]]).var(ddof=1).mean()
    return float(np.sqrt(again)), float(np.sqrt(seeds))


def mixtures(studies: Sequence[Study], count: int) -> Iterator[Study]:
    """Studies that take each run from one of several draws of it, at random."""
    rng = np.random.default_rng(0)
    runs = [run for run in studies[0].models.index if all(run in s.models.index for s in studies)]
    for _ in range(count):
        taken = {run: studies[rng.integers(len(studies))] for run in runs}
        models = pd.concat([study.models.loc[[run]] for run, study in taken.items()])
        bits = {run: study.bits[run] for run, study in taken.items() if run in study.bits}
        yield replace(studies[0], models=models.assign(perturb=None), bits=bits)


def verdict_table(verdicts: Sequence[Sequence[Row]]) -> str:
    """Which verdicts the reruns of a study have, and how many contradict each other."""
    keys = dict.fromkeys((r.contrast.name, r.outcome.label) for rows in verdicts for r in rows)
    lines, against, lost = [], 0, 0
    for contrast, outcome in keys:
        mine = [
            r for rows in verdicts for r in rows if (r.contrast.name, r.outcome.label) == (contrast, outcome)
        ]
        contradictions, open_ = flips(mine)
        against, lost = against + contradictions, lost + open_
        counts = pd.Series([f"{r.verdict} {r.word}".strip() for r in mine]).value_counts()
        lines.append(
            [contrast, outcome, "; ".join(f"{k} {v}" for k, v in counts.items()), str(contradictions)]
        )
    told = table(["contrast", "outcome", "verdicts", "contradictions"], lines)
    return f"{told}\ncontradictions {against}; cannot tell where others can {lost}"


def report(out: Path) -> str:
    """The tables of all reruns that are measured."""
    folders = sorted(folder for folder in out.glob("rerun-*") if (folder / RECORDS).exists())
    if not folders:
        raise ValueError(f"{out} holds no measured rerun; make some with a PRESET and --reruns")
    studies = {folder.name: load_study(folder) for folder in folders}
    tables = {name: study.models for name, study in studies.items()}
    spread = [
        [column, *(f"{s:.3g}" for s in spreads(tables, column))]
        for column in ("features", "latent", "corruption", "clean")
    ]
    return "\n".join(
        [
            f"{len(folders)} reruns",
            verdict_table([judge(study).rows for study in studies.values()]),
            table(["standard deviation of (log σ, points)", "reruns of a seed", "seeds"], spread),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Rerun, or show what reruns say."""
    parser = Parser(prog="python -m benchmarks.stability", description=__doc__)
    parser.add_argument(
        "study",
        nargs="?",
        help="preset of train.sweep or study of analyses.results; without one only the table is printed",
    )
    parser.add_argument(
        "--primary", action="store_true", help="only the primary contrast of a published study"
    )
    parser.add_argument("--reruns", type=int, default=10, help="how many (default 10)")
    add_part(parser)
    parser.add_argument("--out", type=Path, help="folder of the reruns")
    parser.add_argument("--mix", nargs="+", metavar="STUDY", help="mix published draws of one study instead")
    parser.add_argument("--workers", type=int, default=1, help="processes (default 1)")
    options = parser.parse_args(arguments)
    if (options.out is None) == (options.mix is None):
        raise ValueError("give --out FOLDER, or --mix with published draws of one study")
    if options.mix:
        studies = []
        for name in options.mix:
            with unpacked(PUBLISHED / name) as folder:
                studies.append(load_study(folder))
        mixed = [judge(study).rows for study in mixtures(studies, options.reruns)]
        print(f"{options.reruns} mixtures of {len(studies)} draws\n{verdict_table(mixed)}")
        return 0
    if options.study:
        for number in range(options.reruns)[options.shard]:
            folder = options.out / f"rerun-{number}"
            rerun(options.study, folder, number, options.workers, options.primary)
    print(report(options.out))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
