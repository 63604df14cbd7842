"""What every test shares: one thread, no leaked global state."""

from pathlib import Path

import pytest
import torch

# Small operations are many times slower when two threads contend for two cores.
torch.set_num_threads(1)

REFERENCE = Path(__file__).parent / "reference"


@pytest.fixture
def reference() -> Path:
    """The folder of values with a known origin."""
    return REFERENCE


@pytest.fixture
def generator() -> torch.Generator:
    """Seeded randomness."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def _global_state_is_left_alone():
    """Library functions leave the global dtype, the thread count and the random state as they found them."""
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    yield
    assert torch.get_default_dtype() == dtype
    assert torch.get_num_threads() == threads


def pytest_collection_modifyitems(items):
    """Tests that fork come first: a process in which autograd has started threads (others do that) cannot fork."""
    items.sort(key=lambda item: item.path.name not in ("test_ranks.py", "test_resume.py", "test_state.py"))
