"""How a recipe is run: device, precision, logs. Settings change speed and rounding, not the method."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from lipcomp._arguments import checked

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@checked
@dataclass(frozen=True)
class Settings:
    """How a recipe is run. Settings change speed, logs and rounding, not the method.

    Parameters
    ----------
    device
        Device to train on.
    data_root
        Dataset directory of CIFAR, SVHN and other known sets.
    precision
        Precision of the networks: fp32, or autocast to bf16 or fp16 (with loss scaling); the objective is always
        computed in float32.
    accumulate
        Number of parts that each batch is split into, to save memory; *this changes the method*, since batch norm and
        the negatives then see one part only.
    compile
        Compile the backbones with torch.compile.
    channels_last
        Use the channels-last memory format, which makes convolutions faster.
    workers
        Threads that decode images, shared by the ranks; 0 means one per available core.
    save_steps
        Training steps between two saved states, for resuming (default: one epoch).
    keep_epochs
        Save an encoder every N epochs, in addition to the last and the best.
    evaluate_epochs
        Epochs between two evaluations on held-out images; 0 for none (default: a quarter of the run).
    log_steps
        Training steps between two writes to metrics.jsonl and two checks that the loss is finite.
    skip_unreadable
        Skip pictures of folders and shards that cannot be read, instead of stopping with an error.
    tensorboard
        Write TensorBoard event files into the folder of the run.
    wandb
        Project in Weights & Biases to log to.
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
