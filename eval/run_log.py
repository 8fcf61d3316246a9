"""A run folder read: what its metrics, its yardstick and its list of sample grids say.

Whatever the folder holds so far is read, so a run in progress serves as well as a finished one.
Nothing in it is trusted: sizes are bounded, and a value of another kind than expected counts as
absent.

A run folder holds, each part optional:
    metrics.jsonl   one JSON object per line, each with `images_seen`.
                    `"kind": "run"`: parameters, device, processes, threads, precision,
                    total_images.
                    `"kind": "train"`: step, loss, grad_norm, lr, images_per_second, memory_gb,
                    memory_reserved_gb, mfu, data_wait (share of time), step_seconds_min, _max (mean
                    step of the fastest and the slowest process) and _longest, seconds (of the whole
                    run so far, earlier processes included), skipped and replaced (steps and corrupt
                    samples so far), `loss/<term>`.
                    `"kind": "validation"`: weights, logsnr, eps_mse, mean.
                    `"kind": "scores"`: weights, extractor, num, reference_images, steps, guidance,
                    scores: figure -> value, matched, floor (`eval.metrics.Score`).
                    `"kind": "stop"`, `"skipped"`, `"spike"`, `"checkpoint"`: see `eval.run_events`.
                    Any line may state `parameters`.
    wiener.json     logsnr, eps_mse, images: the linear yardstick (`eval.wiener.yardstick`).
    samples/        `<images seen>.png` and `final.png`.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from eval.run_events import KINDS, Events
from eval.untrusted import MAX_TEXT, count_of, number_of, text_of

TRAIN_FIELDS = (
    "loss",
    "grad_norm",
    "lr",
    "images_per_second",
    "mfu",
    "memory_gb",
    "memory_reserved_gb",
    "data_wait",
    "step_seconds_min",
    "step_seconds_max",
    "step_seconds_longest",
    "skipped",
    "seconds",
)
# What a line of scores must share with another for their figures to compare.
_PINS = (
    "extractor",
    "extractor_sha256",
    "num",
    "reference",
    "reference_images",
    "sampler",
    "steps",
    "spacing",
    "guidance",
    "guidance_interval",
    "precision",
    "seed",
)
_MAX_LINE = 2**20  # bytes of one metrics line
_MAX_BINS = 256


@dataclass(frozen=True)
class Validation:
    """One measurement of the validation loss.

    Attributes:
        images_seen: images trained on before it.
        weights: the name of the weights measured, as the run gave it.
        logsnr: the noise levels λ = log α²/σ², in nats.
        eps_mse: mean squared error of the predicted noise at each; nan where unreadable.
        mean: of eps_mse over λ, as the run gave it.
    """

    images_seen: int
    weights: str
    logsnr: tuple[float, ...]
    eps_mse: tuple[float, ...]
    mean: float


@dataclass(frozen=True)
class Scoring:
    """The scores of one set of samples.

    Attributes:
        images_seen: images trained on before it.
        weights: the name of the weights that drew the samples.
        pins: what the figures depend on, for people.
        figures: figure -> its value, `matched` and `floor`; nan where unknown.
    """

    images_seen: int
    weights: str
    pins: dict[str, str]
    figures: dict[str, tuple[float, float, float]]


@dataclass
class RunLog:
    """What metrics.jsonl and wiener.json say. A fact that they do not state is None or empty.

    Attributes:
        images_seen: of each train line, shape (N,).
        curves: for each of TRAIN_FIELDS its value on each train line, shape (N,); nan where absent.
        terms: the loss's terms on the last train line.
        steps: optimiser steps, on the last train line.
        replaced: corrupt samples replaced by others so far, on the last train line.
        parameters: of the network.
        total_images: the length of the run when complete.
        device: its name.
        processes: how many train together.
        threads: of each process.
        precision: of training's network calls.
        validations: in the order of the file.
        scorings: in the order of the file.
        events: what else happened.
        wiener: eps-MSE of the yardstick by λ.
        wiener_images: how many images the yardstick was fitted to.
        unreadable: lines of metrics.jsonl that were left out.
    """

    images_seen: np.ndarray = field(default_factory=lambda: np.empty(0))
    curves: dict[str, np.ndarray] = field(default_factory=dict)
    terms: dict[str, float] = field(default_factory=dict)
    steps: int | None = None
    replaced: int | None = None
    parameters: int | None = None
    total_images: int | None = None
    device: str = ""
    processes: int | None = None
    threads: int | None = None
    precision: str = ""
    validations: list[Validation] = field(default_factory=list)
    scorings: list[Scoring] = field(default_factory=list)
    events: Events = field(default_factory=Events)
    wiener: dict[float, float] = field(default_factory=dict)
    wiener_images: int | None = None
    unreadable: int = 0

    def comparable_scorings(self) -> list[Scoring]:
        """The scorings whose figures compare with the last one's."""
        return [one for one in self.scorings if one.pins == self.scorings[-1].pins]

    def of_weights(self) -> dict[str, list[Validation]]:
        """Validations by the weights they measured: last measured first, then by the last mean.

        Before training all weights are the same, so that one measurement, whatever weights it
        names, opens every series.
        """
        groups: dict[str, list[Validation]] = {}
        untrained = [v for v in self.validations if v.images_seen == 0]
        for validation in [v for v in self.validations if v.images_seen] or untrained:
            groups.setdefault(validation.weights, []).append(validation)
        for name, group in groups.items():
            if group[0].images_seen:
                group[:0] = ([v for v in untrained if v.weights == name] or untrained)[:1]

        def rank(name: str) -> tuple[int, float]:
            last = groups[name][-1]
            return -last.images_seen, last.mean if math.isfinite(last.mean) else math.inf

        return {name: groups[name] for name in sorted(groups, key=rank)}


