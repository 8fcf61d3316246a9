"""Scores of a run: draw samples by number, measure them part by part, compare."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from PIL import Image

from data_pipelines.manifest import Manifest
from data_pipelines.store import is_remote
from eval.evaluate.comparison import (
    Reference,
    check_classes,
    check_enough,
    compare,
    key_of,
    write_record,
)
from eval.evaluate.memorisation import memorisation
from eval.evaluate.processes import start_processes
from eval.evaluate.samples import Samples
from eval.metrics import check_metrics
from eval.parts import Images, Parts, with_progress
from eval.statistics import KEEP
from simple_diffusion.config import SamplingConfig
from simple_diffusion.config_data import DataConfig
from simple_diffusion.diffusion.generate import from_uint8
from simple_diffusion.training.grids import save_grid
from simple_diffusion.training.reference import alone
from simple_diffusion.training.saved_run import SavedRun

RECORD = "evaluation.json"
GRID = "grid.png"
NEIGHBOURS = "neighbours.png"
SHOWN = 64  # samples kept as pictures


def evaluate_run(
    saved: SavedRun,
    metrics: Sequence[str],
    reference: Reference,
    *,
    num: int,
    seed: int,
    sampling: SamplingConfig,
    by_class: bool = False,
    neighbours: int = 0,
    state: PartialState | None = None,
) -> dict[str, Any]:
    """Draw `num` images and score them. Every process of a launch calls it alike.

    The samples' features are kept in `RUN/evaluations/KEY`, KEY standing for everything that they
    depend on: an interrupted evaluation goes on there, and other metrics or references draw nothing
    anew. `evaluation.json` is written there, and in the run for the last evaluation.

    Args:
        saved: the run and its weights.
        metrics: names in `eval.metrics.METRICS`.
        reference: what to compare with.
        num: number of samples.
        seed: names the set of samples.
        sampling: how to draw.
        by_class: give figures of single classes too.
        neighbours: show so many samples beside the training images nearest to them; 0 for none.
        state: this process's place; None to ask the launcher.

    Returns:
        The record, on every process.

    Raises:
        ValueError: unknown metrics, too few images, or a reference that cannot be used.
    """
    check_metrics(metrics, reference.extractor.facts.classes)
    state = state or start_processes()
    if by_class:
        check_classes(saved.data.classes, reference.root)
    if neighbours:
        _check_training_set(saved.config.data, reference.root)
    real = reference.statistics(state)
    check_enough(metrics, num, real.count)
    samples = Samples(saved, sampling, seed, state.device)
    pins, facts = samples.pins(num), reference.extractor.facts
    folder = saved.path / "evaluations" / key_of(pins, facts)
    parts = Parts(folder, num, sampling.batch_size, facts)
    with alone(folder) if state.is_main_process else nullcontext():
        state.wait_for_everyone()
        mine = parts.missing(state.process_index, state.num_processes)
        drawn = _draw(samples, [parts.indices(part) for part in mine], folder)
        with_progress(parts, mine, drawn, reference.extractor, "sampling")
        state.wait_for_everyone()
    record = compare(metrics, parts.statistics(KEEP), pins, reference, real, by_class=by_class)
    if state.is_main_process:
        _write_grid(folder, min(num, SHOWN), samples)
        _write(record, saved.path, folder)
        if neighbours:
            record["memorisation"] = memorisation(
                parts.features(),
                samples.images,
                Path(saved.config.data.path),
                real,
                reference.extractor,
                image_size=reference.image_size,
                shown=neighbours,
                picture=folder / NEIGHBOURS,
            )
            _write(record, saved.path, folder)
    state.wait_for_everyone()
    return record


def _draw(samples: Samples, groups: Sequence[range], folder: Path) -> Iterator[Images]:
    """The images of each group, keeping the first ones as files for the grid."""
    for indices in groups:
        images = samples.images(indices)
        for index, image in zip(indices, images, strict=True):
            if index < SHOWN:
                save_grid(from_uint8(image[None]), _picture(folder, index))
        yield images, samples.labels(indices)


def _write(record: dict[str, Any], run_dir: Path, folder: Path) -> None:
    for path in (folder / RECORD, run_dir / RECORD):
        write_record(path, record)


def _check_training_set(data: DataConfig, reference: Path) -> None:
    """What a search for copies needs."""
    if data.mix_with or is_remote(data.path):
        raise ValueError(
            "--neighbours searches the training images, which must be one shard set in a folder; "
            f"this run's come from {data.path}"
            + "".join(f" and {one.path}" for one in data.mix_with)
            + "; leave --neighbours out"
        )
    if Manifest.load(Path(data.path)).fingerprint == Manifest.load(reference).fingerprint:
        raise ValueError(
            f"{reference} is the training set: nearest training images tell nothing without "
            "held-out images to compare with; give others as --reference, or leave --neighbours out"
        )


def _write_grid(folder: Path, count: int, samples: Samples) -> None:
    for index in range(count):
        if not _picture(folder, index).is_file():  # removed since it was measured
            image = samples.images(range(index, index + 1))
            save_grid(from_uint8(image), _picture(folder, index))
    pictures = [Image.open(_picture(folder, index)).convert("RGB") for index in range(count)]
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
    save_grid(from_uint8(pixels.permute(0, 3, 1, 2)), folder / GRID)


def _picture(folder: Path, index: int) -> Path:
    return folder / "samples" / f"{index:06d}.png"
