"""The report of a study: `write_report` writes it as one page and as Markdown with pictures.

It says what has been found so far, for a study in progress as for a finished one. Everything shown
is computed from the results alone, so the same results give the same files.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from eval.ablate.report.comparisons import interactions, measured, rows_of
from eval.ablate.report.forest import differences
from eval.ablate.report.grids import large_picture, sheets, tiles_of
from eval.ablate.report.pages import (
    FILES,
    Block,
    Bullets,
    Fold,
    Gallery,
    MarkdownPicture,
    Paragraph,
    Section,
    html_page,
    markdown_page,
    pictures_of,
)
from eval.ablate.report.plots import generations, losses, training_curves
from eval.ablate.report.schedule_plots import schedules
from eval.ablate.report.tables import (
    costs_table,
    differences_table,
    distinct,
    facts,
    figures_table,
    pins_table,
)
from eval.ablate.report.verdicts import ONE_SEED, RULE, interaction_sentence, tally, verdicts
from eval.ablate.report.wording import counted, number, titled, which_way
from eval.ablate.results import Outcome, StudyResults

_MAX_LISTED = 20  # cells that are named one by one
_MAX_ERROR = 300  # characters


def write_report(results: StudyResults, out: Path) -> Path:
    """Write `report.html`, `report.md` and the pictures of the latter in `report_files/`.

    Args:
        results: the study, finished or in progress.
        out: its folder; made if it is not there.

    Returns:
        The path of `report.html`.
    """
    sections = [one for one in _sections(results, out) if one.blocks]
    pictures = pictures_of(sections)
    files = out / FILES
    files.mkdir(parents=True, exist_ok=True)
    for name, data in pictures.items():
        _write(files / name, data)
    for path in files.glob("*.png"):  # of an earlier report
        if path.name not in pictures:
            path.unlink()
    _write(out / "report.md", markdown_page(results.name, sections).encode("utf-8", "replace"))
    page = html_page("Study", results.name, sections)
    return _write(out / "report.html", page.encode("utf-8", "replace"))


def _write(path: Path, data: bytes) -> Path:
    """Put the file in place whole: someone may be looking at the one before."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(data)
    os.replace(temporary, path)
    return path


def _sections(results: StudyResults, out: Path) -> Iterable[Section]:
    yield Section("Question", _question(results))
    yield Section("Verdict", _verdict(results))
    if not distinct(results):
        yield Section("Cells without a result", _unfinished(results, out))
        return
    yield Section("Figures", _figures(results))
    yield Section("Differences from the baseline", _differences(results))
    yield Section("Interaction", _interaction(results))
    yield Section("Generations", tuple(generations(results)))
    yield Section("Over training", tuple(training_curves(results)))
    yield Section("Loss at each noise level", tuple(losses(results)))
    yield Section("Schedules", tuple(schedules(results)))
    yield Section("Samples", _samples(results))
    yield Section("Costs", (costs_table(results),))
    yield Section("Cells without a result", _unfinished(results, out))
    yield Section("What the figures depend on", _pins(results))


def _question(results: StudyResults) -> tuple[Block, ...]:
    open_ones = sum(one.status != "done" for one in results.outcomes)
    notice = f"{open_ones} of {counted(len(results.outcomes), 'cell')} without a result so far."
    return (
        *([Paragraph(results.about)] if results.about.strip() else []),
        *([Paragraph(notice, "warning")] if open_ones else []),
        facts(results),
    )


def _pins(results: StudyResults) -> tuple[Block, ...]:
    pins = pins_table(results)
    return (pins,) if pins.rows else ()


def _verdict(results: StudyResults) -> tuple[Block, ...]:
    lines: list[Block] = [*verdicts(results)]
    if any(len(values) > 1 for values in results.axes.values()):
        if len(results.seeds) == 1:
            lines.append(Paragraph(ONE_SEED, "note"))
        elif distinct(results):
            lines.append(Paragraph(f"{RULE} {tally(results).sentence()}".strip(), "note"))
    return tuple(lines)


def _figures(results: StudyResults) -> tuple[Block, ...]:
    figures = measured(results)
    many = len(results.seeds) > 1
    spread = "Mean ± standard deviation over seeds." if many else ONE_SEED
    about = "; ".join(f"{titled(name)}: {which_way(name)}" for name in figures)
    note = (
        f"{spread} {about}. Floor: one half of the reference against the other, as good as it gets;"
        " matched: as many samples against the same half, to be compared with the floor. Bold: the"
        " best mean among cells with one reference, which alone is no conclusion. eps-MSE:"
        " validation loss, mean over noise levels."
    )
    return (Paragraph(note + _sampling_error(results, figures), "note"), figures_table(results))


