"""A study's folder: its encoders (finished runs, or the checkpoint files of a plain folder), options and records."""

import argparse
from pathlib import Path

import pandas as pd

from lipcomp._commands import Parser
from lipcomp.checkpoints._native import Metadata
from lipcomp.measure import Images, Source, _options as measure_options
from lipcomp.records import read_records, to_frame

CHECKPOINTS = (".safetensors", ".ckpt", ".pth", ".pt", ".tar")
# Settings that tell apart the values which a study measures of a run; those that differ in others were measured again.
PLACES = ("corruption", "severity", "refit", "shift", "pairs", "kappa", "kappa_e", "layer", "radius", "stage")


def find_runs(study: Path) -> dict[str, Path]:
    """The checkpoints of a study's finished runs, or those in a plain folder, by name.

    Raises
    ------
    FileNotFoundError
        If the folder is missing or holds no checkpoint.
    """
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


def add_study_arguments(parser: Parser) -> None:
    """How checkpoints, images and machines are chosen: the options of the ``lipcomp`` commands."""
    measure_options.add_foreign_arguments(parser)
    measure_options.add_data_arguments(parser)
    measure_options.add_machine_arguments(parser)


def read_study(
    options: argparse.Namespace,
) -> tuple[list[Source], list[Metadata], list[tuple[str, ...]], Images]:
    """The encoders of ``options.study``, their metadata and layers, and the images of :func:`add_study_arguments`."""
    sources: list[Source] = []
    metadata: list[Metadata] = []
    layers: list[tuple[str, ...]] = []
    for name, path in find_runs(options.study).items():
        sources.append(measure_options.source(options, str(path), name))
        checkpoint = sources[-1].load()
        metadata.append(checkpoint.metadata)
        layers.append(tuple(checkpoint.encoder.layers()))
    return sources, metadata, layers, measure_options.images(options, metadata)


def read_frame(file: Path, command: str) -> pd.DataFrame:
    """The records that a command wrote about a study's runs; of a run that was trained anew, its last.

    Raises
    ------
    FileNotFoundError
        If nothing has been measured.
    ValueError
        If the records are not of a study.
    """
    if not file.exists():
        raise FileNotFoundError(
            f"{file.parent} holds no {file.name}: measure it first with: python -m {command} {file.parent}"
        )
    frame = to_frame(read_records(file))
    if frame.empty or "subject.run" not in frame:
        raise ValueError(f"{file} holds no record of a study's run; measure the study again")
    if "subject.sha256" not in frame:
        return frame
    last = frame.groupby("subject.run")["subject.sha256"].transform("last")
    return frame[frame["subject.sha256"].isna() | (frame["subject.sha256"] == last)].copy()


def last_values(frame: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Of every value of a run that was measured again, with other images say, the last one alone; how many changed.

    Times are of the machine and add up; they all stay.
    """
    settings = [name for place in PLACES if (name := f"settings.{place}") in frame]
    values = frame[frame["subject.run"].notna() & ~frame["quantity"].isin(("time", "time.wall"))]
    place = values.groupby(["subject.run", "quantity", *settings], dropna=False, sort=False).ngroup()
    changed = values["value"].groupby(place).nunique(dropna=False) > 1
    return frame.drop(index=values.index[place.duplicated(keep="last")]), int(changed.sum())
