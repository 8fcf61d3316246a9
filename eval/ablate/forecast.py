"""The plan of a study on paper: its cells, what they cost, which coincide, what is left to run."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from eval.ablate.cells import Cell, unique
from eval.ablate.driver import cell_folder
from eval.ablate.results import CellResult, ResultError, read_result
from eval.ablate.study import Study

HEADINGS = ("cell", "runs", "images", "parameters", "training", "sampling", "to run")


def forecast(
    study: Study, chosen: Sequence[Cell], out: Path, *, jobs: int = 1, rate: float | None = None
) -> str:
    """What running these cells would mean; times only where something is known about speed.

    Args:
        study: the study.
        chosen: the cells that would run.
        out: the study's folder, where some may be finished.
        jobs: at once.
        rate: images/s at which the baseline trains here; None to go by finished cells.

    Raises:
        ValueError: a rate that is not positive.
    """
    if rate is not None and not rate > 0:
        raise ValueError(f"--rate {rate}: images/s, more than 0")
    results = {one: _result(cell_folder(out, one)) for one in unique(chosen)}
    rows: list[tuple[str, ...]] = [HEADINGS, *_rows(study, chosen, results)]
    full = [row for row in rows if len(row) == len(HEADINGS)]
    widths = [max(map(len, column)) for column in zip(*full, strict=True)]
    widths[0] = max(len(row[0]) for row in rows)
    lines = [f"study {study.name}: {study.file.about}".rstrip(": "), ""]
    for first, *others in rows:
        cells = [text.rjust(width) for text, width in zip(others, widths[1:], strict=False)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join([*lines, "", *_totals(study, chosen, results, jobs, rate)])


def _result(folder: Path) -> CellResult | None:
    try:
        return read_result(folder)
    except ResultError:
        return None


def _groups(cells: Iterable[Cell]) -> dict[str, list[Cell]]:
    """The seeds of each combination of choices."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        name = ",".join(f"{axis}={value}" for axis, value in cell.choices.items())
        groups.setdefault(name or "(the base config)", []).append(cell)
    return groups


def _rows(
    study: Study, chosen: Sequence[Cell], results: dict[str, CellResult | None]
) -> Iterator[tuple[str, ...]]:
    first_name: dict[str, str] = {}
    for name, cells in _groups(chosen).items():
        for cell in cells:
            first_name.setdefault(cell.id, name)
        other = first_name[cells[0].id]
        if other != name:
            yield name, f"the same as {other}"
            continue
        cost = study.costs[cells[0].id]
        left = sum(results[cell.id] is None for cell in cells)
        minutes = study.file.budget.minutes
        yield (
            name,
            str(len(cells)),
            f"{cost.images:,}" if cost.images is not None else f"{minutes:g} min",
            quantity(cost.parameters),
            "?" if cost.train_flops is None else quantity(cost.train_flops, "FLOP"),
            quantity(cost.sample_flops, "FLOP"),
            str(left) if left else "finished",
        )


def _totals(
    study: Study,
    chosen: Sequence[Cell],
    results: dict[str, CellResult | None],
    jobs: int,
    rate: float | None,
) -> Iterator[str]:
    left = [study.costs[one] for one, result in results.items() if result is None]
    names = len(chosen)
    yield f"{names} cells in {len(results)} runs, {len(left)} of them still to do"
    if not left:
        return
    train = sum(cost.train_flops or 0.0 for cost in left)
    sample = sum(cost.sample_flops for cost in left)
    budget = study.file.budget.minutes
    training = "" if budget is not None else f"{quantity(train, 'FLOP')} of training, "
    yield f"to do: {training}{quantity(sample, 'FLOP')} of sampling"
    done = [result for result in results.values() if result is not None]
    seconds, basis = _seconds(study, len(left), train, sample, done, rate)
    if seconds is None:
        yield "time: not known before a cell has finished; --rate IMAGES_PER_SECOND estimates it"
    else:
        at_once = min(jobs, len(left))
        yield f"time: about {duration(seconds / at_once)} with {at_once} at once, by {basis}"


def _seconds(
    study: Study,
    runs: int,
    train: float,
    sample: float,
    done: Sequence[CellResult],
    rate: float | None,
) -> tuple[float | None, str]:
    """Seconds of all runs one after another, and what that is known from."""
    minutes = study.file.budget.minutes
    if rate is not None:
        speed = rate * study.costs[study.baseline.id].step_flops
        training = train / speed if minutes is None else 60.0 * minutes * runs
        return training + sample / speed, f"the rate of {rate:g} images/s"
    trained = sum(result.seconds.get("train", 0.0) for result in done)
    if not done or trained <= 0.0:
        return None, ""
    others = sum(sum(result.seconds.values()) for result in done) - trained
    speed = sum(result.train_flops for result in done) / trained
    training = train / speed if minutes is None else 60.0 * minutes * runs
    return training + runs * others / len(done), f"{len(done)} finished cells"


def quantity(value: float, unit: str = "") -> str:
    """Three digits and a prefix: 3.5 M, 10.2 TFLOP."""
    for prefix in ("", "k", "M", "G", "T", "P", "E", "Z"):
        if value < 999.5 or prefix == "Z":
            break
        value /= 1000
    return f"{value:.3g} {prefix}{unit}".rstrip()


def duration(seconds: float) -> str:
    """One or two digits of time: 45 s, 12 min, 3.5 h, 2.1 days."""
    for size, unit in ((86_400.0, "days"), (3_600.0, "h"), (60.0, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds:.2g} s"
