"""A run's folder: one run at a time in it, and states from which a killed run goes on bitwise.

    RUN/model.safetensors          the encoder, when training ends (its presence says that the run is finished)
    RUN/best.safetensors           the encoder with the best held-out accuracy so far
    RUN/every/step-00012000.safetensors   the encoder every so many epochs, on request
    RUN/metrics.jsonl              a line a step and an evaluation
    RUN/states/step-00012345.state weights, optimiser, scaler after that many steps; the last two are kept
    RUN/.lock                      held while a process trains here

A state needs no generator: every random number is a function of (seed, stream, step). It is written beside its place,
flushed to disk and renamed; its first line is the SHA-256 of the rest, so a damaged one is noticed and the one before
it is taken.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lipcomp.checkpoints.native import atomic_file

try:
    import fcntl
except ImportError:  # not POSIX: no lock
    fcntl = None  # type: ignore[assignment]

KEPT_STATES = 2


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run's folder. The lock goes with the process, however it ends.

    Raises
    ------
    ValueError
        If another process trains there.
    OSError
        If the folder cannot be made or written to; nothing is left behind.
    """
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a+")
    except OSError as error:
        raise OSError(
            f"the run's folder {str(folder)!r} cannot be written to ({error.strerror or error}); give another with "
            f"--out, or change its permissions"
        ) from error
    with lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                lock.seek(0)
                raise ValueError(
                    f"another run ({lock.read().strip() or 'its process unknown'}) trains in {str(folder)!r}; wait "
                    f"for it, end it, or give another folder with --out"
                ) from error
        lock.truncate(0)
        lock.write(f"process {os.getpid()}")
        lock.flush()
        try:
            yield
        finally:
            lock.truncate(0)
            if new and {entry.name for entry in folder.iterdir()} == {
                ".lock"
            }:  # stopped before anything was written
                (folder / ".lock").unlink()
                folder.rmdir()


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
        raise OSError(
            f"the state of step {step} cannot be written to {str(file.parent)!r} ({error.strerror or error}); {last}. "
            f"Free space there and run the same command again to go on"
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
    state: dict[str, Any] = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    return state


def last_state(folder: Path, report: Any) -> dict[str, Any] | None:
    """The latest whole state, or None. Damaged ones are reported and passed over."""
    for file in find_states(folder):
        try:
            return load_state(file)
        except (ValueError, OSError) as error:
            report(f"warning: {error}; going back to the one before it")
    return None


def clear_states(folder: Path) -> None:
    """Remove the states of a finished run, and what a killed write left."""
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
                if file.name != ".lock" and file.is_file():
                    file.unlink(missing_ok=True)


def keep_lines(file: Path, steps: int) -> None:
    """Cut the metrics back to the first ``steps`` steps: what comes after will be trained again."""
    if file.exists():
        kept = []
        for line in file.read_text().splitlines():
            try:
                if json.loads(line)["step"] < steps:
                    kept.append(line + "\n")
            except ValueError:  # the last line of a killed process
                continue
        with atomic_file(file) as temporary:
            temporary.write_text("".join(kept))
