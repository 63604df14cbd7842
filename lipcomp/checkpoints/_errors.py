"""The error that reading a checkpoint raises."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read; the message says why and what to do, in one line."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def printable(text: str) -> str:
    """A text in which a file's own words cannot move the cursor, colour the terminal or begin a line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
