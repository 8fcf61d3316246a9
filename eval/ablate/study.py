"""A study: its file and its cells, all of them known to be possible before the first one runs."""

from dataclasses import dataclass
from pathlib import Path

from eval.ablate.cells import Cell, expand, unique
from eval.ablate.costs import Cost, cost_of
from eval.ablate.overlays import StudyError
from eval.ablate.spec import Budget, CellSpec, DataRecipe, Measure
from eval.ablate.study_file import StudyFile, read_study_file
from eval.features import figure_name

__all__ = [
    "Budget",
    "Cell",
    "CellSpec",
    "DataRecipe",
    "Measure",
    "Study",
    "StudyError",
    "load_study",
]


@dataclass(frozen=True)
class Study:
    """A study whose every cell can be built.

    Attributes:
        file: what the study's file says.
        cells: every cell, in the study's order.
        costs: of each cell, by its identity.
    """

    file: StudyFile
    cells: tuple[Cell, ...]
    costs: dict[str, Cost]

    @property
    def name(self) -> str:
        """The file's name."""
        return self.file.path.stem

    @property
    def figures(self) -> tuple[str, ...]:
        """The names of its scores, such as ``kid_lite0``; the first one leads."""
        measure = self.file.measure
        return tuple(figure_name(metric, measure.extractor) for metric in measure.metrics)

    @property
    def baseline(self) -> Cell:
        """The first cell with the baseline's choices."""
        return next(cell for cell in self.cells if cell.choices == self.file.baseline)


def load_study(path: Path) -> Study:
    """Read a study and resolve, check and count each of its cells; nothing is run.

    Raises:
        StudyError: what is wrong with the study, or a cell whose network cannot be built.
        ConfigError: a file that cannot be read, or what is wrong with a config key.
    """
    file = read_study_file(path)
    cells = expand(file)
    costs = {}
    for cell in unique(cells).values():
        try:
            costs[cell.id] = cost_of(cell.spec)
        except (ValueError, RuntimeError) as error:
            message = " ".join(str(error).split())
            raise StudyError(f"{path}: cell {cell.name} cannot be built: {message}") from None
    return Study(file, cells, costs)
