"""Pieces of a page: tables, and figures in words."""

import itertools
import math
from collections.abc import Sequence


def figure(value: float) -> str:
    """Four digits, or a dash for what is not known."""
    return f"{value:.4g}" if math.isfinite(value) else "–"


def duration(seconds: float) -> str:
    """Such as ``2 h 05 min`` or ``12 s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def rate(value: float) -> str:
    """Three digits, or all of them before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    css: Sequence[str] = (),
    *,
    texts: bool = False,
) -> str:
    """An HTML table of cells that are already escaped; `css` gives each row its class.

    With `texts`, the cells are words, which begin at the left and wrap.
    """
    lines = ["<tr>" + "".join(f'<th scope="col">{cell}</th>' for cell in head) + "</tr>"]
    for row, name in itertools.zip_longest(rows, css, fillvalue=""):
        cells = "".join(f"<td>{cell}</td>" for cell in row)
        lines.append(f'<tr class="{name}">{cells}</tr>')
    kind = ' class="texts"' if texts else ""
    return f'<div class="scroll"><table{kind}>{"".join(lines)}</table></div>'
