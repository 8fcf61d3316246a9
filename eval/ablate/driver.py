"""Runs the cells of a study: each as soon as what it needs is there, so many at once.

All state is in the cells' folders, so a driver may be stopped or killed at any time, and the next
one goes on: finished cells are reused, running ones waited for, failed ones tried again.
"""

import signal
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from eval.ablate.cells import Cell, unique
from eval.ablate.executors import Executor, Job
from eval.ablate.folder import FAILED, LOG, RESULT, Failure, read_failure, write_failure
from eval.ablate.overlays import StudyError
from eval.ablate.spec import CELL, CellSpec
from simple_diffusion.training.signals import StopSignals

CELLS = "cells"
POLL_S = 0.2
GRACE_S = 120.0  # for jobs that were asked to stop
ATTEMPTS = 10  # of a cell that ends without a result and without a failure, as preempted jobs do


def run_cells(cells: Sequence[Cell], out: Path, executor: Executor) -> signal.Signals | None:
    """Run what is not finished yet, with a progress bar; a failed cell does not stop the others.

    Args:
        cells: with their parents; those that coincide run once.
        out: the study's folder.
        executor: starts the jobs.

    Returns:
        The signal that ended it early, after all its jobs have ended; None if all was tried.

    Raises:
        StudyError: a cell's folder was made with other settings.
    """
    driver = _Driver(unique(cells), out, executor)
    driver.check_folders()
    return driver.run()


def cell_folder(out: Path, identity: str) -> Path:
    """Where a cell lives in the study's folder."""
    return out / CELLS / identity


class _Driver:
    def __init__(self, cells: dict[str, Cell], out: Path, executor: Executor) -> None:
        self._cells, self._out, self._executor = cells, out, executor
        self._finished = {one for one in cells if (self._folder(one) / RESULT).is_file()}
        self._failed: set[str] = set()
        self._running: dict[str, Job] = {}
        self._attempts: Counter[str] = Counter()
        self._bar: tqdm | None = None

    def _folder(self, identity: str) -> Path:
        return cell_folder(self._out, identity)

    def check_folders(self) -> None:
        """A folder's name says what it was made with: a default that has changed since shows."""
        for identity in self._cells:
            folder = self._folder(identity)
            if (folder / CELL).is_file() and CellSpec.read(folder).id != identity:
                raise StudyError(
                    f"{folder / CELL}: made with other defaults than this release's, so it cannot "
                    "be compared with new cells; remove the folder, or choose another --out"
                )

    def run(self) -> signal.Signals | None:
        done = len(self._finished)
        with (
            StopSignals() as signals,
            # no bar in a log file
            tqdm(total=len(self._cells), initial=done, unit="cell", disable=None) as self._bar,
        ):
            try:
                while signals.received is None and (self._fill() or self._running):
                    time.sleep(POLL_S)
                    self._harvest()
            finally:  # all tried, asked to stop, or an error here
                self._stop()
            return signals.received

    def _fill(self) -> bool:
        """Start what is ready, as far as there is room; whether anything was started."""
        started = False
        for identity, cell in self._cells.items():
            if len(self._running) >= self._executor.jobs:
                break
            if identity in self._finished | self._failed | self._running.keys():
                continue
            if cell.spec.parent is None or cell.spec.parent in self._finished:
                self._start(identity, cell)
                started = True
        self._show()
        return started

    def _start(self, identity: str, cell: Cell) -> None:
        folder = self._folder(identity)
        folder.mkdir(parents=True, exist_ok=True)
        left_over = self._executor.left_over(folder)
        if left_over is not None:
            self._say(f"still running from before: {cell.name}")
            self._running[identity] = left_over
            return
        if not (folder / CELL).is_file():
            cell.spec.write(folder)
        (folder / FAILED).unlink(missing_ok=True)
        self._attempts[identity] += 1
        try:
            self._running[identity] = self._executor.submit(folder)
        except ValueError as error:  # a scheduler may be busy; the other cells go on
            write_failure(folder, Failure(str(error), 1))
            self._failed.add(identity)
            self._say(f"failed: {cell.name}: {error}")

    def _harvest(self) -> None:
        for identity in [one for one, job in self._running.items() if job.ended()]:
            del self._running[identity]
            folder, name = self._folder(identity), self._cells[identity].name
            if (folder / RESULT).is_file():
                self._finished.add(identity)
                self._say(f"finished: {name}")
                if self._bar is not None:
                    self._bar.update()
                continue
            failure = read_failure(folder)
            if failure is None and self._attempts[identity] >= ATTEMPTS:
                failure = Failure(f"ended {ATTEMPTS} times without a result", 75)
                write_failure(folder, failure)
            if failure is not None:
                self._failed.add(identity)
                self._say(f"failed: {name}: {failure.error} (see {folder / LOG})")
        self._show()

    def _stop(self) -> None:
        """Ask what is running to save and end; a second Ctrl-C does not wait for it."""
        if not self._running:
            return
        self._say(f"stopping: {len(self._running)} cells save first; Ctrl-C kills them")
        try:
            for job in self._running.values():
                job.stop()
            deadline = time.monotonic() + GRACE_S
            while self._running and time.monotonic() < deadline:
                time.sleep(POLL_S)
                self._running = {k: job for k, job in self._running.items() if not job.ended()}
        finally:
            for job in self._running.values():
                job.kill()

    def _say(self, line: str) -> None:
        tqdm.write(line)

    def _show(self) -> None:
        if self._bar is not None:
            self._bar.set_postfix(running=len(self._running), failed=len(self._failed))
