"""Arguments of another kind are refused by name, before any work; what means the same passes."""

import dataclasses
import enum
import math
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import lipcomp
from lipcomp import bound, data, encoders, jacobian, objectives, robustness, statistics
from lipcomp._arguments import checked
from lipcomp.objectives._simclr import NoisySimCLR, WeightedSimCLR

pytestmark = pytest.mark.usefixtures("untyped")

IMAGES = torch.rand(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
MU = torch.eye(3)
FLAT = torch.nn.Flatten()


def linear(images):
    return images.flatten(1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lipcomp.spectral_norm(linear, None), r"images must be a tensor \(n \.\.\.\), got NoneType None"),
        (lambda: lipcomp.spectral_norm(linear, IMAGES.numpy()), "got ndarray; convert it with torch.as_tensor"),
        (lambda: lipcomp.spectral_norm(linear, IMAGES, k="1"), "k must be a whole number, got str '1'"),
        (lambda: lipcomp.spectral_norm(linear, IMAGES, k=1.5), "k must be a whole number, got float 1.5"),
        (lambda: lipcomp.spectral_norm(linear, IMAGES, k=torch.tensor(1.5)), "k must be a whole number, got Tensor"),
        (lambda: bound.random_pairs([IMAGES], 0.1, generator=np.random.default_rng()), "a torch Generator.* numpy"),
        (lambda: robustness.pgd(linear, IMAGES, MU, norm="l2", radius=0.1), "classifier must be a torch Module"),
        (lambda: lipcomp.lower_bounds(MU.numpy(), MU, torch.ones(3)), "mu1 must be a tensor"),
        (lambda: lipcomp.lower_bounds(MU, MU, 2.0), r"distance must be a tensor \(pairs\), got float 2.0"),
        (lambda: lipcomp.VonMisesFisher([1.0, 0.0], 2.0), "loc must be a tensor"),
        (lambda: lipcomp.VonMisesFisher(MU, "2"), "concentration must be a tensor .* or a number, got str '2'"),
        (lambda: bound.certified_accuracy(linear, IMAGES, torch.zeros(3).long(), ["a"]), "radii must be a sequence"),
        (lambda: bound.search_ball(linear, IMAGES, [0.1]), "radius must be a number, got list"),
        (lambda: bound.certified_bound(linear, IMAGES, units=0), "units at least 1, got 4.0 and 0"),
        (lambda: next(bound.random_pairs([IMAGES], 0.1, directions=0)), "directions must be at least 1"),
        (lambda: jacobian.Linearisation(None, IMAGES), "fn must be a function, got NoneType"),
        (lambda: jacobian.frobenius_norm(linear, IMAGES, batch_size=0), "batch_size must be at least 1, got 0"),
        (lambda: lipcomp.spectral_norm(linear, IMAGES, max_iterations=0), "max_iterations must be at least 1"),
        (lambda: encoders.EncoderSpec("small_cnn", (1, 28)), r"image_shape must be \(a whole number, a whole"),
        (lambda: encoders.EncoderSpec(5, (1, 28, 28)), "backbone must be text, got int 5"),
        (lambda: encoders.wrap(FLAT, layer=1), "layer 1 is not a submodule of the network"),
        (lambda: encoders.wrap(FLAT, image_shape=(1, 2, 2))((IMAGES * 255).byte()), "divide bytes by 255"),
        (lambda: bound.all_pairs(MU, IMAGES, block_size=-1), "block_size must be at least 1, got -1"),
        (lambda: lipcomp.lower_bounds(MU, MU, MU[0], pairs=torch.zeros(2, 2).long()), r"shape \(3, 2\)"),
        (lambda: data.Preprocessing("32"), "resize must be a whole number or"),
        (lambda: objectives.CSimCLR(kappa_e=None), "kappa_e must be a number, got NoneType"),
        (lambda: robustness.fit_linear_probe(MU, [0, 1, 0]), r"labels must be a tensor \(n\), got list"),
        (lambda: statistics.decide((0.0,), (-1.0, 1.0)), r"interval must be \(a number, a number\) or None"),
        (lambda: statistics.adjust(0.1), "p_values must be"),
        (lambda: statistics.decide(torch.Generator(), (-1.0, 1.0)), "got a torch Generator$"),
        (
            lambda: statistics.decide(statistics.paired_effect([1.0, 2.0, 4.0], [0.0, 0.0, 0.0]), (-1.0, 1.0)),
            r"interval must be .*, got a lipcomp PairedEffect; give its \.interval",
        ),
        (lambda: lipcomp.plots.smoothness_against_robustness("r.jsonl"), "with lipcomp.read_records$"),
        (lambda: lipcomp.to_frame("r.jsonl"), r"records must be .* got 'r.jsonl'; .* read_records\(path\)"),
        (lambda: lipcomp.to_frame([3]), "records must be .* got 3"),
        (lambda: lipcomp.to_frame([None]), "records must be .* got None"),
        (lambda: lipcomp.plots.local_constants({}), "given must hold something to draw"),
        (lambda: lipcomp.plots.bounds_against_distance({}), "given must hold something to draw"),
        (lambda: lipcomp.lipschitz(linear, IMAGES * 300), r"normalisation \(it belongs to the map\)$"),
        (lambda: lipcomp.spectral_norm(linear, IMAGES * 300), "or give domain=None for other inputs$"),
        (lambda: lipcomp.corrupt(IMAGES, "fog", 1, seed="a"), "seed must be a whole number, got str 'a'"),
    ],
)  # fmt: skip
def test_another_kind_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_numbers_of_numpy_and_tensors_of_one_number_become_pythons():
    @checked
    def given(
        number: float, count: int = 1, *, shape: tuple[int, ...] = (), either: torch.Tensor | float = 0.0
    ):
        return number, count, shape, either

    found = given(np.float32(0.5), torch.tensor(3), shape=[np.int64(2)], either=torch.tensor(1.0))
    assert found == (0.5, 3, (2,), torch.tensor(1.0))
    for shape in (
        np.array([2]),
        torch.tensor([2]),
        pd.Series([2], index=[5]),
        torch.Size([2]),
        (np.int64(2),),
    ):
        again = given(np.array(0.5), shape=shape)
        assert again == (0.5, 1, (2,), 0.0)
        assert [type(again[0]), type(again[2]), type(again[2][0])] == [float, tuple, int]
    assert [type(value) for value in found] == [float, int, tuple, torch.Tensor]
    assert given(1) == (1, 1, (), 0.0)
    assert isinstance(given(Fraction(1, 4))[0], float)
    with pytest.raises(TypeError, match="unexpected keyword argument 'other'"):
        given(1, other=2)
    at = torch.rand(2, 1, 2, 2)
    radius = np.float32(0.25)
    assert bound.certified_radius(linear, at, radius).dtype == torch.float64


