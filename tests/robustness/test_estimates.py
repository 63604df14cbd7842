"""Metrics and their intervals: closed forms, published numbers."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import special, stats

from lipcomp.robustness._calibration import brier_score, calibration_error, negative_log_likelihood
from lipcomp.robustness._effective import (
    CLEAN_COLUMN,
    baseline_fit,
    effective_robustness,
    fit_baselines,
    read_baselines,
)
from lipcomp.robustness._estimates import (
    Estimate,
    accuracy,
    bootstrap,
    bounded_mean,
    per_class_accuracy,
    proportion,
    top_k_correct,
)
from lipcomp.robustness._metrics import (
    ALEXNET,
    ALEXNET_CLEAN,
    estimate_corruption_accuracy,
    estimate_mce,
    estimate_relative_mce,
    flip_rate,
    read_flip_reference,
)
from lipcomp.robustness._watermark import gap


def test_the_bootstrap_of_a_mean_is_binomial():
    """Resampling n images of which a share p is right gives Binomial(n, p) / n exactly."""
    right = np.arange(400) < 300
    found = bootstrap(right, resamples=20000)
    assert found.value == 0.75
    assert found.n == 400
    expected = stats.binom.ppf([0.025, 0.975], 400, 0.75) / 400
    np.testing.assert_allclose(found.interval, expected, atol=0.003)


@pytest.mark.parametrize("truth", [0.0, 0.002, 0.05, 0.5, 0.95, 0.999, 1.0])
@pytest.mark.parametrize("n", [20, 200, 1000])
def test_an_accuracys_interval_covers_at_every_truth_exactly(truth, n):
    """Summed over every possible count, weighted by its probability: no simulation."""
    chances = stats.binom.pmf(np.arange(n + 1), n, truth)
    likely = np.flatnonzero(chances > 1e-12)
    intervals = [proportion(np.arange(n) < count).interval for count in likely]
    covered = np.array([low <= truth <= high for low, high in intervals])
    assert chances[likely][covered].sum() >= 0.95
    assert all(high > low for low, high in intervals)


def test_zeros_and_ones_are_shares_only_where_they_are_answers():
    """A value of exactly 1 on every image (sigma of an isometry) is not "right"; one image has no spread."""
    for value in (0.0, 1.0):
        assert bootstrap(np.full(50, value)).interval == (value, value)
        always = np.zeros((50, 4)) if value == 0 else np.arange(200).reshape(50, 4)
        assert flip_rate(always).interval == pytest.approx(proportion(np.full(50, value)).interval, rel=0.02)
    assert bootstrap(np.ones(1)).interval is None


def test_accuracy_by_class_leaves_out_classes_without_images():
    found = per_class_accuracy(np.array([1, 0, 1, 1]), torch.tensor([0, 0, 2, 2]), ("a", "b", "c"))
    assert {name: (e.value, e.n) for name, e in found.items()} == {"a": (0.5, 2), "c": (1.0, 2)}


@pytest.mark.parametrize("count", [0, 1, 3, 10, 20])
def test_a_mean_of_zeros_and_ones_between_limits_has_clopper_and_pearsons_interval(count):
    right = np.arange(20) < count
    assert bounded_mean(right, (0.0, 1.0)).interval == pytest.approx(proportion(right).interval, abs=0.005)
    moved = bounded_mean(3 - 2.0 * right, (1.0, 3.0)).interval
    assert moved == pytest.approx([3 - 2 * end for end in reversed(proportion(right).interval)], abs=0.01)


def test_differences_of_images_that_do_not_change_are_uncertain():
    """Of 60 right and 40 wrong answers none changed: as many as Clopper and Pearson's bound may."""
    right, unseen = np.arange(100) < 60, proportion(np.zeros(100)).interval[1]
    assert gap(right, right).interval == pytest.approx((-unseen, unseen), rel=0.02)
    lost = estimate_relative_mce({name: np.stack([right] * 5) for name in ALEXNET}, right)
    assert lost.value == 0
    assert lost.interval[0] < 0 < lost.interval[1]
    half = estimate_corruption_accuracy({"fog": right[None], "snow": ~right[None]}).interval
    assert half == pytest.approx((0.5 - unseen / 2, 0.5 + unseen / 2), rel=0.02)


