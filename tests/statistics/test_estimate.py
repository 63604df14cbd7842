"""Bad input is named, missing results say why, and estimates become records."""

import numpy as np
import pandas as pd
import pytest
import torch

from lipcomp.records import append_records, read_records
from lipcomp.statistics import contrast, correlation, paired_effect, within_pairs
from lipcomp.statistics._correlation import partial_correlation
from lipcomp.statistics._estimate import rounding
from lipcomp.statistics._per_image import auroc, clustered_logistic
from lipcomp.statistics._slopes import block_slope

GOOD = [0.3, 0.1, 0.4, 0.15, 0.9, 0.26]
LABEL = [0, 1, 0, 1, 0, 1]
CALLS = {
    "a": lambda v: paired_effect(v, GOOD),
    "b": lambda v: paired_effect(GOOD, v),
    "x": lambda v: correlation(v, GOOD),
    "y": lambda v: within_pairs(GOOD, v, [0, 0, 1, 1, 2, 2]),
    "control": lambda v: partial_correlation(GOOD, GOOD[::-1], v),
    "score": lambda v: auroc(v, LABEL),
    "controls": lambda v: clustered_logistic(GOOD, LABEL, controls=[v]),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named_with_its_place(name, bad):
    with pytest.raises(ValueError, match=rf"{name} must be finite, got {bad} at position 2 \(1 of 6"):
        CALLS[name]([*GOOD[:2], bad, *GOOD[3:]])


@pytest.mark.parametrize("name", [name for name in CALLS if name not in ("a", "x", "score")])
def test_lengths_that_differ_are_named(name):
    with pytest.raises(ValueError, match=rf"{name} must have 6 values, .* got 5"):
        CALLS[name](GOOD[:5])


@pytest.mark.parametrize("name", ["a", "x", "score"])
def test_nothing_at_all_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} must have one dimension and at least one value"):
        CALLS[name]([])


def test_groups_are_checked():
    with pytest.raises(ValueError, match="groups must hold one label for each of 6"):
        correlation(GOOD, GOOD[::-1], groups=[1, 2])
    for missing in (None, float("nan")):
        for rest in ([1, 1, 2, 2, 2], ["a", "a", "b", "b", "b"]):
            labels = np.array([missing, *rest], dtype=object)
            with pytest.raises(ValueError, match="pair has labels that are missing"):
                within_pairs(GOOD, GOOD, labels)


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
def test_levels_are_probabilities(level):
    with pytest.raises(ValueError, match="level must be between 0 and 1"):
        paired_effect(GOOD, LABEL, level=level)


def test_numbers_of_every_kind_are_taken():
    expected = correlation(GOOD, LABEL)
    for kind in (tuple, np.array, pd.Series, torch.tensor, lambda v: np.array(v, dtype=np.float32)):
        assert correlation(kind(GOOD), kind(LABEL)).value == pytest.approx(expected.value)


def test_estimates_become_records(tmp_path):
    found = paired_effect(GOOD, LABEL)
    records = found.to_records(
        "accuracy.clean.effect", subject={"method": "c-simclr"}, settings={"data": "mnist5k"}
    )
    append_records(tmp_path / "effects.jsonl", records)
    value, p = read_records(tmp_path / "effects.jsonl")
    assert value.quantity == "accuracy.clean.effect"
    assert (value.value, value.interval, value.n) == (found.value, found.interval, 6)
    assert p.quantity == "accuracy.clean.effect.p_value"
    assert p.value == found.p_value
    assert p.settings["smallest_p"] == 2**-5
    assert value.settings["data"] == "mnist5k"
    assert "sign-flip" in value.settings["method"]


def test_what_is_not_estimable_is_recorded_with_its_reason(tmp_path):
    records = correlation([1, 1, 1], [1, 2, 3]).to_records("correlation.smoothness")
    append_records(tmp_path / "effects.jsonl", records)
    value, p = read_records(tmp_path / "effects.jsonl")
    assert value.value is None
    assert p.value is None
    assert value.settings["note"] == "x is constant"


def test_the_sentence_names_value_interval_p_and_n():
    text = str(correlation(list(range(10)), [2, 1, 4, 3, 6, 5, 8, 7, 10, 9]))
    assert text.startswith("Spearman correlation 0.939, 95% interval [")
    assert "p = " in text
    assert text.endswith("n = 10")


def of_series(x, y, third):
    """Each function that takes several series of the same observations."""
    yield lambda: paired_effect(x, y)
    yield lambda: correlation(x, third, groups=y, resamples=9)
    yield lambda: partial_correlation(x, third, y, resamples=9)
    yield lambda: within_pairs(x, third, y, resamples=9)
    yield lambda: contrast(x, third, y, 1, 0)
    yield lambda: auroc(x, y, groups=third)
    yield lambda: block_slope(x, y)


