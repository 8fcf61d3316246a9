"""Checkpoints: whole or absent, verified, retained by policy, and never guessed."""

import errno
import json
import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from simple_diffusion.training import state
from simple_diffusion.training.state import (
    MARKER,
    STATE,
    CheckpointError,
    CheckpointStore,
    load_optimizer_tensors,
    open_checkpoint,
    optimizer_tensors,
)

TENSORS = {"model": {"w": torch.arange(6.0).reshape(2, 3).t(), "b": torch.tensor(1.5)}}


def names(store: CheckpointStore) -> list[str]:
    return sorted(path.name for path in store.root.iterdir())


def test_round_trip(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    path = store.save(640, TENSORS, {"step": 10})
    found = store.newest()
    assert found is not None
    assert found.path == path
    assert found.state["step"] == 10
    assert torch.equal(found.tensors("model")["w"], TENSORS["model"]["w"])
    assert found.tensors("model")["b"].shape == ()


def test_nothing_there_is_none(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "checkpoints").newest() is None


def test_keeps_the_newest_and_the_milestones(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2, milestone_images=300)
    for images in range(100, 800, 100):
        store.save(images, TENSORS, {})
    assert [int(name) for name in names(store)] == [300, 600, 700]


def test_milestones_need_not_be_multiples_of_the_batch(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1, milestone_images=100)
    for images in range(0, 7 * 64, 64):
        store.save(images, TENSORS, {})
    assert [int(name) for name in names(store)] == [128, 256, 320, 384]


def test_kill_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    path = store.save(8, TENSORS, {"step": 8})
    path.rename(tmp_path / ".old-000000000008")
    found = store.newest()
    assert found is not None
    assert found.state["step"] == 8


def test_saving_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(8, TENSORS, {"events_done": False})
    store.save(8, TENSORS, {"events_done": True})
    assert names(store) == ["000000000008"]
    found = store.newest()
    assert found is not None
    assert found.state["events_done"] is True


@pytest.mark.parametrize("damage", ["truncated", "flipped", "no marker", "missing", "marker"])
def test_damaged_newest_falls_back_loudly(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, TENSORS, {"step": 1})
    newest = store.save(2, TENSORS, {"step": 2})
    weights = newest / "model.safetensors"
    content = bytearray(weights.read_bytes())
    if damage == "truncated":
        weights.write_bytes(content[:-4])
    elif damage == "flipped":
        content[-1] ^= 1
        weights.write_bytes(content)
    elif damage == "missing":
        weights.unlink()
    elif damage == "marker":
        (newest / MARKER).write_text("{")
    else:
        (newest / MARKER).unlink()
    with caplog.at_level(logging.WARNING):
        found = store.newest()
    assert found is not None
    assert found.state["step"] == 1
    assert "CHECKPOINT DAMAGED" in caplog.text
    assert str(newest) in caplog.text
    assert names(store) == ["000000000001", "000000000002.damaged"]


def test_all_damaged_is_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    (store.save(1, TENSORS, {}) / STATE).write_text("{}")
    with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
        store.newest()


def test_checkpoint_from_the_future_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path)
    monkeypatch.setattr(state, "FORMAT_VERSION", 99)
    path = store.save(1, TENSORS, {})
    monkeypatch.undo()
    for attempt in (store.newest, lambda: open_checkpoint(path)):
        with pytest.raises(CheckpointError, match=r"newer simple_diffusion .*99.*upgrade"):
            attempt()
    assert path.is_dir()


def test_full_disk_leaves_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, TENSORS, {"step": 1})

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(state, "save_file", full)
    with pytest.raises(CheckpointError, match=r"no space left.*000000000001.*same command again"):
        store.save(2, TENSORS, {"step": 2})
    assert names(store) == ["000000000001"]


def test_a_killed_save_is_invisible_and_cleaned_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, TENSORS, {"step": 1})
    monkeypatch.setattr(Path, "rename", _die)
    with pytest.raises(KeyboardInterrupt):
        store.save(2, TENSORS, {"step": 2})
    monkeypatch.undo()
    assert ".tmp-000000000002" in names(store)
    found = store.newest()
    assert found is not None
    assert found.state["step"] == 1
    store.save(3, TENSORS, {"step": 3})
    assert names(store) == ["000000000001", "000000000003"]


def _die(*args: object) -> None:
    raise KeyboardInterrupt


def test_marker_cannot_point_outside(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    path = store.save(1, TENSORS, {})
    marker = json.loads((path / MARKER).read_text())
    marker["../../secret"] = {"bytes": 1, "sha256": ""}
    (path / MARKER).write_text(json.dumps(marker))
    with pytest.raises(CheckpointError, match="secret: missing"):
        open_checkpoint(path)


def test_optimizer_state_goes_through_flat_tensors() -> None:
    def make() -> tuple[nn.Linear, torch.optim.AdamW]:
        torch.manual_seed(0)
        layer = nn.Linear(3, 2)
        return layer, torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)

    def step(layer: nn.Linear, optimizer: torch.optim.AdamW, seed: int) -> None:
        for parameter in layer.parameters():
            generator = torch.Generator().manual_seed(seed)
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()

    layer, optimizer = make()
    other, restored = make()
    for seed in range(5):
        step(layer, optimizer, seed)
    flat = optimizer_tensors(optimizer, {p: n for n, p in layer.named_parameters()})
    assert set(flat) == {
        f"{p}/{k}" for p in ("weight", "bias") for k in ("step", "exp_avg", "exp_avg_sq")
    }
    other.load_state_dict(layer.state_dict())
    load_optimizer_tensors(restored, {p: n for n, p in other.named_parameters()}, flat)
    step(layer, optimizer, 9)
    step(other, restored, 9)
    assert torch.equal(layer.weight, other.weight)
    assert torch.equal(layer.bias, other.bias)
