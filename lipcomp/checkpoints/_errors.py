"""The error that reading a checkpoint raises."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read; the message says why and what to do."""
