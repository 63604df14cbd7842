"""The folder of a study: its plan, which of its runs are what the plan says, how long its stages took."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lipcomp._atomic import atomic_file, check_writable
from lipcomp._claims import claim
from lipcomp.checkpoints._native import load_checkpoint
from train.data import Report, data_hash
from train.folder import CHECKPOINT, DIVERGED, BusyError, check_same, flat, identity, identity_of
from train.recipe import Recipe
from train.settings import Settings


def plan(
    out: Path, name: str, purpose: str, recipes: Sequence[Recipe], seeds: int | str, report: Report = print
) -> int:
    """Write study.json and return the number of seeds; refuse a folder that holds another study.

    More seeds may be added to a study, never fewer. ``"+N"`` adds seeds to a study whose runs have all ended, finished
    or diverged, and otherwise continues it: so the command that added seeds can be repeated until they are trained.
    """
    names = [recipe.name for recipe in recipes]
    if len(set(names)) < len(names):
        raise ValueError(f"the runs of a study need different names, got {', '.join(names)}")
    kinds: dict[str, str] = {}
    for recipe in recipes:
        kind = json.dumps({"data": recipe.data, **flat({"recipe": recipe.to_dict()})}, sort_keys=True)
        if (same := kinds.setdefault(kind, recipe.name)) != recipe.name:
            raise ValueError(
                f"{same} and {recipe.name} are one recipe with two names, and would be trained twice; leave one of "
                f"them out, or the option that made them equal"
            )
    file = out / "study.json"
    check_writable(file, "out")
    if isinstance(seeds, str) and not _read_plan(file).get("seeds"):
        raise ValueError(
            f"{str(out)!r} holds no study to add seeds to; train one first, with a number of seeds without +"
        )
    with claim(file, wait=60.0) as mine:
        if not mine:
            raise BusyError(f"another command writes {str(file)!r} now; run this one again")
        known = _read_plan(file)
        before = int(known.get("seeds", 0))
        if isinstance(seeds, str):
            ended = _ended(out, known.get("runs", ()))
            count = before + int(seeds[1:]) if ended else before
            if not ended:
                report(
                    f"note: runs of the study's {before} seeds have not ended, so these continue and none is added"
                )
        else:
            count = max(before, seeds)
        if count < 1:
            raise ValueError(f"a study needs at least 1 seed, got {seeds}")
        runs = {f"{r.name}-seed{seed}": r.to_dict() for r in recipes for seed in range(count)}
        told = json.loads(json.dumps({"seeds": count, "runs": runs}))
        for run, fields in known.get("runs", {}).items():
            if run not in told["runs"]:
                raise ValueError(
                    f"{str(out)!r} holds another study (with a run {run!r}); give another --out or remove the folder"
                )
            check_same(
                flat({"recipe": fields}),
                flat({"recipe": told["runs"][run]}),
                out,
                f"another study, a run {run!r}",
            )
        # what others wrote beside it, a design say, stays
        told = {"preset": name, "purpose": purpose} | known | told
        if told != known:
            with atomic_file(file) as temporary:
                temporary.write_text(json.dumps(told, indent=1))
    return count


def seeds_of(out: Path) -> int:
    """The number of seeds of the study in a folder."""
    return int(_read_plan(out / "study.json")["seeds"])


def _ended(out: Path, runs: Iterable[str]) -> bool:
    """Whether every run is finished, or was given up."""
    return all(any((out / "runs" / run / file).exists() for file in (CHECKPOINT, DIVERGED)) for run in runs)


def _read_plan(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text()) if file.exists() else {}
        runs, seeds = dict(found.get("runs", {})), int(found.get("seeds", 0))
        if not all(isinstance(fields, dict) for fields in runs.values()) or seeds < 0:
            raise ValueError("not the fields of a study")
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{str(file)!r} is not the plan of a study ({error}); give another --out, or restore the file"
        ) from error
    return found


class Identities:
    """What the runs of a study depend on; the images of each recipe are looked at once."""

    def __init__(self, settings: Settings, how: Mapping[str, Any]) -> None:
        self.settings, self.how = settings, how
        self.hashes: dict[tuple[Any, ...], str | None] = {}

    def of(self, recipe: Recipe, seed: int) -> dict[str, Any]:
        """As a finished run's metadata say it; of images that are gone nothing is said."""
        key = (recipe.data, recipe.encoder.image_shape, type(recipe.views), recipe.images)
        if key not in self.hashes:
            self.hashes[key] = data_hash(recipe, self.settings)
        return identity(recipe.to_dict(), seed, self.hashes[key] or "", self.how)

    def check(self, recipe: Recipe, seed: int, out: Path) -> None:
        """Refuse a finished run that other settings or images made."""
        theirs, ours = identity_of(load_checkpoint(out / CHECKPOINT).metadata), self.of(recipe, seed)
        if not ours["images"]:
            ours["images"] = theirs["images"]
        check_same(theirs, ours, out, "a finished run")

    def diverged(self, recipe: Recipe, seed: int, out: Path) -> str | None:
        """Why this very run was given up before, if it was."""
        try:
            told = json.loads((out / DIVERGED).read_text())
        except (OSError, ValueError):
            return None
        ours = self.of(recipe, seed)
        same = told.get("identity") == ours | (
            {} if ours["images"] else {"images": told["identity"]["images"]}
        )
        return str(told["reason"]) if same else None


def note_stage(out: Path, stage: str, seconds: float) -> None:
    """Add a stage's wall time to timings.jsonl."""
    with (out / "timings.jsonl").open("a") as handle:
        handle.write(json.dumps({"stage": stage, "seconds": round(seconds, 1)}) + "\n")
