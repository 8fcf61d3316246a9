"""The plots of a study's lines: figures over training and generations, loss by noise level."""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import numpy as np
from matplotlib.axes import Axes

from eval.ablate.report.comparisons import Row, measured, rows_of
from eval.ablate.report.drawing import (
    MAX_PANELS,
    Picture,
    count_label,
    finish,
    guide,
    label,
    legend,
    logarithmic_y,
    panels,
    titled,
    wide,
)
from eval.ablate.report.layout import GENERATION, Band, Layout, Points, band, layout, place
from eval.ablate.results import CellResult, StudyResults

_BANDS = "Lines are means over seeds; bands reach from the lowest seed to the highest."
_FLOOR = "The thin dashed line is the floor: one half of the reference against the other."
_MAX_CURVES = 4  # figures that get a plot of their own
_MANY = 24  # points of a line from which on they are not marked

BandOf = Callable[[Row], Band | None]


def training_curves(results: StudyResults) -> list[Picture]:
    """Each figure over images seen, where cells were measured during training."""
    found = [
        _panelled(
            layout(results),
            f"curve-{number}",
            f"{label(figure)} over training",
            ("images seen", label(figure)),
            partial(_over_training, figure=figure),
            floor=figure,
        )
        for number, figure in enumerate(measured(results)[:_MAX_CURVES])
    ]
    return [picture for picture in found if picture is not None]


def losses(results: StudyResults) -> list[Picture]:
    """Validation eps-MSE over λ: as it is, and divided by the baseline's, seed by seed."""
    plan = layout(results)
    x_label = "log-SNR λ (nats)"
    title = "Validation eps-MSE at each noise level"
    found = [_panelled(plan, "loss", title, (x_label, "eps-MSE"), _loss, logarithmic=True)]
    if plan.axis is not None:
        axis, first = plan.axis, results.baseline[plan.axis]
        bases = {place(r, axis): r for r in rows_of(results) if r.choices[axis] == first}

        def ratio(row: Row) -> Band | None:
            base = bases.get(place(row, axis))
            return None if base is None else loss_ratio(row, base)

        title = f"Validation eps-MSE divided by {label(first)}'s"
        words = (x_label, f"eps-MSE / {label(first, 20)}'s")
        found.append(_panelled(plan, "loss-ratio", title, words, ratio, logarithmic=True, at=1.0))
    return [picture for picture in found if picture is not None]


def generations(results: StudyResults) -> list[Picture]:
    """Each figure over the generations of self-consuming chains, a line for each loop."""
    if GENERATION not in results.axes:
        return []
    plan = layout(results, [axis for axis in results.axes if axis != GENERATION])
    figures = measured(results)[:MAX_PANELS]
    pictures = []
    for number, (where, rows) in enumerate(list(plan.panels.items())[:MAX_PANELS]):
        if not figures:
            break
        with panels(len(figures)) as (drawn, axes):
            lines: dict[str, Band | None] = {}
            for one, figure in zip(axes, figures, strict=True):
                titled(one, label(figure), "generation", "")
                bands = {value: chain(results, row, figure) for value, row in rows.items()}
                _draw(one, plan, bands, logarithmic=_wide(bands.values()))
                lines |= {value: band for value, band in bands.items() if band is not None}
                _draw_floor(one, rows.values(), figure)
                one.set_xticks(range(len(results.axes[GENERATION])))
            legend(drawn, plan.drawn([lines]))
            alt = f"Figures by generation{f' at {where}' if where else ''}"
            caption = f"{alt}. {_BANDS} {_FLOOR}"
            pictures.append(finish(drawn, f"generations-{number}", alt, caption))
    return pictures


