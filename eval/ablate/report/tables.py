"""The tables of a study's report."""

from collections.abc import Iterable, Sequence
from math import isfinite
from statistics import fmean
from typing import Any

from eval.ablate.report.comparisons import (
    Effect,
    Row,
    best_rows,
    direction,
    effects,
    measured,
    rows_of,
    said,
)
from eval.ablate.report.pages import Line, Strong, Table
from eval.ablate.report.verdicts import reading
from eval.ablate.report.wording import (
    NONE,
    arrow,
    counted,
    flops,
    interval,
    listed,
    number,
    signed,
    spread,
)
from eval.ablate.results import CellResult, Outcome, StudyResults

_DIFFERENCES = (
    "axis",
    "difference",
    "at",
    "reading",
    "mean",
    "t 95 %",
    "bootstrap 95 %",
    "seeds",
)
_MAX_PIN = 200  # characters of a value
_MAX_PINS = 60


def facts(results: StudyResults) -> Table:
    """What was run, and everything that pins the figures."""
    outcomes, finished = results.outcomes, distinct(results)
    counts = {s: sum(one.status == s for one in outcomes) for s in ("done", "failed", "not run")}
    cells = f"{counts['done']} of {len(outcomes)} done"
    cells += f", {counts['failed']} failed" if counts["failed"] else ""
    cells += f", {counts['not run']} not run" if counts["not run"] else ""
    runs = len({one.folder for one in outcomes})
    if runs < len(outcomes):
        cells += f"; {runs} different runs, since some cells coincide"
    rows = [("cells", cells), ("seeds", listed([str(seed) for seed in results.seeds]))]
    for axis, values in results.axes.items():
        first = results.baseline[axis]
        names = (f"{value} (baseline)" if value == first else value for value in values)
        rows.append((axis, ", ".join(names)))
    rows += [
        ("images per run", _range(one.images for one in finished)),
        ("parameters", _range(one.parameters for one in finished)),
        ("device", "; ".join(sorted({_device(one) for one in finished}))),
    ]
    known = [row for row in rows if row[1]]
    return Table(("", ""), tuple(known), words=2)


def pins_table(results: StudyResults) -> Table:
    """What fixes the figures: every key of the results' pins with its value or values.

    Of a path only the last part is shown: the rest is about the machine that it was on.
    """
    found: dict[str, list[str]] = {}
    for result in distinct(results):
        for key, value in _flat(result.pins):
            if key in found or len(found) < _MAX_PINS:
                values = found.setdefault(key, [])
                values += [value] if value not in values else []
    rows = tuple((key, _either(values)) for key, values in found.items())
    return Table(("", ""), rows, words=2)


def figures_table(results: StudyResults) -> Table:
    """Every cell over its seeds: mean and spread of each figure, with the floor beside it.

    Cells of which nothing has run are left out.
    """
    figures = measured(results)
    rows = [row for row in rows_of(results) if any(one.status != "not run" for one in row.outcomes)]
    best = {figure: best_rows(rows, figure) for figure in figures}
    head = [*(results.axes or ["cell"])]
    for figure in figures:
        head += [arrow(figure), "matched / floor"]
    head += ["seeds", "eps-MSE", "images/s", "train min"]
    lines = [
        (*_names(row, results), *_scores(row, figures, index, best), *_run(row))
        for index, row in enumerate(rows)
    ]
    return Table(tuple(head), tuple(lines), words=len(results.axes) or 1)


def differences_table(results: StudyResults, figure: str) -> Table:
    """A figure's differences from the baseline, of finished pairs of runs.

    There are intervals only where there are any.
    """
    found = [
        one
        for axis in results.axes
        for one in effects(results, figure, axis)
        if one.pairs is not None and (one.comparable or one.same)
    ]
    hidden = set() if len(results.axes) > 1 else {"at"}
    if not any(one.tested for one in found):
        hidden |= {"t 95 %", "bootstrap 95 %"}
    shown = [i for i, name in enumerate(_DIFFERENCES) if name not in hidden]
    rows = (_difference(one, said(one.level, results.axes)) for one in found)
    return Table(
        tuple(_DIFFERENCES[i] for i in shown),
        tuple(tuple(row[i] for i in shown) for row in rows),
        words=4 - ("at" in hidden),
    )