@pytest.mark.parametrize("wrong", [1, 2, 4, 6])
def test_few_wrong_answers_are_covered(wrong):
    """Of answers that are .999 sure about ``wrong`` in n are wrong: summed over every count, not simulated."""
    n, sure = 60, 0.999
    logits = torch.tensor([[np.log(sure / (1 - sure)), 0.0]]).double().repeat(n, 1)
    score = {0: 2 * (1 - sure) ** 2, 1: 2 * sure**2}
    truths = {
        calibration_error: abs(sure - 1 + wrong / n),
        brier_score: score[0] + wrong / n * (score[1] - score[0]),
    }
    chances = stats.binom.pmf(np.arange(n + 1), n, wrong / n)
    likely = np.flatnonzero(chances > 1e-4)
    for metric, truth in truths.items():
        found = [metric(logits, (torch.arange(n) < count).long()).interval for count in likely.tolist()]
        held = np.array([low <= truth <= high for low, high in found])
        assert chances[likely][held].sum() >= 0.95


def test_accuracy_of_predictions_and_top_k():
    assert accuracy(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 0])).value == 0.75
    logits = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    assert top_k_correct(logits, torch.tensor([1, 0]), 1).tolist() == [0, 0]
    assert top_k_correct(logits, torch.tensor([1, 0]), 2).tolist() == [1, 0]
    with pytest.raises(ValueError, match="at most the 3 classes"):
        top_k_correct(logits, torch.tensor([0, 0]), 5)
    with pytest.raises(ValueError, match="at least one image"):
        bootstrap(np.zeros(0))
    with pytest.raises(ValueError, match="at least one image"):
        bounded_mean(np.zeros(0), (0.0, 1.0))


def test_top_k_of_classes_that_tie():
    """Most classes have no vote of few neighbours: that torch.topk names them by their index is no answer."""
    votes = torch.tensor([[0.0, 0.0, 3.0, 1.0, 0.0, 0.0]])
    right = [[bool(top_k_correct(votes, torch.tensor([c]), k)[0]) for c in range(6)] for k in (1, 2, 5, 6)]
    assert right[0] == [False, False, True, False, False, False]
    assert right[1] == right[2] == [False, False, True, True, False, False]
    assert all(right[3])
    assert top_k_correct(torch.zeros(1, 6), torch.tensor([0]), 5).tolist() == [1]  # as argmax has it


@pytest.mark.parametrize("n", [4, 30, 200])
def test_sure_and_right_answers_leave_the_calibration_error_uncertain(n):
    """With k right of k at confidence 1, a share of wrong ones up to Clopper and Pearson's bound may be unseen."""
    for logit in (12.0, 1000.0):
        found = calibration_error(torch.tensor([[logit, 0.0]]).repeat(n, 1), torch.zeros(n, dtype=torch.long))
        assert found.interval[0] == 0
        assert found.interval[1] == pytest.approx(1 - proportion(np.ones(n)).interval[0], abs=1e-4)


def test_a_likelihood_that_is_the_same_of_every_image_has_no_interval():
    found = negative_log_likelihood(torch.zeros(20, 4), torch.zeros(20, dtype=torch.long))
    assert (found.value, found.interval) == (pytest.approx(np.log(4)), None)
    sure = torch.rand(20, 1, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [[1.0, 0.0]]
    ) + torch.tensor([12.0, 0])
    assert negative_log_likelihood(sure, torch.zeros(20, dtype=torch.long)).interval is None


