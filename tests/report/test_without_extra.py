"""What the command says where the extra is not installed."""

import subprocess
import sys

import pytest

WITHOUT = """
import sys
for name in ("jinja2", "matplotlib", "seaborn"):
    sys.modules[name] = None
"""
COMMAND = (
    WITHOUT
    + """
from lipcomp.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
)
STUDIES = (
    WITHOUT
    + """
from analyses import results
from analyses.bound_study import report as bounds
from analyses.paired_study import report
from lipcomp._commands import run
sys.exit(sum(run(each.main, ["run"]) for each in (report, bounds, results)))
"""
)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["report", "--help"], 0, "usage"),
        (["report", "records.jsonl"], 1, "pip install 'lipcomp[report]'"),
        (["completion", "bash"], 0, "_shtab_lipcomp"),
    ],
)
def test_a_page_without_its_extra_is_refused_in_a_paragraph_and_help_needs_none(words, code, said):
    done = subprocess.run([sys.executable, "-c", COMMAND, *words], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert said in " ".join((done.stdout + done.stderr).split())
    assert "Traceback" not in done.stderr


def test_the_studies_name_the_extra_that_their_pages_need_before_the_work():
    done = subprocess.run([sys.executable, "-c", STUDIES], capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    said = " ".join(done.stderr.split())
    assert said.count("error: ") == said.count("install it with: pip install '.[study]'") == 3
    assert "Traceback" not in said
