"""The notebooks run top to bottom as they are, are valid notebooks, and hold no outputs."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "analyses" / "notebooks").glob("*.py"))


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Where the notebooks train; one finds what another has trained."""
    return tmp_path_factory.mktemp("notebook-runs")


def test_there_are_four():
    assert [n.stem for n in NOTEBOOKS] == [
        "bound_tour",
        "corruption_and_shift",
        "pairs_and_compression",
        "your_own_checkpoint",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda n: n.stem)
def test_runs_top_to_bottom(notebook, runs, tmp_path):
    """As a script: a py:percent notebook without magics is one, cell by cell in order."""
    environment = os.environ | {
        "MPLBACKEND": "Agg",
        "LIPCOMP_NOTEBOOK_RUNS": str(runs),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", str(notebook)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    print(done.stdout, f"{notebook.stem}: {time.monotonic() - started:.0f} s")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "nan" not in done.stdout.lower()


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda n: n.stem)
def test_is_a_notebook_with_text_and_without_outputs(notebook):
    jupytext = pytest.importorskip("jupytext")
    nbformat = pytest.importorskip("nbformat")
    book = jupytext.read(notebook)
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    text = [cell for cell in book.cells if cell.cell_type == "markdown"]
    assert len(code) >= 5
    assert len(text) >= 5
    assert text[0].source.startswith("# ")
    assert all(not cell.outputs for cell in code)
    assert not any(line.startswith(("%", "!")) for cell in code for line in cell.source.splitlines())
    # what jupytext writes back is what is in git
    assert (
        jupytext.writes(book, "py:percent").split("# ---")[-1].strip()
        == notebook.read_text().split("# ---")[-1].strip()
    )


def test_no_notebook_with_outputs_is_in_the_tree():
    assert not list((ROOT / "analyses").rglob("*.ipynb"))
