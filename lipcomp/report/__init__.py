"""Pages from records: frames, figures, tables, one self-contained HTML file (``pip install 'lipcomp[report]'``)."""

from typing import TYPE_CHECKING, Any

from lipcomp._messages import needed

if TYPE_CHECKING:
    from lipcomp.report._general import write_report

__all__ = ["write_report"]


def __getattr__(name: str) -> Any:  # late: the command's --help and error messages need no extra
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with needed("lipcomp.report", "lipcomp[report]"):
        import jinja2
        import seaborn
    from lipcomp.report._general import write_report

    return write_report
