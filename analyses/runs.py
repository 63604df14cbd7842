"""The encoders of a study's folder: its finished runs, or the checkpoint files of a plain folder."""

from dataclasses import dataclass
from pathlib import Path

CHECKPOINTS = (".safetensors", ".ckpt", ".pth", ".pt", ".tar")


@dataclass(frozen=True)
class Run:
    """A checkpoint of a study."""

    name: str
    checkpoint: Path


def find_runs(study: Path) -> list[Run]:
    """The finished runs of a study, or the checkpoint files of a plain folder.

    Raises
    ------
    FileNotFoundError
        If the folder is missing or holds no checkpoint.
    """
    if not study.is_dir():
        raise FileNotFoundError(
            f"study folder {str(study)!r} does not exist; train one with: make study, or give a folder of checkpoints"
        )
    runs = [Run(file.parent.name, file) for file in sorted(study.glob("runs/*/model.safetensors"))]
    if not runs:
        files = sorted(f for f in study.iterdir() if f.is_file() and f.suffix in CHECKPOINTS)
        runs = [Run(file.stem, file) for file in files]
    if not runs:
        raise FileNotFoundError(
            f"study folder {str(study)!r} holds no checkpoint: neither runs/*/model.safetensors nor files ending in "
            f"{', '.join(CHECKPOINTS)}; train one with: make study"
        )
    return runs
