"""Numbers and names of a report in words."""

import math
from collections.abc import Sequence

from eval.ablate.report.comparisons import direction, mean_spread, metric_of
from eval.paired import Interval, Paired

NONE = "–"


def number(value: float | None, digits: int = 4) -> str:
    """To so many significant digits; a dash for what is not known."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{value:,.0f}" if 10**digits <= abs(value) < 1e7 else f"{value:.{digits}g}"


def signed(value: float) -> str:
    """A difference, always with its sign."""
    return f"{'+' if value > 0 else ''}{number(value, 3)}"


def spread(values: Sequence[float], digits: int = 4) -> str:
    """Mean ± standard deviation; of a single value the value alone."""
    mean, deviation = mean_spread(values)
    if not math.isfinite(deviation):
        return number(mean, digits)
    return f"{number(mean, digits)} ± {number(deviation, 2)}"


def interval(one: Interval | None) -> str:
    """As [low, high]."""
    return NONE if one is None else f"[{number(one.low, 3)}, {number(one.high, 3)}]"


def certainty(pairs: Paired) -> str:
    """The intervals of a mean difference and the number of seeds that they rest on."""
    seeds = counted(len(pairs.differences), "seed")
    if pairs.student is None:
        return seeds
    return f"t {interval(pairs.student)}, bootstrap {interval(pairs.bootstrap)}, {seeds}"


def counted(count: int, one: str, many: str = "") -> str:
    """Such as "1 seed" or "3 seeds"."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def listed(names: Sequence[str]) -> str:
    """Such as "a, b and c"."""
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)


def named(axis: str, value: str) -> str:
    """A value that says nothing by itself, such as 64, with its axis before it."""
    return value if any(c.isalpha() for c in value) else f"{axis} {value}"


def which_way(figure: str) -> str:
    """What to know of a figure, such as "lower is better"."""
    return {1: "higher is better", -1: "lower is better", 0: "direction not known"}[
        direction(figure)
    ]


def arrow(figure: str) -> str:
    """The figure's name with an arrow towards better."""
    return f"{figure}{ {1: ' ↑', -1: ' ↓', 0: ''}[direction(figure)] }"


def titled(figure: str) -> str:
    """The figure's name and what it is."""
    metric = metric_of(figure)
    return figure if metric is None else f"{figure} ({metric.title})"


def flops(value: float) -> str:
    """With a prefix: 1.2 TFLOP."""
    for size, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G")):
        if value >= size:
            return f"{value / size:.3g} {letter}FLOP"
    return f"{number(value, 3)} FLOP"
