"""Train the matched pairs of a study: recipes x beta x seed, over several processes, resumable as a whole.

    python -m train.sweep default --out studies/default

Runs of one seed share weights, data order and augmentation draws. A finished run is never trained again; an
interrupted one goes on after its last state. ``study.json`` in the folder says what belongs to the study.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lipcomp.checkpoints.native import atomic_file
from lipcomp.commands import Parser, run
from lipcomp.jobs import available_cores, raise_failures, run_jobs
from train.pretrain import pretrain
from train.recipe import Recipe, with_beta
from train.recipes import (
    mnist_byol,
    mnist_c_byol,
    mnist_c_simclr,
    mnist_noisy_simclr,
    mnist_simclr,
    mnist_weighted_simclr,
)

BETAS = (0.1, 0.3, 1.0, 3.0, 10.0)


@dataclass(frozen=True)
class Preset:
    """A study: which recipes, how many paired seeds, and what it is good for."""

    recipes: tuple[Recipe, ...]
    seeds: int
    purpose: str


def quick() -> Preset:
    """One seed, few epochs: every stage runs, nothing is proved."""
    short = [
        replace(recipe, epochs=2 if recipe.objective.family == "simclr" else 3)
        for recipe in (
            mnist_simclr(),
            mnist_weighted_simclr(),
            mnist_c_simclr(),
            mnist_byol(),
            mnist_c_byol(),
        )
    ]
    return Preset(
        tuple(short), 1, "a rehearsal of every stage; with one seed and few epochs it proves nothing"
    )


def default() -> Preset:
    """Five methods, three paired seeds."""
    recipes = (mnist_simclr(), mnist_weighted_simclr(), mnist_c_simclr(), mnist_byol(), mnist_c_byol())
    return Preset(recipes, 3, "five methods at beta = 1 with three paired seeds")


def full() -> Preset:
    """The sweep of beta, five paired seeds; about two hours on two cores."""
    swept = [
        with_beta(twin, beta)
        for twin in (mnist_weighted_simclr(), mnist_c_simclr(), mnist_c_byol())
        for beta in BETAS
    ]
    recipes = (mnist_simclr(), mnist_noisy_simclr(), mnist_byol(), *swept)
    return Preset(recipes, 5, f"beta over {', '.join(f'{beta:g}' for beta in BETAS)} with five paired seeds")


PRESETS = {preset.__name__: preset for preset in (quick, default, full)}


def train_one(recipe: Recipe, seed: int, out: Path) -> None:
    """Train one run in a worker process."""
    pretrain(recipe, seed, out, report=lambda line: None)


def claim(out: Path, preset_name: str, preset: Preset) -> None:
    """Write study.json, or refuse a folder that holds another study."""
    plan: dict[str, Any] = {
        "preset": preset_name,
        "purpose": preset.purpose,
        "seeds": preset.seeds,
        "runs": {
            f"{recipe.name}-seed{seed}": recipe.to_dict()
            for recipe in preset.recipes
            for seed in range(preset.seeds)
        },
    }
    file = out / "study.json"
    plan = json.loads(json.dumps(plan))
    if file.exists() and json.loads(file.read_text()) != plan:
        raise ValueError(
            f"{out} holds another study (its study.json differs); give another --out or remove the folder"
        )
    with atomic_file(file) as temporary:
        temporary.write_text(json.dumps(plan, indent=1))


def sweep(preset_name: str, out: Path, workers: int) -> None:
    """Train every run of a preset that is not finished yet."""
    preset = PRESETS[preset_name]()
    claim(out, preset_name, preset)
    jobs = [
        (recipe, seed, out / "runs" / f"{recipe.name}-seed{seed}")
        for seed in range(preset.seeds)
        for recipe in preset.recipes
    ]
    todo = [job for job in jobs if not (job[2] / "model.safetensors").exists()]
    todo.sort(key=lambda job: -_cost(job[0]))  # long runs first
    print(f"train: {preset.purpose}: {len(jobs)} runs, {len(jobs) - len(todo)} finished before", flush=True)
    if not todo:
        return
    started = time.monotonic()
    cost = [_cost(recipe) for recipe, _, _ in todo]
    done = 0.0
    failures = {}
    for count, outcome in enumerate(run_jobs(train_one, todo, workers=workers), 1):
        done += cost[outcome.number]
        left = (time.monotonic() - started) / done * (sum(cost) - done)
        name = todo[outcome.number][2].name
        end = f"{outcome.seconds:5.0f} s" if outcome.error is None else " failed"
        print(f"  {count:3d}/{len(todo)}  {name:32s} {end}   {left:4.0f} s left", flush=True)
        if outcome.error is not None:
            failures[name] = outcome.error
    note_stage(out, "train", time.monotonic() - started)
    raise_failures(failures, len(todo))


def _cost(recipe: Recipe) -> float:
    """What a run takes, in epochs of SimCLR."""
    return recipe.epochs * (1.2 if recipe.objective.family == "byol" else 1.0)


def note_stage(out: Path, stage: str, seconds: float) -> None:
    """Add a stage's wall time to timings.jsonl."""
    with (out / "timings.jsonl").open("a") as handle:
        handle.write(json.dumps({"stage": stage, "seconds": round(seconds, 1)}) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the runs of a study."""
    parser = Parser(prog="python -m train.sweep", description=__doc__)
    parser.add_argument(
        "preset", choices=PRESETS, help="; ".join(f"{n}: {p.__doc__}" for n, p in PRESETS.items())
    )
    parser.add_argument("--out", type=Path, help="folder of the study (default studies/PRESET)")
    parser.add_argument(
        "--workers", type=int, default=available_cores(), help="processes (default: one per core)"
    )
    options = parser.parse_args(arguments)
    if options.workers < 1:
        raise ValueError(f"--workers must be at least 1, got {options.workers}")
    sweep(options.preset, options.out or Path("studies") / options.preset, options.workers)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
