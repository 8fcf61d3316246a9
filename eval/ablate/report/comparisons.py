"""Who is compared with whom in a study: cells over their seeds, differences, interactions.

A difference is always of two runs with the same seed and the same choices on all other axes. A
difference of differences, of four runs with one seed, tells whether an effect changes along another
axis.
"""

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from eval.ablate.results import CellResult, Outcome, StudyResults
from eval.features import EXTRACTORS, figure_name
from eval.metrics import METRICS, Metric
from eval.paired import Paired, paired

Choices = Mapping[str, str]


@dataclass(frozen=True)
class Row:
    """One combination of choices, with its outcome at each seed."""

    choices: Choices
    outcomes: tuple[Outcome, ...]

    @property
    def results(self) -> dict[int, CellResult]:
        """By seed, of the finished ones."""
        return {one.seed: one.result for one in self.outcomes if one.result is not None}

    def values(self, figure: str) -> dict[int, float]:
        """A figure by seed, where it is there and finite."""
        scores = {seed: result.scores.get(figure) for seed, result in self.results.items()}
        return {
            seed: score.value
            for seed, score in scores.items()
            if score is not None and math.isfinite(score.value)
        }

    @property
    def folders(self) -> dict[int, Path]:
        """By seed; rows that coincide share them."""
        return {one.seed: one.folder for one in self.outcomes}

    @property
    def floors(self) -> dict[str, float]:
        """Of every figure that has one."""
        figures = {name for result in self.results.values() for name in result.scores}
        found = {figure: self.beside(figure, "floor") for figure in figures}
        return {figure: floor for figure, floor in found.items() if floor is not None}

    def beside(self, figure: str, what: str) -> float | None:
        """Mean over seeds of a score's `floor` or `matched`; None where no run has it."""
        scores = (result.scores.get(figure) for result in self.results.values())
        found = [getattr(score, what) for score in scores if score is not None]
        known = [value for value in found if value is not None and math.isfinite(value)]
        return fmean(known) if known else None


@dataclass(frozen=True)
class Effect:
    """A value of an axis against the axis's baseline, all other choices equal.

    Attributes:
        figure: what was measured.
        axis: that the two differ on.
        value: of the axis.
        baseline: the value that it is compared with.
        level: the choices on the other axes.
        seeds: of the pairs.
        pairs: value minus baseline, by seed; None before there is a pair.
        same: the two coincide: they are one and the same run.
        comparable: the two are measured against one reference (their floors agree).
    """

    figure: str
    axis: str
    value: str
    baseline: str
    level: Choices
    seeds: tuple[int, ...]
    pairs: Paired | None
    same: bool
    comparable: bool

    @property
    def tested(self) -> bool:
        """Whether there are intervals that could have led to a conclusion."""
        known = self.pairs is not None and self.pairs.student is not None
        return known and self.comparable and not self.same

    @property
    def verdict(self) -> int:
        """1 if the value is better, -1 if it is worse (higher, lower: `direction` 0); else 0."""
        if not self.tested or self.pairs is None:
            return 0
        return self.pairs.sign * (direction(self.figure) or 1)


@dataclass(frozen=True)
class Interaction:
    """How an effect changes from one value of another axis to the next.

    Attributes:
        effect: at the other axis's baseline, `start`.
        axis: the other axis.
        start: its baseline.
        end: the value of it that is compared with `start`.
        seeds: with all four runs.
        before: the mean advantage over these seeds at `start` (the mean difference, where it is not
            known which way the figure is better).
        after: the same at `end`.
        change: of it, by seed.
        comparable: the two ends are measured against one reference.
    """

    effect: Effect
    axis: str
    start: str
    end: str
    seeds: tuple[int, ...]
    before: float
    after: float
    change: Paired
    comparable: bool


def rows_of(results: StudyResults) -> list[Row]:
    """The cells of a study in its order, each with its seeds."""
    groups: dict[frozenset[tuple[str, str]], list[Outcome]] = {}
    for outcome in results.outcomes:
        groups.setdefault(frozenset(outcome.choices.items()), []).append(outcome)
    return [Row(group[0].choices, tuple(group)) for group in groups.values()]


def metric_of(figure: str) -> Metric | None:
    """The metric of a figure such as ``kid_lite0``; None for one this release does not know."""
    for name, metric in METRICS.items():
        names = {figure_name(name, extractor) for extractor in EXTRACTORS}
        if figure in names or figure.startswith(f"{name}_"):
            return metric
    return None


def direction(figure: str) -> int:
    """1 if higher is better, -1 if lower is, 0 if it is not known."""
    metric = metric_of(figure)
    return 0 if metric is None else 1 if metric.higher_is_better else -1


def effects(results: StudyResults, figure: str, axis: str) -> list[Effect]:
    """Every value of an axis against its baseline, at every level of the other axes that has both.

    Ordered by value, then level, in the study's order.
    """
    rows = _by_choices(results)
    baseline = results.baseline[axis]
    found = []
    for value in results.axes[axis]:
        for row in rows.values():
            other = rows.get(_key({**row.choices, axis: baseline}))
            if row.choices[axis] == value != baseline and other is not None:
                found.append(_effect(figure, axis, row, other))
    return found


