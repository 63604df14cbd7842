"""A part of the sweep over architectures: every case equal, or refused with a choice that works."""

import pytest

pytest.importorskip("timm")

from benchmarks._zoo_networks import architectures
from benchmarks.checkpoint_zoo import WRAPPINGS, count, sweep

QUICK = (
    ("torchvision", "squeezenet1_1"),
    ("torchvision", "mnasnet0_5"),  # whose weights have a version
    ("timm", "mobilenetv3_small_050"),
    pytest.param("transformers", "deit", marks=pytest.mark.slow),
    # Whose own names have a wrapper's part, "module".
    pytest.param("transformers", "levit", marks=pytest.mark.slow),
)
SMALL = 8_000_000  # parameters
GOOD = {"equal", "ambiguous", "refused", "noted", "too large", "no reference"}


def check(cases):
    bad = [case for case in cases if case["outcome"] not in GOOD]
    assert not bad, bad[0]


@pytest.mark.parametrize(("library", "name"), QUICK)
def test_a_few_architectures(library, name):
    pytest.importorskip(library)
    cases = list(sweep(library, name, ("fsdp", "lightning")))
    assert cases
    assert {case["outcome"] for case in cases} & {"equal", "ambiguous", "refused"}
    check(cases)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_twentieth_architecture():
    """Each in one wrapping, in turn; the benchmark takes all of them in all six."""
    tried = 0
    for library, name in architectures()[11::20]:
        if count(library, name, SMALL) <= SMALL:
            check(sweep(library, name, ([*WRAPPINGS][tried % len(WRAPPINGS)],)))
            tried += 1
    assert tried > 10
