"""Checkpoints: whole or absent, verified, retained by policy, and never guessed."""

import errno
import json
import logging
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from simple_diffusion.training import checkpoint_dcp, state
from simple_diffusion.training.state import (
    MARKER,
    STATE,
    Checkpoint,
    CheckpointError,
    CheckpointStore,
    find_checkpoint,
    open_checkpoint,
)
from tests.training.checkpoint_ranks import die, run_alone

TENSORS = {"model": {"w": torch.arange(6.0).reshape(2, 3).t(), "b": torch.tensor(1.5)}}


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def save(store: CheckpointStore, images_seen: int, **state: Any) -> Path:
    """Save, wait, and say where it is."""
    store.save(images_seen, TENSORS, state)
    store.wait()
    saved = store.poll()
    assert saved is not None
    assert saved.images_seen == images_seen
    return Path(saved.path)


def newest(store: CheckpointStore) -> Checkpoint:
    found = store.newest()
    assert found is not None
    return found


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Saves write nothing until this is set."""
    go_on, original = threading.Event(), checkpoint_dcp.write_tensors

    def wait_first(*arguments: Any) -> Any:
        assert go_on.wait(30)
        return original(*arguments)

    monkeypatch.setattr(checkpoint_dcp, "write_tensors", wait_first)
    return go_on


class TestSaving:
    def test_round_trip(self, tmp_path: Path) -> None:
        store = CheckpointStore(tmp_path / "checkpoints")
        path = save(store, 640, step=10)
        found = newest(store)
        assert found.path == path == tmp_path / "checkpoints" / "000000000640"
        assert found.state["step"] == 10
        assert torch.equal(found.tensors("model")["w"], TENSORS["model"]["w"])
        assert found.tensors("model")["b"].shape == ()
        assert names(path) == [MARKER, "index.json", "rank-00000.safetensors", STATE]

    def test_nothing_there_is_none(self, tmp_path: Path) -> None:
        store = CheckpointStore(tmp_path / "checkpoints")
        assert store.newest() is None
        assert not store.exists()
        save(store, 1)
        assert store.exists()

    def test_training_goes_on_while_it_is_written(
        self, tmp_path: Path, held: threading.Event
    ) -> None:
        store = CheckpointStore(tmp_path)
        weights, told = {"w": torch.ones(1000)}, {"step": [1]}
        store.save(1, {"model": weights}, told)
        assert store.poll() is None
        weights["w"].fill_(2.0)
        told["step"][0] = 2
        held.set()
        store.wait()
        saved = store.poll()
        assert saved is not None
        assert store.poll() is None
        found = newest(store)
        assert found.state["step"] == [1]
        assert found.tensors("model")["w"].unique().tolist() == [1.0]
        assert saved.bytes == sum(path.stat().st_size for path in found.path.iterdir()) - (
            (found.path / MARKER).stat().st_size
        )

    def test_the_next_save_waits_for_the_one_before(
        self, tmp_path: Path, held: threading.Event
    ) -> None:
        store = CheckpointStore(tmp_path)
        store.save(1, TENSORS, {})
        threading.Timer(0.2, held.set).start()
        store.save(2, TENSORS, {})
        assert names(tmp_path)[-1] == "000000000001"  # whatever has come of the second
        store.wait()
        first, second = store.poll(), store.poll()
        assert first is not None
        assert second is not None
        assert (first.images_seen, second.images_seen) == (1, 2)

    def test_saving_the_same_step_again_replaces_it(self, tmp_path: Path) -> None:
        store = CheckpointStore(tmp_path)
        save(store, 8, events_done=False)
        save(store, 8, events_done=True)
        assert names(tmp_path) == ["000000000008"]
        assert newest(store).state["events_done"] is True


class TestKeeping:
    def test_the_newest_and_the_milestones(self, tmp_path: Path) -> None:
        store = CheckpointStore(tmp_path, keep=2, milestone_images=300)
        for images in range(100, 800, 100):
            save(store, images)
        assert [int(name) for name in names(tmp_path)] == [300, 600, 700]

    def test_milestones_need_not_be_multiples_of_the_batch(self, tmp_path: Path) -> None:
        store = CheckpointStore(tmp_path, keep=1, milestone_images=100)
        for images in range(0, 7 * 64, 64):
            save(store, images)
        assert [int(name) for name in names(tmp_path)] == [128, 256, 320, 384]

    def test_all(self, tmp_path: Path) -> None:
        store = CheckpointStore(tmp_path, keep=None)
        for images in range(5):
            save(store, images)
        assert len(names(tmp_path)) == 5

    def test_an_old_one_that_cannot_be_deleted_spoils_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        store = CheckpointStore(tmp_path, keep=1)
        save(store, 1)

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(Path, "unlink", refuse)
        with caplog.at_level(logging.WARNING):
            save(store, 2)
        assert "could not be deleted: [Errno 13] Permission denied" in caplog.text
        assert names(tmp_path) == ["000000000001", "000000000002"]


class TestDamage:
    @pytest.mark.parametrize(
        "damage", ["truncated", "flipped", "no marker", "missing", "marker", "index", "odd marker"]
    )
    def test_the_one_before_is_taken_loudly(
        self, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        store = CheckpointStore(tmp_path)
        save(store, 1, step=1)
        broken = save(store, 2, step=2)
        weights = broken / "rank-00000.safetensors"
        content = bytearray(weights.read_bytes())
        if damage == "truncated":
            weights.write_bytes(content[:-4])
        elif damage == "flipped":
            content[-1] ^= 1
            weights.write_bytes(content)
        elif damage == "missing":
            weights.unlink()
        elif damage == "marker":
            (broken / MARKER).write_text("{")
        elif damage == "odd marker":
            (broken / MARKER).write_text(json.dumps({STATE: 3}))
        elif damage == "index":
            (broken / "index.json").write_text("{}")
        else:
            (broken / MARKER).unlink()
        with caplog.at_level(logging.WARNING):
            found = newest(store)
        assert found.state["step"] == 1
        assert "CHECKPOINT DAMAGED" in caplog.text
        assert str(broken) in caplog.text
        assert names(tmp_path) == ["000000000001", "000000000002.damaged"]

    def test_one_that_cannot_be_read_now_is_left_alone(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A server that is away for a moment says nothing of what is in a file."""
        store = CheckpointStore(tmp_path)
        for images_seen in (1, 2):
            save(store, images_seen)

        def stale(*_: object) -> None:
            raise OSError(errno.ESTALE, "Stale file handle")

        monkeypatch.setattr(state, "damage", stale)
        with pytest.raises(CheckpointError, match=r"Stale file handle\. It is left as it is"):
            store.newest()
        monkeypatch.undo()
        assert names(tmp_path) == ["000000000001", "000000000002"]
        assert newest(store).path == tmp_path / "000000000002"

    def test_all_damaged_is_an_error_not_a_fresh_start(self, tmp_path: Path) -> None:
        store = CheckpointStore(tmp_path)
        (save(store, 1) / STATE).write_text("{}")
        with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
            store.newest()

    def test_a_checkpoint_from_the_future_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = CheckpointStore(tmp_path)
        monkeypatch.setattr(state, "FORMAT_VERSION", 99)
        path = save(store, 1)
        monkeypatch.undo()
        for attempt in (store.newest, lambda: open_checkpoint(path)):
            with pytest.raises(CheckpointError, match=r"newer simple_diffusion .*99.*upgrade"):
                attempt()
        assert path.is_dir()


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


