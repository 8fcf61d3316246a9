"""A study's noise schedules drawn: λ(t), and where on λ uniform t trains."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes

from eval.ablate.report.comparisons import Row, rows_of
from eval.ablate.report.drawing import (
    Picture,
    Style,
    drawable,
    finish,
    label,
    legend,
    panels,
    titled,
)
from eval.ablate.report.layout import layout, relevant_axes
from eval.ablate.results import StudyResults

_MAX_PLACES = 4  # resolutions, or whatever else the schedules depend on

Curve = tuple[tuple[float, ...], tuple[float, ...]]  # t and λ(t)


def schedules(results: StudyResults) -> list[Picture]:
    """All different schedules, with a row of panels for each level that changes them."""
    relevant = relevant_axes(results, _same)
    plan = layout(results, relevant, lambda row: _schedule(row) is not None)
    places = list(plan.panels.items())[:_MAX_PLACES]
    if not places:
        return []
    with panels(2 * len(places), columns=2) as (figure, axes):
        for i, (where, rows) in enumerate(places):
            left, right = axes[2 * i : 2 * i + 2]
            at = f" at {label(where)}" if where else ""
            titled(left, f"Schedule{at}", "t (0 = data, 1 = noise)", "log-SNR λ (nats)")
            titled(right, f"Density over λ{at}", "log-SNR λ (nats)", "p(λ) = -dt/dλ")
            seen: set[bytes | None] = set()
            for value, row in rows.items():
                if (curve := _schedule(row)) is not None:
                    look, key = plan.looks[value], _same(row)
                    # one upon another lets it show through
                    _draw(left, right, replace(look, dashes="--") if key in seen else look, curve)
                    seen.add(key)
        legend(figure, plan.drawn(values for _, values in places), markers=False)
        alt = "Noise schedules: log-SNR over t, and the density over log-SNR"
        return [finish(figure, "schedules", alt, _caption(results, relevant))]


def density(t: np.ndarray, logsnr: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The density of λ under uniform t, p(λ) = -dt/dλ, by finite differences.

    Args:
        t: increasing, shape (n,).
        logsnr: λ(t), shape (n,).

    Returns:
        λ at the middle of each interval that λ falls in, and p(λ) there.
    """
    falls = np.diff(logsnr) < 0
    middle = (logsnr[1:] + logsnr[:-1]) / 2
    return middle[falls], -np.diff(t)[falls] / np.diff(logsnr)[falls]


def _schedule(row: Row) -> Curve | None:
    """Of any finished run of the row: the seed does not change it."""
    return next((r.schedule for r in row.results.values() if len(r.schedule[0]) > 2), None)


def _same(row: Row) -> bytes | None:
    """Equal for equal schedules, what is not finite included."""
    curve = _schedule(row)
    return None if curve is None else np.asarray(curve).round(6).tobytes()


def _draw(left: Axes, right: Axes, look: Style, curve: Curve) -> None:
    t, logsnr = (drawable(np.asarray(values)) for values in curve)
    known = np.isfinite(t) & np.isfinite(logsnr)
    left.plot(t, logsnr, color=look.colour, linestyle=look.dashes, linewidth=1.6)
    where, p = density(t[known], logsnr[known])
    right.plot(where, drawable(p), color=look.colour, linestyle=look.dashes, linewidth=1.6)


def _caption(results: StudyResults, relevant: Sequence[str]) -> str:
    finished = [row.choices for row in rows_of(results) if _schedule(row) is not None]
    varied = {axis for axis in results.axes if len({one[axis] for one in finished}) > 1}
    same = [label(axis) for axis in results.axes if axis in varied.difference(relevant)]
    if not relevant:
        return "All cells have this schedule."
    return f"Whatever the {' or '.join(same)}." if same else ""
