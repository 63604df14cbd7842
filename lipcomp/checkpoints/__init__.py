"""Checkpoint files -> encoders, without pickle."""

from lipcomp.checkpoints.errors import CheckpointError
from lipcomp.checkpoints.formats import NAMES as FORMAT_NAMES
from lipcomp.checkpoints.load import load_encoder
from lipcomp.checkpoints.native import Checkpoint, Metadata, load_checkpoint, save_checkpoint
from lipcomp.checkpoints.own import build_own, load_own
from lipcomp.checkpoints.preprocessing import Inputs
from lipcomp.checkpoints.report import KeyReport
