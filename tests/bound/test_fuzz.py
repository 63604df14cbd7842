"""Nothing that is called a bound on the wrong side: random networks against dense float64 Jacobians.

``python -m benchmarks.fuzz_networks`` examines 10,000 of them, and more of each.
"""

import warnings

import pytest

from benchmarks.fuzz_networks import CHECKS, examine

NETWORKS = 150
EACH = 15
QUICK = (0, 15, 60, 75, 105)  # the others hold the networks that take longest
NAMES = list(CHECKS)  # one of them for each network


@pytest.mark.parametrize(
    "first", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in range(0, NETWORKS, EACH)]
)
def test_random_networks(first):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)  # torch.jit.trace
        for seed in range(first, first + EACH):
            violations, refusals = examine(seed, (NAMES[seed % len(NAMES)],))
            assert not violations
            assert not refusals
