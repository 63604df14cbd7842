"""What the command says where the extra is not installed."""

import subprocess
import sys

import pytest

WITHOUT = """
import sys
for name in ("jinja2", "matplotlib", "seaborn"):
    sys.modules[name] = None
from lipcomp.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["report", "--help"], 0, "usage"),
        (["report", "records.jsonl"], 1, "pip install 'lipcomp[report]'"),
        (["completion", "bash"], 0, "_shtab_lipcomp"),
    ],
)
def test_a_page_without_its_extra_is_refused_in_a_paragraph_and_help_needs_none(words, code, said):
    done = subprocess.run([sys.executable, "-c", WITHOUT, *words], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert said in " ".join((done.stdout + done.stderr).split())
    assert "Traceback" not in done.stderr