def test_a_shift_on_which_nothing_is_right_leaves_effective_robustness_uncertain():
    """As ResNet-50 on ImageNet-A: of 20 images, as many as Clopper and Pearson's bound may be right."""
    clean = np.arange(40_000) % 4 > 0
    fit = baseline_fit("imagenet_v2")
    for count in (0, 1, 20):
        ends = np.array(effective_robustness(clean, np.arange(20) < count, fit).interval)
        assert ends + fit.predict(0.75) == pytest.approx(proportion(np.arange(20) < count).interval, abs=0.02)


def test_the_upper_end_of_the_calibration_error_where_gaps_are_large():
    """T + 1.96 s, s^2 from the squared gaps where these exceed what confidences would give."""
    p = 0.995
    logits = torch.tensor([[np.log(p / (1 - p)), 0.0]] * 400).double()
    labels = (torch.arange(400) % 2).long()
    gaps = np.where(labels == 0, 1 - p, -p)
    found = calibration_error(logits, labels)
    assert found.interval[1] == pytest.approx(abs(gaps.mean()) + 1.959964 * np.sqrt((gaps**2).mean() / 400))


def test_the_lowest_confidences_have_a_bin_of_their_own():
    """Of 40 classes: 0.05 sure and always right, 0.1 sure and always wrong: (0.95 + 0.1) / 2, not their difference."""
    sure = torch.tensor([0.05] * 500 + [0.1] * 500, dtype=torch.float64)
    others = ((1 - sure) / 39).unsqueeze(1).expand(-1, 39)
    labels = (torch.arange(1000) >= 500).long()
    logits = torch.cat([sure.unsqueeze(1), others], 1).log()
    assert calibration_error(logits, labels).value == pytest.approx(0.525, abs=1e-9)


def test_calibration_error_of_a_model_that_is_always_as_sure():
    """Confidence 0.8 everywhere and 60% right: the error is 0.2, in whatever bin; the interval is of one share."""
    logits = torch.tensor([[np.log(0.8), np.log(0.2)]]).repeat(400, 1)
    labels = (torch.arange(400) >= 240).long()
    found = calibration_error(logits, labels)
    assert abs(found.value - 0.2) < 1e-9
    noise = []  # 97.5% of what chance makes of the gap, if it is none and if it is what was seen
    for share in (0.8, 242 / 404):
        gaps = np.abs(np.arange(401) / 400 - share)
        order = gaps.argsort()
        within = stats.binom.pmf(order, 400, share).cumsum()
        noise.append(gaps[order[np.searchsorted(within, 0.975)]])
    assert found.interval[0] == pytest.approx(0.2 - max(noise), abs=4e-3)
    normal = 1.96 * np.sqrt((0.6 * 0.2**2 + 0.4 * 0.8**2) / 400)
    exact = proportion(np.arange(400) < 240).interval
    assert found.interval[1] == pytest.approx(0.2 + max(normal, 0.6 - exact[0], exact[1] - 0.6), rel=1e-4)


def rows(errors):
    """Errors as results of one image."""
    return {name: 1 - np.array(values)[:, None] for name, values in errors.items()}


@pytest.fixture
def cells(reference):
    """Errors by model, corruption and severity (RobustBench's 5,000-image ImageNet-C)."""
    table = pd.read_csv(reference / "imagenet_c_errors.csv")
    return {
        model: {
            name: group.sort_values("severity").error.tolist() for name, group in rows.groupby("corruption")
        }
        for model, rows in table.groupby("model")
    }


@pytest.mark.parametrize(
    ("model", "percent"),
    [("Standard_R50", 76.38), ("Hendrycks2020AugMix", 64.17), ("Hendrycks2020Many", 60.04)],
)
def test_published_mce_is_reproduced(cells, model, percent):
    """With the same file's AlexNet as the reference, as it says."""
    alexnet = {name: float(np.mean(errors)) for name, errors in cells["AlexNet"].items()}
    assert round(100 * estimate_mce(rows(cells[model]), alexnet).value, 2) == percent


def test_mce_with_the_augmix_constants_is_the_papers(cells):
    assert round(100 * estimate_mce(rows(cells["Standard_R50"])).value, 1) == 76.4