def test_series_whose_labels_stand_in_another_order_are_refused():
    """Values are taken by position; those of one seed were set against those of another without a word."""
    x, third = pd.Series(GOOD, index=list("abcdef")), pd.Series([0, 0, 1, 1, 2, 2], index=list("abcdef"))
    y = pd.Series(LABEL, index=list("abcdef"))
    for call in of_series(x, y[::-1], third):
        with pytest.raises(ValueError, match="the same labels in another order"):
            call()
    for call in of_series(x, y, third):
        call()
    # rows of a table by method
    for call in of_series(x, y.set_axis(range(10, 16)), third.set_axis(range(10, 16))):
        call()


@pytest.mark.parametrize("kind", [np.float32, np.float16, torch.float32, torch.bfloat16])
def test_rounding_of_short_types_is_no_variation(kind):
    """One image more of 100 in each seed: p was 4e-12 in float32."""
    values = [0.91, 0.93, 0.95, 0.90, 0.92, 0.94]
    given = (
        torch.tensor(values, dtype=kind) if isinstance(kind, torch.dtype) else np.array(values, dtype=kind)
    )
    for found in (
        contrast(given, [0, 1, 2] * 2, list("tttccc"), "t", "c"),
        paired_effect(given[:3], given[3:]),
    ):
        assert found.interval is None
        assert "do not vary" in found.note


@pytest.mark.parametrize(("kind", "step"), [(torch.float16, 2**-10), (torch.bfloat16, 2**-7)])
def test_differences_of_a_few_units_in_the_last_place_are_differences(kind, step):
    """Two to four of them were taken for rounding: the mean difference of accuracies in bfloat16 was 0."""
    a = 0.5 + step * torch.tensor([2, 3, 4, 2, 3])
    found = paired_effect(a.to(kind), torch.full((5,), 0.5, dtype=kind))
    assert found == paired_effect(a, torch.full((5,), 0.5))
    values = torch.cat([a, torch.full((5,), 0.5)])
    given = [*range(5)] * 2, list("tttttccccc"), "t", "c"
    assert contrast(values.to(kind), *given).value == contrast(values, *given).value == found.value


@pytest.mark.parametrize(
    "bad",
    [
        np.ma.array(GOOD, mask=[0, 0, 1, 0, 0, 0]),
        np.array(GOOD) + 1j,
        np.arange(6).astype("M8[D]"),
    ],
)
def test_what_is_masked_or_no_real_number_is_refused(bad):
    """The number below the mask and the real part were taken."""
    with pytest.raises(ValueError, match=r"a must (be finite|hold numbers)"):
        paired_effect(bad, GOOD)


@pytest.mark.parametrize("power", [-600, -300, 300, 600])
def test_the_unit_changes_no_correlation(power):
    x, y, pair = np.array(GOOD), np.array([0.2, 0.3, 0.1, 0.8, 0.4, 0.9]), [0, 0, 1, 1, 2, 2]
    far, other = np.ldexp(x, power), np.ldexp(y, -power // 2)
    found = [correlation(*each, method="pearson", resamples=99) for each in ((x, y), (far, other))]
    assert found[0] == found[1]
    assert within_pairs(far, other, pair, resamples=99) == within_pairs(x, y, pair, resamples=99)
    base, slope = block_slope(y, x), block_slope(other, far)
    assert slope.p_value == pytest.approx(base.p_value, rel=1e-9)
    np.testing.assert_allclose(slope.interval, np.ldexp(base.interval, power + power // 2), rtol=1e-9)


@pytest.mark.parametrize(
    ("kind", "size"),
    [(np.float64, 1e-13), (np.float32, 4 * 2**-23), (np.float16, 2**-10), (torch.bfloat16, 2**-7)],
)
def test_rounding_is_a_few_units_in_the_last_place(kind, size):
    given = torch.ones(2, dtype=kind) if isinstance(kind, torch.dtype) else np.ones(2, kind)
    assert rounding(given, np.ones(2)) == size


def test_few_observations_say_how_small_p_can_be_and_many_do_not():
    """Of 3! orders one, of 2^3 signs or exchanges inside pairs two are as extreme as any can be."""
    rng = np.random.default_rng(0)
    for n, told in ((3, True), (8, False)):
        x, y = rng.normal(size=(2, n))
        twice = rng.normal(size=(2, 2 * n))
        for found, least in (
            (correlation(x, y, method="pearson", resamples=199), "0.17"),
            (paired_effect(x, y), "0.25"),
            (within_pairs(*twice, np.arange(n).repeat(2), resamples=199).within, "0.25"),
        ):
            assert (f"below {least}" in found.note) == ("cannot give" in found.note) == told