def costs_table(results: StudyResults) -> Table:
    """What each cell took, on average over seeds, and all runs together, each counted once."""
    head = ("cell", "images", "images/s", "train min", "other min", "parameters")
    lines: list[tuple[Line, ...]] = []
    for row in rows_of(results):
        if found := list(row.results.values()):
            lines.append((said(row.choices, results.axes) or results.name, *_cost(found)))
    finished = distinct(results)
    train, other = (sum(filter(isfinite, map(of, finished))) / 60 for of in (_train, _other))
    total = (
        f"all {counted(len(finished), 'run')}" if len(finished) > 1 else "1 run",
        f"{sum(one.images for one in finished):,}",
        "",
        number(train, 3),
        number(other, 3),
        "",
        flops(sum(one.train_flops for one in finished)),
        flops(sum(one.sample_flops for one in finished)),
    )
    lines.append(tuple(Strong(cell) for cell in total))
    return Table((*head, "training", "sampling"), tuple(lines))


def distinct(results: StudyResults) -> list[CellResult]:
    """The results of all finished runs, of cells that coincide only one."""
    found = {one.folder: one.result for one in results.outcomes if one.result is not None}
    return list(found.values())


def _either(values: Sequence[str]) -> str:
    """The values that a pin has in different runs, unless that would be long."""
    text = ", ".join(values)
    return text if len(values) == 1 or len(text) <= 100 else f"{len(values)} different values"


def _names(row: Row, results: StudyResults) -> tuple[Line, ...]:
    return tuple(row.choices[axis] for axis in results.axes) or (results.name,)


def _scores(
    row: Row, figures: Sequence[str], index: int, best: dict[str, set[int]]
) -> tuple[Line, ...]:
    cells: list[Line] = []
    for figure in figures:
        text = spread(list(row.values(figure).values()))
        cells.append(Strong(text, "good") if index in best[figure] else text)
        beside = [row.beside(figure, what) for what in ("matched", "floor")]
        known = any(one is not None for one in beside)
        cells.append(f"{number(beside[0], 3)} / {number(beside[1], 3)}" if known else NONE)
    return tuple(cells)


def _run(row: Row) -> tuple[Line, ...]:
    """Seeds done, validation loss, speed and time of a row; its status where nothing is done."""
    found = list(row.results.values())
    if not found:
        return (_status(row.outcomes), NONE, NONE, NONE)
    seeds = (
        f"{len(found)}"
        if len(found) == len(row.outcomes)
        else f"{len(found)} of {len(row.outcomes)}"
    )
    losses = [fmean(one.eps_mse) for one in found if one.eps_mse]
    return (
        seeds,
        spread(losses),
        number(fmean(one.images_per_second for one in found), 3),
        number(fmean(map(_train, found)) / 60, 3),
    )


def _status(outcomes: Sequence[Outcome]) -> str:
    return "failed" if any(one.status == "failed" for one in outcomes) else "not run"


def _difference(one: Effect, where: str) -> tuple[Line, ...]:
    verdict: Line = reading(one)
    if one.verdict:
        unknown = not direction(one.figure)
        verdict = Strong(reading(one), "" if unknown else "good" if one.verdict > 0 else "bad")
    words: tuple[Line, ...] = (one.axis, f"{one.value} − {one.baseline}", where, verdict)
    pairs, seeds = one.pairs, f"{len(one.seeds)}"
    if one.same or pairs is None:
        return (*words, NONE, NONE, NONE, seeds)
    return (*words, signed(pairs.mean), interval(pairs.student), interval(pairs.bootstrap), seeds)


def _cost(found: Sequence[CellResult]) -> tuple[str, ...]:
    return (
        _range(one.images for one in found),
        number(fmean(one.images_per_second for one in found), 3),
        number(fmean(map(_train, found)) / 60, 3),
        number(fmean(map(_other, found)) / 60, 3),
        _range(one.parameters for one in found),
        flops(fmean(one.train_flops for one in found)),
        flops(fmean(one.sample_flops for one in found)),
    )


def _train(result: CellResult) -> float:
    return result.seconds.get("train", 0.0)


def _other(result: CellResult) -> float:
    return sum(result.seconds.values()) - _train(result)


def _device(result: CellResult) -> str:
    threads = f", {result.threads} thread{'s' if result.threads != 1 else ''}"
    return f"{result.device}{threads}" if result.threads else result.device


def _range(values: Iterable[int]) -> str:
    found = sorted(set(values))
    if len(found) < 2:
        return f"{found[0]:,}" if found else ""
    return f"{found[0]:,} to {found[-1]:,}"


def _flat(values: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Keys of nested mappings joined by dots, with their values as text."""
    if isinstance(values, dict):
        return [
            pair
            for key, value in values.items()
            for pair in _flat(value, f"{prefix}.{key}" if prefix else str(key))
        ]
    if isinstance(values, str) and values.startswith("/"):
        values = values.rstrip("/").rpartition("/")[2]
    text = "none" if values is None else str(values)
    return [(prefix[:_MAX_PIN], text if len(text) <= _MAX_PIN else text[:_MAX_PIN] + "…")]
