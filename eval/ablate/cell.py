"""The job of one cell: make its data, train, draw, score. `python -m eval.ablate.cell FOLDER`.

Everything is done in the cell's folder and goes on where it was stopped. `result.json` is written
last.
"""

import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from eval.ablate.costs import cost_of
from eval.ablate.generations import generation_data
from eval.ablate.pilot import images_in_minutes
from eval.ablate.results import CellResult, read_result, write_result
from eval.ablate.spec import RUN, CellSpec, Measure
from eval.evaluate.comparison import Reference
from eval.evaluate.processes import start_processes
from eval.evaluate.runs import GRID, evaluate_run
from eval.features import open_extractor
from eval.metrics import Score
from eval.run_log import RunLog, read_run
from simple_diffusion.config import RunConfig, SamplingConfig
from simple_diffusion.plan.counts import count_flops
from simple_diffusion.training.assemble import assemble
from simple_diffusion.training.data_facts import held_out_path
from simple_diffusion.training.saved_run import open_run
from simple_diffusion.training.signals import EXIT_REQUEUE

SCHEDULE_POINTS = 65
SECONDS = "seconds.json"


def run_cell(folder: Path) -> int:
    """Run a cell to its result, or go on with one that was stopped.

    Args:
        folder: the cell's, with its `cell.yaml`.

    Returns:
        The exit code: 0 done, 75 stopped by a signal, with everything saved.

    Raises:
        ValueError: (or a subclass) whatever training or scoring refuses.
    """
    if read_result(folder) is not None:
        return 0
    spec = CellSpec.read(folder)
    with _timed(folder, "data"):
        config = prepared(spec, folder)
    trainer = assemble(config)
    if trainer.run().received is not None:
        return EXIT_REQUEUE
    with _timed(folder, "evaluate"):
        record = _evaluate(spec, config)
    evaluation = max((folder / RUN / "evaluations").glob(f"*/{GRID}"), key=os.path.getmtime)
    shutil.copyfile(evaluation, folder / GRID)
    write_result(folder, _result(spec, config, record, _seconds(folder)))
    return 0


def prepared(spec: CellSpec, folder: Path) -> RunConfig:
    """The config to train: the cell's, with its folder, budget, data and curve filled in."""
    config = replace(spec.config, run_dir=str(folder / RUN))
    measure = spec.measure
    if spec.data is not None:
        data = generation_data(spec, folder)
        held_out = held_out_path(config.data)
        config = replace(
            config,
            data=replace(
                config.data,
                path=str(data),
                validation_path=None if held_out is None else str(held_out),
                max_synthetic=1.0,
            ),
        )
    scores = replace(config.scores, num=0)
    if measure.curve_every_images is not None:
        scores = replace(
            scores,
            every_images=measure.curve_every_images,
            num=measure.num,
            steps=measure.steps,
            metrics=measure.metrics,
            extractor=measure.extractor,
            weights=measure.weights,
        )
    config = replace(config, scores=scores, sampling=_sampling(config, measure))
    if spec.budget.minutes is not None:
        images = images_in_minutes(config, spec.budget.minutes, folder)
        config = replace(config, train=replace(config.train, total_images=images))
    return config


def _sampling(config: RunConfig, measure: Measure) -> SamplingConfig:
    given = {name: getattr(measure, name) for name in ("sampler", "steps", "guidance")}
    given["batch_size"] = measure.batch_size
    return replace(config.sampling, **{k: v for k, v in given.items() if v is not None})


def _evaluate(spec: CellSpec, config: RunConfig) -> dict[str, Any]:
    state = start_processes()
    measure, saved = spec.measure, open_run(Path(config.run_dir))
    root = held_out_path(config.data) if measure.reference is None else Path(measure.reference)
    if root is None:
        raise ValueError(
            f"{config.data.path} has no held-out images to score against; build it with "
            "--validation, or name a set as measure.reference"
        )
    extractor = open_extractor(
        measure.extractor,
        weights=None if measure.weights is None else Path(measure.weights),
        device=state.device,
    )
    return evaluate_run(
        saved,
        measure.metrics,
        Reference(root, config.data.image_size, extractor),
        num=measure.num,
        seed=config.seed,
        sampling=config.sampling,
        state=state,
    )


def _result(
    spec: CellSpec, config: RunConfig, record: dict[str, Any], seconds: dict[str, float]
) -> CellResult:
    log = read_run(Path(config.run_dir))
    _, step = count_flops(config)
    samples = dict(record["samples"])
    last = log.validations[-1] if log.validations else None
    t = torch.linspace(0, 1, SCHEDULE_POINTS, dtype=torch.float64)
    logsnr = config.schedule.build(config.data.image_size)(t)
    rates = log.curves["images_per_second"]
    return CellResult(
        images=config.train.total_images,
        parameters=log.parameters or 0,
        train_flops=float(step * config.train.total_images),
        sample_flops=cost_of(spec).sample_flops,
        seconds={"train": _train_seconds(log), **seconds},
        images_per_second=float(sorted(rates)[len(rates) // 2]) if len(rates) else float("nan"),
        device=log.device,
        threads=log.threads or 0,
        scores={name: Score(**figure) for name, figure in record["figures"].items()},
        curve=_curve(log),
        logsnr=last.logsnr if last else (),
        eps_mse=last.eps_mse if last else (),
        schedule=(tuple(t.tolist()), tuple(logsnr.tolist())),
        pins={
            **{k: v for k, v in samples.items() if k not in ("run", "weights_sha256")},
            "reference": record["reference"],
            "extractor": record["extractor"],
        },
        grid=GRID,
    )


@contextmanager
def _timed(folder: Path, stage: str) -> Iterator[None]:
    """Add the time spent inside to the stage's, however it ends: attempts add up."""
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds = _seconds(folder)
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - started
        temporary = folder / f"{SECONDS}.tmp"
        temporary.write_text(json.dumps(seconds), encoding="utf-8")
        temporary.replace(folder / SECONDS)


def _seconds(folder: Path) -> dict[str, float]:
    """Time by stage so far; training's own is in the run's log."""
    try:
        return {str(k): float(v) for k, v in json.loads((folder / SECONDS).read_bytes()).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _train_seconds(log: RunLog) -> float:
    seconds = log.curves["seconds"]
    return float(seconds[-1]) if len(seconds) else float("nan")


def _curve(log: RunLog) -> tuple[tuple[int, dict[str, Score]], ...]:
    return tuple(
        (
            one.images_seen,
            {k: Score(v, floor, matched, None) for k, (v, matched, floor) in one.figures.items()},
        )
        for one in log.scorings
    )


def main() -> int:
    """The job's entry: errors become one line, as on the command line."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    (word,) = sys.argv[1:]
    try:
        return run_cell(Path(word))
    except KeyboardInterrupt:
        return EXIT_REQUEUE
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
