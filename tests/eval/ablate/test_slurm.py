"""A study in a real Slurm queue, with stub jobs."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from eval.ablate.cells import Cell, expand
from eval.ablate.driver import cell_folder, run_cells
from eval.ablate.folder import read_failure
from eval.ablate.slurm import JOB_ID, SlurmExecutor
from eval.ablate.study_file import read_study_file
from tests.eval.ablate.drive import STUB
from tests.eval.ablate.studies import write_study
from tests.eval.ablate.test_driver import signal_when
from tests.slurm import slurm_cluster, why_not

ROOT = Path(__file__).resolve().parents[3]
pytestmark = [pytest.mark.cluster, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as environment:
        before = dict(os.environ)
        os.environ.update(environment, PYTHONPATH=str(ROOT))
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


class Queue:
    """A study of two cells, and an executor for it."""

    def __init__(self, folder: Path, *behaviours: str) -> None:
        study = write_study(folder, axes=None, seeds=[0, 1])
        self.cells: tuple[Cell, ...] = expand(read_study_file(study))
        self.out = folder / "out"
        self.plan = folder / "behaviour.json"
        self.behave(*behaviours)

    def behave(self, *behaviours: str) -> None:
        pairs = zip(self.cells, behaviours, strict=True)
        self.plan.write_text(json.dumps({cell.id: behaviour for cell, behaviour in pairs}))

    def executor(self, **options: object) -> SlurmExecutor:
        command = [sys.executable, str(STUB), str(self.plan)]
        return SlurmExecutor(self.out, 2, {"partition": "low", **options}, command)

    def folder(self, number: int) -> Path:
        return cell_folder(self.out, self.cells[number].id)

    def starts(self, number: int) -> int:
        path = self.folder(number) / "starts"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def done(self, number: int) -> bool:
        return (self.folder(number) / "result.json").exists()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_study(cluster: None, tmp_path: Path) -> None:
    queue = Queue(tmp_path, "ok", "crash")
    assert run_cells(queue.cells, queue.out, queue.executor()) is None
    assert queue.done(0)
    failure = read_failure(queue.folder(1))
    assert failure is not None
    assert failure.error == "ValueError: the reason"
    queue.behave("ok", "ok")
    assert run_cells(queue.cells, queue.out, queue.executor()) is None
    assert (queue.starts(0), queue.starts(1)) == (1, 2)
    assert queue.done(1)


def test_a_preempted_cell_goes_on(cluster: None, tmp_path: Path) -> None:
    queue = Queue(tmp_path, "sleep 4", "ok")

    def preempt() -> bool:
        if not (queue.folder(0) / "ready").exists():
            return False
        queue.behave("ok", "ok")
        words = ["sbatch", "--partition=high", "--nodes=2", "--output=/dev/null", "--wrap=sleep 1"]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, cwd=tmp_path)
        return True

    thread = signal_when(preempt)
    assert run_cells(queue.cells, queue.out, queue.executor()) is None
    thread.join()
    assert queue.done(0)
    assert queue.starts(0) == 2
    assert not list(queue.out.glob("cells/*/two at once"))


def test_a_stopped_driver_cancels_and_a_new_one_goes_on(cluster: None, tmp_path: Path) -> None:
    queue = Queue(tmp_path, "sleep 120", "ok")
    thread = signal_when((queue.folder(0) / "ready").exists, signal.SIGTERM)
    assert run_cells(queue.cells, queue.out, queue.executor()) == signal.SIGTERM
    thread.join()
    assert not queue.done(0)
    assert read_failure(queue.folder(0)) is None
    left = subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, check=True)
    assert left.stdout.strip() == ""
    queue.behave("ok", "ok")
    run_cells(queue.cells, queue.out, queue.executor())
    assert queue.done(0)


def test_a_queued_job_of_a_killed_driver_is_waited_for(cluster: None, tmp_path: Path) -> None:
    queue = Queue(tmp_path, "sleep 2", "sleep 2")
    executor = queue.executor()
    for number, cell in enumerate(queue.cells):
        queue.folder(number).mkdir(parents=True)
        cell.spec.write(queue.folder(number))
        executor.submit(queue.folder(number))  # by a driver that is killed right after
    assert (queue.folder(0) / JOB_ID).exists()
    assert run_cells(queue.cells, queue.out, queue.executor()) is None
    assert queue.done(0)
    assert queue.done(1)
    assert (queue.starts(0), queue.starts(1)) == (1, 1)


def test_a_job_out_of_time_goes_on(cluster: None, tmp_path: Path) -> None:
    """Slurm's warning before the end reaches the command as a request to save."""
    queue = Queue(tmp_path, "sleep 600", "ok")

    def relent() -> bool:
        ready = (queue.folder(0) / "ready").exists()
        if ready:
            queue.behave("ok", "ok")
        return ready

    thread = signal_when(relent)
    options = {"timeout_min": 1, "signal_delay_s": 50}
    assert run_cells(queue.cells, queue.out, queue.executor(**options)) is None
    thread.join()
    assert queue.done(0)
    assert queue.starts(0) == 2
