"""Changes to the pages while the site is built: formulas as MathML, references of modules, tables of options.

- ``<!-- modules: lipcomp.bound -->`` becomes the reference of every public module of that package.
- ``<!-- commands -->`` becomes the options of every command, read from the parsers.
- A reference page ends with the formulas that its modules cite, rendered.
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
MODULES = re.compile(r"<!-- modules: ([\w.]+) -->")


def math(number: str) -> str:
    """A formula as a block of MathML."""
    latex = re.sub(
        r"\\log(?![a-z])", r"\\log\\,", FORMULAS[number]
    )  # MathML sets no space behind a function's name
    return f'<div class="formula">{convert(latex, display="block")}</div>'


def anchor(number: str) -> str:
    """The id of a formula on the theory page."""
    return "formula-" + number.replace(".", "-")


def module_files(package: str) -> dict[str, Path]:
    """Public modules of a package (or the one module) and their files."""
    base = ROOT / Path(*package.split("."))
    if base.with_suffix(".py").exists():
        return {package: base.with_suffix(".py")}
    found = {}
    for file in sorted(base.rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        if any(part.startswith("_") for part in parts[1:]):
            continue
        found[".".join(parts)] = file
    return found


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Expand module lists and render formulas."""
    if page.file.src_uri == "theory.md":
        return _theory(markdown)
    if page.file.src_uri == "commands.md":
        return markdown.replace("<!-- commands -->", commands.page())
    cited: set[str] = set()

    def expand(match: re.Match[str]) -> str:
        files = module_files(match[1])
        for file in files.values():
            cited.update(CITED.findall(file.read_text()))
        return "\n\n".join(f"::: {name}" for name in files)

    markdown = MODULES.sub(expand, markdown)
    known = sorted(cited & FORMULAS.keys())
    if known:
        markdown += "\n\n## Formulas cited here\n\n"
        markdown += "\n\n".join(f"[({n})](../theory.md#{anchor(n)})\n\n{math(n)}" for n in known)
    return markdown


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Link cited formulas in text, outside code and links."""
    if not page.file.src_uri.startswith("reference/"):
        return html
    parts = re.split(r"(<[^>]+>)", html)
    closed = 0
    for i, part in enumerate(parts):
        if part.startswith("<"):
            if re.match(r"<(code|pre|a|math|h\d)\b", part):
                closed += 1
            elif re.match(r"</(code|pre|a|math|h\d)>", part):
                closed -= 1
        elif closed == 0:
            parts[i] = CITED.sub(
                lambda m: (
                    f'<a href="../../theory/#{anchor(m[1])}">({m[1]})</a>' if m[1] in FORMULAS else m[0]
                ),
                part,
            )
    return "".join(parts)


def _theory(markdown: str) -> str:
    """Each paragraph that begins with a number, with its anchor before and its rendering behind."""
    blocks = markdown.split("\n\n")
    for i, block in enumerate(blocks):
        match = CITED.match(block)
        if match and match[1] in FORMULAS:
            blocks[i] = f'<a id="{anchor(match[1])}"></a>\n\n{block}\n\n{math(match[1])}'
    return "\n\n".join(blocks)
