"""A figure in the forms that a page needs: SVG on light and on dark ground, and PNG; with its text alternative."""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.figure import Figure

INK = {"light": "#1f2328", "dark": "#e6edf3"}
GRID = {"light": "#d0d7de", "dark": "#3d444d"}
WIDTH = 4.6  # inches: a phone shows such a figure at its own size, a wide screen two side by side
ZONE = "#2da44e33"  # the equivalence zone, on either ground


@dataclass(frozen=True)
class Drawn:
    """A figure in the forms that a report needs."""

    name: str
    title: str
    caption: str
    alt: str
    light: str
    dark: str
    png: bytes

    @property
    def light_uri(self) -> str:
        """The light SVG as a data URI."""
        return _uri(self.light)

    @property
    def dark_uri(self) -> str:
        """The dark SVG as a data URI."""
        return _uri(self.dark)


def _uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def draw(name: str, title: str, caption: str, alt: str, make: Callable[[], Figure]) -> Drawn:
    """Draw a figure on light and on dark ground."""
    vectors: dict[str, str] = {}
    png = b""
    for theme, ink in INK.items():
        style: Any = {
            "text.color": ink,
            "axes.labelcolor": ink,
            "axes.edgecolor": GRID[theme],
            "xtick.color": ink,
            "ytick.color": ink,
            "grid.color": GRID[theme],
            "figure.facecolor": "none",
            "axes.facecolor": "none",
            "savefig.facecolor": "none",
            "legend.frameon": False,
            "svg.hashsalt": name,
            "font.size": 10,
        }
        with sns.axes_style("whitegrid", rc=style), mpl.rc_context(style):
            figure = make()
            vector, raster = io.StringIO(), io.BytesIO()
            figure.savefig(vector, format="svg", bbox_inches="tight", metadata={"Date": None})
            if theme == "light":
                figure.savefig(raster, format="png", dpi=130, bbox_inches="tight", facecolor="white")
                png = raster.getvalue()
            plt.close(figure)
        vectors[theme] = vector.getvalue()
    return Drawn(name, title, caption, alt, vectors["light"], vectors["dark"], png)
