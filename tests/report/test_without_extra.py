"""What the commands say where the extra is not installed."""

import json
import subprocess
import sys

import pytest

# One process without the extra: every command line with its exit status and what it printed, a line of JSON each.
WITHOUT = """
import contextlib, io, json, sys
for name in ("jinja2", "matplotlib", "seaborn"):
    sys.modules[name] = None
from lipcomp.__main__ import main
from lipcomp._commands import run
from analyses import results
from analyses.bound_study import report as bounds
from analyses.paired_study import report

def called(function, words):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            status = run(function, words)
        except SystemExit as ended:
            status = ended.code
    return status, " ".join(said.getvalue().split())

for words in json.loads(sys.argv[1]):
    print(json.dumps(called(main, words)))
for study in (report, bounds, results):
    print(json.dumps(called(study.main, ["run"])))
"""
COMMANDS = {
    ("report", "--help"): (0, "usage"),
    ("report", "records.jsonl"): (1, "pip install 'lipcomp[report]'"),
    ("completion", "bash"): (0, "_shtab_lipcomp"),
}


@pytest.fixture(scope="module")
def said():
    words = [sys.executable, "-c", WITHOUT, json.dumps([*COMMANDS])]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_page_without_its_extra_is_refused_in_a_paragraph_and_help_needs_none(said):
    for (status, text), (code, expected) in zip(said, COMMANDS.values(), strict=False):
        assert status == code, text
        assert expected in text
        assert "Traceback" not in text


def test_the_studies_name_the_extra_that_their_pages_need_before_the_work(said):
    assert len(said) == len(COMMANDS) + 3
    for status, text in said[len(COMMANDS) :]:
        assert status == 1, text
        assert text.startswith("error: ")
        assert "install it with: pip install '.[study]'" in text
        assert "Traceback" not in text
