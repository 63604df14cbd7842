"""A study's folder: its encoders (finished runs, or the checkpoint files of a plain folder), options and records."""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lipcomp._atomic import atomic_file
from lipcomp._commands import Parser
from lipcomp._identity_files import hash_files
from lipcomp.checkpoints._native import Metadata
from lipcomp.measure import Images, Source, _options as measure_options
from lipcomp.records import read_records, to_frame

CHECKPOINTS = (".safetensors", ".ckpt", ".pth", ".pt", ".tar")
# Settings that tell apart the values which a study measures of a run; those that differ in others were measured again.
PLACES = ("corruption", "severity", "refit", "shift", "pairs", "kappa", "kappa_e", "layer", "radius", "stage")

ROLL = "runs.json"  # what measuring found of each run: a page may be drawn where the checkpoints are not
FINISHED = "finished"
BASELINES = ("Random", "RawPixels")  # objectives of what is measured beside the runs, without a checkpoint


@dataclass(frozen=True)
class Measured:
    """What a command measured of a study."""

    # the records of runs that count: of each run, those of the encoder that was measured last, if its checkpoint is
    # still the same
    frame: pd.DataFrame
    count: int  # how many records the file holds
    removed: tuple[str, ...]  # runs that were measured and have no checkpoint any more
    # runs whose checkpoint is not the one that was measured: trained anew since then
    replaced: tuple[str, ...]
    diverged: dict[str, str]  # runs that ended without an encoder, and why

    def cautions(self) -> list[str]:
        """What a page has to say of the runs that do not count."""
        found = []
        if self.removed:
            found.append(
                f"Left out: {', '.join(self.removed)}, measured before, but no longer among the checkpoints of the "
                f"study. Verdicts are too sure if runs are removed because of their results."
            )
        if self.replaced:
            found.append(
                f"Left out: {', '.join(self.replaced)}, whose checkpoints are not those that were measured (trained "
                f"anew?). Measure the study again."
            )
        if self.diverged:
            told = "; ".join(f"{run} ({why})" for run, why in self.diverged.items())
            found.append(
                f"Diverged in training, so without an encoder: {told}. If divergence depends on the method, the "
                f"effects hold only for runs that do not diverge."
            )
        return found


def find_runs(study: Path) -> dict[str, Path]:
    """The checkpoints of a study's finished runs, or those in a plain folder, by name."""
    if not study.is_dir():
        raise FileNotFoundError(
            f"study folder {str(study)!r} does not exist; train one with: make study, or give a folder of checkpoints"
        )
    runs = {file.parent.name: file for file in sorted(study.glob("runs/*/model.safetensors"))}
    if not runs:
        files = sorted(f for f in study.iterdir() if f.is_file() and f.suffix in CHECKPOINTS)
        runs = {file.stem: file for file in files}
    if not runs:
        raise FileNotFoundError(
            f"study folder {str(study)!r} holds no checkpoint: neither runs/*/model.safetensors nor files ending in "
            f"{', '.join(CHECKPOINTS)}; train one with: make study"
        )
    return runs


def call_roll(study: Path) -> dict[str, str] | None:
    """What became of each run, :data:`FINISHED` or why it diverged; None if it is not known.

    As its folder says, or where that holds no checkpoint, as measuring found it.
    """
    try:
        roll = dict.fromkeys(find_runs(study), FINISHED)
    except FileNotFoundError:
        kept = _read_roll(study)
        return kept and {run: end if isinstance(end, str) else FINISHED for run, end in kept.items()}
    for file in sorted(study.glob("runs/*/diverged.json")):
        try:
            reason = str(json.loads(file.read_text())["reason"])
        except (KeyError, TypeError, ValueError):
            reason = "the reason is not readable"
        roll.setdefault(file.parent.name, reason.partition(";")[0].rpartition("): ")[2])  # no path, no advice
    return roll


def _read_roll(study: Path) -> dict[str, Any] | None:
    """What :func:`write_roll` kept of each run; None if it was not called yet."""
    try:
        return dict(json.loads((study / ROLL).read_text()))
    except FileNotFoundError:
        return None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{study / ROLL} is damaged ({error}); remove it") from error


def write_roll(study: Path, measured: Mapping[str, Mapping[str, str]]) -> None:
    """Keep what became of each run, for pages that are drawn elsewhere, and which checkpoint of it was measured.

    Its records need not have the checkpoint's own hash: where another file held the same encoder, they were there.
    """
    if (roll := call_roll(study)) is not None:
        with atomic_file(study / ROLL) as temporary:
            temporary.write_text(
                json.dumps({run: measured.get(run, end) for run, end in roll.items()}, indent=1)
            )


