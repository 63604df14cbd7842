"""A corpus of small folders, each odd in one way: labels and pixels must be exact, or refused with a reason.

    python tests/data/corpus                # builds it in a temporary folder, prints one line per folder
    python tests/data/corpus --keep FOLDER  # leaves it there to look at

The truth does not come from the code under test: labels are those that the script wrote, pixels are the arrays that it
wrote, or for lossy files what OpenCV reads. A wrong label, a pixel off (by more than rounding, 1/255 where a file is
lossy or blended), an unexpected acceptance or any exception but ValueError and FileNotFoundError is a failure.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import corpus_layouts  # noqa: F401 (each adds its cases)
import corpus_pictures  # noqa: F401
import corpus_tables  # noqa: F401
from corpus_building import CASES, run


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keep", type=Path, help="build the corpus in this folder, which must not exist yet")
    options = parser.parse_args(arguments)
    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        place = options.keep or Path(temporary) / "corpus"
        for name in CASES:
            failures = run(name, place / name)
            failed += bool(failures)
            print(f"{name:50} {failures or 'exact or refused, as it should'}")
    print(f"{len(CASES)} folders, {failed} wrong")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
