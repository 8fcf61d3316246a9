"""Figures of real images, damaged on purpose: more damage must score worse."""

import itertools
from pathlib import Path

import pytest
import torch

from benchmarks.perturbations import CHANGES
from data_pipelines.loader import evaluation_loader
from data_pipelines.sources.icons import build_icons
from eval.features import open_extractor
from eval.metrics import score
from eval.statistics import describe

NUM = 64  # of each half

# Mild to severe, by families that the eye ranks without doubt.
FAMILIES = (
    ("nothing", "blur, sigma 1", "blur, sigma 2"),
    ("nothing", "noise, deviation 10", "noise, deviation 25", "8x8 patches shuffled"),
)


@pytest.mark.integration
def test_more_damage_scores_worse(tmp_path: Path) -> None:
    build_icons(tmp_path / "icons", size=64, sets=["octicons"], min_class=2, progress=False)
    loader = evaluation_loader(tmp_path / "icons", image_size=64, num=2 * NUM, batch_size=2 * NUM)
    images = next(iter(loader)).images
    extractor = open_extractor("lite0", device=torch.device("cpu"))
    real = describe([(images[:NUM], None)], extractor)
    found = {}
    for name in dict.fromkeys(name for family in FAMILIES for name in family):
        ours = describe([(CHANGES[name](images[NUM:]), None)], extractor)
        found[name] = score(["kid", "fd"], ours, real)
    for family in FAMILIES:
        for milder, worse in itertools.pairwise(family):
            for metric in ("kid", "fd"):
                assert found[milder][metric].value < found[worse][metric].value, (milder, worse)
    undamaged = found["nothing"]["kid"]
    assert undamaged.error is not None
    assert abs(undamaged.value) < 3 * undamaged.error
