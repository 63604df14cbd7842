"""An interval as a small drawing beside its numbers: zero, the equivalence zone shaded, the interval, the estimate."""

import math

from markupsafe import Markup, escape

WIDTH, HEIGHT, EDGE = 180, 26, 6


def interval_mark(
    value: float | None, interval: tuple[float, float] | None, zone: tuple[float, float] | None, text: str
) -> Markup:
    """The drawing as inline SVG, in colours of the page; empty without an interval.

    Parameters
    ----------
    value, interval
        In any unit in which zero means no difference.
    zone
        The equivalence zone; shaded.
    text
        What it shows, for those who do not see it.

    Examples
    --------
    >>> str(interval_mark(1.0, (0.5, 1.5), (-1.0, 1.0), "1, 0.5 to 1.5")).count("<rect")
    1
    """
    if value is None or interval is None or not all(map(math.isfinite, interval)):
        return Markup("")
    shown = [0.0, value, *interval, *(zone or ())]
    low, high = min(shown), max(shown)
    reach = max(-low, high, 1e-12)  # zero stays in the middle, so that drawings compare at a glance

    def x(number: float) -> str:
        return f"{EDGE + (WIDTH - 2 * EDGE) * (number + reach) / (2 * reach):.1f}"

    middle = HEIGHT / 2
    parts = [
        f'<svg class="mark" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" '
        f'aria-label="{escape(text)}">'
    ]
    if zone is not None:
        width = float(x(zone[1])) - float(x(zone[0]))
        parts.append(f'<rect class="zone" x="{x(zone[0])}" y="2" width="{width:.1f}" height="{HEIGHT - 4}"/>')
    parts += [
        f'<line class="zero" x1="{x(0.0)}" x2="{x(0.0)}" y1="0" y2="{HEIGHT}"/>',
        f'<line class="span" x1="{x(interval[0])}" x2="{x(interval[1])}" y1="{middle}" y2="{middle}"/>',
        f'<circle class="dot" cx="{x(value)}" cy="{middle}" r="4"/></svg>',
    ]
    return Markup("".join(parts))
