"""Small real shard sets and run configs, shared by the integration tests."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from data_pipelines.building.stream import Sample, write_shards
from tests.processes import start_server

CLASSES = ("circle", "square", "stripe")


def pytest_collection_finish(session: pytest.Session) -> None:
    if any(item.get_closest_marker("integration") for item in session.items):
        start_server()


def tiny_image(index: int, size: int = 16) -> np.ndarray:
    """A coloured shape on a light page; class index % 3. uint8, (size, size, 3)."""
    rng = np.random.default_rng(index)
    y, x = np.mgrid[0:size, 0:size] - (size - 1) / 2
    radius = rng.uniform(0.2, 0.4) * size
    shape = [x**2 + y**2 < radius**2, np.maximum(abs(x), abs(y)) < radius, abs(x) < radius / 2]
    picture = np.full((size, size, 3), 240, np.uint8)
    picture[shape[index % 3]] = rng.integers(0, 200, 3)
    return picture


def _samples(count: int) -> Iterator[Sample]:
    for index in range(count):
        buffer = io.BytesIO()
        Image.fromarray(tiny_image(index)).save(buffer, "PNG")
        name = CLASSES[index % 3]
        yield Sample(f"tiny-{index:04d}", buffer.getvalue(), "png", 16, 16, name, f"{name} {index}")


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 images of 16x16 in ragged shards, a quarter of them held out."""
    root = tmp_path_factory.mktemp("data") / "tiny"
    write_shards(
        lambda: _samples(120),
        root,
        source="made by the tests",
        licence="none needed",
        recipe={"source": "tests"},
        shard_samples=25,
        validation=0.25,
        progress=False,
    )
    return root


@pytest.fixture
def tiny_config(tiny_shards: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a config that trains a small network on `tiny_shards` in seconds."""

    def write(**sections: dict[str, Any] | str | int) -> Path:
        tree: dict[str, Any] = {
            "run_dir": str(tmp_path / "run"),
            "data": {"path": str(tiny_shards), "image_size": 16, "workers": 0},
            "model": {
                "patch_size": 2,
                "channels": [16, 32],
                "depth": 1,
                "head_dim": 16,
                "num_classes": 3,
                "condition_width": 32,
            },
            "optim": {"lr": 2e-3, "warmup_images": 32},
            "train": {"batch_size": 8, "total_images": 160, "precision": "fp32"},
            "checkpoint": {"every_images": 40},
            "validation": {"every_images": 80, "images": 16, "logsnr": [-4, 0, 4]},
            "sampling": {"steps": 2, "guidance": 2.0, "batch_size": 4},
            "grids": {"every_images": 80, "num": 4, "steps": 2, "final_num": 4},
            "log": {"every_images": 24},
        }
        for name, section in sections.items():
            old = tree.get(name)
            both = isinstance(old, dict) and isinstance(section, dict)
            tree[name] = {**old, **section} if both else section
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(tree))
        return path

    return write


@pytest.fixture(scope="session")
def kept(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A run with snapshots of two averages, and a third average that it tracked; not to change."""
    from tests.trained_run import snapshot_run

    folder = tmp_path_factory.mktemp("kept") / "run"
    return folder, snapshot_run(tiny_shards, folder)
