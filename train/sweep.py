r"""Train the runs of a study: every recipe with every beta and seed, on this machine, on Slurm or on Ray.

    python -m train.sweep default --out studies/default
    python -m train.sweep --methods simclr,weighted_simclr,c_simclr --data my_images --betas .3,1 --seeds 5 \
        --engine slurm --gpus 1 --device cuda --set epochs=200 --out studies/mine
    python -m train.sweep default --out studies/default --seeds +4

Runs with the same seed share initial weights, data order and augmentation draws. Run the same command again to
continue: finished runs are skipped and interrupted runs resume from their last saved state. A run that fails does not
stop the others. Several terminals or machines can run the command on one study; each run is trained once. The file
study.json in the folder lists the runs of the study.
"""

import argparse
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from lipcomp._claims import claim
from lipcomp._commands import Parser, UsageError, run
from lipcomp._functions import import_file, load_function
from lipcomp.encoders import register_backbone
from lipcomp.encoders._backbones import BACKBONES
from lipcomp.jobs._contract import JobFailure, Outcome, raise_failures
from lipcomp.jobs._engines import run_jobs
from lipcomp.jobs._options import add_engine_arguments, engine_choice
from lipcomp.measure._options import numbers, positive, words
from train.command import (
    EPILOG,
    add_recipe_options,
    add_settings,
    changed,
    check_set,
    recipe_fields,
    recipe_of,
    settings_of,
)
from train.folder import CHECKPOINT, BusyError
from train.pretrain import pretrain
from train.recipe import Recipe, with_beta
from train.recipes import METHODS, find_recipe
from train.settings import Settings
from train.study import Identities, note_stage, plan, seeds_of

BETAS = (0.1, 0.3, 1.0, 3.0, 10.0)
POLL = 15.0  # seconds between two looks at runs that another command trains


@dataclass(frozen=True)
class Preset:
    """A study: its recipes, the number of paired seeds, and its purpose."""

    recipes: tuple[Recipe, ...]
    seeds: int
    purpose: str


def quick() -> Preset:
    """Smoke test: one seed, few epochs; the results are not meaningful."""
    short = [
        replace(recipe, epochs=2 if recipe.objective.family == "simclr" else 3)
        for recipe in default().recipes
    ]
    return Preset(tuple(short), 1, "smoke test of every stage; the results are not meaningful")


def default() -> Preset:
    """Five methods, three paired seeds."""
    methods = ("simclr", "weighted_simclr", "c_simclr", "byol", "c_byol")
    recipes = tuple(find_recipe(f"mnist_{method}") for method in methods)
    return Preset(recipes, 3, "five methods at beta = 1")


def full() -> Preset:
    """The sweep of beta, five paired seeds; about two hours on two cores."""
    plain = [find_recipe(f"mnist_{method}") for method in ("simclr", "noisy_simclr", "byol")]
    twins = [find_recipe(f"mnist_{method}") for method in ("weighted_simclr", "c_simclr", "c_byol")]
    return Preset(
        (*plain, *over_betas(twins, BETAS)),
        5,
        f"beta over {', '.join(f'{beta:g}' for beta in BETAS)}",
    )


PRESETS = {preset.__name__: preset for preset in (quick, default, full)}


def over_betas(recipes: Sequence[Recipe], betas: Sequence[float]) -> list[Recipe]:
    """Each recipe at every beta; those without one once."""
    found: list[Recipe] = []
    for recipe in recipes:
        has_beta = hasattr(recipe.objective, "beta")
        found += [with_beta(recipe, beta) for beta in betas] if has_beta and betas else [recipe]
    return found


# One run, in a worker.


