"""What is kept of a run, and said of it: a stop, a slow disk, a full one, other processes."""

import errno
import json
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from simple_diffusion.training import checkpoint_dcp
from simple_diffusion.training.agreement import Agreement
from simple_diffusion.training.ema import Ema
from simple_diffusion.training.health import Health, Sample
from simple_diffusion.training.keeper import Keeper
from simple_diffusion.training.signals import StopSignals
from simple_diffusion.training.state import CheckpointError, CheckpointStore, TensorGroups
from simple_diffusion.training.telemetry import MetricsFile
from simple_diffusion.training.watchdog import Watchdog

BATCH = 8


@dataclass
class State:
    """Of a run, as far as a keeper looks at it."""

    images_seen: int = 0
    events_done: bool = True
    world_size: int = 1
    health: Health = field(default_factory=lambda: Health(3, 5.0))
    weights: dict[str, Tensor] = field(default_factory=lambda: {"w": torch.zeros(4)})

    def __post_init__(self) -> None:
        self.ema = Ema(self.weights, [0.05, 0.1], every_steps=1)

    def go(self) -> None:
        self.images_seen += BATCH
        self.weights["w"] += 1.0
        self.ema.update(self.weights, self.images_seen // BATCH, self.images_seen)

    def to_json(self, reduce: Any, device: torch.device) -> dict[str, Any]:
        return {"images_seen": self.images_seen, "world_size": self.world_size}

    def groups(self) -> TensorGroups:
        return {"model": self.weights, **self.averages()}

    def averages(self) -> TensorGroups:
        return {name: self.ema.tensors(name) for name in self.ema.names}

    def load(self, found: Any) -> None:
        self.images_seen = found.state["images_seen"]


def make_keeper(folder: Path, *, grace: float = 60.0, processes: int = 1) -> Keeper:
    return Keeper(
        accelerator=Accelerator(cpu=True),
        agreement=Agreement(StopSignals(), None, None),
        watchdog=Watchdog(rank=0, processes=1, store=None, stall_seconds=600.0),
        store=CheckpointStore(folder / "checkpoints", keep=2),
        snapshots=CheckpointStore(folder / "snapshots", keep=None),
        metrics=MetricsFile(folder / "metrics.jsonl"),
        facts={"processes": processes},
        total_images=100 * BATCH,
        batch_size=BATCH,
        grace_seconds=grace,
    )


@pytest.fixture
def state() -> Any:
    return State()


def lines(keeper: Keeper, kind: str) -> list[dict[str, Any]]:
    return [line for line in keeper.metrics.lines() if line["kind"] == kind]


def told(keeper: Keeper, signal_age: float) -> None:
    """The process got SIGUSR1 so many seconds ago."""
    keeper.agreement.signals.hear(signal.SIGUSR1)
    keeper.agreement.signals.since = time.monotonic() - signal_age


class TestStopping:
    def test_the_line_says_how_long_it_took_from_the_signal(
        self, tmp_path: Path, state: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        keeper = make_keeper(tmp_path)
        state.go()
        told(keeper, signal_age=30.0)
        keeper.save_and_stop(state)
        (line,) = lines(keeper, "stop")
        assert (line["images_seen"], line["signal"]) == (8, "SIGUSR1")
        assert 30.0 <= line["seconds"] < 60.0
        assert [one["images_seen"] for one in lines(keeper, "checkpoint")] == [8]
        assert (tmp_path / "checkpoints" / "000000000008" / "COMPLETE.json").is_file()
        assert "grace_seconds" not in "".join(capsys.readouterr())

    def test_slower_than_the_launcher_allows(
        self, tmp_path: Path, state: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        keeper = make_keeper(tmp_path, grace=20.0)
        told(keeper, signal_age=30.0)
        keeper.save_and_stop(state)
        said = "".join(capsys.readouterr())
        assert "from the signal to the end of saving" in said
        assert "the launcher leaves 20 s (checkpoint.grace_seconds)" in said

    def test_a_slow_checkpoint_is_told_before_any_signal_and_once(
        self, tmp_path: Path, state: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        keeper = make_keeper(tmp_path, grace=0.0)
        for _ in range(3):
            state.go()
            keeper.save(state)
            keeper.finish()
        said = "".join(capsys.readouterr())
        assert said.count("checkpoint.grace_seconds") == 1
        assert f"s to write two such as {tmp_path / 'checkpoints'}" in said


class TestSaving:
    def test_a_moment_is_saved_once(self, tmp_path: Path, state: Any) -> None:
        keeper = make_keeper(tmp_path)
        state.go()
        for _ in range(3):
            keeper.save(state)
            keeper.finish()
        assert len(lines(keeper, "checkpoint")) == 1
        (line,) = lines(keeper, "checkpoint")
        assert 0.0 < line["stall_seconds"] < 60.0
        assert line["bytes"] > 3 * 4 * 4  # weights and two averages

    def test_a_full_disk_is_heard_of_and_ends_the_run(
        self, tmp_path: Path, state: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keeper = make_keeper(tmp_path)
        state.go()
        keeper.save(state)
        keeper.finish()
        assert not keeper.save_failed()

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(checkpoint_dcp, "write_tensors", full)
        state.go()
        keeper.save(state)
        deadline = time.monotonic() + 30.0
        while not keeper.save_failed():  # what the loop asks between steps
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for _ in range(2):
            with pytest.raises(CheckpointError, match="no space left"):
                keeper.finish()
        assert keeper.kept == f"The newest checkpoint is {tmp_path}/checkpoints/000000000008."
        assert [one["images_seen"] for one in lines(keeper, "checkpoint")] == [8]

    def test_snapshots_are_kept_for_ever(self, tmp_path: Path, state: Any) -> None:
        """Only the averages, each as of then; of checkpoints the last two are."""
        keeper = make_keeper(tmp_path)
        for _ in range(5):
            state.go()
            keeper.save(state)
            keeper.save_snapshot(state)
            keeper.finish()
        assert len(list((tmp_path / "checkpoints").glob("[0-9]*"))) == 2
        kept = sorted(path.name for path in (tmp_path / "snapshots").glob("[0-9]*"))
        assert kept == [f"{8 * n:012d}" for n in range(1, 6)]
        newest = keeper.snapshots.newest()
        assert newest is not None
        assert sorted(newest.groups()) == ["ema_0.050", "ema_0.100"]
        assert torch.equal(newest.tensors("ema_0.050")["w"], state.ema.tensors("ema_0.050")["w"])
        assert newest.state["ema_updated_at"] == 40

    def test_notes_of_the_runs_health_are_written(self, tmp_path: Path, state: Any) -> None:
        keeper = make_keeper(tmp_path)
        bad = torch.tensor([1.0, torch.nan])
        samples = [Sample(6, "a"), Sample(7, "b")]
        state.health.take(1, 8, samples, torch.tensor(torch.nan), bad)
        keeper.write_notes(state)
        keeper.write_notes(state)
        (line,) = keeper.metrics.lines()
        assert (line["kind"], line["samples"]) == ("skipped", [{"position": 7, "key": "b"}])


class TestResuming:
    def saved(self, folder: Path, state: Any, processes: int = 1) -> None:
        keeper = make_keeper(folder, processes=processes)
        keeper.resume(state)
        state.go()
        keeper.metrics.append({"kind": "train", "images_seen": 8, "loss": 1.0})
        keeper.save(state)
        keeper.finish()
        keeper.metrics.append({"kind": "train", "images_seen": 16, "loss": 2.0})

    def test_from_the_start(self, tmp_path: Path, state: Any) -> None:
        keeper = make_keeper(tmp_path)
        keeper.resume(state)
        assert keeper.metrics.lines() == [{"kind": "run", "images_seen": 0, "processes": 1}]
        assert keeper.kept == "Nothing was saved."

    def test_on_as_many_processes(
        self, tmp_path: Path, state: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.saved(tmp_path, state)
        keeper, again = make_keeper(tmp_path), State()
        keeper.resume(again)  # type: ignore[arg-type]
        said = "".join(capsys.readouterr())
        assert f"resuming {tmp_path}/checkpoints/000000000008 at image 8" in said
        assert "->" not in said
        assert [line["images_seen"] for line in lines(keeper, "train")] == [8]
        assert len(lines(keeper, "run")) == 1

    def test_on_another_number_of_processes(
        self, tmp_path: Path, state: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        state.world_size = 64
        self.saved(tmp_path, state, processes=64)
        keeper, again = make_keeper(tmp_path), State()
        keeper.resume(again)  # type: ignore[arg-type]
        assert "processes: 64 -> 1" in "".join(capsys.readouterr())
        facts = [(line["images_seen"], line["processes"]) for line in lines(keeper, "run")]
        assert facts == [(0, 64), (8, 1)]

    def test_a_moment_that_is_there_is_not_saved_again(self, tmp_path: Path, state: Any) -> None:
        self.saved(tmp_path, state)
        keeper, again = make_keeper(tmp_path), State()
        keeper.resume(again)  # type: ignore[arg-type]
        keeper.save(again)  # type: ignore[arg-type]
        keeper.finish()
        assert len(lines(keeper, "checkpoint")) == 1

    def test_checkpoints_that_went_missing(self, tmp_path: Path, state: Any) -> None:
        """Never a silent fresh start."""
        keeper = make_keeper(tmp_path)
        keeper.metrics.append({"kind": "train", "images_seen": 8})
        before = (tmp_path / "metrics.jsonl").read_text()
        with pytest.raises(CheckpointError, match="says that training has begun"):
            keeper.resume(state)
        assert (tmp_path / "metrics.jsonl").read_text() == before

    def test_a_run_that_was_longer(self, tmp_path: Path, state: Any) -> None:
        self.saved(tmp_path, state)
        keeper = make_keeper(tmp_path)
        keeper.total_images = 0
        state.images_seen = 2 * BATCH
        with pytest.raises(CheckpointError, match="raise it, or choose another"):
            keeper.resume(state)
        assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
