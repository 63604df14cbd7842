"""One page from its parts: verdicts, cautions, figures, tables, methods; a self-contained HTML file, and Markdown."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lipcomp._atomic import atomic_file, check_writable
from lipcomp.report._cells import Table
from lipcomp.report._drawn import Drawn

# What every page holds, and files of others do not: it may be written again.
MARKS = {".html": b":root { --ground: ", ".md": b"\n## Answer\n"}
CODED = "Characters that no installed font has are written in figures as codes, such as \\u4e2d; tables have them."
KINDS = ("yes", "small", "open", "")


@dataclass(frozen=True)
class VerdictRow:
    """One question and its verdict, as a reader in a hurry sees it."""

    question: str  # what was asked
    chip: str  # the verdict in a few words
    kind: str  # its colour: "yes", "small" (no larger than), "open" (cannot tell) or ""
    estimate: str  # value and interval, in words
    mark: Markup  # the interval drawn (:func:`lipcomp.report._marks.interval_mark`)
    n: str  # how many of what
    meaning: str  # one line
    role: str = ""  # "primary" or "exploratory"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(map(repr, KINDS))}, got {self.kind!r}")


@dataclass(frozen=True)
class Page:
    """Everything that a page shows."""

    title: str  # the question
    subtitle: str  # what it was asked of
    headline: str  # the answer in at most two sentences
    figures: Sequence[Drawn]
    tables: Sequence[Table]  # after the figures
    methods: Sequence[str]  # paragraphs; folded
    provenance: Sequence[tuple[str, str]]  # names and values; folded
    records: Sequence[Path]  # the files of records behind the page, which carries them for download
    record_count: int  # how many values they hold
    verdicts: Sequence[VerdictRow] = ()  # the four to six questions that matter most; may be empty
    findings: Sequence[str] = ()  # sentences behind the headline; may be empty
    cautions: Sequence[str] = ()  # what a reader must know before believing the answer; they come first
    images_csv: bytes = field(default=b"", repr=False)  # values per image, for download; may be empty


def check_page(out: Path, *, markdown: bool = False) -> None:
    """Refuse what a page cannot be written to: a path that is not writable, a file that is there and is no page.

    Raises
    ------
    OSError, ValueError
        Naming the file and the reason.
    """
    for file, mark in [(out, MARKS[".html"]), *[(out.with_suffix(".md"), MARKS[".md"])] * markdown]:
        check_writable(file, "out")
        held = file.read_bytes() if file.exists() else b""
        if held and mark not in held:
            raise ValueError(
                f"out {str(file)!r} exists and is not a page of lipcomp; give another path, or move it away"
            )


def write_page(out: Path, page: Page, *, markdown: bool = True) -> Path:
    """Write a page as one HTML file; with ``markdown`` also as .md beside it, its figures in figures/.

    Returns
    -------
    Path
        The HTML file.
    """
    check_page(out, markdown=markdown)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=lambda template: template is not None and template.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    values = {key: getattr(page, key) for key in page.__dataclass_fields__}
    if any(figure.coded for figure in page.figures):
        values["cautions"] = [*page.cautions, CODED]
    values["downloads"] = [
        (file.name, _data_uri("application/jsonl", file.read_bytes())) for file in page.records
    ]
    values["images_uri"] = _data_uri("text/csv", page.images_csv) if page.images_csv else ""
    _write(out, environment.get_template("page.html.j2").render(values).encode(errors="replace"))
    if markdown:
        for figure in page.figures:
            _write(out.parent / "figures" / f"{figure.name}.png", figure.png)
            _write(out.parent / "figures" / f"{figure.name}.svg", figure.svg.encode())
        _write(out.with_suffix(".md"), environment.get_template("page.md.j2").render(values).encode())
    return out


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _write(path: Path, content: bytes) -> None:
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)