def test_alexnet_has_an_mce_of_one_by_definition():
    errors = {name: [error] * 5 for name, error in ALEXNET.items()}
    assert abs(estimate_mce(rows(errors)).value - 1) < 1e-12
    assert abs(estimate_relative_mce(rows(errors), np.array([1 - ALEXNET_CLEAN])).value - 1) < 1e-12


def test_estimates_from_images_equal_the_errors_formula():
    rng = np.random.default_rng(1)
    right = {name: rng.random((5, 200)) < 0.5 for name in ALEXNET}
    clean = rng.random(200) < 0.8
    errors = {name: 1 - cell.mean() for name, cell in right.items()}
    ratios = [errors[name] / ALEXNET[name] for name in ALEXNET]
    assert abs(estimate_mce(right).value - np.mean(ratios)) < 1e-12
    losses = [(errors[n] - 1 + clean.mean()) / (ALEXNET[n] - ALEXNET_CLEAN) for n in ALEXNET]
    assert abs(estimate_relative_mce(right, clean).value - np.mean(losses)) < 1e-12
    mean = estimate_corruption_accuracy(right)
    assert abs(mean.value - np.mean([cell.mean() for cell in right.values()])) < 1e-12
    assert mean.interval[0] < mean.value < mean.interval[1]


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_images_that_are_all_alike_leave_a_mean_uncertain(share):
    """As for one accuracy, exactly: of n images none showed another answer, so up to 1 - .025^(1/n) of all may."""
    n, unseen = 30, stats.binomtest(0, 30).proportion_ci(method="exact").high
    severities = np.repeat(np.arange(5) < 5 * share, n).reshape(5, n)
    mean = estimate_corruption_accuracy({"fog": severities, "snow": severities})
    assert mean.value == pytest.approx(share)
    assert mean.interval == pytest.approx((share - unseen * share, share + unseen * (1 - share)), rel=0.02)
    error = estimate_mce({"fog": severities}, {"fog": 0.5})
    assert error.interval == pytest.approx((2 - 2 * mean.interval[1], 2 - 2 * mean.interval[0]), rel=0.02)
    sure = torch.tensor([[200.0, 0.0]] * n)
    assert brier_score(sure, torch.zeros(n).long()).interval == pytest.approx((0, 2 * unseen), rel=0.02)


@pytest.mark.parametrize("n", [4, 12, 40])
def test_images_that_are_alike_but_for_rounding_leave_a_mean_as_uncertain(n):
    """A Brier score of sure and right answers said 2e-10 +- 1e-10, of four images as of forty."""
    sure = torch.tensor([[12.0, 0.0]]).repeat(n, 1).double() + torch.rand(n, 1, dtype=torch.float64)
    found = [
        brier_score(logits, torch.zeros(n, dtype=torch.long)) for logits in (sure, torch.stack([sure[0]] * n))
    ]
    sure[:, 1] = 0
    found.append(brier_score(sure, torch.zeros(n, dtype=torch.long)))
    for one in found:
        # of 1,000 draws
        assert one.interval[1] == pytest.approx(2 * (1 - proportion(np.ones(n)).interval[0]), rel=0.2)


def test_small_values_that_differ_are_not_alike():
    """The chords of a weak attack, 0.004 to 0.014 of 2, had an interval up to 0.15."""
    chords = np.random.default_rng(0).uniform(0.004, 0.014, 50)
    assert bootstrap(chords, limits=(0.0, 2.0)).interval == bootstrap(chords).interval


def test_metrics_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="reference errors lack spatter"):
        estimate_mce({"spatter": np.ones((1, 1))})
    with pytest.raises(ValueError, match=r"lie in \[0, 1\]"):
        estimate_mce({"fog": np.full((1, 1), 45.0)})
    with pytest.raises(ValueError, match="same images"):
        estimate_corruption_accuracy({"fog": np.ones((5, 3)), "snow": np.ones((5, 4))})
    with pytest.raises(ValueError, match="at least one corruption"):
        estimate_mce({})


