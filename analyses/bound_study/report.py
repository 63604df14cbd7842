"""Draw the page on how tight the bounds are, from bounds.jsonl.

    python -m analyses.bound_study.report studies/default

Writes bounds.html, bounds.md and figures/ into the folder. The last line printed is the path of the page.
"""

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from lipcomp._commands import Parser, run
from lipcomp._messages import needed


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the page."""
    parser = Parser(prog="python -m analyses.bound_study.report", description=__doc__)
    parser.add_argument("study", type=Path, help="folder that was measured")
    options = parser.parse_args(arguments)
    with needed("the page on the bounds", ".[study]"):  # imported here so that --help needs no extra
        from analyses.bound_study.page import make_page
    path, headline = make_page(options.study)
    print(textwrap.fill(headline, 100))
    print(path.resolve())
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
