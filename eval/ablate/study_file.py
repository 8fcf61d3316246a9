"""The YAML file of a study, read and checked on its own, before any cell is made of it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import draccus
import yaml

from eval.ablate.overlays import (
    Overlay,
    StudyError,
    checked_name,
    nearest,
    read_axis,
    read_overlay,
)
from eval.ablate.spec import LOOPS, Budget, Measure
from eval.features import EXTRACTORS
from eval.metrics import METRICS
from simple_diffusion.config_checks import RefusedValueError
from simple_diffusion.config_files import Sources, decode_as, dotted_keys, read_mapping, read_tree

KEYS = (
    "about",
    "base",
    "common",
    "axes",
    "cells",
    "baseline",
    "seeds",
    "budget",
    "measure",
    "generations",
)
CHAIN_AXES = ("loop", "generation")  # what `generations` adds


@dataclass(frozen=True)
class Generations:
    """Self-consuming chains: each generation trains on images of the one before; `count` 0: none.

    Attributes:
        count: the last generation; generation 0 trains on real images.
        images: how many the model of a generation draws for the next one.
        loops: what the images are joined with; see `spec.DataRecipe`.
    """

    count: int = 0
    images: int = 0
    loops: tuple[str, ...] = LOOPS

    def __post_init__(self) -> None:
        for loop in self.loops:
            if loop not in LOOPS:
                raise RefusedValueError(f"generations.loops: {loop!r}: {nearest(loop, LOOPS)}")
        if not self.loops or len(set(self.loops)) < len(self.loops):
            raise RefusedValueError("generations.loops must be different, and one at least")
        if not 0 <= self.count <= 100:
            raise RefusedValueError("generations.count must be at most 100")


@dataclass(frozen=True)
class StudyFile:
    """What the file says.

    Attributes:
        path: the file.
        about: the question, in words.
        base: config sections of the base config, with its own bases.
        sources: which file set each key of `base`.
        common: laid over the base for all cells.
        axes: axis -> name of a value -> overlay; without those that `generations` adds.
        baseline: axis -> name of a value, for every axis.
        seeds: of the runs.
        budget: of each run.
        measure: of each run.
        generations: of the chains.
    """

    path: Path
    about: str
    base: Mapping[str, Any]
    sources: Sources
    common: Overlay
    axes: Mapping[str, Mapping[str, Overlay]]
    baseline: Mapping[str, str]
    seeds: tuple[int, ...]
    budget: Budget
    measure: Measure
    generations: Generations

    @property
    def choices(self) -> dict[str, tuple[str, ...]]:
        """Every axis, those of the chains included, and the names of its values."""
        return _choices(self.axes, self.generations)

    def text(self) -> str:
        """YAML that reads back to the same study, wherever it stands."""
        document: dict[str, Any] = {
            "about": self.about,
            "base": dict(self.base),
            "common": self.common,
            "axes": {axis: dict(values) for axis, values in self.axes.items()},
            "baseline": dict(self.baseline),
            "seeds": list(self.seeds),
            "budget": {key: value for key, value in asdict(self.budget).items() if value},
            "measure": draccus.encode(self.measure),
        }
        if self.generations.count:
            document["generations"] = draccus.encode(self.generations)
        return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)


@dataclass(frozen=True)
class _Options:
    """The sections of a study with keys of their own."""

    budget: Budget = field(default_factory=Budget)
    measure: Measure = field(default_factory=Measure)
    generations: Generations = field(default_factory=Generations)


def read_study_file(path: Path) -> StudyFile:
    """Read and check a study; its overlays are not yet applied.

    Raises:
        StudyError: what is wrong with the study itself.
        ConfigError: a file that cannot be read, or a refused value of `measure` and the like.
    """
    tree = read_mapping(path)
    for key in tree:
        if key not in KEYS:
            raise StudyError(f"{path}: unknown key {key}; {nearest(str(key), KEYS)}")
    base, sources = _base(tree, path)
    options = _options(tree, path)
    axes = _axes(tree, path)
    choices = _choices(axes, options.generations)
    if options.generations.count and set(axes) & set(CHAIN_AXES):
        raise StudyError(f"{path}: axes: generations adds {' and '.join(CHAIN_AXES)}; rename yours")
    common = read_overlay(tree.get("common"), f"{path}: common")
    _set_once(common, axes, options.measure, path)
    return StudyFile(
        path=path,
        about=_about(tree, path),
        base=base,
        sources=sources,
        common=common,
        axes=axes,
        baseline=_baseline(tree, choices, path),
        seeds=_seeds(tree, path),
        budget=options.budget,
        measure=options.measure,
        generations=options.generations,
    )


def _choices(
    axes: Mapping[str, Mapping[str, Overlay]], chains: Generations
) -> dict[str, tuple[str, ...]]:
    choices = {axis: tuple(values) for axis, values in axes.items()}
    if chains.count:
        choices |= {
            "loop": chains.loops,
            "generation": tuple(str(number) for number in range(chains.count + 1)),
        }
    return choices


def _base(tree: dict[str, Any], path: Path) -> tuple[dict[str, Any], Sources]:
    base = tree.get("base")
    if isinstance(base, dict):
        return base, dict.fromkeys(dotted_keys(base), f"{path}: base")
    if not isinstance(base, str):
        raise StudyError(f"{path}: base: the study needs a config, a path relative to the study")
    return read_tree(path.parent / base)


def _about(tree: dict[str, Any], path: Path) -> str:
    about = tree.get("about", "")
    if not isinstance(about, str):
        raise StudyError(f"{path}: about must be text, not {about!r}")
    return " ".join(about.split())


def _options(tree: dict[str, Any], path: Path) -> _Options:
    keys: tuple[str, ...] = ("budget", "measure", "generations")
    given = {key: tree[key] for key in keys if key in tree}
    options = decode_as(_Options, given, {}, str(path))
    budget, measure, chains = options.budget, options.measure, options.generations
    if (budget.images is None) == (budget.minutes is None):
        what = "images and minutes, which exclude each other" if budget.images else "neither"
        raise StudyError(f"{path}: budget has {what}; give {{images: 6400}} or {{minutes: 2}}")
    for metric in measure.metrics:
        if metric not in METRICS:
            hint = nearest(metric, METRICS)
            raise StudyError(f"{path}: measure.metrics: unknown metric {metric!r}; {hint}")
    if measure.extractor not in EXTRACTORS:
        hint = nearest(measure.extractor, EXTRACTORS)
        raise StudyError(
            f"{path}: measure.extractor: unknown extractor {measure.extractor!r}; {hint}"
        )
    if "generations" in tree and (chains.count < 1 or chains.images < 1):
        raise StudyError(
            f"{path}: generations needs count and images, both at least 1: how many generations, "
            "and how many images the model of each draws for the next"
        )
    return options


def _axes(tree: dict[str, Any], path: Path) -> dict[str, Mapping[str, Overlay]]:
    given, cells = tree.get("axes"), tree.get("cells")
    if given is not None and cells is not None:
        raise StudyError(f"{path}: axes and cells exclude each other: a grid, or a list")
    if cells is not None:
        if not isinstance(cells, dict):
            raise StudyError(f"{path}: cells must be a mapping of names to overlays")
        return {"cell": read_axis("cell", cells, f"{path}: cells")}
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise StudyError(f"{path}: axes must be a mapping of axes to their values")
    axes = {}
    for key, values in given.items():
        axis = checked_name(key, f"{path}: axes")
        if axis == "seed":
            raise StudyError(f"{path}: axes: seed is no axis; list them as seeds: [0, 1, 2]")
        axes[axis] = read_axis(axis, values, f"{path}: axes.{axis}")
    return axes


def _set_once(
    common: Overlay, axes: Mapping[str, Mapping[str, Overlay]], measure: Measure, path: Path
) -> None:
    """An overlay may not set what the budget or the measure sets: it would be ignored."""
    setters = {"train.total_images": "`budget`", "scores": "`measure`"}
    for name in ("sampler", "steps", "guidance", "batch_size"):
        if getattr(measure, name) is not None:
            setters[f"sampling.{name}"] = f"`measure.{name}`"
    overlays = {"common": common} | {
        f"axes.{axis}.{name}": overlay
        for axis, values in axes.items()
        for name, overlay in values.items()
    }
    for where, overlay in overlays.items():
        for key in dotted_keys(overlay):
            if key in setters:
                setter = setters[key]
                raise StudyError(f"{path}: {where}: {key} is set by {setter}; take it out of one")


def _seeds(tree: dict[str, Any], path: Path) -> tuple[int, ...]:
    seeds = tree.get("seeds", [0])
    whole = isinstance(seeds, list) and all(type(seed) is int for seed in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise StudyError(f"{path}: seeds must be different whole numbers, such as [0, 1, 2]")
    if not all(0 <= seed < 2**32 for seed in seeds):
        raise StudyError(f"{path}: seeds must lie in [0, 2^32)")
    return tuple(seeds)


def _baseline(
    tree: dict[str, Any], choices: Mapping[str, tuple[str, ...]], path: Path
) -> dict[str, str]:
    given = tree.get("baseline") or {}
    if not isinstance(given, dict):
        raise StudyError(f"{path}: baseline must say a value for axes, such as {{axis: value}}")
    baseline = {axis: names[0] for axis, names in choices.items()}
    for axis, value in given.items():
        if axis not in choices:
            raise StudyError(f"{path}: baseline: no axis {axis!r}; {nearest(str(axis), choices)}")
        name = checked_name(value, f"{path}: baseline.{axis}") if value is not None else "null"
        if name not in choices[axis]:
            raise StudyError(
                f"{path}: baseline: {axis} has no value {name!r}; {nearest(name, choices[axis])}"
            )
        baseline[axis] = name
    return baseline
