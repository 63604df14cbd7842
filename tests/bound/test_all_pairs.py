"""All pairs in blocks against all pairs at once, computed the slow way."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lipcomp.bound import all_pairs, lower_bounds
from lipcomp.bound._gathered import Proof
from lipcomp.bound._neighbours import nearest_neighbours
from lipcomp.bound._rounding import ASSUMED
from lipcomp.bound._sketch import Histogram


@pytest.fixture
def embedded(generator):
    images = torch.rand(70, 2, 3, 3, generator=generator)
    weight = torch.randn(18, 6, generator=generator)
    return images, F.normalize(images.flatten(1) @ weight - 1, dim=1)


def by_hand(images, mu, concentration, quantiles=(0.5,)):
    i, j = torch.triu_indices(len(mu), len(mu), 1)
    distance = (images[i].double() - images[j].double()).flatten(1).norm(dim=1)
    return lower_bounds(
        mu[i], mu[j], distance, concentration=concentration, pairs=torch.stack([i, j], 1), quantiles=quantiles
    )


@pytest.mark.parametrize("block_size", [16, 23, 70, None])
@pytest.mark.parametrize("concentration", [None, 50.0])
def test_blocks_agree_with_all_pairs_at_once(embedded, block_size, concentration):
    images, mu = embedded
    found = all_pairs(
        mu, images, concentration=concentration, block_size=block_size, quantiles=(0.1, 0.5, 0.99)
    )
    truth = by_hand(images, mu, concentration, (0.1, 0.5, 0.99))
    assert set(found.bounds) == set(truth.bounds)
    for name, bound in found.bounds.items():
        assert bound.n == 70 * 69 // 2
        assert bound.maximum == pytest.approx(truth[name].maximum, rel=1e-12), name
        assert sorted(bound.witness.pair) == sorted(truth[name].witness.pair)
        for q, value in bound.quantiles.items():
            assert value == pytest.approx(truth[name].quantiles[q], rel=3e-3), (name, q)
    torch.testing.assert_close(found.per_image(), truth.per_image(), rtol=1e-12, atol=0)


def test_distances_are_of_pixels_and_outputs_of_their_images(embedded, untyped):
    """Normalised images and bytes gave bounds in other units, another order medians of other pairs."""
    images, mu = embedded
    for wrong, message in (
        ((images - 0.5) / 0.25, r"pixels in \[0, 1\], got values from"),
        ((255 * images).byte(), "divide bytes by 255"),
        (list(images), "images must be a tensor .* or a function, got list"),
    ):
        with pytest.raises(ValueError, match=message):
            all_pairs(mu, wrong)
    quarter = all_pairs(mu, (images - 0.5) / 0.25, domain=None)["direction"]
    assert quarter.maximum == pytest.approx(all_pairs(mu, images)["direction"].maximum / 4, rel=1e-5)
    with pytest.raises(ValueError, match="mu are not the outputs of fn"):
        all_pairs(images.flatten(1).flip(0), images, fn=nn.Flatten(), normalised=False)


def test_no_quantile_is_above_what_is_proved(embedded):
    images, mu = embedded
    for bound in all_pairs(mu, images, concentration=50.0, quantiles=(0.99, 1.0)).bounds.values():
        assert bound.quantiles[0.99] <= bound.quantiles[1.0] <= bound.maximum


def test_images_may_come_block_by_block(embedded):
    images, mu = embedded
    asked = []

    def load(indices):
        asked.append(len(indices))
        return images[indices]

    found = all_pairs(mu, load, block_size=16)
    assert max(asked) <= 70
    assert found["direction"].maximum == pytest.approx(
        by_hand(images, mu, None)["direction"].maximum, rel=1e-12
    )


def test_duplicates_are_counted_and_near_duplicates_keep_their_digits(embedded, generator):
    """A pair 1e-4 apart: the difference of squares has no digit left in float32."""
    images, mu = embedded
    images[7] = images[3]
    images[20] = images[11]
    images[20, 0, 0, 0] += 1e-3
    mu[20] = F.normalize(mu[11] + 1e-2 * torch.randn(6, generator=generator), dim=0)
    found = all_pairs(mu, images, block_size=16)
    truth = by_hand(images, mu, None)
    assert found.excluded["zero distance"] == 1
    assert found["direction"].n == 70 * 69 // 2 - 1
    assert sorted(found["direction"].witness.pair) == [11, 20]
    assert found["direction"].maximum == pytest.approx(truth["direction"].maximum, rel=1e-12)


@pytest.mark.parametrize("k", [1, 3])
def test_neighbours_among_near_duplicates_are_the_nearest(k, generator):
    """Their distances were lost in a float32 product; one image without numbers left all without a neighbour."""
    steps = 10.0 ** (-2 - 5 * torch.rand(40, 1, generator=generator))
    images = torch.rand(2, 64, generator=generator).repeat(20, 1) * 0.9
    images += steps * torch.rand(40, 64, generator=generator)
    images[7] = torch.nan
    distance = torch.cdist(images.double(), images.double(), compute_mode="donot_use_mm_for_euclid_dist")
    distance = distance.fill_diagonal_(torch.inf).nan_to_num(torch.inf)
    near = nearest_neighbours(images, 40, k)
    found = distance.gather(1, near)[torch.arange(40) != 7]
    torch.testing.assert_close(found, distance.sort(1).values[torch.arange(40) != 7, :k])


def test_tiny_distances_are_measured_in_float64(generator):
    weight = torch.randn(18, 6, generator=generator)
    fn = lambda x: F.normalize(x.flatten(1) @ weight.to(x.dtype), dim=1)  # noqa: E731
    images = torch.rand(30, 18, generator=generator)
    images[5] = images[2]
    images[5, 0] = torch.nextafter(images[2, 0], torch.tensor(2.0))
    alone = all_pairs(fn(images), images)
    measured = all_pairs(fn(images), images, fn=fn)
    assert measured.jacobian == 0
    assert measured["direction"].n == alone["direction"].n == 30 * 29 // 2
    # weights of float32, so that the function is the same
    truth = all_pairs(fn(images.double()), images.double())
    assert alone["direction"].maximum <= truth["direction"].maximum
    assert measured["direction"].maximum == pytest.approx(truth["direction"].maximum, rel=1e-6)


def test_a_map_in_training_mode_is_refused_and_not_touched(embedded):
    images, mu = embedded
    norm = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(18)).train()
    before = norm[1].running_mean.clone()
    with pytest.raises(ValueError, match="training mode"):
        all_pairs(mu, images, fn=lambda x: F.normalize(norm(x), dim=1))
    assert torch.equal(norm[1].running_mean, before)


def test_a_map_that_fills_a_tensor_of_its_own_precision(embedded):
    """It has no version in float64: a copy would be filled, and left."""
    images, _ = embedded

    def fn(x):
        filled = torch.FloatTensor(len(x), 18)
        filled[:] = x.flatten(1)
        return F.normalize(filled - 0.4, dim=1)

    found = all_pairs(fn(images), images, fn=fn)["direction"]
    one, two = found.witness.images
    truth = (fn(one[None]) - fn(two[None])).norm() / (one - two).norm()
    assert found.maximum <= float(truth) * (1 + 1e-6)


def test_images_that_are_not_finite_take_their_pairs_with_them(embedded):
    images, mu = embedded
    images[3, 0, 0, 0], images[50] = torch.nan, torch.inf
    found = all_pairs(mu, images, block_size=16)
    assert found.excluded["non-finite image"] == 69 + 68
    assert found["direction"].n == 68 * 67 // 2
    rest = [i for i in range(70) if i not in (3, 50)]
    assert found["direction"].maximum == all_pairs(mu[rest], images[rest])["direction"].maximum
    assert bool(found.per_image(n=70).isnan()[[3, 50]].all())


def test_embeddings_without_direction_take_their_pairs_with_them(embedded):
    images, mu = embedded
    mu[4], mu[9, 0] = 0.0, torch.nan
    found = all_pairs(mu, images, block_size=16)
    assert found.excluded["non-finite output"] == 69
    assert found.excluded["zero-norm embedding"] == 68
    assert found["direction"].n == 68 * 67 // 2
    assert bool(found.per_image(n=70).isnan()[[4, 9]].all())


@pytest.mark.parametrize("given", ["constant", "not a number"])
def test_a_map_that_does_not_move_has_the_bound_zero_and_one_without_numbers_has_none(given):
    images, mu = torch.rand(6, 3), F.one_hot(torch.zeros(6, dtype=torch.int64), 4).float()
    found = all_pairs(mu if given == "constant" else mu * torch.nan, images, concentration=16.0)
    for bound in found.bounds.values():
        assert bound.witness is None
        assert bound.n == (15 if given == "constant" else 0)
        assert bound.maximum == 0 if given == "constant" else bound.maximum != bound.maximum
    assert found.excluded["non-finite output"] == (0 if given == "constant" else 15)


def test_images_that_are_all_equal_have_no_pair():
    found = all_pairs(torch.ones(4, 1), torch.ones(4, 3))
    assert found.excluded["zero distance"] == 6
    assert found["direction"].n == 0


@pytest.mark.parametrize("size", [1e-36, 1e-25, 1e25, 1e36])
def test_outputs_of_any_size_are_ranked(size, generator):
    """Squares of float32 numbers left its range: a maximum of 0, or an error of bincount."""
    images, weight = torch.rand(12, 6, generator=generator), torch.randn(6, 8, generator=generator)
    found = all_pairs(images @ weight * size, images, normalised=False)["direction"]
    truth = all_pairs(images @ weight, images, normalised=False)["direction"]
    assert found.witness.pair == truth.witness.pair
    assert found.maximum / size == pytest.approx(truth.maximum, rel=1e-5)
    assert found.quantiles[0.5] / size == pytest.approx(truth.quantiles[0.5], rel=1e-2)


def test_rounding_of_outputs_alone_is_that_of_the_longest(generator):
    mu = torch.randn(5, 3, generator=generator)
    longest = float(mu.double().square().sum(1).max().sqrt())
    for normalised, size in ((False, longest), (True, 1.0)):
        proof = Proof.of(None, lambda rows: mu[rows], mu, torch.arange(5), normalised)
        assert proof.eta == pytest.approx(ASSUMED[torch.float32] * size, rel=1e-12)
    with pytest.raises(ValueError, match="at least two images, got 1"):
        all_pairs(mu[:1], mu[:1], normalised=False)


def test_quantiles_of_a_histogram_are_ranks():
    values = Histogram()
    values.add(torch.tensor([1.0, 2.0, 4.0, 8.0]))
    for q, value in ((0.0, 1), (0.25, 1), (0.26, 2), (0.5, 2), (0.75, 4), (0.76, 8), (1.0, 8)):
        assert values.quantile(q) == pytest.approx(value, rel=1 / 256)
