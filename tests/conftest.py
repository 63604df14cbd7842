"""What every test shares: one thread, no leaked global state."""

import contextlib
import functools
import gc
import inspect
import types
import typing
from pathlib import Path

import jaxtyping
import pytest
import torch
from hypothesis import HealthCheck, settings

# Scripts, which --doctest-modules would import.
collect_ignore_glob = ["data/corpus/*.py", "*/make_*.py"]

# Small operations are many times slower when two threads contend for two cores.
torch.set_num_threads(1)

# No clocks: a busy machine is no fault of the code. The same examples in each run.
settings.register_profile("lipcomp", derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile("lipcomp")

# `make test-typed` and `make test-all` check the types of arguments and results (--jaxtyping-packages). That takes
# longer than many a function; one whose annotations hold no shape loses nothing by beartype alone.
_with_shapes = jaxtyping.jaxtyped


def _has_shape(annotation):
    if isinstance(annotation, str):  # not resolved
        return True
    if isinstance(annotation, (list, tuple)):
        return any(map(_has_shape, annotation))
    if inspect.isclass(annotation) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    return any(map(_has_shape, typing.get_args(annotation)))


def _checked(fn=None, *, typechecker):
    if fn is None:
        return functools.partial(_checked, typechecker=typechecker)
    if isinstance(fn, types.FunctionType) and not any(map(_has_shape, fn.__annotations__.values())):
        return typechecker(fn)
    return _with_shapes(fn, typechecker=typechecker)


jaxtyping.jaxtyped = _checked


def pytest_collection_finish():
    """What is imported by now stays: the collector need not walk millions of objects again and again."""
    gc.collect()
    gc.freeze()


REFERENCE = Path(__file__).parent / "reference"


@pytest.fixture
def reference() -> Path:
    """The folder of values with a known origin."""
    return REFERENCE


@pytest.fixture
def untyped():
    """Arguments as in a program, where no type is checked: what a function says of one of another type."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True, scope="module")
def _seeded_module():
    """Weights of networks come from the global draws: what ran before in this process must not decide them."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _seeded(_seeded_module):
    torch.manual_seed(0)


@contextlib.contextmanager
def _default_float64():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="session")
def default_float64():
    """A context in which tensors and networks are made in float64."""
    return _default_float64


_SURROUNDINGS = {
    "no_grad": torch.no_grad,
    "inference mode": torch.inference_mode,
    "default device": lambda: torch.device("meta"),  # as torch.set_default_device("cuda")
    "default type": _default_float64,
}


@pytest.fixture(params=_SURROUNDINGS)
def surroundings(request):
    """A context of the caller's, on which no number may depend; one after the other."""
    return _SURROUNDINGS[request.param]


@pytest.fixture
def generator() -> torch.Generator:
    """Seeded randomness."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def small_digits(tmp_path_factory):
    """The function small_digits(side), which gives a folder of 40 real digits without classes, quickly certified."""
    from PIL import Image

    from lipcomp.data import load_set

    @functools.cache
    def write(side: int) -> str:
        folder = tmp_path_factory.mktemp("small-digits")
        pixels = load_set("mnist5k").batch(torch.arange(40))
        small = torch.nn.functional.interpolate(pixels, (side, side), mode="area").mul(255).round().byte()
        for number, image in enumerate(small):
            Image.fromarray(image[0].numpy()).save(folder / f"{number:02}.png")
        return str(folder)

    return write


FEW_DIGITS = """
from lipcomp.data import _digits
pixels, labels = _digits._all_digits()
_digits._all_digits, _digits.TRAIN_PER_CLASS = (lambda: (pixels[::5], labels[::5])), 80
"""


@pytest.fixture(scope="module")
def few_digits():
    """For a module's tests mnist5k has a fifth of its images; the code that does so in another process."""
    from lipcomp.data import _digits

    before = _digits._all_digits, _digits.TRAIN_PER_CLASS
    exec(FEW_DIGITS, {})
    yield FEW_DIGITS
    _digits._all_digits, _digits.TRAIN_PER_CLASS = before


@pytest.fixture(autouse=True)
def _global_state_is_left_alone():
    """Library functions leave the global dtype, the thread count and the random state as they found them."""
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    yield
    assert torch.get_default_dtype() == dtype
    assert torch.get_num_threads() == threads


FORKING = ("test_ranks.py", "test_resume.py", "test_state.py")
LONG = ("test_clusters.py", "test_notebooks.py", "test_site.py", "test_end_to_end.py", "test_bound_study.py")


def pytest_collection_modifyitems(items):
    """Tests that fork come first: a process in which autograd has started threads (others do that) cannot fork.

    Long files are next, so that no worker waits for the other one's last file.
    """

    def place(item):
        order = (*FORKING, *LONG)
        return order.index(item.path.name) if item.path.name in order else len(order)

    items.sort(key=place)
