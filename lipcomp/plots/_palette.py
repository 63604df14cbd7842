"""One colour, one marker and one text per name, the same on every page and in every figure."""

import itertools
import re
from collections import Counter
from collections.abc import Iterable

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


def plain(text: object) -> str:
    """A name for matplotlib: no mathematics between two dollars, no characters that no font or SVG holds, and no
    underscore at the beginning, which a legend leaves out.
    """
    known = re.sub(r"[\x00-\x1f\x7f\ud800-\udfff\ufffe\uffff]", "\ufffd", str(text)).replace("$", r"\$")
    return f" {known}" if known.startswith("_") else known


def fitting(names: Iterable[object], most: int = 40) -> dict[str, str]:
    """Each name as a figure can hold it: cut in the middle where it is long, unless two would look the same.

    Examples
    --------
    >>> fitting(["mine", "_best", "x" * 100])["x" * 100]
    'xxxxxxxxxxxxxxxxxxxx…xxxxxxxxxxxxxxxxxxx'
    """
    whole = list(dict.fromkeys(map(str, names)))
    cut = {n: n if len(n) <= most else f"{n[: most // 2]}…{n[1 - most // 2 :]}" for n in whole}
    times = Counter(cut.values())
    return {n: plain(n if times[short] > 1 else short) for n, short in cut.items()}
