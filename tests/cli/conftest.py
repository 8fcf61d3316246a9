"""Small finished runs to draw from and to export."""

from pathlib import Path

import pytest

from tests.trained_run import TrainedRun, train_run


@pytest.fixture(scope="session")
def trained(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """Of a class-conditional network."""
    return train_run(tiny_shards, tmp_path_factory.mktemp("runs") / "conditional")


@pytest.fixture(scope="session")
def unconditional(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """Of an unconditional network, whose config asks for guidance all the same."""
    return train_run(
        tiny_shards,
        tmp_path_factory.mktemp("runs") / "unconditional",
        model={"num_classes": 0},
    )