def test_flip_rates_by_hand():
    predictions = np.array([[0, 0, 1, 0], [2, 2, 2, 2]])
    assert flip_rate(predictions).value == pytest.approx((2 / 3 + 0) / 2)
    assert flip_rate(predictions, noise=True).value == pytest.approx((1 / 3 + 0) / 2)
    with pytest.raises(ValueError, match="at least 2 frames"):
        flip_rate(np.zeros((2, 1)))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("fog,x", "numbers, got 'x'"),
        ("fog,0", "positive"),
        ("fog,", "positive"),
        ("fog,1\nfog,2", "fog twice"),
    ],
)
def test_a_flip_reference_that_cannot_be_divided_by_is_named(tmp_path, rows, message):
    (tmp_path / "r.csv").write_text(f"perturbation,flip_rate\n{rows}\n")
    with pytest.raises(ValueError, match=message):
        read_flip_reference(tmp_path / "r.csv")


@pytest.mark.parametrize(
    ("shift", "slope", "intercept", "r_squared"),
    [
        ("imagenet_v2", 0.923, -0.498, 0.996),
        ("objectnet", 0.981, -1.928, 0.953),
        ("imagenet_sketch", 1.071, -2.370, 0.869),
        ("imagenet_r", 0.637, -2.108, 0.889),
        ("imagenet_a", 1.990, -7.632, 0.828),
    ],
)
def test_the_published_lines_are_reproduced(shift, slope, intercept, r_squared):
    """Logit fits on the standard models of imagenet-testbed; values given with this project's reference tables."""
    fit = baseline_fit(shift)
    assert (round(fit.slope, 3), round(fit.intercept, 3), round(fit.r_squared, 3)) == (
        slope,
        intercept,
        r_squared,
    )
    assert fit.slope_interval[0] < fit.slope < fit.slope_interval[1]


def test_every_shift_of_the_table_has_a_line():
    assert all(baseline_fit(shift).r_squared > 0.5 for shift in CLEAN_COLUMN)


def test_models_on_a_line_have_that_line_and_no_effective_robustness():
    x = np.linspace(-1, 2, 20)
    fit = fit_baselines(special.expit(x), special.expit(0.9 * x - 0.4))
    assert fit.slope == pytest.approx(0.9)
    assert fit.intercept == pytest.approx(-0.4)
    assert float(fit.predict(special.expit(0.5))) == pytest.approx(special.expit(0.05))
    clean = np.arange(1000) < 700
    expected = float(fit.predict(0.7))
    shifted = np.arange(1000) < 1000 * expected
    assert abs(effective_robustness(clean, shifted, fit).value) < 1e-3


def test_baselines_of_ones_own(tmp_path):
    table = tmp_path / "models.csv"
    table.write_text("model,clean,moved\na,0.6,0.5\nb,0.7,0.6\nc,0.8,0.7\nd,0.9,\n")
    assert read_baselines(table, "clean", "moved").n == 3
    for text, message in (("", "is no CSV table"), ("clean,moved\n0.1,x\n", "must hold numbers, got 'x'")):
        (tmp_path / "bad.csv").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_baselines(tmp_path / "bad.csv", "clean", "moved")
    with pytest.raises(ValueError, match="no column 'shifted', only: model, clean, moved"):
        read_baselines(table, "clean", "shifted")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_baselines(tmp_path / "none.csv", "clean", "moved")
    with pytest.raises(ValueError, match="divide percent by 100"):
        fit_baselines(np.array([60.0, 70, 80]), np.array([50.0, 60, 70]))
    with pytest.raises(ValueError, match="at least three"):
        fit_baselines(np.array([0.6, 0.7]), np.array([0.5, 0.6]))
    with pytest.raises(ValueError, match="did you mean 'imagenet_v2'"):
        baseline_fit("imagenetv2")


