"""Where the jobs of a study run: processes of this machine, or Slurm.

A job's fate is read in its cell's folder; an executor only starts jobs, and knows when they ended.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from eval.ablate.folder import LOG, is_busy

COMMAND = (sys.executable, "-m", "eval.ablate.cell")
DEFAULT_JOBS = {"local": 1, "slurm": 32}


class Job(Protocol):
    """One attempt at a cell."""

    def ended(self) -> bool:
        """Whether nothing of it is running or waiting any more."""

    def stop(self) -> None:
        """Ask it to save and end."""

    def kill(self) -> None:
        """End it at once."""


class Executor(Protocol):
    """Starts jobs; `jobs` is how many it is meant to have at once."""

    jobs: int

    def submit(self, folder: Path) -> Job:
        """Start, or queue, an attempt at the cell in this folder."""

    def left_over(self, folder: Path) -> Job | None:
        """The attempt that an earlier driver left running or waiting there, if there is one."""


class Elsewhere:
    """A job that another driver started, on this machine or one that shares the folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._let_go = False

    def ended(self) -> bool:
        return self._let_go or not is_busy(self._folder)

    def stop(self) -> None:
        """It is not ours to stop, only to stop waiting for."""
        self._let_go = True

    def kill(self) -> None:
        self._let_go = True


class LocalJob:
    """A process group of its own, so that Ctrl-C reaches the driver only."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process

    def ended(self) -> bool:
        return self._process.poll() is not None

    def stop(self) -> None:
        if not self.ended():
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        if not self.ended():
            os.killpg(self._process.pid, signal.SIGKILL)


class LocalExecutor:
    """Processes of this machine, which share its cores evenly.

    Args:
        jobs: how many at once.
        command: what runs a cell, before the folder.
    """

    def __init__(self, jobs: int, command: Sequence[str]) -> None:
        self.jobs = jobs
        self._command = tuple(command)
        cores = len(os.sched_getaffinity(0))
        self.environment = dict(os.environ)
        # a person's own setting stands
        self.environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // jobs)))

    def submit(self, folder: Path) -> LocalJob:
        words = [sys.executable, "-m", "eval.ablate.job", str(folder), *self._command]
        with (folder / LOG).open("ab") as log:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                start_new_session=True,
            )
        return LocalJob(process)

    def left_over(self, folder: Path) -> Job | None:
        return Elsewhere(folder) if is_busy(folder) else None
