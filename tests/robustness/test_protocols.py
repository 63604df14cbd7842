"""Which corruption numbers may be set side by side."""

from dataclasses import replace

import pytest

from lipcomp.robustness._protocols import (
    IN_DEPTH,
    PERTURBATIONS,
    Protocol,
    averaged_perturbations,
    literature,
)
from lipcomp.robustness.corruptions import corruption_names
from lipcomp.robustness.corruptions._tables import COMMON, VALIDATION

PUBLISHED = Protocol("imagenet", COMMON, (1, 2, 3, 4, 5), "disk", None, None, 50_000, 1000)


def test_the_published_protocol_has_no_deviation_and_takes_alexnets_errors():
    assert PUBLISHED.deviations() == []
    assert PUBLISHED.check_reference() == []
    assert PUBLISHED.settings()["comparable"]
    assert PUBLISHED.label == "15 corruptions x 5 severities, read from disk, 50000 images"
    hardest = replace(PUBLISHED, severities=(5,))
    assert hardest.label == "15 corruptions of severity 5, read from disk, 50000 images"
    made = replace(PUBLISHED, made="memory", jpeg=85, frost="photographs")
    assert made.check_reference() == []
    assert made.label.endswith("made in memory, JPEG 85, frost photographs, 50000 images")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"corruptions": (*COMMON, *VALIDATION)},
            "not the 15 corruptions of the literature: has speckle_noise",
        ),
        ({"corruptions": COMMON[:14]}, "lacks jpeg_compression"),
        ({"made": "memory"}, "without JPEG 85"),
        ({"made": "memory", "jpeg": 75}, "with JPEG 75, not 85"),
        ({"made": "memory", "jpeg": 85, "frost": "textures"}, "frost from generated textures"),
        ({"images": 5000}, "5000 images, published are 50000"),
        ({"severities": (3, 5)}, "severities 3, 5; the published set has 1 to 5"),
        ({"corruptions": ("flash", "fog_3d")}, "not the 12 corruptions of the literature: lacks near_focus"),
        (
            {"corruptions": ("sparkles",)},
            "not the 10 corruptions of the literature: lacks caustic_refraction",
        ),
        ({"corruptions": ("wet_lens",)}, "has wet_lens besides"),
        ({"table": "mnist", "corruptions": corruption_names("mnist")}, "has one setting per corruption"),
        ({"table": "cifar", "made": "memory", "jpeg": 85, "images": 10_000}, "published without"),
    ],
)
def test_every_trap_is_named(change, message):
    protocol = replace(PUBLISHED, **change)
    assert message in "; ".join(protocol.deviations())
    assert not protocol.settings()["comparable"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": 10}, "has 10 classes, AlexNet's errors are for 1000"),
        ({"table": "cifar"}, "those of cifar"),
        ({"corruptions": COMMON[:3]}, "over the 15 corruptions"),
        ({"severities": (1, 2, 3)}, "severities 1 to 5"),
    ],
)
def test_alexnets_errors_are_refused_where_they_do_not_belong(change, message):
    with pytest.raises(ValueError, match=message):
        replace(PUBLISHED, **change).check_reference()


def test_a_mean_flip_rate_is_over_the_literatures_perturbations():
    """The published folders hold 14 (and harder noise), of which papers average ten, not the same for CIFAR-10-P."""
    held = (*PERTURBATIONS, "spatter", "speckle_noise", "gaussian_blur", "shear", "shot_noise_3")
    assert averaged_perturbations(held, cifar=False) == (PERTURBATIONS, [])
    cifar, deviations = averaged_perturbations(held, cifar=True)
    assert {*cifar} ^ {*PERTURBATIONS} == {"snow", "spatter"}
    assert not deviations
    assert averaged_perturbations(("tilt", "shear"), cifar=False)[0] == ("tilt",)
    own, (words,) = averaged_perturbations(("tilt", "shear", "mine"), cifar=False)
    assert own == ("tilt", "shear", "mine")
    assert "lacks gaussian_noise" in words
    assert words.endswith("has shear, mine besides")


def test_a_mean_is_over_the_literatures_corruptions():
    assert literature((*COMMON, *VALIDATION)) == COMMON
    assert literature((*COMMON, *VALIDATION), all_found=True) == (*COMMON, *VALIDATION)
    assert literature(("fog", "identity", "zigzag")) == ("fog", "zigzag")
    assert literature(VALIDATION) == VALIDATION
    assert literature(corruption_names("mnist")) == corruption_names("mnist")
    digits = replace(
        PUBLISHED,
        table="mnist",
        corruptions=corruption_names("mnist"),
        severities=(None,),
        images=10_000,
        classes=10,
    )
    assert digits.deviations() == []
    assert replace(PUBLISHED, corruptions=IN_DEPTH).deviations() == []
    bar = replace(PUBLISHED, corruptions=corruption_names("imagenet-bar"))  # on disk, in ImageNet-C's layout
    assert bar.deviations() == []
    assert literature(("spatter", "stripe", "zigzag")) == ("spatter", "stripe", "zigzag")
