"""A run's curves drawn: as SVG to stand inside a page, and as one plain picture of its losses.

The page's SVG takes its font and its colours from the page, light or dark: whoever shows it
defines the CSS variables `--text`, `--line`, `--one`, `--two` and `--three`.
"""

import io
import itertools
import math
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from eval.inline_svg import inline_svg
from eval.run_log import RunLog, Validation

_MAX_POINTS = 1500  # of a curve
_FEW_POINTS = 12  # of a curve whose every point is marked; a single one makes no line
# Plots are drawn in these colours, which in a page the variables of these names replace.
_INKS = {
    "text": "#101011",
    "line": "#101012",
    "one": "#1668b8",
    "two": "#c4541c",
    "three": "#2b8a57",
}


@dataclass(frozen=True)
class _Plot:
    """One plot of train fields.

    Attributes:
        title: it names the unit where that is not obvious.
        fields: with what they are called, of which the first is the one that must be known.
        logarithmic: whether on a logarithmic axis.
        scale: factor from the fields' unit to the title's.
        whole: whether only whole numbers are on the axis.
    """

    title: str
    fields: tuple[tuple[str, str], ...]
    logarithmic: bool = False
    scale: float = 1.0
    whole: bool = False


_PLOTS = (
    _Plot("Training loss", (("loss", ""),), True),
    _Plot("Gradient norm, before clipping", (("grad_norm", ""),), True),
    _Plot("Learning rate", (("lr", ""),)),
    _Plot("Throughput (images/s)", (("images_per_second", ""),)),
    _Plot("Model FLOPs utilisation (%)", (("mfu", ""),), scale=100.0),
    _Plot(
        "Step time (ms)",
        (
            ("step_seconds_max", "slowest process"),
            ("step_seconds_min", "fastest process"),
            ("step_seconds_longest", "longest step"),
        ),
        scale=1000.0,
    ),
    _Plot("Time waiting for data (%)", (("data_wait", ""),), scale=100.0),
    _Plot(
        "Peak memory, fullest process (GB)",
        (("memory_gb", "allocated"), ("memory_reserved_gb", "reserved")),
    ),
    _Plot("Steps skipped so far", (("skipped", ""),), whole=True),
)


def training_curves(log: RunLog) -> list[str]:
    """An SVG of each train field that is known: loss, gradient norm, speed, memory and the like.

    Fields whose unit is not obvious name it in their title.
    """
    return [_curves(log, plot) for plot in _PLOTS if _known(log, plot.fields[0][0])]


def validation_means(log: RunLog) -> str:
    """An SVG of the mean validation eps-MSE over images seen, a line for each set of weights."""
    figure, axes = _axes("Validation eps-MSE, mean over λ")
    _draw_means(axes, log)
    return _svg(figure, "means")


def spectrum(log: RunLog, before: Validation, after: Validation) -> str:
    """An SVG of eps-MSE over λ: first, last, and the yardstick's where there is one.

    Where `before` is `after` only the last is drawn.
    """
    figure, axes = _axes("Validation eps-MSE at each noise level", "log-SNR λ (nats)")
    first = () if before is after else before.logsnr
    wiener = (tuple(log.wiener), tuple(log.wiener.values()))
    lines = (
        ("first", first, before.eps_mse[: len(first)], "o:", _INKS["one"]),
        ("last", after.logsnr, after.eps_mse, "o-", _INKS["two"]),
        ("Wiener", *wiener, "s--", _INKS["three"]),
    )
    for label, x, y, style, colour in lines:
        points = sorted((a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and b > 0)
        if points:
            axes.plot(*zip(*points, strict=True), style, ms=4, color=colour, label=label)
    _log_y(axes)
    _legend(axes)
    return _svg(figure, "spectrum")


def score_curve(log: RunLog, name: str) -> str:
    """An SVG of one figure's values, and of its floor, over images seen."""
    figure, axes = _axes(name)
    points = [
        (one.images_seen, *one.figures[name])
        for one in log.comparable_scorings()
        if name in one.figures
    ]
    seen, values, _, floors = zip(*points, strict=True)
    axes.plot(seen, values, "o-", ms=4, color=_INKS["two"], label="samples")
    if np.isfinite(floors).any():
        axes.plot(seen, floors, "--", color=_INKS["three"], label="floor")
    axes.xaxis.set_major_formatter(_count_label)
    _legend(axes)
    return _svg(figure, f"score-{list(log.scorings[-1].figures).index(name)}")


def losses_picture(log: RunLog) -> bytes:
    """A PNG of the training loss and the mean validation eps-MSE over images seen."""
    figure, axes = _axes("Training loss and validation eps-MSE", size=(8.0, 4.5))
    _draw(axes, log, "loss", logarithmic=True)
    _draw_means(axes, log)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144, facecolor="white")
    return buffer.getvalue()


