"""What a run keeps: encoders with their metadata, and states to go on from."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import lipcomp
from lipcomp.checkpoints import Metadata, save_checkpoint
from lipcomp.data import ImageSet
from train.networks import Trainee
from train.recipe import Recipe
from train.settings import Settings
from train.state import last_state, remove_fragments, save_state


@dataclass
class Keeper:
    """Writes and reads the files of one run; the first rank writes, all ranks read."""

    recipe: Recipe
    seed: int
    out: Path
    settings: Settings
    images: ImageSet
    ranks: int
    best: float = -1.0

    @functools.cached_property
    def data_hash(self) -> str:
        """Of the images; once, since a folder's takes a look at every file."""
        return self.images.content_hash()

    def keep(self, path: Path, trainee: Trainee, steps: int, metrics: dict[str, float] | None = None) -> None:
        """Write the encoder after ``steps`` steps, with its metadata."""
        run = {name: getattr(self.settings, name) for name in ("precision", "accumulate", "compile")}
        metadata = Metadata(
            objective=self.recipe.objective.to_dict(),
            recipe={**self.recipe.to_dict(), "run": {**run, "ranks": self.ranks, "steps": steps}},
            data={
                "name": self.images.name,
                "content_hash": self.data_hash,
                "images": len(self.images),
            },
            seed=self.seed,
            epochs=round(steps * self.recipe.batch_size / len(self.images)),
            code_version={"lipcomp": lipcomp.__version__, "torch": torch.__version__},
            metrics=metrics or {},
        )
        save_checkpoint(path, trainee.online, metadata)

    def save(self, done: int, trainee: Trainee, optimizer: torch.optim.Optimizer, scaler: Any) -> None:
        """Write the state after ``done`` steps."""
        state = {
            "run": self.identity(),
            "trainee": trainee.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
            "best": self.best,
        }
        save_state(self.out, done, state)

    def restore(
        self, trainee: Trainee, optimizer: torch.optim.Optimizer, scaler: Any, report: Any, *, tidy: bool
    ) -> int:
        """Take the last whole state, if there is one; returns the step to go on with.

        Raises
        ------
        ValueError
            If it belongs to another run.
        """
        if tidy:
            remove_fragments(self.out)
        state = last_state(self.out, report)
        if state is None:
            return 0
        if state["run"] != self.identity():
            check_same(json.loads(state["run"]), self.recipe, self.out)
            raise ValueError(
                f"{str(self.out)!r} holds an unfinished run of another seed, data, precision or accumulation; give "
                f"another folder with --out"
            )
        trainee.load_state_dict(state["trainee"])
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
        self.best = state["best"]
        return int(state["step"])

    def identity(self) -> str:
        """What a state must agree on to be gone on with."""
        fields = {
            **self.recipe.to_dict(),
            "seed": self.seed,
            "precision": self.settings.precision,
            "accumulate": self.settings.accumulate,
            "data_hash": self.data_hash,
        }
        return json.dumps(fields, sort_keys=True)


def check_same(theirs: dict[str, Any], recipe: Recipe, out: Path) -> None:
    """Refuse a folder that holds a run of another recipe; the message names the first field that differs."""
    ours = json.loads(json.dumps(recipe.to_dict()))
    for name, value in ours.items():
        if theirs.get(name) != value:
            raise ValueError(
                f"{str(out)!r} holds a run of another recipe: its {name} is {theirs.get(name)!r}, not {value!r}; give "
                f"another folder with --out"
            )
