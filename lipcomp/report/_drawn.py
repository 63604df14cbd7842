"""A figure in the forms that a page needs: SVG for light and dark ground, and PNG; with its text alternative."""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.figure import Figure
from PIL import Image

from lipcomp.plots._palette import further_fonts

INK, GRID = "#1f2328", "#d0d7de"
ON_DARK = {INK: "#e6edf3", GRID: "#3d444d"}  # what a screen with dark ground shows in their place
RULES = "".join(
    f'[style*="{kind}: {light}"] {{ {kind}: {dark} !important; }}'
    for light, dark in ON_DARK.items()
    for kind in ("fill", "stroke")
)
FOLLOW = f"@media screen and (prefers-color-scheme: dark) {{ {RULES} }}"
WIDTH = 4.6  # inches: a phone shows such a figure at its own size, a wide screen two side by side
ZONE = "#2da44e33"  # the equivalence zone, on either ground


@dataclass(frozen=True)
class Drawn:
    """A figure in the forms that a report needs; the PNG is empty where no file of it is written."""

    name: str
    title: str
    caption: str
    alt: str
    svg: str
    png: bytes = b""

    @property
    def coded(self) -> bool:
        """Whether a text has codes for characters that no installed font has; SVG repeats each text as a comment."""
        return re.search(r"<!-- [^\n]*\\u[0-9a-f]{4}|<!-- [^\n]*\\U[0-9a-f]{8}", self.svg) is not None

    @property
    def uri(self) -> str:
        """The SVG as a data URI that may stand between double quotes in HTML; it follows the ground of the screen."""
        svg = self.svg[self.svg.index("<svg") :].replace("</style>", f"{FOLLOW}</style>", 1)
        svg = " ".join(svg.replace('"', "'").split())
        return "data:image/svg+xml," + quote(svg, safe=" '/:;,=()[]{}!*?+@-._~")


def draw(
    name: str, title: str, caption: str, alt: str, make: Callable[[], Figure], *, png: bool = True
) -> Drawn:
    """Draw a figure, for light ground."""
    style: Any = {
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": GRID,
        "xtick.color": INK,
        "ytick.color": INK,
        "grid.color": GRID,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
        "legend.frameon": False,
        "svg.hashsalt": name,
        "font.size": 10,
    }
    with sns.axes_style("whitegrid", rc=style), mpl.rc_context(style):
        mpl.rcParams["font.sans-serif"] = [*mpl.rcParams["font.sans-serif"], *further_fonts()]
        figure = make()
        vector, raster, small = io.StringIO(), io.BytesIO(), io.BytesIO()
        figure.savefig(vector, format="svg", bbox_inches="tight", metadata={"Date": None})
        if png:
            figure.savefig(raster, format="png", dpi=130, bbox_inches="tight", facecolor="white")
        plt.close(figure)
    if png:  # flat colours and few of them: a palette takes a third of the bytes
        Image.open(raster).convert("RGB").quantize(256).save(small, format="png", optimize=True)
    return Drawn(name, title, caption, alt, vector.getvalue(), small.getvalue())