def smooth(values: np.ndarray) -> np.ndarray:
    """Mean over a twentieth of the curve about each point, leaving out what is not finite.

    Args:
        values: shape (N,).

    Returns:
        Shape (N,); nan where nothing near is finite.
    """
    half = len(values) // 40
    finite = np.isfinite(values)
    sums = np.cumsum(np.append(0.0, np.where(finite, values, 0.0)))
    counts = np.cumsum(np.append(0, finite))
    middle = np.arange(len(values))
    low, high = np.maximum(middle - half, 0), np.minimum(middle + half + 1, len(values))
    number = counts[high] - counts[low]
    return np.where(number > 0, (sums[high] - sums[low]) / np.maximum(number, 1), np.nan)


def _thin(values: np.ndarray) -> np.ndarray:
    return values[:: max(1, -(-len(values) // _MAX_POINTS))]


def _count_label(value: float, _: object = None) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _axes(
    title: str, x_label: str = "images seen", size: tuple[float, float] = (5.6, 3.2)
) -> tuple[Figure, Axes]:
    # Fixed margins: measuring them would draw everything twice, while training waits.
    figure = Figure(figsize=size)
    width, height = size
    margins = {"left": 0.7 / width, "right": 1 - 0.15 / width}
    margins |= {"bottom": 0.5 / height, "top": 1 - 0.35 / height}
    axes = figure.subplots(gridspec_kw=margins)
    heading = axes.set_title(title, loc="left", fontsize=11, color=_INKS["text"])
    heading.set_parse_math(False)  # it may be a name from a file
    axes.set_xlabel(x_label, color=_INKS["text"])
    axes.grid(True, color=_INKS["line"], alpha=0.16, linewidth=0.7)
    axes.tick_params(which="both", color=_INKS["line"], labelcolor=_INKS["text"], labelsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_INKS["line"])
        spine.set_alpha(0.4)
    return figure, axes


def _log_y(axes: Axes) -> None:
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    minor = "25" if high < 30 * low else ""  # leading digits that get a label: few, or they collide
    if high < 10 * low:  # there may be no power of ten in sight: ticks at round steps instead
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(
        lambda value, _: f"{value:g}" if f"{value:e}"[0] in minor else ""
    )


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        legend = axes.legend(frameon=False, fontsize=9, labelcolor=_INKS["text"])
        for text in legend.get_texts():
            text.set_parse_math(False)  # names from a file are not formulas


def _known(log: RunLog, name: str) -> bool:
    return bool(np.isfinite(log.curves[name]).any())


def _draw(
    axes: Axes,
    log: RunLog,
    name: str,
    *,
    label: str = "training",
    ink: str = "one",
    logarithmic: bool = False,
    scale: float = 1.0,
) -> None:
    """A train field over images seen: every line faintly, the smoothed curve over it."""
    raw = log.curves[name] * scale
    if logarithmic:
        raw = np.where(raw > 0, raw, np.nan)
    x = _thin(log.images_seen)
    marker = "o" if len(x) <= _FEW_POINTS else ""
    axes.plot(x, _thin(raw), color=_INKS[ink], alpha=0.3, linewidth=0.9, marker=marker, ms=3)
    axes.plot(x, _thin(smooth(raw)), color=_INKS[ink], linewidth=1.9, label=label)
    axes.xaxis.set_major_formatter(_count_label)


def _draw_means(axes: Axes, log: RunLog) -> None:
    colours = itertools.cycle(_INKS[name] for name in ("two", "three", "line"))
    for (name, group), colour in zip(log.of_weights().items(), colours, strict=False):
        points = [(v.images_seen, v.mean) for v in group if v.mean > 0]
        if points:
            label = f"validation, {name[:40]}"
            axes.plot(*zip(*points, strict=True), "o-", ms=4, color=colour, label=label)
    axes.xaxis.set_major_formatter(_count_label)
    _log_y(axes)
    _legend(axes)


def _curves(log: RunLog, plot: _Plot) -> str:
    figure, axes = _axes(plot.title)
    shown = [field for field in plot.fields if _known(log, field[0])]
    for (name, label), ink in zip(shown, ("one", "two", "three"), strict=False):
        _draw(
            axes,
            log,
            name,
            label=label,
            ink=ink,
            logarithmic=plot.logarithmic,
            scale=plot.scale,
        )
    if plot.logarithmic:
        _log_y(axes)
    else:
        values = np.concatenate([log.curves[name] * plot.scale for name, _ in shown])
        top = float(values[np.isfinite(values)].max())
        axes.set_ylim(0, 1.1 * top if top > 0 else 1)
    if plot.whole:
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    if len(shown) > 1:
        _legend(axes)
    return _svg(figure, plot.fields[0][0])


def _svg(figure: Figure, name: str) -> str:
    """The figure as an inline SVG that takes its colours and font from the page."""
    text = inline_svg(figure, name)
    for ink, colour in _INKS.items():
        text = text.replace(colour, f"var(--{ink})")
    return f'<div class="plot">{text}</div>'
