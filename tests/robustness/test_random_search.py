"""Balls, random starts and the search of the attacks, against their definitions."""

import numpy as np
import pytest
import torch
from scipy import stats

from lipcomp.robustness._random_search import (
    _SHARES,
    into_ball,
    length,
    random_search,
    random_start,
    steepest,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_lengths_and_steepest_directions_are_those_of_the_norms():
    x = torch.randn(4, 3, 2, 2, generator=seeded(), dtype=torch.float64)
    flat = x.flatten(1).numpy()
    np.testing.assert_allclose(length(x, "l2"), np.linalg.norm(flat, axis=1))
    np.testing.assert_allclose(length(x, "linf"), np.abs(flat).max(1))
    for norm, dual in (("l2", 2), ("linf", 1)):
        best = steepest(x, norm)
        np.testing.assert_allclose(length(best, norm), np.ones(4))
        np.testing.assert_allclose((best * x).flatten(1).sum(1), np.linalg.norm(flat, dual, axis=1))


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_point_is_brought_to_the_nearest_of_the_ball_then_of_the_pixels(norm):
    origin = torch.rand(6, 1, 3, 3, generator=seeded(), dtype=torch.float64)
    x = origin + torch.randn(6, 1, 3, 3, generator=seeded(1), dtype=torch.float64) * torch.logspace(
        -3, 0, 6
    ).view(-1, 1, 1, 1)
    found = into_ball(x, origin, norm, 0.25)
    for start, moved, end in zip(origin.numpy(), (x - origin).numpy(), found.numpy(), strict=True):
        if norm == "linf":
            moved = np.clip(moved, -0.25, 0.25)
        elif (size := np.linalg.norm(moved)) > 0.25:
            moved = 0.25 * moved / size
        np.testing.assert_allclose(end, np.clip(start + moved, 0, 1))


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_random_starts_are_uniform_in_the_ball(norm):
    middle = torch.full((4000, 1, 2, 2), 0.5)
    moved = (random_start(middle, norm, 0.2, seeded()) - middle).flatten(1) / 0.2
    share = moved.norm(dim=1) ** 4 if norm == "l2" else (moved[:, 0] + 1) / 2  # of the volume inside it
    assert stats.kstest(share.numpy(), "uniform").pvalue > 1e-3
    angle = torch.atan2(moved[:, 1], moved[:, 0])
    assert norm == "linf" or stats.kstest(angle.numpy() / (2 * np.pi) + 0.5, "uniform").pvalue > 1e-3


@pytest.mark.parametrize(("norm", "radius"), [("l2", 0.5), ("linf", 0.1)])
def test_the_search_says_what_it_found(norm, radius):
    """Of a linear classifier without gradients: wrong is wrong by the classifier, in the ball, better with queries."""
    weight = torch.randn(4, 48, generator=seeded(2))
    images = 0.3 + 0.4 * torch.rand(12, 3, 4, 4, generator=seeded(3))

    def classifier(x):
        return (x.flatten(1) - 0.5) @ weight.T

    labels = classifier(images).argmax(1)

    def margins(x):
        logits = classifier(x)
        true = logits.gather(1, labels[:, None])[:, 0]
        return true - logits.scatter(1, labels[:, None], -torch.inf).amax(1)

    shares = []
    for queries in (0, 60):
        end, margin = random_search(margins, images, norm, radius, queries, seeded())
        hit = margin < 0
        assert torch.equal(hit, classifier(end).argmax(1) != labels)
        assert (length(end - images, norm) <= radius * (1 + 1e-5)).all()
        shares.append(float(hit.float().mean()))
    assert shares[0] < shares[1]


def test_the_shares_of_the_patches_are_squares():
    """The package's own schedule, rescaled to any number of queries, until 60% of them."""
    square = pytest.importorskip("pyautoattack.square")
    attack = square.SquareAttack(lambda x: x, n_queries=10_000, device="cpu")
    for query in range(11, 6000):
        share = next(p for begin, p in reversed(_SHARES) if query > begin * 10_000)
        assert share == attack.p_selection(query), query
