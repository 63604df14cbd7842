"""One colour and one marker per method, the same on every page and in every figure."""

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
    """Colour and marker of each name: fixed for the methods known here, in the order given for others.

    Examples
    --------
    >>> styles(["mine", "C-SimCLR"])
    {'mine': ('#0072B2', 'o'), 'C-SimCLR': ('#D55E00', 's')}
    """
    found: dict[str, tuple[str, str]] = {}
    count = 0
    for name in dict.fromkeys(names):
        if name not in METHODS:
            found[name] = (OTHERS[count % len(OTHERS)], MARKERS[count % len(MARKERS)])
            count += 1
        else:
            found[name] = METHODS[name]
    return found
