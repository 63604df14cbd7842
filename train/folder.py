"""A run's folder: one run at a time in it, states from which a killed run continues bitwise, encoders with metadata.

    RUN/model.safetensors          the encoder, when training ends (its presence says that the run is finished)
    RUN/best.safetensors           the encoder with the best held-out accuracy so far
    RUN/every/step-00012000.safetensors   the encoder every N epochs, with --keep-epochs N
    RUN/metrics.jsonl              one line per step and per evaluation
    RUN/states/step-00012345.state weights, optimiser, scaler after that many steps; the last two are kept
    RUN/diverged.json              the step whose loss was not finite, and why that run was given up

A state needs no generator: every random number is a function of (seed, stream, step). It is written beside its place,
flushed to disk and renamed; its first line is the SHA-256 of the rest, so a damaged one is noticed and the one before
it is taken.

What defines a run is compared before it is continued or returned: the recipe's fields, seed, images by
content, precision, accumulation and ranks (:func:`identity`). Names and places are not compared.
"""

import dataclasses
import hashlib
import io
import json
import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lipcomp
from lipcomp._atomic import atomic_file
from lipcomp._claims import claim
from lipcomp._messages import is_of_machine
from lipcomp.checkpoints import save_checkpoint
from lipcomp.checkpoints._native import Metadata, load_checkpoint
from lipcomp.data._sets import ImageSet
from train.networks import Trainee
from train.recipe import Recipe
from train.settings import Settings

KEPT_STATES = 2
CHECKPOINT, DIVERGED = "model.safetensors", "diverged.json"
RUN_FIELDS = ("precision", "accumulate", "ranks")
NAMES = ("name", "pair", "data")  # fields of a recipe that change no number


class BusyError(ValueError):
    """Another process trains in this folder now."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a run's folder; the claim ends with the process, however it ends.

    Raises
    ------
    BusyError
        If another process trains there.
    OSError
        If the folder cannot be written to.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"the run's folder {str(folder)!r} is a file; give another with --out")
    with ExitStack() as stack:
        try:
            mine = stack.enter_context(claim(folder))
        except OSError as error:
            raise OSError(
                f"the run's folder {str(folder)!r} cannot be written to ({error.strerror or error}); give another with "
                f"--out, free space there, or change its permissions"
            ) from error
        if not mine:
            raise BusyError(
                f"another run trains in {str(folder)!r}; wait for it, end it, or give another folder with --out"
            )
        yield


# What defines a run.


def identity(recipe: Mapping[str, Any], seed: int, data_hash: str, run: Mapping[str, Any]) -> dict[str, Any]:
    """All that a run's numbers depend on, flat, as JSON knows it: field -> value. The recipe comes as a dictionary."""
    known = {"recipe": recipe, "seed": seed, "images": data_hash, **{n: run[n] for n in RUN_FIELDS}}
    return flat(json.loads(json.dumps(known)))


def identity_of(metadata: Metadata) -> dict[str, Any]:
    """The same of a finished run, from its encoder's metadata."""
    recipe = dict(metadata.recipe)
    run = recipe.pop("run", {})
    data = metadata.data.get("content_hash")
    return flat(
        {"recipe": recipe, "seed": metadata.seed, "images": data, **{n: run.get(n) for n in RUN_FIELDS}}
    )


def flat(value: Any, place: str = "") -> dict[str, Any]:
    """A nested dictionary as one of dotted names; a recipe's own name, pair and place of data are left out."""
    if not isinstance(value, dict):
        return {place: value}
    found: dict[str, Any] = {}
    for name, part in value.items():
        if place != "recipe" or name not in NAMES:
            found |= flat(part, f"{place}.{name}" if place else name)
    return found


