"""Run the notebooks and write pages with their output and figures: python docs/build_tools/notebooks.py [NAME...].

The pages are kept in git, since running the notebooks takes minutes. tests/docs checks that each page has the cells of
its notebook.
"""

import contextlib
import io
import sys
from pathlib import Path
from unittest.mock import patch

import jupytext
import matplotlib

ROOT = Path(__file__).parents[2]
SOURCES = {p.stem: p for p in sorted((ROOT / "analyses" / "notebooks").glob("*.py"))}
PAGES = ROOT / "docs" / "notebooks"


def cells(source: Path) -> list[str]:
    """The cells as Markdown: text as it is, code in blocks."""
    book = jupytext.read(source)
    return [c.source if c.cell_type == "markdown" else f"```python\n{c.source}\n```" for c in book.cells]


def render(name: str) -> None:
    """Run a notebook from top to bottom; write its page and figures."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    parts, figures, names = [], [], {"__name__": "__main__"}

    def show() -> None:
        figures.append(f"{name}-{len(figures) + 1}.png")
        plt.savefig(PAGES / figures[-1], dpi=80, bbox_inches="tight")
        plt.close("all")

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


if __name__ == "__main__":
    PAGES.mkdir(exist_ok=True)
    for each in sys.argv[1:] or SOURCES:
        render(each)
