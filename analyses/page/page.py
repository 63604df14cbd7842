"""One page a study: answer, figures, tables, methods, provenance; as one self-contained HTML file, and Markdown."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from analyses.page.cells import Table
from analyses.page.drawn import Drawn
from lipcomp.checkpoints.native import atomic_file


@dataclass(frozen=True)
class Answer:
    """What a study says: the headline first, then the findings behind it."""

    headline: str
    findings: list[str]


@dataclass(frozen=True)
class Page:
    """Everything that a page shows.

    Parameters
    ----------
    title, subtitle
        The study's question, and what it was asked of.
    answer
        The answer, which comes first.
    figures, tables
        In this order.
    methods
        Paragraphs.
    provenance
        Names and values.
    records
        The study's file of records, which the page carries for download.
    record_count
        How many values it holds.
    cautions
        What a reader must know before believing the answer.
    images_csv
        Values image by image, for download; may be empty.
    """

    title: str
    subtitle: str
    answer: Answer
    figures: Sequence[Drawn]
    tables: Sequence[Table]
    methods: Sequence[str]
    provenance: Sequence[tuple[str, str]]
    records: Path
    record_count: int
    cautions: Sequence[str] = ()
    images_csv: bytes = field(default=b"", repr=False)


def write_page(folder: Path, page: Page, name: str = "report") -> Path:
    """Write NAME.html, NAME.md and figures/; returns the HTML's path."""
    for figure in page.figures:
        _write(folder / "figures" / f"{figure.name}.png", figure.png)
        _write(folder / "figures" / f"{figure.name}.svg", figure.light.encode())
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=lambda template: template is not None and template.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    values = {
        **{key: getattr(page, key) for key in page.__dataclass_fields__},
        "records_name": page.records.name,
        "records_uri": _data_uri("application/jsonl", page.records.read_bytes()),
        "images_uri": _data_uri("text/csv", page.images_csv) if page.images_csv else "",
    }
    for ending in ("md", "html"):
        text = environment.get_template(f"page.{ending}.j2").render(values)
        _write(folder / f"{name}.{ending}", text.encode())
    return folder / f"{name}.html"


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _write(path: Path, content: bytes) -> None:
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)
