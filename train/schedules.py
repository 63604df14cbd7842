"""What changes over a run: learning rate and the target's moving average. Plain functions of the step.

All are the official code's, checked against it to float32 (tests/train/test_schedules.py). Steps count from 0, and
the value of step k is the one used *in* step k. Beta's schedules belong to the objective (``Objective.at``).
"""

import math
from typing import Literal

Scaling = Literal["linear", "sqrt", "none"]


def total_steps(images: int, batch_size: int, epochs: float) -> int:
    """Steps of a run: N * epochs // batch + 1, the images running on from one epoch into the next."""
    return int(images * epochs // batch_size) + 1


def warmup_steps(images: int, batch_size: int, epochs: float) -> int:
    """Steps of the linear warm-up."""
    return round(epochs * images // batch_size)


def scale_rate(rate: float, batch_size: int, scaling: Scaling) -> float:
    """The peak learning rate of a batch size: linear is rate * batch / 256, sqrt is rate * sqrt(batch)."""
    if scaling == "linear":
        return rate * batch_size / 256
    return rate * math.sqrt(batch_size) if scaling == "sqrt" else rate


def learning_rate(step: int, total: int, warmup: int, peak: float) -> float:
    """Linear from 0 over the warm-up, then a cosine to 0."""
    if step < warmup:
        return peak * step / warmup
    return peak * _falling_cosine(step - warmup, total - warmup)


def target_decay(step: int, total: int, start: float) -> float:
    """BYOL's moving average: from ``start`` to 1 along a cosine, over the whole run."""
    return 1 - (1 - start) * _falling_cosine(step, total)


def _falling_cosine(step: int, total: int) -> float:
    """From 1 at step 0 to 0 at ``total``, and 0 from there on."""
    return 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, total))))
