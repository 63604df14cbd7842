"""Changes of the values: brightness."""

from lipcomp.robustness.corruptions.draws import Draws
from lipcomp.robustness.corruptions.filters import Images


def brightness(images: Images, draws: Draws, amount: float) -> Images:
    """Add ``amount`` to HSV's value."""
    return images + amount
