"""What a study produced: the results of its cells, as the report reads them.

A finished cell leaves `result.json`. It is read here with every value checked, since a report may
be made of folders that came from elsewhere.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from eval.metrics import Score

RESULT = "result.json"
FORMAT = 1
_MAX_BYTES = 2**22
_MAX_POINTS = 4096
_DAMAGE = (TypeError, AttributeError, ValueError, ArithmeticError, RecursionError)

Status = Literal["done", "failed", "not run"]


class ResultError(ValueError):
    """A result that cannot be read; the message names the file and the key."""


@dataclass(frozen=True)
class CellResult:
    """What one finished cell measured.

    Attributes:
        images: images trained on.
        parameters: of the network.
        train_flops: of all training steps.
        sample_flops: of drawing the samples that were scored.
        seconds: wall time by stage, such as ``train`` and ``evaluate``.
        images_per_second: of training, the median.
        device: what it ran on.
        threads: CPU threads.
        scores: by figure name, such as ``kid_lite0``.
        curve: (images seen, scores) during training.
        logsnr: the λ of the validation loss.
        eps_mse: unweighted validation loss at each.
        schedule: t and λ(t) of the noise schedule, two equally long tuples.
        pins: what fixes the figures: number, sampler, steps, guidance, extractor, ...
        grid: file name of the sample grid, in the cell's folder.
    """

    images: int
    parameters: int
    train_flops: float
    sample_flops: float
    seconds: Mapping[str, float]
    images_per_second: float
    device: str
    threads: int
    scores: Mapping[str, Score]
    curve: tuple[tuple[int, Mapping[str, Score]], ...]
    logsnr: tuple[float, ...]
    eps_mse: tuple[float, ...]
    schedule: tuple[tuple[float, ...], tuple[float, ...]]
    pins: Mapping[str, Any] = field(default_factory=dict)
    grid: str | None = None


@dataclass(frozen=True)
class Outcome:
    """One named cell of a study and what became of it.

    Attributes:
        choices: axis -> name of its value.
        seed: of the run.
        folder: the cell's folder; cells that coincide share one.
        status: whether there is a result.
        result: the result of a finished cell.
        error: why a failed cell failed, in one line.
    """

    choices: Mapping[str, str]
    seed: int
    folder: Path
    status: Status
    result: CellResult | None = None
    error: str = ""

    @property
    def name(self) -> str:
        """Such as ``schedule=cosine,seed=0``."""
        parts = [f"{axis}={value}" for axis, value in self.choices.items()]
        return ",".join([*parts, f"seed={self.seed}"])


@dataclass(frozen=True)
class StudyResults:
    """A study as far as it has run.

    Attributes:
        name: of the study.
        about: the question, in words.
        axes: axis -> names of its values, in the study's order.
        baseline: axis -> the value that the others are compared with.
        seeds: in the study's order.
        metrics: figure names, the first one leads the report.
        outcomes: every cell, in the study's order.
    """

    name: str
    about: str
    axes: Mapping[str, tuple[str, ...]]
    baseline: Mapping[str, str]
    seeds: tuple[int, ...]
    metrics: tuple[str, ...]
    outcomes: tuple[Outcome, ...]


def write_result(folder: Path, result: CellResult) -> None:
    """Write `result.json`, whole or not at all: its presence says that the cell is finished."""
    document = {
        "format": FORMAT,
        **{name: getattr(result, name) for name in _PLAIN},
        "seconds": dict(result.seconds),
        "scores": _encode(result.scores),
        "curve": [{"images_seen": seen, "scores": _encode(s)} for seen, s in result.curve],
        "validation": {"logsnr": list(result.logsnr), "eps_mse": list(result.eps_mse)},
        "schedule": dict(zip(("t", "logsnr"), map(list, result.schedule), strict=True)),
        "pins": dict(result.pins),
        "grid": result.grid,
    }
    path = folder / RESULT
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(document, indent=1), encoding="utf-8")
    temporary.replace(path)


_PLAIN = (
    "images",
    "parameters",
    "train_flops",
    "sample_flops",
    "images_per_second",
    "device",
    "threads",
)


def read_result(folder: Path) -> CellResult | None:
    """The result in a cell's folder; None if it has none.

    Raises:
        ResultError: the file is damaged, or of a later format.
    """
    path = folder / RESULT
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"larger than {_MAX_BYTES} bytes")
        document = json.loads(path.read_bytes())
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']!r}; this release reads {FORMAT}")
        return _decode(document)
    except (KeyError, *_DAMAGE) as error:
        what = f"no key {error}" if isinstance(error, KeyError) else str(error)
        raise ResultError(f"{path}: {what}; remove the cell's folder to run it again") from None


def _encode(scores: Mapping[str, Score]) -> dict[str, dict[str, float | None]]:
    return {name: vars(score) for name, score in scores.items()}


def _decode(document: dict[str, Any]) -> CellResult:
    validation, schedule = document["validation"], document["schedule"]
    logsnr, eps_mse = _floats(validation["logsnr"]), _floats(validation["eps_mse"])
    t, levels = _floats(schedule["t"]), _floats(schedule["logsnr"])
    if len(logsnr) != len(eps_mse) or len(t) != len(levels):
        raise ValueError("validation or schedule: lists of different lengths")
    grid = document["grid"]
    if grid is not None and (not isinstance(grid, str) or Path(grid).name != grid):
        raise ValueError(f"grid must be a file name, not {grid!r}")
    curve = [(int(point["images_seen"]), _scores(point["scores"])) for point in document["curve"]]
    return CellResult(
        images=int(document["images"]),
        parameters=int(document["parameters"]),
        train_flops=_float(document["train_flops"]),
        sample_flops=_float(document["sample_flops"]),
        seconds={str(k): _float(v) for k, v in document["seconds"].items()},
        images_per_second=_float(document["images_per_second"]),
        device=str(document["device"])[:80],
        threads=int(document["threads"]),
        scores=_scores(document["scores"]),
        curve=tuple(curve),
        logsnr=logsnr,
        eps_mse=eps_mse,
        schedule=(t, levels),
        pins=_shallow(document["pins"], 6),
        grid=grid,
    )


def _shallow(pins: Any, depth: int) -> dict[str, Any]:
    """`pins`, checked to be a mapping that is nested no deeper than that."""
    if not isinstance(pins, dict) or not depth:
        raise TypeError("pins must be a mapping of values and of a few levels of mappings")
    return {str(k): _shallow(v, depth - 1) if isinstance(v, dict) else v for k, v in pins.items()}


def _scores(document: dict[str, Any]) -> dict[str, Score]:
    return {
        str(name): Score(
            value=_float(one["value"]),
            floor=_optional(one["floor"]),
            matched=_optional(one["matched"]),
            error=_optional(one["error"]),
        )
        for name, one in document.items()
    }


def _float(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"a number is needed, not {value!r}")
    return float(value) if math.isfinite(value) else math.nan


def _optional(value: object) -> float | None:
    return None if value is None else _float(value)


def _floats(values: object) -> tuple[float, ...]:
    if not isinstance(values, list) or len(values) > _MAX_POINTS:
        raise TypeError(f"a list of at most {_MAX_POINTS} numbers is needed")
    return tuple(map(_float, values))
