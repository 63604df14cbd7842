"""Checkpoint files -> encoders, without pickle."""

from lipcomp.checkpoints._errors import CheckpointError
from lipcomp.checkpoints._formats import NAMES as FORMAT_NAMES
from lipcomp.checkpoints._load import load_encoder
from lipcomp.checkpoints._native import Checkpoint, Metadata, load_checkpoint, save_checkpoint
from lipcomp.checkpoints._own import build_own, load_own
from lipcomp.checkpoints._preprocessing import Inputs
from lipcomp.checkpoints._report import KeyReport
