"""Gathers the results of a study from its folder, for the report."""

from pathlib import Path

from eval.ablate.cells import Cell, unique
from eval.ablate.driver import cell_folder
from eval.ablate.folder import read_failure
from eval.ablate.results import CellResult, Outcome, ResultError, Status, StudyResults, read_result
from eval.ablate.study import Study


def collect(study: Study, out: Path) -> StudyResults:
    """Every cell of the study and what became of it; nothing is changed."""
    found: dict[str, _Found] = {}
    for identity, cell in unique(study.cells).items():
        found[identity] = _find(cell, cell_folder(out, identity), study, found)
    file = study.file
    outcomes = [
        Outcome(cell.choices, cell.seed, cell_folder(out, cell.id), *found[cell.id])
        for cell in study.cells
    ]
    return StudyResults(
        name=study.name,
        about=file.about,
        axes=file.choices,
        baseline=file.baseline,
        seeds=file.seeds,
        metrics=study.figures,
        outcomes=tuple(outcomes),
    )


_Found = tuple[Status, CellResult | None, str]


def _find(cell: Cell, folder: Path, study: Study, found: dict[str, _Found]) -> _Found:
    try:
        result = read_result(folder)
    except ResultError as error:
        return "failed", None, str(error)
    if result is not None:
        return "done", result, ""
    failure = read_failure(folder)
    if failure is not None:
        return "failed", None, failure.error
    needed = cell.spec.parent
    if needed in found and found[needed][0] != "done":
        parent = next(one for one in study.cells if one.id == needed)
        status, _, why = found[needed]
        if status == "failed":
            return "not run", None, f"needs {parent.name}, which failed"
        if why:
            return "not run", None, why
    return "not run", None, ""
