"""One colour, one marker and one text per name, the same on every page and in every figure."""

import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from matplotlib import font_manager, rcParams
from matplotlib.font_manager import get_font

# Okabe-Ito colours, which colour-blind readers can distinguish, on white and on near-black.
METHODS = {
    "SimCLR": ("#0072B2", "o"),
    "SimCLR ×(1+β)": ("#56B4E9", "^"),
    "SimCLR + noise": ("#CC79A7", "v"),
    "C-SimCLR": ("#D55E00", "s"),
    "BYOL": ("#009E73", "D"),
    "C-BYOL": ("#E69F00", "P"),
    "supervised": ("#8C8C8C", "X"),
    "cosine classifier": ("#8C8C8C", "X"),
    "supervised CEB": ("#B8860B", "*"),
    "random encoder": ("#8C8C8C", "1"),
    "raw pixels": ("#8C8C8C", "2"),
}
OTHERS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#B8860B", "#8C8C8C")
GENERIC = ("serif", "sans-serif", "cursive", "fantasy", "monospace")
SCRIPTS = "中あ한अไעع"  # a character of each
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")


def styles(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each name: fixed for the methods known here, free ones in order for others.

    Examples
    --------
    >>> styles(["mine", "C-SimCLR"])
    {'mine': ('#0072B2', 'o'), 'C-SimCLR': ('#D55E00', 's')}
    """
    wanted = list(dict.fromkeys(names))
    taken = {METHODS[name][0] for name in wanted if name in METHODS}
    pairs = [*zip(OTHERS, MARKERS, strict=True)]
    free = itertools.cycle([pair for pair in pairs if pair[0] not in taken] or pairs)
    return {name: METHODS[name] if name in METHODS else next(free) for name in wanted}


@lru_cache(maxsize=4096)
def _has(family: str, char: str) -> bool:
    """Whether a font has a character; one that is not installed or damaged has none."""
    try:
        file = font_manager.findfont(font_manager.FontProperties(family=[family]), fallback_to_default=False)
        return get_font(file).get_char_index(ord(char)) > 0
    except (ValueError, RuntimeError):
        return False


@lru_cache(maxsize=1)
def further_fonts() -> list[str]:
    """Installed fonts for the scripts that matplotlib's own font lacks: for each the first that has it."""
    usual = {e.name for e in font_manager.fontManager.ttflist if e.style == "normal" and e.weight == 400}
    families = sorted(name for name in usual if not re.search(r"Last ?Resort|Emoji", name))
    found = (next((f for f in families if _has(f, char)), None) for char in SCRIPTS)
    return [family for family in dict.fromkeys(found) if family is not None]


def plain(text: object) -> str:
    """A name for matplotlib: no mathematics between two dollars, no characters that SVG cannot hold, codes for those
    that none of its fonts has, and no underscore at the beginning, which a legend leaves out.
    """
    known = re.sub(r"[\t\n\v\f\r]+", " ", str(text))
    known = re.sub(r"[\x00-\x1f\x7f\ud800-\udfff\ufffe\uffff]", "\ufffd", known)
    told = "".join(map(_as_drawn, known)).replace("$", r"\$")
    return f" {told}" if told.startswith("_") else told


def _as_drawn(char: str) -> str:
    """A character, or its code where no font of matplotlib's settings has it."""
    settings: Any = rcParams  # whose keys are literals to mypy
    named = ((settings[f"font.{f}"] if f in GENERIC else [f]) for f in settings["font.family"])
    if char < "\u0250" or any(_has(family, char) for family in itertools.chain.from_iterable(named)):
        return char
    return f"\\u{ord(char):04x}" if char <= "\uffff" else f"\\U{ord(char):08x}"


def fitting(names: Iterable[object], most: int = 40) -> dict[str, str]:
    """Each name as a figure can hold it: cut in the middle where it is long, unless two would look the same.

    Examples
    --------
    >>> fitting(["mine", "_best", "x" * 100])["x" * 100]
    'xxxxxxxxxxxxxxxxxxxx…xxxxxxxxxxxxxxxxxxx'
    """
    whole = list(dict.fromkeys(map(str, names)))
    cut = {n: _cut(n, most) for n in whole}
    times = Counter(cut.values())
    return {n: plain(n if times[short] > 1 else short) for n, short in cut.items()}


def _cut(name: str, most: int) -> str:
    """The beginning and the end of a name that is wider than ``most`` letters."""
    widths = [2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in name]
    widths = [max(w, len(_as_drawn(c))) for w, c in zip(widths, name, strict=True)]
    if sum(widths) <= most:
        return name
    head = sum(end <= most // 2 for end in itertools.accumulate(widths))
    tail = sum(end < most // 2 for end in itertools.accumulate(reversed(widths)))
    return f"{name[:head]}…{name[len(name) - tail :]}"