class TestFailing:
    @pytest.mark.parametrize("when", ["write_tensors", "write_text"])
    def test_a_full_disk_leaves_the_previous_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
    ) -> None:
        store = CheckpointStore(tmp_path)
        save(store, 1)
        monkeypatch.setattr(checkpoint_dcp, when, full)
        store.save(2, TENSORS, {})
        with pytest.raises(
            CheckpointError, match=r"no space left.*000000000001.*same command again"
        ):
            store.wait()
        assert names(tmp_path) == ["000000000001"]
        store.wait()  # it is said once
        assert store.poll() is None

    @pytest.mark.parametrize("who", ["poll", "save", "newest"])
    def test_whoever_comes_next_is_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: str
    ) -> None:
        store = CheckpointStore(tmp_path)
        monkeypatch.setattr(checkpoint_dcp, "write_tensors", full)
        store.save(2, TENSORS, {})
        calls: dict[str, Callable[[], Any]] = {
            "poll": lambda: [store.poll() for _ in iter(lambda: threading.Event().wait(0.01), 1)],
            "save": lambda: store.save(3, TENSORS, {}),
            "newest": store.newest,
        }
        with pytest.raises(CheckpointError, match=r"000000000002 .*no space left.*no earlier one"):
            calls[who]()

    def test_a_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        store = CheckpointStore(tmp_path / "file")
        store.save(1, TENSORS, {})
        with pytest.raises(CheckpointError, match=r"could not be saved: .*no earlier one"):
            store.wait()

    def test_a_state_that_could_not_be_read_again_is_not_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(checkpoint_dcp, "MAX_JSON_BYTES", 1000)
        store = CheckpointStore(tmp_path)
        store.save(1, TENSORS, {"text": "x" * 1000})
        with pytest.raises(CheckpointError, match=r"state\.json would have .* at most 1000"):
            store.wait()


EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir")


def save_until(root: str, images_seen: int, keep: int, event: int) -> None:
    """Save, and be killed at some numbered act on the file system."""
    store = CheckpointStore(root, keep=keep)
    left = [event]

    def count(name: str, arguments: Any) -> None:
        if name in EVENTS and root in str(arguments[0]):
            left[0] -= 1
            if left[0] == 0:
                die()

    sys.addaudithook(count)
    tensors: dict[str, Tensor] = {"w": torch.full((5,), 2.0)}
    store.save(images_seen, {"model": tensors}, {"step": 2})
    store.wait()


@pytest.mark.parametrize("images_seen", [1, 2], ids=["same again", "next"])
def test_sigkill_at_any_moment_leaves_a_whole_one(tmp_path: Path, images_seen: int) -> None:
    found_steps = []
    for event in range(1, 100):
        root = tmp_path / str(event)
        store = CheckpointStore(root, keep=1)
        store.save(1, {"model": {"w": torch.full((5,), 1.0)}}, {"step": 1})
        store.wait()
        assert store.poll() is not None
        code = run_alone(save_until, str(root), images_seen, 1, event)
        assert store.exists()
        alive = find_checkpoint(root)
        assert alive.tensors("model")["w"].tolist() == [float(alive.state["step"])] * 5
        found_steps.append(alive.state["step"])
        assert newest(store).state == alive.state
        save(store, 3)
        assert names(root) == ["000000000003"]
        if code == 0:
            break
        assert code == -9
    # Up to some moment it is the old one, from then on the new one; and the end was reached.
    assert code == 0
    assert found_steps == sorted(found_steps)
    assert found_steps.count(1) > 5
    assert found_steps.count(2) > 1
