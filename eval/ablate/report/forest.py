"""The differences from the baseline drawn: every pair of runs a dot, the intervals bars."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from eval.ablate.report.comparisons import Effect, direction, effects, measured, said
from eval.ablate.report.drawing import (
    MAX_PANELS,
    Picture,
    Style,
    finish,
    guide,
    label,
    panels,
    styles,
    titled,
)
from eval.ablate.report.layout import colour_axis
from eval.ablate.report.wording import named
from eval.ablate.results import StudyResults


def differences(results: StudyResults) -> list[Picture]:
    """The leading figure's differences: a panel for each axis and level of the other axes."""
    figures = measured(results)
    if not figures:
        return []
    groups: dict[tuple[str, str], list[Effect]] = {}
    for axis in results.axes:
        for effect in effects(results, figures[0], axis):
            if effect.pairs is not None and effect.comparable and not effect.same:
                key = (axis, said(effect.level, results.axes))
                groups.setdefault(key, []).append(effect)
    if not any(one.tested for group in groups.values() for one in group):
        return []
    shown = list(groups.items())[:MAX_PANELS]
    with panels(len(shown)) as (figure, all_axes):
        for axes, ((axis, where), group) in zip(all_axes, shown, strict=True):
            at = f" at {where}" if where else ""
            against = label(named(axis, group[0].baseline), 24)
            titled(axes, label(f"{axis}{at}"), f"{label(figures[0])}, minus {against}'s", "")
            looks = styles(results.axes[axis], results.baseline[axis])
            if axis != colour_axis(results.axes):  # those colours mean another axis
                looks = dict.fromkeys(looks, looks[results.baseline[axis]])
            _draw(axes, group, looks)
        alt = f"Paired differences of {label(figures[0])} from the baseline"
        words = {1: "Right of 0 is better.", -1: "Left of 0 is better.", 0: ""}
        caption = (
            f"{alt}. Dots are pairs of runs with one seed; the thin bar is the t interval, the"
            f" thick one the bootstrap's. {words[direction(figures[0])]}"
        )
        if len(groups) > MAX_PANELS:
            caption += f" {len(groups) - MAX_PANELS} further panels are left out."
        return [finish(figure, "differences", alt, caption)]


def _draw(axes: Axes, group: Sequence[Effect], looks: dict[str, Style]) -> None:
    for y, effect in enumerate(group):
        look, pairs = looks[effect.value], effect.pairs
        assert pairs is not None
        for interval, width in ((pairs.student, 1.3), (pairs.bootstrap, 4.5)):
            if interval is not None:
                ends = [interval.low, interval.high]
                alpha = 0.45 if width > 2 else 1.0
                axes.plot(ends, [y, y], color=look.colour, linewidth=width, alpha=alpha)
        axes.plot(
            pairs.differences,
            [y] * len(pairs.differences),
            look.marker,
            color=look.colour,
            ms=4.5,
            mec="none",
        )
    guide(axes, 0.0, across=False)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set_yticks(range(len(group)), [label(effect.value, 22) for effect in group])
    axes.set_ylim(len(group) - 0.4, -0.6)
