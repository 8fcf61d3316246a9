"""The command line, with rank 0 taking down what it is doing, and in which of it a signal came.

`python -m benchmarks.soak_phases train CONFIG ...`; the lines, as JSON, go to the file that the
variable PHASES names: the time, what (``start``, ``train``, ``save``, ``evaluate``, or ``signal``)
and images seen; for a signal also the phase, and whether a checkpoint was being written meanwhile.
SLOW_SAVE is for how many seconds a checkpoint that is all but complete waits for its name, as on a
slow disk.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from simple_diffusion.cli.main import main
from simple_diffusion.training.checkpoint_places import LocalFolder, LocalPlaces
from simple_diffusion.training.signals import StopSignals
from simple_diffusion.training.state import CheckpointStore
from simple_diffusion.training.watchdog import Watchdog

CALLED = {"data": "train", "step": "train", "agree": "train"}
LOG = Path(os.environ["PHASES"])
SLOW_SAVE = float(os.environ.get("SLOW_SAVE", "0"))
now: dict[str, Any] = {"phase": "start", "images": 0}
writing = 0  # checkpoints in the background, at most one


def write(phase: str, **more: Any) -> None:
    line = {"time": time.time(), "phase": phase, "images": now["images"], **more}
    with LOG.open("a") as file:
        file.write(json.dumps(line) + "\n")


def watch() -> None:
    at, hear, commit = Watchdog.at, StopSignals.hear, LocalPlaces.commit

    save, in_background = CheckpointStore.save, CheckpointStore._write

    def watched_save(self: CheckpointStore, *args: Any) -> None:
        global writing
        writing += 1
        save(self, *args)

    def watched_write(self: CheckpointStore, flight: Any) -> None:
        global writing
        try:
            in_background(self, flight)
        finally:
            writing -= 1

    def slow_commit(self: LocalPlaces, name: str, images_seen: int) -> LocalFolder:
        time.sleep(SLOW_SAVE)
        return commit(self, name, images_seen)

    def watched_at(self: Watchdog, phase: str, images_seen: int) -> None:
        called: dict[str, Any] = {"phase": CALLED.get(phase, phase), "images": images_seen}
        if called != now:
            now.update(called)
            write(called["phase"])
        at(self, phase, images_seen)

    def watched_hear(self: StopSignals, number: int) -> None:
        if self.received is None:
            write("signal", at=now["phase"], writing=writing > 0)
        hear(self, number)

    CheckpointStore.save = watched_save  # type: ignore[method-assign, assignment]
    CheckpointStore._write = watched_write  # type: ignore[method-assign]
    LocalPlaces.commit = slow_commit  # type: ignore[method-assign]
    Watchdog.at = watched_at  # type: ignore[method-assign]
    StopSignals.hear = watched_hear  # type: ignore[method-assign]


if __name__ == "__main__":
    if os.environ.get("RANK", "0") == "0":
        write("start")
        watch()
    sys.exit(main(sys.argv[1:]))
