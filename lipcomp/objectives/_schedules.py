"""How beta moves over training, as the official code has it: a factor in [0, 1] on the objective's beta.

=============  =========================================================
constant       1 (what the published models use)
cosine         (1 - cos(pi step / total)) / 2, from 0 to 1
linear_warmup  step / warmup_steps, then 1
=============  =========================================================
"""

import math

SCHEDULES = ("constant", "cosine", "linear_warmup")


def beta_factor(schedule: str, step: int, total_steps: int, warmup_steps: int = 0) -> float:
    """The factor on beta at a step (counted from 0); it stays 1 after the last."""
    check_schedule(schedule)
    if step < 0 or total_steps < 1 or warmup_steps < 0:
        raise ValueError(
            f"need step >= 0, total_steps >= 1 and warmup_steps >= 0; got {step}, {total_steps}, {warmup_steps}"
        )
    if schedule == "cosine":
        return math.sin(0.5 * math.pi * min(1.0, step / total_steps)) ** 2
    if schedule == "linear_warmup" and warmup_steps:
        return min(1.0, step / warmup_steps)
    return 1.0


def check_schedule(schedule: str) -> None:
    """Refuse an unknown schedule."""
    if schedule not in SCHEDULES:
        raise ValueError(f"beta_schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
