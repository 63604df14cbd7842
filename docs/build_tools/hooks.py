"""Changes to the pages while the site is built: formulas as MathML, tables of options.

- ``<!-- commands -->`` becomes the options of every command, read from the parsers.
- A reference page ends with the formulas that it cites, rendered.
- In theory.md every numbered formula gets an anchor and its rendering.
- ``(3.4)`` anywhere in a reference page's text links to that formula.
"""

import re
import sys
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[2]))
import commands
from formulas import FORMULAS

ROOT = Path(__file__).parents[2]
CITED = re.compile(r"\((\d\.\d)\)")


def math(number: str) -> str:
    """A formula as a block of MathML."""
    # MathML sets no space behind a function's name
    latex = re.sub(r"\\log(?![a-z])", r"\\log\\,", FORMULAS[number])
    return f'<div class="formula">{convert(latex, display="block")}</div>'


def anchor(number: str) -> str:
    """The id of a formula on the theory page."""
    return "formula-" + number.replace(".", "-")


def on_startup(**_: Any) -> None:
    """Find train and analyses, which are not installed, while pages are built: mkdocs undoes the hooks' own paths."""
    sys.path.insert(0, str(ROOT))


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in the tables of options, render the formulas of the theory."""
    if page.file.src_uri == "theory.md":
        return _theory(markdown)
    return (
        markdown.replace("<!-- commands -->", commands.page())
        if page.file.src_uri == "commands.md"
        else markdown
    )


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Link cited formulas in text, outside code and links, and show them at the end."""
    if not page.file.src_uri.startswith("reference/"):
        return html
    parts = re.split(r"(<[^>]+>)", html)
    closed, cited = 0, set()
    for i, part in enumerate(parts):
        if part.startswith("<"):
            if re.match(r"<(code|pre|a|math|h\d)\b", part):
                closed += 1
            elif re.match(r"</(code|pre|a|math|h\d)>", part):
                closed -= 1
        elif closed == 0:
            cited |= set(CITED.findall(part)) & FORMULAS.keys()
            parts[i] = CITED.sub(
                lambda m: (
                    f'<a href="../../theory/#{anchor(m[1])}">({m[1]})</a>' if m[1] in FORMULAS else m[0]
                ),
                part,
            )
    if cited:
        parts.append("<h2>Formulas cited here</h2>")
        parts += [f'<a href="../../theory/#{anchor(n)}">({n})</a>{math(n)}' for n in sorted(cited)]
    return "".join(parts)


def _theory(markdown: str) -> str:
    """Each paragraph that begins with a number, with its anchor before and its rendering behind."""
    blocks = markdown.split("\n\n")
    for i, block in enumerate(blocks):
        match = CITED.match(block)
        if match and match[1] in FORMULAS:
            blocks[i] = f'<a id="{anchor(match[1])}"></a>\n\n{block}\n\n{math(match[1])}'
    return "\n\n".join(blocks)