def read_run(run_dir: Path) -> RunLog:
    """Read metrics.jsonl and wiener.json of a run folder.

    Raises:
        ValueError: there is no such folder.
    """
    if not run_dir.is_dir():
        raise ValueError(f"{run_dir}: no such run folder; give the run_dir of a training run")
    seen: list[int] = []
    columns: dict[str, list[float]] = {name: [] for name in TRAIN_FIELDS}
    log = RunLog()
    metrics = run_dir / "metrics.jsonl"
    for record in _records(metrics) if metrics.is_file() else ():
        images = count_of(record, "images_seen") if record else None
        if record is None or images is None:
            log.unreadable += 1
            continue
        log.parameters = count_of(record, "parameters") or log.parameters
        kind = record.get("kind")
        if kind in KINDS:
            log.events.read(images, record)
        if kind == "run":
            _read_facts(record, log)
        elif kind == "train":
            seen.append(images)
            log.steps, log.replaced = count_of(record, "step"), count_of(record, "replaced")
            for name, column in columns.items():
                column.append(number_of(record.get(name)))
            log.terms = {k[5:]: number_of(v) for k, v in record.items() if k.startswith("loss/")}
        elif kind == "validation":
            if (bins := _bins(record)) is None:
                log.unreadable += 1
                continue
            weights, mean = str(record.get("weights", "")), number_of(record.get("mean"))
            log.validations.append(Validation(images, weights, *bins, mean))
        elif kind == "scores":
            log.scorings.append(_scoring(images, record))
    log.images_seen = np.array(seen, dtype=np.float64)
    log.curves = {name: np.array(column) for name, column in columns.items()}
    _read_wiener(run_dir / "wiener.json", log)
    return log


def sample_grids(run_dir: Path) -> list[tuple[int, Path]]:
    """The pictures drawn during training, by images seen; `final.png` is not among them."""
    folder = run_dir / "samples"
    named = folder.glob("*.png") if folder.is_dir() else ()
    return sorted((int(p.stem), p) for p in named if re.fullmatch(r"[0-9]{1,15}", p.stem))


def _read_facts(record: dict[str, Any], log: RunLog) -> None:
    log.total_images = count_of(record, "total_images")
    log.processes = count_of(record, "processes")
    log.threads = count_of(record, "threads")
    log.device = text_of(record, "device")
    log.precision = text_of(record, "precision")


def _scoring(images_seen: int, record: dict[str, Any]) -> Scoring:
    figures: dict[str, tuple[float, float, float]] = {}
    scores = record.get("scores")
    for name, score in scores.items() if isinstance(scores, dict) else ():
        if isinstance(score, dict) and len(figures) < _MAX_BINS:
            value, matched, floor = (number_of(score.get(k)) for k in ("value", "matched", "floor"))
            figures[name[:MAX_TEXT]] = value, matched, floor
    pins = {key: str(record[key])[:MAX_TEXT] for key in _PINS if key in record}
    return Scoring(images_seen, str(record.get("weights", ""))[:MAX_TEXT], pins, figures)


def _read_wiener(path: Path, log: RunLog) -> None:
    if not path.is_file() or path.stat().st_size > _MAX_LINE:
        return
    try:
        record = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return
    if isinstance(record, dict) and (bins := _bins(record)) is not None:
        log.wiener = dict(zip(*bins, strict=True))
        log.wiener_images = count_of(record, "images")


def _records(path: Path) -> Iterator[dict[str, Any] | None]:
    """The lines as objects; None for one that is not. A last line still being written is left."""
    with path.open("rb") as file:
        while line := file.readline(_MAX_LINE):
            if not line.endswith(b"\n"):
                rest = line
                while rest and not rest.endswith(b"\n"):
                    rest = file.readline(_MAX_LINE)
                if rest:
                    yield None
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            yield record if isinstance(record, dict) else None


def _bins(record: dict[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    logsnr, errors = record.get("logsnr"), record.get("eps_mse")
    if not isinstance(logsnr, list) or not isinstance(errors, list):
        return None
    if len(logsnr) != len(errors) or len(logsnr) > _MAX_BINS:
        return None
    return tuple(map(number_of, logsnr)), tuple(map(number_of, errors))
