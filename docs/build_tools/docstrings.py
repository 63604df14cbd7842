"""Our docstrings, numpydoc with a little reStructuredText, as Markdown for the site.

Roles become code, simple tables become Markdown tables, doctests in running text become code blocks. Names that share a
description get one each: griffe would give all of them the first one's type and default.
"""

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:func|class|meth|mod|data|attr|exc):`~?([^`]+)`")
RULE = re.compile(r"^\s*=+(?:\s+=+)+\s*$")
SHARED = re.compile(r"^(\*?\w+(?:, \*?\w+)+)((?: : .*)?(?:\n(?: {4}.*|(?=\n {4})))+)", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Rewrites every docstring once, before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring is not None and not obj.docstring.value.startswith("\u2060"):
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(text: str) -> str:
    """A docstring as Markdown, its numpydoc sections left as they are."""
    text = ROLE.sub(lambda m: f"`{m[1].rpartition('.')[2] if '~' in m[0] else m[1]}`", text)
    text = _tables(text.split("\n"))
    match = re.search(r"\n[A-Z][A-Za-z ]+\n-{3,}\n", text)
    end = len(text) if match is None else match.start()  # of the running text
    sections = SHARED.sub(lambda m: "\n".join(name + m[2] for name in m[1].split(", ")), text[end:])
    return _doctests(text[:end]) + sections


def _tables(lines: list[str]) -> str:
    out: list[str] = []
    i = 0
    while i < len(lines):
        if not RULE.match(lines[i]):
            out.append(lines[i])
            i += 1
            continue
        starts = [m.start() for m in re.finditer(r"(?<!=)=+", lines[i])]
        rules = [j for j in range(i, len(lines)) if RULE.match(lines[j])]
        blank = next((j for j in range(i, len(lines)) if not lines[j].strip()), len(lines))
        rules = [j for j in rules if j < blank]
        end = rules[-1]
        header, body = (rules[0] + 1, rules[1]), (rules[1] + 1, end)
        if len(rules) < 3:
            header, body = (0, 0), (i + 1, end)
        rows = _rows(lines[body[0] : body[1]], starts)
        titles = (_rows(lines[header[0] : header[1]], starts) or [[""] * len(starts)])[0]
        out += ["", _row(titles), "|" + " --- |" * len(starts), *map(_row, rows), ""]
        i = end + 1
    return "\n".join(out)


def _rows(lines: list[str], starts: list[int]) -> list[list[str]]:
    rows: list[list[str]] = []
    ends = [*starts[1:], None]
    for line in lines:
        cells = [line[start:end].strip() for start, end in zip(starts, ends, strict=True)]
        if rows and not cells[0]:
            rows[-1] = [f"{old} {new}".strip() for old, new in zip(rows[-1], cells, strict=True)]
        else:
            rows.append(cells)
    return rows


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _doctests(text: str) -> str:
    out: list[str] = []
    inside = False
    for line in text.split("\n"):
        if line.startswith(">>>") and not inside:
            out += ["", "```pycon"]
            inside = True
        elif inside and not line.strip():
            out.append("```")
            inside = False
        out.append(line.replace("  # doctest: +SKIP", "") if inside else line)
    return "\n".join(out) + ("\n```" if inside else "")
