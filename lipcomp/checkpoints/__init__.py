"""Checkpoint files -> encoders, without pickle."""

from lipcomp.checkpoints._load import load_encoder
from lipcomp.checkpoints._native import save_checkpoint

__all__ = [
    "load_encoder",
    "save_checkpoint",
]
