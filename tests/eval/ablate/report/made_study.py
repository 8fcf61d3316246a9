"""Studies made of numbers, for tests of the report: nothing is trained."""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eval.ablate.results import CellResult, Outcome, StudyResults
from eval.metrics import Score

Choices = Mapping[str, str]
ScoreOf = Callable[[Choices, int], dict[str, float]]

LOGSNR = tuple(float(x) for x in range(-12, 13, 3))
PINS = {
    "num": 256,
    "sampler": "dpm++2m",
    "steps": 16,
    "guidance": 1.0,
    "extractor": {"name": "lite0", "sha256": "0f" * 32, "resize": "bicubic to 224, antialiased"},
    "reference": {"path": "/somewhere/else/icons", "num": 512},
}


def score(value: float, floor: float | None = 0.001) -> Score:
    return Score(value=value, floor=floor, matched=value * 0.98, error=0.002)


def cosine(shift: float = 0.0) -> tuple[tuple[float, ...], tuple[float, ...]]:
    t = np.linspace(0.001, 0.999, 65)
    return tuple(t.tolist()), tuple((-2 * np.log(np.tan(np.pi * t / 2)) + shift).tolist())


def result(
    values: Mapping[str, float], *, floor: float | None = 0.001, **changes: Any
) -> CellResult:
    """A finished cell with these figures."""
    scores = {name: score(value, floor) for name, value in values.items()}
    first = CellResult(
        images=6400,
        parameters=3_500_000,
        train_flops=1.5e15,
        sample_flops=2e14,
        seconds={"train": 120.0, "evaluate": 30.0},
        images_per_second=80.0,
        device="cpu",
        threads=1,
        scores=scores,
        curve=(),
        logsnr=LOGSNR,
        eps_mse=tuple(0.9 / (1 + math.exp(-0.4 * x)) + 0.01 for x in LOGSNR),
        schedule=cosine(),
        pins=PINS,
    )
    return replace(first, **changes)


def study(
    axes: Mapping[str, tuple[str, ...]],
    score_of: ScoreOf,
    *,
    seeds: tuple[int, ...] = (0, 1, 2),
    folder: Path = Path("study"),
    same: Mapping[tuple[str, ...], tuple[str, ...]] | None = None,
    **changes: Any,
) -> StudyResults:
    """A finished study of all combinations.

    Args:
        axes: name -> values; the first is the baseline.
        score_of: (choices, seed) -> figures.
        seeds: of every cell.
        folder: the study's.
        same: values of a cell -> those of the cell that it coincides with.
        changes: of the `StudyResults`.
    """
    outcomes = []
    for values in itertools.product(*axes.values()):
        choices = dict(zip(axes, values, strict=True))
        for seed in seeds:
            first = (same or {}).get(values, values)
            place = folder / "cells" / f"{'-'.join(first) or 'only'}-{seed}"
            figures = score_of(dict(zip(axes, first, strict=True)), seed)
            outcomes.append(Outcome(choices, seed, place, "done", result(figures)))
    metrics = tuple(outcomes[0].result.scores) if outcomes[0].result else ()
    made = StudyResults(
        name="made",
        about="Does it matter?",
        axes=axes,
        baseline={axis: values[0] for axis, values in axes.items()},
        seeds=seeds,
        metrics=metrics,
        outcomes=tuple(outcomes),
    )
    return replace(made, **changes)


def change(results: StudyResults, edit: Callable[[Outcome], Outcome | None]) -> StudyResults:
    """The study with each outcome edited, or left out where the edit gives None."""
    edited = (edit(one) for one in results.outcomes)
    return replace(results, outcomes=tuple(one for one in edited if one is not None))


def write_grid(folder: Path, name: str = "grid.png", side: int = 256, seed: int = 0) -> str:
    """A picture in a cell's folder; returns its file name."""
    folder.mkdir(parents=True, exist_ok=True)
    tiles = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(tiles).resize((side, side), Image.Resampling.BICUBIC).save(folder / name)
    return name
