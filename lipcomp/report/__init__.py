"""Pages from records: frames, figures, tables, one self-contained HTML file (``pip install 'lipcomp[report]'``)."""

from lipcomp._messages import needed

with needed("lipcomp.report", "lipcomp[report]"):
    import jinja2
    import seaborn

from lipcomp.report._cells import Cell, Table
from lipcomp.report._drawn import Drawn, draw
from lipcomp.report._general import write_report
from lipcomp.report._marks import interval_mark
from lipcomp.report._page import Page, VerdictRow, write_page
from lipcomp.report._palette import styles

__all__ = [
    "Cell",
    "Drawn",
    "Page",
    "Table",
    "VerdictRow",
    "draw",
    "interval_mark",
    "styles",
    "write_page",
    "write_report",
]
