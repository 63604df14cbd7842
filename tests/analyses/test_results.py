"""What docs/results says is what its committed records say, and the README says the same."""

import json
import re
from functools import cache
from pathlib import Path

import pytest

from analyses.results import PUBLISHED, STUDIES, design, overview, redraw, summary

ROOT = Path(__file__).parents[2]
FOLDERS = sorted(p.parent for p in (ROOT / PUBLISHED).glob("*/records.jsonl.xz"))
NAMES = [folder.name for folder in FOLDERS]
PRIMARY = {"mnist", "mnist-again", "fashion", "fashion-again"}  # which other tests need anyway


@cache
def told(name):
    return summary(ROOT / PUBLISHED / name)


def test_something_is_published():
    assert "mnist" in NAMES


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name not in PRIMARY)) for name in NAMES],
)
def test_the_verdicts_on_the_page_are_those_of_the_records(name):
    page = (ROOT / PUBLISHED / "index.md").read_text()
    said = page.partition(f"<!-- {name} -->\n")[2].partition(f"\n<!-- /{name} -->")[0]
    assert said == told(name)


def test_the_overview_has_every_study_on_the_page():
    page = (ROOT / PUBLISHED / "index.md").read_text()
    said = page.partition("<!-- overview -->\n")[2].partition("\n<!-- /overview -->")[0]
    assert said == overview(page)
    assert len(said.splitlines()) == 2 + len(NAMES)


def test_the_readme_says_what_was_published():
    readme = re.sub(r"\s+(> )?", " ", (ROOT / "README.md").read_text())
    assert told("fashion").splitlines()[0] in readme
    digits = told("mnist").splitlines()[0]
    for estimate, low, high in re.findall(r"\((\S+)(?: points)?, 97\.5% interval (\S+) to (\S+),", digits):
        assert re.search(rf"{re.escape(estimate)}(?: points)?, {re.escape(low)} to {re.escape(high)}", readme)


@pytest.mark.parametrize("again", [name for name in NAMES if name.endswith("-again")])
def test_both_runs_of_a_study_have_the_same_primary_verdicts(again):
    def primary(name):
        rows = [line.split("|") for line in told(name).splitlines() if "(primary)" in line]
        return {row[2].strip(): row[3].strip() for row in rows}

    assert len(primary(again)) == 2
    assert primary(again) == primary(again.removesuffix("-again"))


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
