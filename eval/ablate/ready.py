"""What must be there before the first cell runs: the data of all cells, and the extractor."""

from collections.abc import Sequence
from pathlib import Path

import torch

from data_pipelines.manifest import ShardSetError
from data_pipelines.store import load_manifest
from eval.ablate.cells import Cell, unique
from eval.ablate.generations import check_real_images
from eval.ablate.overlays import StudyError
from eval.features import open_extractor
from eval.metrics import check_metrics
from simple_diffusion.training.data_facts import held_out_path


def check_ready(cells: Sequence[Cell]) -> None:
    """Open every shard set's manifest, and the extractor.

    Raises:
        StudyError: shard sets that are missing or damaged, all of them in one message.
        ValueError: weights of the extractor that are missing, with the remedy.
    """
    missing: dict[str, str] = {}
    for cell in unique(cells).values():
        data, reference = cell.spec.config.data, cell.spec.measure.reference
        held_out = held_out_path(data)
        mixed = [one.path for one in data.mix_with]
        for path in (data.path, *mixed, held_out, reference):
            if path is None or str(path) in missing:
                continue
            try:
                load_manifest(path)
            except ShardSetError as error:
                missing[str(path)] = f"  {cell.name}: {error}"
        if held_out is None and reference is None and data.path not in missing:
            missing[data.path] = (
                f"  {cell.name}: {data.path} has no held-out images to score against; build it "
                "with --validation, or name a set as measure.reference"
            )
    if missing:
        raise StudyError("the data of some cells are not there:\n" + "\n".join(missing.values()))
    for extractor, weights in {(c.spec.measure.extractor, c.spec.measure.weights) for c in cells}:
        file = None if weights is None else Path(weights)
        opened = open_extractor(extractor, weights=file, device=torch.device("cpu"))
        for cell in cells:
            if cell.spec.measure.extractor == extractor:
                check_metrics(cell.spec.measure.metrics, opened.facts.classes)
    for cell in cells:
        check_real_images(cell.spec)
