"""Arguments of another kind are refused by name, before any work; what means the same passes."""

import dataclasses

import numpy as np
import pytest
import torch

import lipcomp
from lipcomp import bound, data, encoders, jacobian, objectives, robustness, statistics
from lipcomp._arguments import checked

pytestmark = pytest.mark.usefixtures("untyped")

IMAGES = torch.rand(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
MU = torch.eye(3)


def linear(images):
    return images.flatten(1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lipcomp.spectral_norm(linear, None), r"images must be a tensor \(n \.\.\.\), got NoneType None"),
        (lambda: lipcomp.spectral_norm(linear, IMAGES.numpy()), "got ndarray; convert it with torch.as_tensor"),
        (lambda: lipcomp.spectral_norm(linear, IMAGES, k="1"), "k must be a whole number, got str '1'"),
        (lambda: lipcomp.spectral_norm(linear, IMAGES, k=1.5), "k must be a whole number, got float 1.5"),
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
        (lambda: data.Preprocessing("32"), "resize must be a whole number or"),
        (lambda: objectives.CSimCLR(kappa_e=None), "kappa_e must be a number, got NoneType"),
        (lambda: robustness.fit_linear_probe(MU, [0, 1, 0]), r"labels must be a tensor \(n\), got list"),
        (lambda: statistics.decide((0.0,), (-1.0, 1.0)), r"interval must be \(a number, a number\) or None"),
        (lambda: statistics.adjust(0.1), "p_values must be"),
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
    assert [type(value) for value in found] == [float, int, tuple, torch.Tensor]
    assert given(1) == (1, 1, (), 0.0)
    with pytest.raises(TypeError, match="unexpected keyword argument 'other'"):
        given(1, other=2)
    at = torch.rand(2, 1, 2, 2)
    radius = np.float32(0.25)
    assert bound.certified_radius(linear, at, radius).dtype == torch.float64


def test_classes_stay_what_they_are():
    spec = encoders.EncoderSpec("small_cnn", [1, 28, 28])
    assert spec == encoders.EncoderSpec("small_cnn", (1, 28, 28))
    assert hash(spec) == hash(dataclasses.replace(spec))
    assert isinstance(spec, encoders.EncoderSpec)
