"""Run the code of pages and keep its figures, since running it takes minutes; tests check that nothing is out of date.

    python docs/build_tools/notebooks.py notebooks [NAME...]   docs/notebooks/NAME.md from analyses/notebooks/NAME.py
    python docs/build_tools/notebooks.py figures PAGE FOLDER   the pictures of a page, from the code below each picture

The code of a page runs in FOLDER, which holds the files that it reads. A notebook whose code has not changed is not run
again; only its text is taken over.
"""

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import matplotlib

matplotlib.use("Agg")
import jupytext
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[2]
SOURCES = {p.stem: p for p in sorted((ROOT / "analyses" / "notebooks").glob("*.py"))}
PAGES = ROOT / "docs" / "notebooks"
RUNS = os.environ.get("LIPCOMP_NOTEBOOK_RUNS", str(ROOT / "runs" / "notebooks"))
OUTPUT = re.compile(r"(```python\n.*?\n```)\n\n<!-- output -->\n(.*?)<!-- end of output -->", re.DOTALL)
PICTURE = re.compile(
    r"(?:^!\[[^\]]*\]\((?P<file>[^)]+)\)\n\n)?^```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)


def cells(source: Path) -> list[str]:
    """The cells as Markdown: text as it is, code in blocks."""
    book = jupytext.read(source)
    return [c.source if c.cell_type == "markdown" else f"```python\n{c.source}\n```" for c in book.cells]


def render(name: str) -> None:
    """Write the page of a notebook; run it from top to bottom if its code has changed."""
    page, found = PAGES / f"{name}.md", cells(SOURCES[name])
    code = [cell for cell in found if cell.startswith("```python\n")]
    outputs = OUTPUT.findall(page.read_text()) if page.exists() else []
    if [cell for cell, _ in outputs] != code:
        outputs = list(zip(code, run(name, code), strict=True))
    told = {cell: f"{cell}\n\n<!-- output -->\n{output}<!-- end of output -->" for cell, output in outputs}
    page.write_text("\n\n".join(told.get(cell, cell) for cell in found) + "\n")


def run(name: str, code: list[str]) -> Iterator[str]:
    """What each block of code prints and draws, as Markdown."""
    names, figures = {"__name__": "__main__"}, []

    def show() -> None:
        figures.append(f"{name}-{len(figures) + 1}.png")
        _save(PAGES / figures[-1])

    for block in code:
        shown, printed = len(figures), io.StringIO()
        with contextlib.redirect_stdout(printed), patch.object(plt, "show", show):
            exec(compile(block[10:-3], name, "exec"), names)
        text = re.sub(r"/tmp/tmp\w+", "/tmp/folder", printed.getvalue()).rstrip()
        text = text.replace(RUNS, "runs/notebooks")
        pictures = [f"![Figure made by the code above]({file})\n" for file in figures[shown:]]
        yield "\n".join([f"```text\n{text}\n```\n"] * bool(text) + pictures)


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
