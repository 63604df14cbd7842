"""Pages from records: frames, figures, tables, one self-contained HTML file (``pip install 'lipcomp[report]'``)."""

from lipcomp._messages import needed

with needed("lipcomp.report", "lipcomp[report]"):
    import jinja2
    import seaborn

from lipcomp.report._general import write_report

__all__ = ["write_report"]
