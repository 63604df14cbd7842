"""Checkpoint files -> encoders, without pickle."""

from lipcomp.checkpoints.errors import CheckpointError
from lipcomp.checkpoints.load import load_encoder
from lipcomp.checkpoints.native import Checkpoint, Metadata, load_checkpoint, save_checkpoint
from lipcomp.checkpoints.preprocessing import Preprocessing
from lipcomp.checkpoints.report import KeyReport
