"""The look of a study's plots: few colours, the same for the same value everywhere.

A figure becomes an SVG for the page, which takes its colours from the page's style (`PALETTE`), and
a small PNG on white for Markdown.
"""

import io
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter
from PIL import Image

from eval.inline_svg import inline_svg

# Ink -> colour on a light and on a dark page. `base` is for baselines; the others stay apart for
# the colour-blind, and each goes with a marker of its own.
_INKS = {
    "text": ("#1d1f22", "#e8e6e1"),
    "line": ("#8a8f99", "#8a8f98"),
    "base": ("#3c4048", "#d5d8dd"),
    "s1": ("#0067a8", "#5aa9e6"),
    "s2": ("#cf5200", "#ff8d4d"),
    "s3": ("#008a63", "#3fc79b"),
    "s4": ("#a23f8e", "#dd8fce"),
    "s5": ("#a87900", "#e0b43c"),
    "s6": ("#3a9bd1", "#9bd4f5"),
    "s7": ("#7a2f1d", "#d39a86"),
    "s8": ("#6b7078", "#a9aeb6"),
}
_MARKERS = {"base": "o"} | dict(zip((f"s{i}" for i in range(1, 9)), "s^DvPX*<", strict=True))
PALETTE = (
    ":root{"
    + "".join(f"--{name}:{light};" for name, (light, _) in _INKS.items())
    + "}@media (prefers-color-scheme: dark){:root{"
    + "".join(f"--{name}:{dark};" for name, (_, dark) in _INKS.items())
    + "}}"
)
"""CSS that the page needs for the colours of the SVGs."""

Dashes = Literal["-", "--", ":", "-."]
_DASHES: tuple[Dashes, ...] = ("-", "--", ":", "-.")
MAX_PANELS = 9
_WIDTH, _HEIGHT = 3.7, 2.7  # of a panel, inches
_LARGEST = 1e15  # beyond it nothing is drawn: axes overflow
_PNG_DPI = (110, 90, 72)
_MAX_PNG = 140_000  # bytes
_COLOURS = 256  # of a PNG


@dataclass(frozen=True)
class Style:
    """How the lines of one value are drawn."""

    colour: str
    marker: str
    dashes: Dashes = "-"


@dataclass(frozen=True)
class Picture:
    """A plot in both its forms.

    Attributes:
        name: of the file, without its ending.
        alt: what it shows, for those who cannot see it.
        caption: what to know about it.
        svg: for a page with `PALETTE` in its style.
        png: on white.
    """

    name: str
    alt: str
    caption: str
    svg: str
    png: bytes


def styles(values: Sequence[str], baseline: str | None) -> dict[str, Style]:
    """A style for each value, the baseline's neutral; dashed where the colours come round again."""
    others = [value for value in values if value != baseline]
    found = {} if baseline is None else {baseline: Style(_INKS["base"][0], _MARKERS["base"])}
    cycle = itertools.product(_DASHES, range(1, 9))
    for value, (dashes, number) in zip(others, itertools.cycle(cycle), strict=False):
        ink = f"s{number}"
        found[value] = Style(_INKS[ink][0], _MARKERS[ink], dashes)
    return found


def label(text: str, length: int = 44) -> str:
    """A name as it may stand in a plot: printable ASCII, not too long."""
    plain = re.sub(r"[^ -~]", "?", text)
    return plain if len(plain) <= length else plain[: length - 3] + "..."


@contextmanager
def panels(count: int, columns: int = 3) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of so many panels of one size, so many to a row."""
    columns = 2 if count == 4 else min(count, columns)
    rows = math.ceil(count / columns)
    # Names come from files: a $ in one of them must not start a formula.
    with mpl.rc_context({"text.parse_math": False, "font.size": 9.0}):
        figure = Figure(
            figsize=(_WIDTH * max(columns, 1.4), _HEIGHT * rows + 0.5), layout="constrained"
        )
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for unused in axes[count:]:
            unused.remove()
        for one in axes[:count]:
            _plain(one)
        yield figure, axes[:count]


def titled(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """Give a panel its words."""
    text = _INKS["text"][0]
    axes.set_title(title, loc="left", fontsize=10, color=text)
    axes.set_xlabel(x_label, color=text)
    axes.set_ylabel(y_label, color=text)


def legend(figure: Figure, looks: Mapping[str, Style], *, markers: bool = True) -> None:
    """One legend for all panels, below them."""
    if len(looks) < 2:
        return
    lines = [
        Line2D([], [], color=s.colour, linestyle=s.dashes, marker=s.marker if markers else "", ms=5)
        for s in looks.values()
    ]
    width = figure.get_size_inches()[0]
    longest = max(len(label(name, 30)) for name in looks)
    columns = max(1, int(width / (0.085 * longest + 0.55)))
    figure.legend(
        lines,
        [label(name, 30) for name in looks],
        loc="outside lower center",
        ncols=min(columns, len(looks)),
        frameon=False,
        fontsize=9,
        labelcolor=_INKS["text"][0],
    )


def drawable(values: np.ndarray, *, positive: bool = False) -> np.ndarray:
    """The values with nan for all that an axis cannot show."""
    fine = np.isfinite(values) & (np.abs(np.nan_to_num(values)) < _LARGEST)
    fine &= (values > 1 / _LARGEST) if positive else True
    return np.where(fine, values, np.nan)


def wide(values: np.ndarray) -> bool:
    """Whether values are better shown on a logarithmic axis: positive, over a factor of 20."""
    known = values[np.isfinite(values)]
    return bool(len(known) and known.min() > 0 and known.max() > 20 * known.min())


def logarithmic_y(axes: Axes) -> None:
    """Make the axis of a panel that has all its lines logarithmic."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high < 10 * low:  # perhaps no power of ten in sight: ticks at round steps instead
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def guide(axes: Axes, value: float, *, across: bool = True) -> None:
    """A thin line at a value that matters, such as 0."""
    draw = axes.axhline if across else axes.axvline
    draw(value, color=_INKS["line"][0], linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)


def finish(figure: Figure, name: str, alt: str, caption: str) -> Picture:
    """Both forms of a figure."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # arranged once is enough: it takes longer than the drawing
    return Picture(name, alt, caption, _svg(figure, name), _png(figure))


def count_label(value: float, _: object = None) -> str:
    """12,500 as 12.5k: for axes that count images."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def small_png(image: Image.Image) -> bytes:
    """A PNG with few colours."""
    buffer = io.BytesIO()
    few = image.quantize(_COLOURS, dither=Image.Dither.NONE)
    few.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _plain(axes: Axes) -> None:
    text, line = _INKS["text"][0], _INKS["line"][0]
    axes.grid(True, color=line, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", color=line, labelcolor=text, labelsize=8.5)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(line)
        spine.set_alpha(0.6)


def _png(figure: Figure) -> bytes:
    """The sharpest picture within the size limit."""
    data = b""
    for dpi in _PNG_DPI:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
        with Image.open(buffer) as image:
            data = small_png(image.convert("RGB"))
        if len(data) <= _MAX_PNG:
            break
    return data


def _svg(figure: Figure, name: str) -> str:
    """The figure inline, in the page's colours and font."""
    text = inline_svg(figure, name)
    for ink, (colour, _) in _INKS.items():
        text = text.replace(colour, f"var(--{ink})")
    width = figure.get_size_inches()[0] * 96
    return f'<div class="plot" style="max-width: {width:.0f}px">{text}</div>'