def test_words_of_numpy_and_enumerations_are_words():
    class Method(enum.StrEnum):
        HOLM = "holm"

    for word in (np.str_("holm"), Method.HOLM):
        assert statistics.adjust([0.01, 0.04], method=word).adjusted == (0.02, 0.04)


def test_classes_stay_what_they_are():
    spec = encoders.EncoderSpec("small_cnn", [1, 28, 28])
    assert spec == encoders.EncoderSpec("small_cnn", (1, 28, 28))
    assert hash(spec) == hash(dataclasses.replace(spec))
    assert isinstance(spec, encoders.EncoderSpec)


def test_whatever_has_a_path_is_one(tmp_path):
    class Place:  # as a py.path.local of pytest
        def __fspath__(self):
            return str(tmp_path)

    @checked
    def given(path: Path | str | None):
        return path

    os.PathLike.register(Place)
    assert given(Place()) == tmp_path
    assert [type(given(p)) for p in ("a", None, tmp_path)] == [str, type(None), type(tmp_path)]


def test_what_is_iterated_by_index_is_iterable():
    class Batches:  # as a torch Dataset of batches
        def __getitem__(self, index):
            return [IMAGES, IMAGES][index]

    assert len(list(bound.random_pairs(Batches(), 0.1))) == 2


def test_compiled_code_sees_the_function_itself():
    @checked
    def doubled(x: torch.Tensor | float, times: float | int = 2):
        return x * times

    whole = torch.compile(lambda x: doubled(x), backend="eager", fullgraph=True)
    assert whole(torch.ones(2)).tolist() == [2.0, 2.0]