def _sampling_error(results: StudyResults, figures: Sequence[str]) -> str:
    """How much of a figure's noise is due to the number of images alone, where that is known."""
    found = []
    for figure in figures:
        scores = [r.scores[figure] for r in distinct(results) if figure in r.scores]
        if known := [score.error for score in scores if score.error is not None]:
            found.append(f"{figure} {number(max(known), 2)}")
    if not found:
        return ""
    return f" Largest standard error from the number of images alone: {', '.join(found)}."


def _differences(results: StudyResults) -> tuple[Block, ...]:
    tables = {figure: differences_table(results, figure) for figure in measured(results)}
    shown: list[Block] = [*differences(results)]
    for number_, (figure, table) in enumerate(tables.items()):
        if table.rows:
            title = f"{titled(figure)}, {which_way(figure)}"
            shown += [Paragraph(title), table] if number_ == 0 else [Fold(title, (table,))]
    return tuple(shown)


def _interaction(results: StudyResults) -> tuple[Block, ...]:
    blocks: list[Block] = []
    for number_, figure in enumerate(measured(results)):
        found = interactions(results, figure)
        if any(one.change.student is not None for one in found):
            lines = Bullets(tuple(interaction_sentence(one) for one in found))
            blocks.append(lines if number_ == 0 else Fold(titled(figure), (lines,)))
            if number_ == 0 and not all(one.comparable for one in found):
                note = (
                    "The two ends are measured against different references: a change may also be"
                    " one of the figure's scale."
                )
                blocks.append(Paragraph(note, "note"))
    return tuple(blocks)


def _samples(results: StudyResults) -> tuple[Block, ...]:
    blocks: list[Block] = []
    per_seed = {seed: tiles_of(results, seed) for seed in results.seeds}
    count = sum(map(len, per_seed.values()))
    for seed, tiles in per_seed.items():
        read = [(tile, large_picture(tile.path, count)) for tile in tiles]
        pictures = tuple((" = ".join(tile.names), png) for tile, png in read if png is not None)
        if pictures and not blocks:
            blocks.append(Paragraph(f"Seed {seed}: the same noise at one resolution."))
            blocks.append(Gallery(pictures))
        elif pictures:
            blocks.append(Fold(f"Seed {seed}", (Gallery(pictures),)))
    for number_, sheet in enumerate(sheets(results)):
        caption = f"Samples at {sheet.where}." if sheet.where else "Samples."
        alt = f"Samples of {', '.join(sheet.names)}"
        blocks.append(MarkdownPicture(f"samples-{number_}", alt, caption, sheet.png))
    return tuple(blocks)


def _unfinished(results: StudyResults, out: Path) -> tuple[Block, ...]:
    failed = _named(results, "failed")
    waiting = _named(results, "not run")
    blocks: list[Block] = []
    if failed:
        lines = [
            f"{name}: {one.error[:_MAX_ERROR] or 'no error line'} (log: {_log(one, out)})"
            for name, one in failed
        ]
        blocks += [Paragraph(f"{len(failed)} failed:"), Bullets(_some(lines))]
    if waiting:
        lines = [
            f"{name}: {one.error[:_MAX_ERROR]}" if one.error else name for name, one in waiting
        ]
        blocks += [Paragraph(f"{len(waiting)} not run:"), Bullets(_some(lines))]
    return tuple(blocks)


def _named(results: StudyResults, status: str) -> list[tuple[str, Outcome]]:
    outcomes = [one for row in rows_of(results) for one in row.outcomes]
    return [(one.name, one) for one in outcomes if one.status == status]


def _some(lines: Sequence[str]) -> tuple[str, ...]:
    more = len(lines) - _MAX_LISTED
    return (*lines[:_MAX_LISTED], *([f"and {more} more"] if more > 0 else []))


def _log(outcome: Outcome, out: Path) -> str:
    """The cell's log, by its place in the study's folder."""
    path = outcome.folder / "log.txt"
    inside = path.is_relative_to(out)
    return path.relative_to(out).as_posix() if inside else f"{outcome.folder.name}/log.txt"