def check_same(theirs: dict[str, Any], ours: dict[str, Any], out: Path, kind: str) -> None:
    """Refuse to continue another run; the message names the fields that differ."""
    defaults = {
        f"recipe.{f.name}": f.default
        for f in dataclasses.fields(Recipe)
        if f.default is not dataclasses.MISSING
    }
    theirs = {**defaults, **theirs}  # a run of an older version lacks newer fields
    differing = [
        f"{name.removeprefix('recipe.')} is {value!r}, not {ours.get(name, 'absent')!r}"
        for name, value in sorted(theirs.items())
        if name.removeprefix("recipe.") not in NAMES and value != ours.get(name, "absent")
    ]
    if differing:
        more = f" and {len(differing) - 6} more" if len(differing) > 6 else ""
        raise ValueError(
            f"{str(out)!r} holds {kind} of another kind: its {'; its '.join(differing[:6])}{more}. Give another folder "
            f"with --out, or remove that one"
        )


@dataclass
class Keeper:
    """Writes and reads the files of one run; the first rank writes, all ranks read."""

    recipe: Recipe
    seed: int
    out: Path
    settings: Settings
    images: ImageSet
    data_hash: str
    ranks: int
    best: float = -1.0

    def __post_init__(self) -> None:
        self.told = self.recipe.to_dict()  # before training changes what a function of your own returns
        self.identity = identity(self.told, self.seed, self.data_hash, self.run)
        """What the folder must agree on."""

    @property
    def run(self) -> dict[str, Any]:
        """How the recipe is run, as metadata say it."""
        settings = {
            n: getattr(self.settings, n) for n in ("precision", "accumulate", "compile", "channels_last")
        }
        return {**settings, "device": self.settings.device.type, "ranks": self.ranks}

    def finished(self) -> Path | None:
        """The encoder, if the run is finished.

        Raises
        ------
        ValueError
            If the folder holds another run.
        """
        checkpoint = self.out / CHECKPOINT
        if not checkpoint.exists():
            return None
        check_same(
            identity_of(load_checkpoint(checkpoint).metadata), self.identity, self.out, "a finished run"
        )
        return checkpoint

    def keep(self, path: Path, trainee: Trainee, steps: int, metrics: dict[str, float] | None = None) -> None:
        """Write the encoder after ``steps`` steps, with its metadata."""
        metadata = Metadata(
            objective=self.recipe.objective.to_dict(),
            recipe={**self.told, "run": {**self.run, "steps": steps}},
            data={"name": self.images.name, "content_hash": self.data_hash, "images": len(self.images)},
            seed=self.seed,
            epochs=round(steps * self.recipe.batch_size / len(self.images)),
            code_version={"lipcomp": lipcomp.__version__, "torch": torch.__version__},
            metrics=metrics or {},
        )
        save_checkpoint(path, trainee.online, metadata=metadata)

    def rehearse(self, trainee: Trainee, images: Tensor) -> None:
        """Write and read back an encoder whose backbone is not lipcomp's, before the long work.

        Raises
        ------
        ValueError
            If it cannot be read, or computes something else than the one that is trained.
        """
        file = self.out / f".{CHECKPOINT}.rehearsal"
        trainee.eval()
        try:
            self.keep(file, trainee, 0)
            read = load_checkpoint(file).encoder.to(images.device)
            with torch.no_grad():
                ours, theirs = (encoder.features(images.float()) for encoder in (trainee.online, read))
        except ValueError as error:
            raise ValueError(
                f"backbone {trainee.online.architecture!r} could be trained, but not be read again: {error}"
            ) from error
        finally:
            trainee.train()
            file.unlink(missing_ok=True)
        if ours.isfinite().all() and not (ours - theirs).norm() <= 1e-2 * ours.norm():
            raise ValueError(
                f"backbone {trainee.online.architecture!r} gives other features when it is read again: what it "
                f"computes in evaluation mode must depend on its state_dict alone, so register tensors with "
                f"register_buffer, and give functions such as F.dropout training=self.training"
            )

    def save(self, done: int, trainee: Trainee, optimizer: torch.optim.Optimizer, scaler: Any) -> None:
        """Write the state after ``done`` steps."""
        state = {
            "run": json.dumps(self.identity, sort_keys=True),
            "trainee": trainee.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
            "best": self.best,
        }
        save_state(self.out, done, state)

    def restore(
        self, trainee: Trainee, optimizer: torch.optim.Optimizer, scaler: Any, report: Any, *, tidy: bool
    ) -> int:
        """Take the last whole state, if there is one; returns the step to continue from.

        Raises
        ------
        ValueError
            If it belongs to another run, or another version of the code wrote it.
        """
        if tidy:
            remove_fragments(self.out)
        state = last_state(self.out, report)
        if state is None:
            return 0
        with _of_this_version(self.out):
            theirs = dict(json.loads(state["run"]))
        check_same(theirs, self.identity, self.out, "an unfinished run")
        with _of_this_version(self.out):
            trainee.load_state_dict(state["trainee"])
            optimizer.load_state_dict(state["optimizer"])
            scaler.load_state_dict(state["scaler"])
            self.best = state["best"]
            return int(state["step"])


