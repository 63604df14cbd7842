"""The corpus of odd folders (tests/data/corpus): every label and every pixel exact, or refused with the reason."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).with_name("corpus")))

import corpus_layouts  # noqa: F401 (each adds its cases)
import corpus_pictures  # noqa: F401
import corpus_tables  # noqa: F401
from corpus_building import CASES, run


@pytest.mark.parametrize("name", CASES)
def test_an_odd_folder_is_read_exactly_or_refused(name, tmp_path):
    assert run(name, tmp_path / name) == []


def test_the_corpus_is_large_enough():
    assert len(CASES) >= 60
