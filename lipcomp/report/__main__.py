"""Draw one page from files of records: what was measured, of whom, with figures and tables.

    python -m lipcomp.report bounds.jsonl robustness.jsonl --out page.html

The files are what the commands write with --out, or a study's records.jsonl. The page is one HTML file that loads
nothing from elsewhere, with the records inside.
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
    from lipcomp.report import write_report  # here, so that --help needs no extra

    print(write_report(options.files, options.out, title=options.title).resolve())
    return 0


def build_parser() -> Parser:
    """The command's options."""
    parser = Parser(prog="python -m lipcomp.report", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="files of records (JSON lines)")
    parser.add_argument(
        "--out", type=Path, default=Path("report.html"), help="the page (default report.html)"
    )
    parser.add_argument(
        "--title", default="What was measured", help="its heading (default: What was measured)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(run(main))
