"""How a study's cells are laid out in plots: which axis has the colours, which cells share a panel.

Lines of one panel differ in the value of one axis, which their colours tell apart; each combination
of the other axes has a panel.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eval.ablate.report.comparisons import Row, is_scale, rows_of, said
from eval.ablate.report.drawing import Style, styles
from eval.ablate.results import StudyResults

GENERATION = "generation"
LOOP = "loop"
_ALONE = Style("#0067a8", "o")  # of the line of a study that has no axis

Points = tuple[Sequence[float], Sequence[float]]  # x and y of a curve


@dataclass(frozen=True)
class Layout:
    """Colours and panels of a study's plots.

    Attributes:
        axis: the one that colours tell apart; None for a study of a single configuration.
        looks: its values -> how they are drawn.
        panels: words for the other choices -> the rows of that panel, by the value of `axis`.
    """

    axis: str | None
    looks: Mapping[str, Style]
    panels: Mapping[str, Mapping[str, Row]]

    def drawn(self, panels: Iterable[Mapping[str, object]]) -> dict[str, Style]:
        """The looks of the values that have a line (not None) in some panel, for a legend."""
        seen = {value for lines in panels for value, line in lines.items() if line is not None}
        return {value: look for value, look in self.looks.items() if value in seen}


@dataclass(frozen=True)
class Band:
    """Curves over seeds: x, their mean, lowest and highest, arrays of one length."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def layout(
    results: StudyResults,
    axes: Sequence[str] | None = None,
    usable: Callable[[Row], bool] = lambda row: True,
) -> Layout:
    """Arrange the rows of a study.

    Args:
        results: the study.
        axes: those that the plot tells apart; None for all. Of rows that are alike on them the
            first one stands for all.
        usable: whether a row can be drawn; the others are left out.
    """
    known = [name for name in results.axes if axes is None or name in axes]
    usual = colour_axis(results.axes)
    axis = usual if usual in known else colour_axis({a: results.axes[a] for a in known})
    panels: dict[str, dict[str, Row]] = {}
    for row in filter(usable, rows_of(results)):
        others = {a: row.choices[a] for a in known if a != axis}
        value = row.choices[axis] if axis else results.name
        panels.setdefault(said(others, results.axes), {}).setdefault(value, row)
    if axis is None:
        return Layout(None, {results.name: _ALONE}, panels)
    return Layout(axis, styles(results.axes[axis], results.baseline[axis]), panels)


def colour_axis(axes: Mapping[str, tuple[str, ...]]) -> str | None:
    """The axis that colours tell apart: the loop of a chain, else the first that is no scale."""
    if LOOP in axes and GENERATION in axes:
        return LOOP
    named = [name for name, values in axes.items() if not is_scale(values)]
    return next(iter([*named, *axes]), None)


def place(row: Row, axis: str | None) -> frozenset[tuple[str, str]]:
    """A row's choices on all axes but one."""
    return frozenset((a, v) for a, v in row.choices.items() if a != axis)


def relevant_axes(results: StudyResults, key: Callable[[Row], Hashable]) -> list[str]:
    """The axes that a property of rows depends on; rows whose key is None say nothing."""
    keys = [(row.choices, key(row)) for row in rows_of(results)]
    kept = list(results.axes)
    for axis in reversed(list(results.axes)):
        rest = [name for name in kept if name != axis]
        seen: dict[tuple[str, ...], Hashable] = {}
        known = [(tuple(choices[a] for a in rest), k) for choices, k in keys if k is not None]
        if all(seen.setdefault(place, k) == k for place, k in known):
            kept = rest
    return kept


def band(curves: Sequence[Points], *, logarithmic: bool = False) -> Band | None:
    """Curves of several seeds as one, on their points in common range, linear between points.

    Args:
        curves: x and y of each; points that are not finite are left out.
        logarithmic: average logarithms (y must be positive): the geometric mean.

    Returns:
        None where no curve has a point.
    """
    clean = [_sorted(x, y, positive=logarithmic) for x, y in curves]
    clean = [curve for curve in clean if len(curve[0])]
    if not clean:
        return None
    low, high = max(x[0] for x, _ in clean), min(x[-1] for x, _ in clean)
    x = np.unique(np.concatenate([x for x, _ in clean]))
    x = x[(x >= low) & (x <= high)]
    if not len(x):
        return None
    stack = np.stack([np.interp(x, *curve) for curve in clean])
    mean = np.exp(np.log(stack).mean(0)) if logarithmic else stack.mean(0)
    return Band(x, mean, stack.min(0), stack.max(0))


def _sorted(
    x: Sequence[float], y: Sequence[float], *, positive: bool
) -> tuple[np.ndarray, np.ndarray]:
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    fine = np.isfinite(xs) & np.isfinite(ys) & (np.abs(ys) < 1e15)
    if positive:
        fine &= ys > 0
    order = np.argsort(xs[fine], kind="stable")
    return xs[fine][order], ys[fine][order]
