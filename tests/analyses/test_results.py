"""What docs/results says is what its committed records say, and the README says the same."""

import json
import re
from pathlib import Path

import pytest

from analyses.results import PUBLISHED, STUDIES, design, redraw, summary

ROOT = Path(__file__).parents[2]
FOLDERS = sorted(p.parent for p in (ROOT / PUBLISHED).glob("*/records.jsonl.gz"))
NAMES = [folder.name for folder in FOLDERS]


def test_something_is_published():
    assert "mnist" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_verdicts_on_the_page_are_those_of_the_records(name):
    page = (ROOT / PUBLISHED / "index.md").read_text()
    said = page.partition(f"<!-- {name} -->\n")[2].partition(f"\n<!-- /{name} -->")[0]
    assert said == summary(ROOT / PUBLISHED / name)


def test_the_readme_says_what_was_published():
    answer = summary(ROOT / PUBLISHED / "mnist").splitlines()[0]
    readme = re.sub(r"\s+(> )?", " ", (ROOT / "README.md").read_text())
    assert answer in readme


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_report_is_drawn_again_from_what_is_committed(name, tmp_path):
    redraw(ROOT / PUBLISHED / name, tmp_path)
    assert (tmp_path / "report.md").read_text() == (ROOT / PUBLISHED / name / "report.md").read_text()


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_was_designed_before_it_ran(name):
    told = json.loads((ROOT / design(name)).read_text())
    assert told["design"]["first_seeds"] == STUDIES[name].seeds
    assert told["design"]["written"]


def test_the_published_files_are_small():
    assert sum(f.stat().st_size for f in (ROOT / PUBLISHED).rglob("*") if f.is_file()) < 20e6