def interactions(results: StudyResults, figure: str) -> list[Interaction]:
    """Each effect's change along each other axis; further axes are held at their baselines."""
    found: list[Interaction] = []
    by_choices = _by_choices(results)
    for pair in itertools.combinations(results.axes, 2):
        axis, along = _ordered_last(results, pair)
        at_rest = {a: results.baseline[a] for a in results.axes if a not in pair}
        by_level = {
            (effect.value, effect.level[along]): effect
            for effect in effects(results, figure, axis)
            if all(effect.level[a] == value for a, value in at_rest.items())
        }
        start = results.baseline[along]
        for value, end in itertools.product(results.axes[axis], results.axes[along]):
            first, last = by_level.get((value, start)), by_level.get((value, end))
            if end != start and first is not None and last is not None:
                rows = (_key({**one.level, axis: value}) for one in (first, last))
                one_scale = _one_reference(*(by_choices[row] for row in rows))
                found += _change(first, last, along, one_scale)
    return found


def measured(results: StudyResults) -> list[str]:
    """The figures that some run has: those of the study first, in its order."""
    scores = {name for one in results.outcomes if one.result for name in one.result.scores}
    asked = [name for name in results.metrics if name in scores]
    return asked + sorted(scores.difference(asked))


def mean_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (n - 1); nan where they need more values."""
    if not values:
        return math.nan, math.nan
    return fmean(values), stdev(values) if len(values) > 1 else math.nan


def best_rows(rows: Sequence[Row], figure: str) -> set[int]:
    """Indices of the rows with the best mean, one of each group measured against one reference."""
    sign = direction(figure)
    groups: list[list[tuple[float, int]]] = []
    for index, row in enumerate(rows):
        values = row.values(figure)
        if not values or not sign:
            continue
        entry = (sign * fmean(values.values()), index)
        group = next((g for g in groups if _one_reference(rows[g[0][1]], row)), None)
        if group is None:
            groups.append([entry])
        else:
            group.append(entry)
    tops = ([i for value, i in group if value == max(group)[0]] for group in groups if group[1:])
    return set(itertools.chain.from_iterable(tops))


def said(choices: Choices, axes: Mapping[str, tuple[str, ...]]) -> str:
    """Choices in words; the bare value where the study has a single axis."""
    known = [(axis, choices[axis]) for axis in axes if axis in choices]
    return ", ".join(value if len(axes) == 1 else f"{axis} {value}" for axis, value in known)


def is_scale(values: Sequence[str]) -> bool:
    """Whether names differ by numbers only, such as 64, 128, 256 or p4, p8."""
    shapes = {re.sub(r"\d+(\.\d+)?", "#", value) for value in values}
    return len(shapes) == 1 and "#" in shapes.pop()


def _effect(figure: str, axis: str, row: Row, other: Row) -> Effect:
    one, base = row.values(figure), other.values(figure)
    seeds = tuple(seed for seed in one if seed in base)
    return Effect(
        figure=figure,
        axis=axis,
        value=row.choices[axis],
        baseline=other.choices[axis],
        level={name: value for name, value in row.choices.items() if name != axis},
        seeds=seeds,
        pairs=paired([one[seed] - base[seed] for seed in seeds]) if seeds else None,
        same=row.folders == other.folders,
        comparable=_one_reference(row, other),
    )


def _change(first: Effect, last: Effect, along: str, one_scale: bool) -> Iterator[Interaction]:
    """The interaction of two effects, if a seed has all four runs and it need not be 0."""
    if first.pairs is None or last.pairs is None or (first.same and last.same):
        return
    if not (first.comparable and last.comparable):
        return
    sign = direction(first.figure) or 1
    start, end = (
        {seed: sign * d for seed, d in zip(one.seeds, one.pairs.differences, strict=True)}
        for one in (first, last)
        if one.pairs is not None
    )
    if seeds := tuple(seed for seed in start if seed in end):
        yield Interaction(
            effect=first,
            axis=along,
            start=first.level[along],
            end=last.level[along],
            seeds=seeds,
            before=fmean(start[seed] for seed in seeds),
            after=fmean(end[seed] for seed in seeds),
            change=paired([end[seed] - start[seed] for seed in seeds]),
            comparable=one_scale,
        )


def _ordered_last(results: StudyResults, pair: tuple[str, str]) -> tuple[str, str]:
    """A scale, such as resolution, is what an effect changes along; else the later axis is."""
    scales = [is_scale(results.axes[axis]) for axis in pair]
    return (pair[1], pair[0]) if scales == [True, False] else pair


def _by_choices(results: StudyResults) -> dict[frozenset[tuple[str, str]], Row]:
    return {_key(row.choices): row for row in rows_of(results)}


def _key(choices: Choices) -> frozenset[tuple[str, str]]:
    return frozenset(choices.items())


def _one_reference(row: Row, other: Row) -> bool:
    """Whether two rows are measured against one reference, as far as can be told.

    Then the reference's halves are as far apart for both (up to rounding), in every figure.
    """
    one, two = row.floors, other.floors
    shared = one.keys() & two.keys()
    return all(math.isclose(one[f], two[f], rel_tol=1e-4, abs_tol=1e-9) for f in shared)