def answers_of(n, sharpen, seed):
    """Logits, labels drawn from softmax(logits / sharpen), and the true expected calibration error of these images."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2.5 * torch.randn(n, 10, generator=generator)
    p = torch.softmax(logits.double() / sharpen, 1)
    labels = torch.multinomial(p, 1, generator=generator)[:, 0]
    confidence, predicted = torch.softmax(logits.double(), 1).max(1)
    gap = (p.gather(1, predicted[:, None])[:, 0] - confidence).numpy()
    which = np.clip(np.ceil(confidence.numpy() * 15) - 1, 0, 14).astype(int)
    return logits, labels, np.abs(np.bincount(which, gap, minlength=15)).sum() / n


@pytest.mark.slow
@pytest.mark.parametrize("sharpen", [1.0, 1.1, 2.0])
@pytest.mark.parametrize(("n", "draws"), [(200, 100), (1000, 60), (10000, 30)])
def test_the_interval_of_the_calibration_error_covers(n, draws, sharpen):
    """At least 95% of the time for a calibrated model (0 of 60 with resampling) and for models that are not."""
    held, values = 0, []
    for seed in range(draws):
        logits, labels, truth = answers_of(n, sharpen, seed)
        found = calibration_error(logits, labels, resamples=200)
        held += found.interval[0] <= truth + 1e-9 <= found.interval[1] + 1e-9
        assert found.interval[0] <= found.value <= found.interval[1]
        values.append(found.value - truth)
    assert stats.binom.cdf(held, draws, 0.95) > 0.01
    assert abs(np.mean(values)) < 0.35 / np.sqrt(n) + 2.5 * np.std(values) / np.sqrt(draws)


def test_brier_score_and_likelihood_by_hand():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]]))
    labels = torch.tensor([0, 2])
    expected = [0.25 + 0.09 + 0.04, 0.01 + 0.64 + 0.81]
    assert brier_score(logits, labels).value == pytest.approx(np.mean(expected))
    assert negative_log_likelihood(logits, labels).value == pytest.approx(-(np.log(0.5) + np.log(0.1)) / 2)


def test_a_share_over_corruptions_of_one_image_has_its_exact_interval():
    found = estimate_corruption_accuracy({"blur": np.ones((2, 1)), "fog": np.ones((2, 1))})
    assert found.interval == pytest.approx(proportion(np.ones(1)).interval, rel=0.02)
    assert bootstrap(np.ones(1)).interval is None


def test_errors_of_one_image_reach_from_limit_to_limit():
    """Weights of the image and of one more at the limit are uniform: 97.5% of the way to it at either end."""
    right = {"fog": np.zeros((5, 1)), "snow": np.ones((5, 1))}
    gains = [1 / (ALEXNET[name] - ALEXNET_CLEAN) / 2 for name in right]
    found, most = estimate_relative_mce(right, np.ones(1)), sum(gains)
    assert found.value == pytest.approx(gains[0])
    assert found.interval == pytest.approx(
        (found.value - 0.975 * (found.value + most), found.value + 0.975 * (most - found.value)), rel=0.02
    )
    found, most = estimate_mce(right), sum(1 / ALEXNET[name] / 2 for name in right)
    assert found.interval[1] == pytest.approx(found.value + 0.975 * (most - found.value), rel=0.02)
    one, other = negative_log_likelihood(
        torch.tensor([[0.0, 0.0], [0.0, 9.0]]), torch.zeros(2).long()
    ).interval
    assert 0 <= one < 1.0
    assert 8.5 < other < 9.1  # the largest value seen is the limit


def test_a_mean_that_is_not_finite_has_no_interval():
    """Scores of minus infinity and NaN gave (nan, nan) or (0, 1), and warnings of NumPy."""
    masked, lost = torch.tensor([[0.0, -math.inf], [0.0, 1.0]]), torch.tensor([[math.nan, 0.0], [0.0, 1.0]])
    label = torch.tensor([1, 1])
    assert negative_log_likelihood(masked, label) == Estimate(math.inf, None, 2)
    assert brier_score(masked, label).interval is not None
    for found in (calibration_error, brier_score, negative_log_likelihood):
        assert math.isnan(found(lost, label).value)
        assert found(lost, label).interval is None
