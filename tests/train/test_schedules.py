"""Every schedule against the official implementation (tests/reference/objectives.npz, sched/*)."""

import numpy as np
import pytest

from train.optimizers import (
    learning_rate,
    scale_rate,
    target_decay,
    total_steps,
    warmup_steps,
)


@pytest.mark.parametrize("case", ["in300", "in1000", "toy", "toysqrt", "nowarm"])
def test_schedules_equal_the_official_code(reference, case):
    values = np.load(reference / "objectives.npz")

    def at(name):
        return values[f"sched/{case}/{name}"]

    images, batch, epochs, warmup_epochs, base, ema0 = at("cfg").tolist()
    total, warmup = (
        total_steps(int(images), int(batch), epochs),
        warmup_steps(int(images), int(batch), warmup_epochs),
    )
    assert (total, warmup) == (int(at("total_steps")), int(at("warmup_steps")))
    peak = scale_rate(base, int(batch), "sqrt" if case == "toysqrt" else "linear")
    for i, step in enumerate(at("steps").tolist()):
        close = {"rtol": 3e-5, "atol": 2e-7}  # the official code computes in float32
        np.testing.assert_allclose(learning_rate(step, total, warmup, peak), at("lr")[i], **close)
        np.testing.assert_allclose(target_decay(step, total, ema0), at("ema")[i], **close)


def test_the_papers_lengths_and_rates():
    """Published: 93,836 steps at 300 epochs, 312,785 at 1000, warm-up 3,127; peaks 4.8, 3.2, 5.6 and 4.0."""
    assert total_steps(1_281_167, 4096, 300) == 93_836
    assert total_steps(1_281_167, 4096, 1000) == 312_785
    assert warmup_steps(1_281_167, 4096, 10) == 3_127
    assert [round(scale_rate(r, 4096, "linear"), 9) for r in (0.3, 0.2, 0.35, 0.25)] == [4.8, 3.2, 5.6, 4.0]


def test_the_ends():
    assert learning_rate(0, 10, 2, 1.0) == 0.0
    assert learning_rate(2, 10, 2, 1.0) == 1.0
    assert learning_rate(10, 10, 2, 1.0) == pytest.approx(0.0, abs=1e-12)
    assert target_decay(10, 10, 0.9) == 1.0
