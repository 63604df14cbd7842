"""Draw the report of a study from its records: one self-contained HTML file, the same as Markdown, and the figures.

    python -m analyses.paired_study.report studies/default

Reads only what the measuring stage wrote into the study's folder (records.jsonl, bits/, images/ and study.json), and
which runs have a checkpoint there: those without one do not count. Writes report.html, report.md and figures/. The last
line printed is the path of the report.
"""

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from lipcomp._commands import Parser, run
from lipcomp._messages import needed


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the report."""
    parser = Parser(prog="python -m analyses.paired_study.report", description=__doc__)
    parser.add_argument("study", type=Path, help="folder of the study")
    options = parser.parse_args(arguments)
    with needed("the report of a study", ".[study]"):  # imported here so that --help needs no extra
        from analyses.paired_study.page import make_report
    path, page = make_report(options.study)
    print(textwrap.fill(page.headline, 100))
    print(path.resolve())
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
