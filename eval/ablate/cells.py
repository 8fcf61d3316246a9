"""The cells of a study: every combination of values and seeds, resolved to configs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any

from eval.ablate.canonical import canonical
from eval.ablate.overlays import StudyError, nearest
from eval.ablate.spec import CellSpec, DataRecipe
from eval.ablate.study_file import StudyFile
from simple_diffusion.config import RunConfig, ScoresConfig
from simple_diffusion.config_files import decode, dotted_keys, merge


@dataclass(frozen=True)
class Cell:
    """One named cell; cells that come to the same share an identity, and run once.

    Attributes:
        choices: axis -> name of its value.
        seed: of the run.
        spec: what it comes to.
    """

    choices: Mapping[str, str]
    seed: int
    spec: CellSpec

    @cached_property
    def id(self) -> str:
        """The name of the cell's folder."""
        return self.spec.id

    @property
    def name(self) -> str:
        """Such as ``schedule=cosine,seed=0``."""
        return ",".join([f"{axis}={value}" for axis, value in self.all_choices.items()])

    @property
    def all_choices(self) -> dict[str, str]:
        """The choices and the seed."""
        return {**self.choices, "seed": str(self.seed)}


def expand(study: StudyFile) -> tuple[Cell, ...]:
    """Every cell in the study's order: the last axis runs fastest, seeds faster still.

    Overlays are applied in this order: base, common, the axes in their order, budget, seed.

    Raises:
        ConfigError: an unknown key, a wrong type or a refused value; the message says in which
            overlay.
    """
    made: dict[tuple[Any, ...], CellSpec] = {}
    cells = []
    for picked in product(*study.choices.values()):
        choices = dict(zip(study.choices, picked, strict=True))
        for seed in study.seeds:
            spec = _spec(study, choices, seed, made)
            cells.append(Cell(choices, seed, spec))
            made[*picked, seed] = spec
    return tuple(cells)


def _spec(
    study: StudyFile, choices: dict[str, str], seed: int, made: Mapping[tuple[Any, ...], CellSpec]
) -> CellSpec:
    # `measure` says how cells are scored, whatever the base config does
    config = replace(canonical(_config(study, choices, seed)), scores=ScoresConfig())
    spec = CellSpec(config, study.measure, study.budget)
    if "generation" not in choices:
        return spec
    generation, images = int(choices["generation"]), study.generations.images
    if not generation:  # the same for all loops
        return replace(spec, data=DataRecipe(images=images))
    before = choices | {"generation": str(generation - 1)}
    parent = made[*before.values(), seed]  # generations run up, after all other axes
    recipe = DataRecipe(parent.id, choices["loop"], generation, images)
    return replace(spec, data=recipe)


def _config(study: StudyFile, choices: dict[str, str], seed: int) -> RunConfig:
    tree, sources = dict(study.base), dict(study.sources)
    overlays = [("common", study.common)]
    overlays += [
        (f"axes.{axis}: {value}", study.axes[axis][value])
        for axis, value in choices.items()
        if axis in study.axes
    ]
    if study.budget.images is not None:
        overlays.append(("budget", {"train": {"total_images": study.budget.images}}))
    overlays.append(("seeds", {"seed": seed}))
    for where, overlay in overlays:
        tree = merge(tree, overlay)
        sources |= dict.fromkeys(dotted_keys(overlay), f"{study.path}: {where}")
    return decode(tree, sources, str(study.path))


def unique(cells: Sequence[Cell]) -> dict[str, Cell]:
    """The cells to run by identity, under the first of their names, parents before children."""
    first: dict[str, Cell] = {}
    for cell in cells:
        first.setdefault(cell.id, cell)
    return first


def select(
    cells: Sequence[Cell], choices: Mapping[str, tuple[str, ...]], only: Sequence[str]
) -> tuple[Cell, ...]:
    """The cells that match every ``axis=value,value``, and the parents that they need.

    Args:
        cells: of the study.
        choices: axis -> names of its values.
        only: conditions; ``seed`` counts as an axis.

    Raises:
        StudyError: no such axis or value.
    """
    wanted: dict[str, set[str]] = {}
    for axis, names in _conditions({**choices, "seed": _seeds(cells)}, only):
        wanted.setdefault(axis, set()).update(names)

    def matches(cell: Cell) -> bool:
        return all(cell.all_choices[axis] in names for axis, names in wanted.items())

    first, parents = unique(cells), set[str]()
    waiting = [cell for cell in cells if matches(cell)]
    while waiting:
        parent = waiting.pop().spec.parent
        if parent is not None and parent not in parents:
            parents.add(parent)
            waiting.append(first[parent])
    return tuple(cell for cell in cells if matches(cell) or cell.id in parents)


def _seeds(cells: Sequence[Cell]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(cell.seed) for cell in cells))


def _conditions(
    choices: Mapping[str, tuple[str, ...]], only: Sequence[str]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    for condition in only:
        axis, equals, values = condition.partition("=")
        if axis not in choices:
            raise StudyError(f"--only {condition}: no axis {axis!r}; {nearest(axis, choices)}")
        names = tuple(values.split(","))
        for name in names:
            if not equals or name not in choices[axis]:
                hint = nearest(name, choices[axis])
                raise StudyError(f"--only {condition}: {axis} has no value {name!r}; {hint}")
        yield axis, names
