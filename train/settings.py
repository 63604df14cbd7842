"""How a recipe is run: device, precision, logs. What changes speed and rounding, not the method."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Settings:
    """How a recipe is run: what changes speed, logs and rounding, not the method.

    Parameters
    ----------
    device
        Where it trains.
    data_root
        Folder that holds CIFAR, SVHN and other sets on disk.
    precision
        fp32, or autocast to bf16 or fp16 (with a scaled loss); the objective is always computed in float32.
    accumulate
        Parts of a batch that are passed one after the other. *This changes the method*: batch norm and the negatives
        then see a part of the batch only.
    compile
        Compile the backbones (torch.compile).
    channels_last
        Images and kernels with the channels last in memory; faster convolutions.
    workers
        Threads that decode images on disk; 0 for one per core that this process may use, shared by the ranks.
    save_steps
        Steps between two states; one epoch if not given.
    keep_epochs
        Keep an encoder every so many epochs, besides the last and the best.
    evaluate_epochs
        Epochs between two measurements on held-out images; a quarter of the run if not given, 0 for none.
    log_steps
        Steps between two writes to metrics.jsonl, and two looks for a loss that is not finite.
    skip_unreadable
        Leave out images on disk that cannot be read instead of refusing them.
    tensorboard
        Write TensorBoard's event files into the run's folder.
    wandb
        Project of Weights & Biases to log to.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    data_root: Path | None = None
    precision: Precision = "fp32"
    accumulate: int = 1
    compile: bool = False
    channels_last: bool = True
    workers: int = 0
    save_steps: int | None = None
    keep_epochs: int | None = None
    evaluate_epochs: int | None = None
    log_steps: int = 10
    skip_unreadable: bool = False
    tensorboard: bool = False
    wandb: str | None = None

    def __post_init__(self) -> None:
        if self.precision not in DTYPES:
            raise ValueError(f"precision must be one of {', '.join(DTYPES)}, got {self.precision!r}")
        for name in ("accumulate", "save_steps", "keep_epochs", "log_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("workers", "evaluate_epochs"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
