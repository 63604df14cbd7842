"""The one error that reading checkpoints raises."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read; the message says why and what to do."""