def _panelled(
    plan: Layout,
    name: str,
    title: str,
    words: tuple[str, str],
    band_of: BandOf,
    *,
    logarithmic: bool | None = None,
    at: float | None = None,
    floor: str | None = None,
) -> Picture | None:
    """A plot with a panel for each of the layout's; None where there is nothing to draw.

    Args:
        plan: colours and panels.
        name: of the picture.
        title: what it shows.
        words: labels of the axes x and y.
        band_of: the line of a row.
        logarithmic: whether y is; None to see.
        at: draw a line at this y.
        floor: draw a line at the floor of this figure, and count images along x.
    """
    bands = {
        where: {value: band_of(row) for value, row in rows.items()}
        for where, rows in plan.panels.items()
    }
    drawn = [where for where, lines in bands.items() if any(lines.values())]
    if not drawn:
        return None
    if logarithmic is None:
        logarithmic = _wide(one for lines in bands.values() for one in lines.values())
    with panels(min(len(drawn), MAX_PANELS)) as (figure, all_axes):
        for axes, where in zip(all_axes, drawn, strict=False):
            titled(axes, label(where or title, 60), *words)
            _draw(axes, plan, bands[where], logarithmic=logarithmic)
            if at is not None:
                guide(axes, at)
            if floor is not None:
                _draw_floor(axes, plan.panels[where].values(), floor)
                axes.xaxis.set_major_formatter(count_label)
        legend(figure, plan.drawn(bands.values()))
        caption = f"{title}. {_BANDS}{f' {_FLOOR}' if floor else ''}"
        if len(drawn) > MAX_PANELS:
            caption += f" {len(drawn) - MAX_PANELS} further panels are left out."
        return finish(figure, name, title, caption)


def _draw(
    axes: Axes, plan: Layout, bands: Mapping[str, Band | None], *, logarithmic: bool = False
) -> None:
    seen: list[np.ndarray] = []
    for value, one in bands.items():
        if one is None:
            continue
        look = plan.looks[value]
        # A line that lies upon another, of a cell that coincides, lets it show through.
        again = any(np.array_equal(one.mean, other) for other in seen)
        axes.plot(
            one.x,
            one.mean,
            color=look.colour,
            linestyle=(0, (3, 3)) if again else look.dashes,
            linewidth=1.7,
            marker=look.marker if len(one.x) < _MANY else "",
            ms=4.5,
        )
        if not np.array_equal(one.low, one.high):
            axes.fill_between(one.x, one.low, one.high, color=look.colour, alpha=0.16, lw=0)
        seen.append(one.mean)
    if logarithmic:
        logarithmic_y(axes)


def _wide(bands: Iterable[Band | None]) -> bool:
    values = [one.mean for one in bands if one is not None]
    return bool(values) and wide(np.concatenate(values))


def _draw_floor(axes: Axes, rows: Iterable[Row], figure: str) -> None:
    floors = [row.beside(figure, "floor") for row in rows]
    known = [floor for floor in floors if floor is not None]
    # On a logarithmic axis a floor far below the lines would leave them no room.
    if known and (axes.get_yscale() == "linear" or known[0] > axes.get_ylim()[0] / 3):
        guide(axes, known[0])


def _over_training(row: Row, figure: str) -> Band | None:
    def points(result: CellResult) -> Points:
        known = [(n, scores[figure].value) for n, scores in result.curve if figure in scores]
        return [n for n, _ in known], [value for _, value in known]

    return band([points(result) for result in row.results.values()])


def _loss(row: Row) -> Band | None:
    curves = [(result.logsnr, result.eps_mse) for result in row.results.values()]
    return band(curves, logarithmic=True)


def loss_ratio(row: Row, base: Row) -> Band | None:
    """A row's loss divided by the baseline's of the same seed, at the λ that both have."""
    curves = []
    for seed, result in row.results.items():
        if (other := base.results.get(seed)) is not None:
            theirs = dict(zip(other.logsnr, other.eps_mse, strict=True))
            both = zip(result.logsnr, result.eps_mse, strict=True)
            ratios = {x: y / theirs[x] for x, y in both if theirs.get(x, 0.0) > 0}
            curves.append((list(ratios), list(ratios.values())))
    return band(curves, logarithmic=True)


def chain(results: StudyResults, row: Row, figure: str) -> Band | None:
    """A figure at every generation of the chain that a row belongs to."""
    points: dict[int, list[tuple[float, float]]] = {}
    for one in rows_of(results):
        number = re.search(r"\d+", one.choices[GENERATION])
        if number and place(one, GENERATION) == place(row, GENERATION):
            for seed, value in one.values(figure).items():
                points.setdefault(seed, []).append((float(number.group()), value))
    return band([([x for x, _ in seed], [y for _, y in seed]) for seed in points.values()])