# States.


@contextmanager
def _of_this_version(folder: Path) -> Iterator[None]:
    """A whole state that cannot be used was written by another version of the code."""
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        if is_of_machine(error):
            raise
        raise ValueError(
            f"the states in {str(folder / 'states')!r} were written by another version of this code "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}); continue the run with that version, or "
            f"remove {str(folder)!r} to train it anew"
        ) from error


def save_state(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write the state after ``step`` steps, and drop all but the last two."""
    buffer = io.BytesIO()
    torch.save({**state, "step": step}, buffer)
    data = buffer.getvalue()
    file = folder / "states" / f"step-{step:08d}.state"
    try:
        with atomic_file(file) as temporary:
            temporary.write_bytes(hashlib.sha256(data).hexdigest().encode() + b"\n" + data)
    except OSError as error:
        kept = find_states(folder)
        last = f"the state before it, {kept[0].name}, is whole" if kept else "no state was written before"
        reason = os.strerror(error.errno) if error.errno else error
        raise OSError(
            f"the state of step {step} cannot be written to {str(file.parent)!r} ({reason}); {last}. "
            f"Free space there and run the same command again to continue"
        ) from error
    for old in find_states(folder)[KEPT_STATES:]:
        old.unlink(missing_ok=True)
    return file


def find_states(folder: Path) -> list[Path]:
    """The states of a run, the latest first."""
    return sorted((folder / "states").glob("step-*.state"), reverse=True)


def load_state(file: Path) -> dict[str, Any]:
    """Read a state.

    Raises
    ------
    ValueError
        If it is damaged.
    """
    digest, _, data = file.read_bytes().partition(b"\n")
    if hashlib.sha256(data).hexdigest().encode() != digest:
        raise ValueError(f"state {str(file)!r} is damaged: it does not have the contents that were written")
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        if is_of_machine(error):
            raise
        raise ValueError(
            f"state {str(file)!r} holds no tensors ({str(error).splitlines()[0][:100]})"
        ) from error
    return state


def last_state(folder: Path, report: Any) -> dict[str, Any] | None:
    """The latest whole state, or None. Damaged ones are reported and passed over."""
    for file in find_states(folder):
        try:
            return load_state(file)
        except (ValueError, OSError) as error:
            if is_of_machine(error):
                raise
            report(f"warning: {error}; going back to the one before it")
    return None


def tidy(folder: Path) -> None:
    """Remove the states of a finished run, what a killed write left, and that the run was given up before."""
    (folder / DIVERGED).unlink(missing_ok=True)
    states = folder / "states"
    if states.is_dir():
        for file in states.iterdir():
            file.unlink(missing_ok=True)
        states.rmdir()


def remove_fragments(folder: Path) -> None:
    """Remove temporary files that a killed process left."""
    for place in (folder, folder / "states", folder / "every"):
        if place.is_dir():
            for file in place.glob(".*.*"):
                if file.is_file():
                    file.unlink(missing_ok=True)


def keep_lines(file: Path, steps: int) -> None:
    """Cut the metrics back to the first ``steps`` steps: what comes after will be trained again."""
    if file.exists():
        kept = []
        for line in file.read_text(errors="replace").splitlines():
            try:
                if json.loads(line)["step"] < steps:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):  # the last line of a killed process, or none of ours
                continue
        with atomic_file(file) as temporary:
            temporary.write_text("".join(kept))