def add_study_arguments(parser: Parser) -> None:
    """How checkpoints, images and machines are chosen: the options of the ``lipcomp`` commands."""
    measure_options.add_foreign_arguments(parser)
    measure_options.add_data_arguments(parser)
    measure_options.add_machine_arguments(parser)


def read_study(
    options: argparse.Namespace,
) -> tuple[list[Source], list[Metadata], list[tuple[str, ...]], dict[str, dict[str, str]], Images]:
    """The encoders of ``options.study``, their metadata, layers and hashes, and the images that the options choose."""
    sources: list[Source] = []
    hashes: dict[str, dict[str, str]] = {}
    metadata: list[Metadata] = []
    layers: list[tuple[str, ...]] = []
    for name, path in find_runs(options.study).items():
        sources.append(measure_options.source(options, str(path), name))
        checkpoint = sources[-1].load()
        metadata.append(checkpoint.metadata)
        layers.append(tuple(checkpoint.encoder.layers()))
        hashes[name] = {"sha256": checkpoint.sha256, "encoder": checkpoint.identity}
    return sources, metadata, layers, hashes, measure_options.images(options, metadata)


def read_measured(file: Path, command: str) -> Measured:
    """What a command wrote about a study's runs."""
    if not file.exists():
        raise FileNotFoundError(
            f"{file.parent} holds no {file.name}: measure it first with: python -m {command} {file.parent}"
        )
    frame = to_frame(read_records(file))
    count = len(frame)
    if frame.empty or "subject.run" not in frame:
        raise ValueError(f"{file} holds no record of a study's run; measure the study again")
    roll = call_roll(file.parent)
    frame, replaced = _of_checkpoints(frame, file.parent)
    removed: tuple[str, ...] = ()
    if roll is not None:
        objective = frame.get("subject.objective", pd.Series(index=frame.index, dtype=object))
        named = frame.loc[~objective.isin(BASELINES), "subject.run"].dropna()
        gone = named[~named.isin([run for run, end in roll.items() if end == FINISHED])]
        removed = tuple(dict.fromkeys(run for run in gone if run not in roll))
        frame = frame.drop(index=gone.index)
    if not frame["subject.run"].notna().any():
        raise ValueError(
            f"{file} holds records of other runs alone; measure the study: python -m {command} {file.parent}"
        )
    diverged = {run: end for run, end in (roll or {}).items() if end != FINISHED}
    return Measured(frame.copy(), count, removed, replaced, diverged)


def _of_checkpoints(frame: pd.DataFrame, study: Path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The records of the encoders that were measured last, and the runs whose checkpoint is another one by now."""
    if "subject.sha256" not in frame:
        return frame, ()
    run, sha = frame["subject.run"], frame["subject.sha256"]
    encoder = frame.get("subject.encoder", pd.Series(index=frame.index, dtype=object))
    kept = {name: told for name, told in (_read_roll(study) or {}).items() if isinstance(told, dict)}
    last = frame.groupby("subject.run")["subject.sha256"].transform("last")
    measured, wanted = (
        run.map({name: told.get(field) for name, told in kept.items()}).astype(object)
        for field in ("sha256", "encoder")
    )
    measured = measured.where(measured.notna(), last)
    counts = (encoder == wanted).where(encoder.notna() & wanted.notna(), sha == last)
    try:
        files = find_runs(study)
    except FileNotFoundError:
        files = {}
    there = run.map(dict(zip(files, hash_files(list(files.values())), strict=True))).astype(object)
    other = sha.notna() & there.notna() & (there != measured)
    return frame[(sha.isna() | counts) & ~other], tuple(dict.fromkeys(run[other]))


def last_values(frame: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Of every value of a run that was measured again, with other images say, the last one alone; how many changed.

    Times are of the machine and add up; they all stay.
    """
    settings = [name for place in PLACES if (name := f"settings.{place}") in frame]
    values = frame[frame["subject.run"].notna() & ~frame["quantity"].isin(("time", "time.wall"))]
    place = values.groupby(["subject.run", "quantity", *settings], dropna=False, sort=False).ngroup()
    changed = values["value"].groupby(place).nunique(dropna=False) > 1
    return frame.drop(index=values.index[place.duplicated(keep="last")]), int(changed.sum())
