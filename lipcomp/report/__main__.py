"""Draw one HTML page with figures and tables from files of records.

    python -m lipcomp.report bounds.jsonl robustness.jsonl --out page.html

The files are those that the commands write with --out, or the records.jsonl of a study. The page is one self-contained
HTML file: it needs no network and includes the records.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from lipcomp._commands import Parser, run


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the page."""
    options = build_parser().parse_args(arguments)
    if options.out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--out must end in .html, got {str(options.out)!r}")
    from lipcomp.report import write_report  # imported here so that --help needs no extra

    print(write_report(options.files, options.out, title=options.title).resolve())
    return 0


def build_parser() -> Parser:
    """The command's options."""
    parser = Parser(prog="python -m lipcomp.report", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="file of records (JSON lines)")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="HTML file to write")
    parser.add_argument("--title", default="What was measured", help="heading of the page")
    return parser


if __name__ == "__main__":
    sys.exit(run(main))
