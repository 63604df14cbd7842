"""Recover the intact records of a damaged file.

    python -m lipcomp.records salvage study/records.jsonl --out rescued.jsonl

Every complete record is copied to the new file, including those inside damaged lines. The old file is not changed.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from lipcomp._commands import Parser, run
from lipcomp.records._files import salvage_records


def main(arguments: Sequence[str] | None = None) -> int:
    """Copy the intact records to a new file and print how many there are."""
    options = build_parser().parse_args(arguments)
    kept, damaged = salvage_records(options.file, options.out)
    print(f"{options.out}: {kept} records; {damaged} lines of {options.file} were damaged")
    return 0


def build_parser() -> Parser:
    """The command's options."""
    parser = Parser(prog="python -m lipcomp.records", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="salvage")
    salvage = commands.add_parser(
        "salvage", help="copy every complete record of a damaged file to a new file"
    )
    salvage.add_argument("file", type=Path, help="damaged file of records")
    salvage.add_argument("--out", type=Path, required=True, help="new file to write")
    return parser


if __name__ == "__main__":
    sys.exit(run(main))
