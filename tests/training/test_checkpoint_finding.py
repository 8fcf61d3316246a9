"""Checkpoints found and opened by those who do not train: nothing is changed there."""

import json
import logging
from pathlib import Path

import pytest
import torch

from simple_diffusion.training.state import (
    MARKER,
    STATE,
    CheckpointError,
    CheckpointStore,
    find_checkpoint,
    open_checkpoint,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two checkpoints, at images 8 and 16."""
    store = CheckpointStore(tmp_path / "checkpoints")
    for seen in (8, 16):
        store.save(seen, {"model": {"w": torch.full((3,), float(seen))}}, {"step": seen // 8})
    store.wait()
    return tmp_path / "checkpoints"


def tree(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


class TestFindCheckpoint:
    @pytest.mark.parametrize(("wanted", "found"), [(None, 16), (16, 16), (8, 8)])
    def test_the_newest_or_the_one_asked_for(
        self, root: Path, wanted: int | None, found: int
    ) -> None:
        checkpoint = find_checkpoint(root, wanted)
        assert checkpoint.path == root / f"{found:012d}"
        assert checkpoint.tensors("model")["w"].tolist() == [float(found)] * 3

    def test_none_yet(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="no checkpoint there yet; train the run first"):
            find_checkpoint(tmp_path / "nothing")

    def test_not_this_one(self, root: Path) -> None:
        with pytest.raises(CheckpointError, match="no checkpoint at image 9; there are 8, 16"):
            find_checkpoint(root, 9)

    def test_a_damaged_one_is_passed_over_and_left(
        self, root: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (root / f"{16:012d}" / "rank-00000.safetensors").write_bytes(b"short")
        before = tree(root)
        with caplog.at_level(logging.WARNING):
            assert find_checkpoint(root).path == root / f"{8:012d}"
        assert "CHECKPOINT DAMAGED" in caplog.text
        assert tree(root) == before

    def test_a_damaged_one_that_was_asked_for(self, root: Path) -> None:
        (root / f"{16:012d}" / STATE).unlink()
        with pytest.raises(CheckpointError, match="missing"):
            find_checkpoint(root, 16)

    def test_all_damaged(self, root: Path) -> None:
        for marker in root.glob(f"*/{MARKER}"):
            marker.write_text("{")
        with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
            find_checkpoint(root)


class TestOpenCheckpoint:
    def test_no_complete_one(self, root: Path) -> None:
        path = root / f"{8:012d}"
        (path / MARKER).unlink()
        with pytest.raises(CheckpointError, match="not a complete checkpoint"):
            open_checkpoint(path)

    @pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "..", "", "a/b"])
    def test_the_marker_cannot_point_outside(self, root: Path, name: str) -> None:
        path = root / f"{8:012d}"
        marker = json.loads((path / MARKER).read_text())
        marker[name] = {"bytes": 1, "sha256": ""}
        (path / MARKER).write_text(json.dumps(marker))
        with pytest.raises(CheckpointError, match="is no name of a file"):
            open_checkpoint(path)