def train_one(
    sources: Sequence[str], packed: bytes, seed: int, out: Path, settings: Settings, ranks: int
) -> tuple[list[str], str | None]:
    """Train one run in a worker; returns its warnings, and why it diverged or ``"busy"``, or None if it is finished.

    ``sources`` are your own files and backbones, imported before the recipe is unpacked. With ``ranks`` > 1 the run
    is a group of processes on this machine, started by torchrun.
    """
    if ranks > 1:
        return _train_by_torchrun((sources, packed, seed, out, settings, 1), ranks)
    for source in sources:
        if ":" in source:
            register_backbone(source, load_function(source))
        else:
            import_file(Path(source))
    warnings: list[str] = []

    def listen(line: str) -> None:
        if line.startswith(("warning", "note")):
            warnings.append(line)

    try:
        pretrain(pickle.loads(packed), seed, out, settings, report=listen)
    except BusyError:
        return warnings, "busy"
    except FloatingPointError as error:
        return warnings, str(error)
    return warnings, None


def _train_by_torchrun(job: tuple[Any, ...], ranks: int) -> tuple[list[str], str | None]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "job"
        file.write_bytes(pickle.dumps(job))
        launcher = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={ranks}",
        ]
        words = [*launcher, "-m", "train.sweep", "--job", str(file)]
        started = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        with started as process, _ended_by_sigterm(process):
            _, said = process.communicate()
        answered = file.with_suffix(".answer")
        if not answered.exists():
            raise RuntimeError(f"torchrun ended with {process.returncode}: {said.strip()[-2000:]}")
        answer: tuple[list[str], str | None] | Exception = pickle.loads(answered.read_bytes())
        if isinstance(answer, Exception):
            raise answer
        return answer


