"""Run the code of pages and keep its figures, since running it takes minutes; tests check that nothing is out of date.

    python docs/build_tools/notebooks.py notebooks [NAME...]   docs/notebooks/NAME.md from analyses/notebooks/NAME.py
    python docs/build_tools/notebooks.py figures PAGE FOLDER   the pictures of a page, from the code below each picture

The code of a page runs in FOLDER, where the files are that it reads.
"""

import contextlib
import io
import os
import re
import sys
from pathlib import Path
from unittest.mock import patch

import matplotlib

matplotlib.use("Agg")
import jupytext
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[2]
SOURCES = {p.stem: p for p in sorted((ROOT / "analyses" / "notebooks").glob("*.py"))}
PAGES = ROOT / "docs" / "notebooks"
PICTURE = re.compile(
    r"(?:^!\[[^\]]*\]\((?P<file>[^)]+)\)\n\n)?^```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)


def cells(source: Path) -> list[str]:
    """The cells as Markdown: text as it is, code in blocks."""
    book = jupytext.read(source)
    return [c.source if c.cell_type == "markdown" else f"```python\n{c.source}\n```" for c in book.cells]


def render(name: str) -> None:
    """Run a notebook from top to bottom; write its page and figures."""
    parts, figures, names = [], [], {"__name__": "__main__"}

    def show() -> None:
        figures.append(f"{name}-{len(figures) + 1}.png")
        _save(PAGES / figures[-1])

    for cell in cells(SOURCES[name]):
        parts.append(cell)
        if not cell.startswith("```python\n"):
            continue
        shown, printed = len(figures), io.StringIO()
        with contextlib.redirect_stdout(printed), patch.object(plt, "show", show):
            exec(compile(cell[10:-3], name, "exec"), names)
        if printed.getvalue():
            parts.append(f"```text\n{printed.getvalue().rstrip()}\n```")
        parts += [f"![Figure made by the code above]({file})" for file in figures[shown:]]
    (PAGES / f"{name}.md").write_text("\n\n".join(parts) + "\n")


def draw(page: Path, folder: Path) -> None:
    """Run the blocks of a page in order; a block with a picture above it draws that picture."""
    page, names = page.resolve(), {"__name__": "__main__"}
    os.chdir(folder)
    for block in PICTURE.finditer(page.read_text()):
        exec(compile(block["code"], str(page), "exec"), names)
        if block["file"]:
            _save(page.parent / block["file"])


def _save(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    plt.savefig(file, dpi=80, bbox_inches="tight")
    plt.close("all")


if __name__ == "__main__":
    kind, *rest = sys.argv[1:]
    if kind == "figures":
        draw(*map(Path, rest))
    else:
        PAGES.mkdir(exist_ok=True)
        for each in rest or SOURCES:
            render(each)
