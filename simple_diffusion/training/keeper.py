"""What is written of a run while it goes: checkpoints, snapshots, and what happened to it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from simple_diffusion.training.agreement import Agreement
from simple_diffusion.training.run_state import RunState
from simple_diffusion.training.state import CheckpointError, CheckpointStore, Saved
from simple_diffusion.training.telemetry import MetricsFile
from simple_diffusion.training.watchdog import Watchdog


@dataclass
class Keeper:
    """Saves a run, resumes it, and notes both in its metrics.

    Attributes:
        accelerator: of the processes, all of which call every method.
        agreement: what they decide together.
        watchdog: told of the phases.
        store: checkpoints.
        snapshots: of the averages, kept for ever.
        metrics: the JSON lines.
        facts: what the first line says of the run.
        total_images: end of training.
        batch_size: global batch.
        grace_seconds: time that the launcher leaves between a signal and the kill.
    """

    accelerator: Accelerator
    agreement: Agreement
    watchdog: Watchdog
    store: CheckpointStore
    snapshots: CheckpointStore
    metrics: MetricsFile
    facts: Mapping[str, str | int]
    total_images: int
    batch_size: int
    grace_seconds: float
    _saved_at: int | None = None
    _newest: str | None = None
    _failure: CheckpointError | None = None
    _warned: bool = False
    _stall: float = 0.0

    def save(self, state: RunState) -> None:
        """Begin to write a checkpoint, unless this moment has one; training goes on meanwhile."""
        if self._saved_at == state.images_seen and state.events_done:
            return
        began = time.perf_counter()
        self.finish()
        self.write_notes(state)
        self.watchdog.at("save", state.images_seen)
        content = state.to_json(self._sum, self.accelerator.device)
        if self.accelerator.is_main_process:
            self.metrics.sync()
        self.store.save(state.images_seen, state.groups(), content)
        self._stall = time.perf_counter() - began
        if state.events_done:
            self._saved_at = state.images_seen

    def save_snapshot(self, state: RunState) -> None:
        """Begin to write the averages alone, for averages of other lengths later."""
        self.watchdog.at("save", state.images_seen)
        content = {"images_seen": state.images_seen, **_ema_state(state)}
        self.snapshots.save(state.images_seen, state.averages(), content)

    def save_and_stop(self, state: RunState) -> None:
        """Write a checkpoint to its end because of a signal, and say how long that took."""
        self.save(state)
        self.finish()
        signals = self.agreement.signals
        assert signals.received is not None
        assert signals.since is not None
        seconds = time.monotonic() - signals.since
        line = {
            "kind": "stop",
            "images_seen": state.images_seen,
            "signal": signals.received.name,
            "seconds": seconds,
        }
        if self.accelerator.is_main_process:
            self.metrics.append(line)
            self._compare_with_grace(seconds, "from the signal to the end of saving")

    def finish(self) -> None:
        """Wait until everything is on the disk.

        Raises:
            CheckpointError: it could not be written.
        """
        self.store.wait()
        self.snapshots.wait()
        if self.save_failed():
            assert self._failure is not None
            raise self._failure

    def save_failed(self) -> bool:
        """Whether a save has failed, as far as this process knows; notes those that have ended."""
        try:
            self.snapshots.poll()
            saved = self.store.poll()
        except CheckpointError as error:
            self._failure = error
            return True
        if saved is not None:
            self._newest = saved.path
            self._write({"kind": "checkpoint", **_saved_line(saved, self._stall)})
            # A signal may come while one is written: it is waited for, and another is written.
            self._compare_with_grace(2 * saved.seconds, f"to write two such as {saved.path}")
        return self._failure is not None

    @property
    def kept(self) -> str:
        """What a run that ends now can go on from, as a sentence."""
        if self._newest is None:
            return "Nothing was saved."
        return f"The newest checkpoint is {self._newest}."

    def write_notes(self, state: RunState) -> None:
        """Write what the health of the run has to say."""
        state.health.poll(wait=True)
        notes, state.health.notes = state.health.notes, []
        if notes:  # as many on every process
            everyone = self.agreement.gather(notes)
            for number, note in enumerate(notes):
                if "samples" in note:
                    note["samples"] = [one for each in everyone for one in each[number]["samples"]]
                self._write(note)

    def resume(self, state: RunState) -> None:
        """Go on from the newest checkpoint, if there is one.

        Raises:
            CheckpointError: it cannot be used, or has been lost.
        """
        found = self.store.newest()
        if found is None:
            if any(line.get("kind") == "train" for line in self.metrics.lines()):
                raise CheckpointError(
                    f"{self.metrics.path} says that training has begun, but {self.store.root} "
                    "holds no checkpoint; restore one, or choose another --run_dir"
                )
            if self.accelerator.is_main_process:
                self.metrics.rewind(lambda line: False)
            self._write({"kind": "run", "images_seen": 0, **self.facts})
            return
        state.load(found)
        if state.images_seen - self.batch_size >= self.total_images:
            raise CheckpointError(
                f"the run has seen {state.images_seen} images already, more than "
                f"train.total_images={self.total_images}; raise it, or choose another --run_dir"
            )
        self._saved_at = state.images_seen if state.events_done else None
        self._newest = str(found.path)
        if self.accelerator.is_main_process:
            self._rewind(state)
            tqdm.write(f"resuming {found.path} at image {state.images_seen}")
            before = found.state.get("world_size")
            if before != self.accelerator.num_processes:
                tqdm.write(f"processes: {before} -> {self.accelerator.num_processes}")

    def _rewind(self, state: RunState) -> None:
        def is_written(line: dict[str, Any]) -> bool:
            """Whether a metrics line is older than the restored state."""
            at = line.get("images_seen", 0)
            done = state.events_done or line.get("kind") not in ("validation", "scores")
            return at < state.images_seen or (at == state.images_seen and done)

        self.metrics.rewind(is_written)
        facts = {"kind": "run", **self.facts}
        told = [line for line in self.metrics.lines() if line.get("kind") == "run"]
        if not told or {**told[-1], "images_seen": 0} != {**facts, "images_seen": 0}:
            self.metrics.append({**facts, "images_seen": state.images_seen})

    def _compare_with_grace(self, seconds: float, what: str) -> None:
        if seconds > self.grace_seconds and self.accelerator.is_main_process and not self._warned:
            self._warned = True
            tqdm.write(
                f"it takes {seconds:.1f} s {what}; the launcher leaves {self.grace_seconds:g} s "
                "(checkpoint.grace_seconds) between a signal and the kill: a run that is preempted "
                "would lose what it did since the last checkpoint; ask for more, or save more often"
            )

    def _write(self, line: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            self.metrics.append(line)

    def _sum(self, tensor: Tensor) -> Tensor:
        total: Tensor = self.accelerator.reduce(tensor, reduction="sum")
        return total


def _ema_state(state: RunState) -> dict[str, Any]:
    return {"ema_updated_at": state.ema.state()["updated_at"]}


def _saved_line(saved: Saved, stall: float) -> dict[str, Any]:
    return {
        "images_seen": saved.images_seen,
        "stall_seconds": stall,
        "seconds": saved.seconds,
        "bytes": saved.bytes,
    }