@contextmanager
def _ended_by_sigterm(process: "subprocess.Popen[str]") -> Iterator[None]:
    """Pass SIGTERM on to a process, and raise KeyboardInterrupt once it has ended.

    So a worker is ended by its sweep, and its ranks save their state. Signals reach the main thread alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []

    def take(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        process.terminate()

    before = signal.signal(signal.SIGTERM, take)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
    if asked:
        raise KeyboardInterrupt


def _train_as_rank(file: Path) -> None:
    """What torchrun starts: one rank of a packed run; the first says what became of it."""
    answer: tuple[list[str], str | None] | Exception
    try:
        answer = train_one(*pickle.loads(file.read_bytes()))
    except Exception as error:
        answer = error
    if os.environ.get("RANK") == "0":
        file.with_suffix(".answer").write_bytes(pickle.dumps(answer))
    if isinstance(answer, Exception):
        raise answer


# A study.


def sweep(
    recipes: Sequence[Recipe],
    seeds: int | str,
    out: Path,
    *,
    settings: Settings | None = None,
    sources: Sequence[str] = (),
    ranks: int = 1,
    name: str = "custom",
    purpose: str = "a sweep with own recipes",
    report: Callable[[str], None] = lambda line: print(line, flush=True),
    **engine: Any,
) -> dict[str, JobFailure]:
    """Train every run of a study that is not finished yet; returns what failed, by run.

    Parameters
    ----------
    recipes
        Each is trained with every seed; their names must differ.
    seeds
        How many paired seeds; ``"+N"`` adds N to those of a study that is there, once all of its runs have ended.
    out
        Folder of the study. Nodes of a cluster must see it under the same path.
    settings
        How each run is run.
    sources
        Your own files (``FILE.py``) and backbones (``FILE.py:FUNCTION``) that the recipes need.
    ranks
        Processes per run, each with its own GPU if the device is cuda.
    name, purpose
        What study.json says of the study.
    report
        Where progress goes.
    engine
        ``workers``, ``engine`` and ``options`` of :func:`lipcomp.jobs.run_jobs`.
    """
    settings = settings or Settings()
    count = plan(out, name, purpose, recipes, seeds, report)
    folders = {
        f"{recipe.name}-seed{seed}": (recipe, seed, out / "runs" / f"{recipe.name}-seed{seed}")
        for seed in range(count)
        for recipe in recipes
    }
    todo = {run: job for run, job in folders.items() if not (job[2] / CHECKPOINT).exists()}
    how = {"precision": settings.precision, "accumulate": settings.accumulate, "ranks": ranks}
    known = Identities(settings, how)
    for each, job in folders.items():
        if each not in todo:
            known.check(*job)
    warned = {run: reason for run, job in todo.items() if (reason := known.diverged(*job))}
    total, todo = len(todo), {run: job for run, job in todo.items() if run not in warned}
    report(
        f"train: {purpose}: {len(folders)} runs, {len(folders) - total} finished before"
        + (f", {len(warned)} diverged before" if warned else "")
    )
    lines = [f"{run}: diverged: {reason}" for run, reason in warned.items()]
    failed: dict[str, JobFailure] = {}
    started, done, cost = time.monotonic(), 0.0, {run: _cost(job[0]) for run, job in todo.items()}
    number = 0
    while todo:
        waiting = sorted(todo, key=lambda run: -cost[run])  # long runs first
        jobs = [
            (tuple(sources), pickle.dumps(todo[run][0]), *todo[run][1:], settings, ranks) for run in waiting
        ]
        busy = []
        for outcome in run_jobs(train_one, jobs, **engine):
            run = waiting[outcome.number]
            line, notes, failure, elsewhere = _told(run, outcome)
            if elsewhere:
                busy.append(run)
                continue
            lines += [f"{run}: {note}" for note in notes]
            if failure is not None:
                failed[run] = failure
            del todo[run]
            number, done = number + 1, done + cost[run]
            left = (time.monotonic() - started) / done * (sum(cost.values()) - done)
            report(f"  {number:3d}/{len(cost)}  {line}   {left:4.0f} s left")
            for note in notes:
                report(f"           {note}")
        if busy and todo:
            report(f"  {len(busy)} of the runs are trained by another command; waiting for it")
            _wait_for(todo)  # what it has finished is asked again, whether it is what this one wants
    if number:
        note_stage(out, "train", time.monotonic() - started)
    if lines:
        report("to look at:")
        for line in lines:
            report(f"  {line}")
    return failed


def _told(
    run: str, outcome: Outcome[tuple[list[str], str | None]]
) -> tuple[str, list[str], JobFailure | None, bool]:
    """A line, what to repeat at the end, the failure, and whether another command has the run."""
    if outcome.error is not None:
        return f"{run:32s} FAILED", [f"failed: {outcome.error.reason}"], outcome.error, False
    assert outcome.value is not None
    notes, ended = outcome.value
    if ended == "busy":
        return "", [], None, True
    if ended is not None:
        return f"{run:32s} DIVERGED", [*notes, f"diverged: {ended}"], None, False
    return f"{run:32s} {outcome.seconds:5.0f} s", notes, None, False


def _wait_for(runs: Mapping[str, tuple[Recipe, int, Path]]) -> None:
    """Until one of the runs is finished or free."""
    while True:
        time.sleep(POLL)
        for _, _, out in runs.values():
            if (out / CHECKPOINT).exists():
                return
            with claim(out) as mine:
                if mine:
                    return


def _seeds(text: str) -> str:
    """An argparse type: N or +N."""
    if not re.fullmatch(r"\+?[0-9]{1,6}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a number of seeds, or +N to add seeds; got {text!r}")
    return text


def _path(text: str) -> str:
    """The field that ``--set RECIPE:FIELD=VALUE`` sets."""
    return text.partition("=")[0].rpartition(":")[2]


def _check_names(recipes: Sequence[Recipe]) -> None:
    """Refuse a recipe that is called after another beta than its own."""
    for recipe in recipes:
        called = re.search(r"-beta([0-9.e+-]+)$", recipe.name)
        if called and (beta := f"{getattr(recipe.objective, 'beta', 0.0):g}") != called[1]:
            raise ValueError(
                f"{recipe.name} would be trained at beta = {beta}, which is not what it is called; leave "
                f"objective.beta out of --set"
            )


def _cost(recipe: Recipe) -> float:
    """What a run takes, in epochs of SimCLR."""
    return recipe.epochs * (1.2 if recipe.objective.family == "byol" else 1.0)


# The command.


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the runs of a study."""
    parser = Parser(prog="python -m train.sweep", description=__doc__, epilog=EPILOG + "\n" + recipe_fields())
    # fmt: off
    parser.add_argument("preset", nargs="?", help=" ".join(f"{n}: {p.__doc__}" for n, p in PRESETS.items()))
    parser.add_argument("--methods", type=words, metavar="NAME,...",
        help=f"methods to train on --data, comma-separated: {', '.join(METHODS)}")
    parser.add_argument("--recipes", type=words, metavar="NAME,...",
        help="recipes to train, comma-separated: names or FILE.py:FUNCTION")
    parser.add_argument("--betas", type=numbers, metavar="FLOAT,...",
        help="values of beta, comma-separated, for every method that has one (default: the recipe's)")
    parser.add_argument("--seeds", type=_seeds, metavar="INT",
        help="number of paired seeds; +N adds N to a study whose runs have all ended (default: 3, or the preset's)")
    parser.add_argument("--out", type=Path, help="folder of the study (default: studies/PRESET)")
    parser.add_argument("--ranks", type=positive(int), default=1,
        help="processes per run, started by torchrun; set --gpus too")
    parser.add_argument("--job", type=Path, help="internal: one rank of a run with several processes")
    # fmt: on
    add_recipe_options(parser)
    add_settings(parser, without=("workers",))
    add_engine_arguments(parser)
    parser.ignores("with a preset", lambda given: given.preset, "--data", "--image-size", "--backbone")
    parser.ignores("with --betas", lambda given: given.betas, "--beta")
    options = parser.parse_args(arguments)
    if options.job is not None:
        _train_as_rank(options.job)
        return 0
    chosen = [name for name in ("preset", "methods", "recipes") if getattr(options, name)]
    if len(chosen) != 1:
        raise UsageError(
            f"give exactly one of PRESET ({', '.join(PRESETS)}), --methods or --recipes; got {chosen or 'none'}"
        )
    settings = settings_of(options)
    seeds, purpose, name = 3, "a sweep with own recipes", "custom"
    if options.preset:
        if options.preset not in PRESETS:
            raise UsageError(f"preset {options.preset!r} is unknown; known: {', '.join(PRESETS)}")
        preset = PRESETS[options.preset]()
        recipes = [changed(recipe, options) for recipe in preset.recipes]
        seeds, purpose, name = preset.seeds, preset.purpose, options.preset
    else:
        recipes = [recipe_of(each, options, settings, print) for each in options.methods or options.recipes]
    check_set(recipes, options)
    if options.betas:
        if not any(hasattr(recipe.objective, "beta") for recipe in recipes):
            raise UsageError(
                f"--betas is for methods with a beta; {', '.join(r.name for r in recipes)} has none"
            )
        if again := [text for text in options.set if _path(text) == "objective.beta"]:
            raise UsageError(f"--set {again[0]} would be ignored with --betas; leave one of them out")
        recipes = over_betas(recipes, options.betas)
    _check_names(recipes)
    wanted = options.seeds or str(seeds)
    wanted = wanted if wanted.startswith("+") else int(wanted)
    out = options.out or Path("studies") / name
    choice = engine_choice(options, out / "jobs")
    sources = [place for place in BACKBONES if ":" in place]
    sources += [part.partition(":")[0] for part in options.recipes or () if ".py:" in part]
    failed = sweep(
        recipes,
        wanted,
        out.resolve(),
        settings=settings,
        sources=sources,
        ranks=options.ranks,
        name=name,
        purpose=purpose,
        **choice,
    )
    raise_failures(failed, len(recipes) * seeds_of(out) if failed else 0)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