def test_indices_of_a_series_are_its_values():
    chosen = pd.Series([2, 0], index=[7, 9])
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = lipcomp.corrupt(images, "gaussian_noise", 1, indices=torch.tensor([2, 0]))
    assert lipcomp.corrupt(images, "gaussian_noise", 1, indices=chosen).equal(expected)
    digits = lipcomp.load_set("mnist5k_8x8")
    assert digits.batch(chosen).equal(digits.batch(torch.tensor([2, 0])))


def test_a_truth_value_for_a_number_is_that_number():
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(
        robustness.corruptions.corrupt(images, "shot_noise", True, seed=True),
        robustness.corruptions.corrupt(images, "shot_noise", 1, seed=1),
    )


@pytest.mark.parametrize("kind", [objectives.SimCLR, WeightedSimCLR, NoisySimCLR])
def test_what_is_kept_is_of_one_kind(kind):
    """1 for True was another description of the same objective; 2 and, of some classes, None were truths too."""
    for yes in (1, np.int64(1), np.bool_(True)):
        assert kind(bidirectional=yes).to_dict()["bidirectional"] is True
    for wrong in (2, None, 1.0, "True"):
        with pytest.raises(ValueError, match="bidirectional must be True or False"):
            kind(bidirectional=wrong)
    for truth in (True, np.bool_(True)):
        with pytest.raises(ValueError, match="predictor must be a whole number or None"):
            encoders.EncoderSpec("small_cnn", (1, 28, 28), predictor=truth)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_mean_and_std_are_finite(number):
    for name in ("mean", "std"):
        with pytest.raises(ValueError, match=f"{name} must be finite"):
            encoders.EncoderSpec("small_cnn", (1, 28, 28), **{name: (number,)})


def test_an_option_given_by_its_place_is_told_so():
    """It was checked as the first of the options: "norm must be text, got float 0.1" of a radius."""
    images = torch.rand(2, 1, 2, 2)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    with pytest.raises(TypeError, match="positional arguments"):
        robustness.pgd(network, images, torch.tensor([0, 1]), 0.1)


@pytest.mark.parametrize(
    "number", [10**400, Fraction(10**400, 3), -(10**400)], ids=["whole", "part", "negative"]
)
@pytest.mark.parametrize(
    "call",
    [
        lambda number: bound.certified_bound(linear, IMAGES, radius=number),
        lambda number: bound.search_ball(linear, IMAGES, number),
        lambda number: bound.certified_accuracy(
            linear, IMAGES, torch.zeros(3, dtype=torch.long), [0.1, number]
        ),
        lambda number: lipcomp.VonMisesFisher(MU, number).entropy(),
    ],
    ids=["certificate", "search", "accuracy", "distribution"],
)
def test_a_number_beyond_all_floats_is_infinite(call, number):
    """They ended in OverflowError."""
    with pytest.raises(ValueError, match=r"finite.*inf"):
        call(number)


@pytest.mark.parametrize(("norm", "widest"), [("l2", 2.0), ("linf", 1.0)])
def test_a_ball_beyond_the_cube_is_the_cube(norm, widest):
    """A search at radius 1e308 ended in an error of torch."""
    found, cube = (
        bound.search_ball(linear, IMAGES, r, norm=norm, steps=2, generator=torch.Generator().manual_seed(0))
        for r in (1e308, widest)
    )
    assert torch.equal(found.point, cube.point)
