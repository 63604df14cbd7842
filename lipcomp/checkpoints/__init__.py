"""Checkpoint files -> encoders, without pickle."""

from lipcomp.checkpoints.native import Checkpoint, CheckpointError, Metadata, load_checkpoint, save_checkpoint
