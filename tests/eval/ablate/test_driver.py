"""Driving a study: order, failures, stops, and drivers that are killed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.ablate import driver
from eval.ablate.cells import Cell, expand, unique
from eval.ablate.driver import cell_folder, run_cells
from eval.ablate.executors import LocalExecutor, LocalJob
from eval.ablate.folder import is_busy, read_failure
from eval.ablate.overlays import StudyError
from eval.ablate.spec import CELL, CellSpec
from eval.ablate.study_file import read_study_file
from tests.eval.ablate.drive import STUB
from tests.eval.ablate.studies import write_study

ROOT = Path(__file__).resolve().parents[3]
CHAIN = {"count": 2, "images": 30, "loops": ["synthetic"]}


class Bench:
    """A study, its folder, and what its stub jobs do."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.out = folder / "out"
        self.study = write_study(folder, **changes)
        self.cells = expand(read_study_file(self.study))
        self.plan = folder / "behaviour.json"
        self.behave({})

    def behave(self, behaviour: dict[str, str]) -> None:
        self.plan.write_text(json.dumps(behaviour))

    def run(self, jobs: int = 4, cells: tuple[Cell, ...] | None = None) -> signal.Signals | None:
        executor = LocalExecutor(jobs, [sys.executable, str(STUB), str(self.plan)])
        return run_cells(self.cells if cells is None else cells, self.out, executor)

    def start(self, jobs: int) -> "subprocess.Popen[str]":
        words = [self.study, self.out, self.plan, jobs]
        return subprocess.Popen(
            [sys.executable, "-m", "tests.eval.ablate.drive", *map(str, words)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def folder(self, cell: Cell) -> Path:
        return cell_folder(self.out, cell.id)

    def starts(self, cell: Cell) -> int:
        path = self.folder(cell) / "starts"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def finished(self) -> int:
        return len(list(self.out.glob("cells/*/result.json")))


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_every_cell_runs_once_and_is_reused(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    assert bench.run() is None
    assert [bench.starts(cell) for cell in bench.cells] == [1] * 8
    assert bench.finished() == 8
    for cell in bench.cells:
        assert CellSpec.read(bench.folder(cell)).id == cell.id
    assert bench.run() is None
    assert [bench.starts(cell) for cell in bench.cells] == [1] * 8


def test_cells_that_coincide_run_once(tmp_path: Path) -> None:
    values = {"a": {"schedule": {"type": "cosine"}}, "b": {"schedule": {"type": "cosine"}}}
    bench = Bench(tmp_path, axes={"schedule": values})
    bench.run()
    assert len(bench.cells) == 4
    assert bench.finished() == 2
    assert [bench.starts(cell) for cell in bench.cells] == [1] * 4


def test_a_crash_is_reported_and_stops_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bench = Bench(tmp_path, seeds=[0])
    bad = bench.cells[1]
    bench.behave({bad.id: "crash"})
    assert bench.run(jobs=1) is None
    assert bench.finished() == 3
    failure = read_failure(bench.folder(bad))
    assert failure is not None
    assert failure.error == "ValueError: the reason"
    said = capfd.readouterr().out
    assert f"failed: {bad.name}: ValueError: the reason (see " in said
    assert "log.txt" in said

    bench.behave({})
    bench.run()
    assert read_failure(bench.folder(bad)) is None
    assert [bench.starts(cell) for cell in bench.cells] == [1, 2, 1, 1]


def test_children_wait_for_parents_and_fall_with_them(tmp_path: Path) -> None:
    bench = Bench(tmp_path, axes={"optim.lr": [0.1, 0.2]}, seeds=[0], generations=CHAIN)
    first = {cell.name: cell for cell in bench.cells}
    bad = first["optim.lr=0.1,loop=synthetic,generation=1,seed=0"]
    bench.behave({bad.id: "crash"})
    bench.run(jobs=4)
    runs = {name.partition(",loop=synthetic,")[::2]: bench.starts(c) for name, c in first.items()}
    assert runs[("optim.lr=0.1", "generation=2,seed=0")] == 0
    assert sum(runs.values()) == 5
    for cell in bench.cells:
        needed, folder = cell.spec.parent, bench.folder(cell)
        if needed is not None and (folder / "starts").exists():
            parent = cell_folder(bench.out, needed) / "result.json"
            assert parent.stat().st_mtime_ns <= (folder / "starts").stat().st_mtime_ns


def test_never_more_than_so_many_at_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.behave({"*": "sleep 0.4"})
    jobs: list[LocalJob] = []
    counts = []

    class Counting(LocalExecutor):
        def submit(self, folder: Path) -> LocalJob:
            jobs.append(super().submit(folder))
            counts.append(sum(not job.ended() for job in jobs))
            return jobs[-1]

    run_cells(bench.cells, bench.out, Counting(2, [sys.executable, str(STUB), str(bench.plan)]))
    assert max(counts) == 2
    assert bench.finished() == 8


def test_a_job_that_was_stopped_is_started_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, axes=None, seeds=[0])
    bench.behave({"*": "again"})
    bench.run()
    assert bench.starts(bench.cells[0]) == 2
    assert bench.finished() == 1


def test_but_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "ATTEMPTS", 3)
    bench = Bench(tmp_path, axes=None, seeds=[0])
    bench.behave({"*": "always again"})
    bench.run()
    assert bench.starts(bench.cells[0]) == 3
    failure = read_failure(bench.folder(bench.cells[0]))
    assert failure is not None
    assert failure.error == "ended 3 times without a result"


def signal_when(condition: Callable[[], bool], *numbers: signal.Signals) -> threading.Thread:
    """Send signals to this process once something is so."""

    def wait_and_send() -> None:
        until(condition)
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(1.0)

    thread = threading.Thread(target=wait_and_send)
    thread.start()
    return thread


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_study_goes_on(
    tmp_path: Path, number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    bench = Bench(tmp_path, seeds=[0])
    slow = bench.cells[2]
    bench.behave({slow.id: "sleep 60"})
    thread = signal_when(lambda: (bench.folder(slow) / "ready").exists(), number)
    assert bench.run(jobs=1) == number
    thread.join()
    assert "stopping: 1 cells save first" in capfd.readouterr().out
    assert bench.finished() == 2
    assert not is_busy(bench.folder(slow))
    assert read_failure(bench.folder(slow)) is None

    bench.behave({})
    assert bench.run() is None
    assert bench.finished() == 4
    assert [bench.starts(cell) for cell in bench.cells] == [1, 1, 2, 1]


def test_a_second_ctrl_c_waits_for_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path, axes=None, seeds=[0])
    (cell,) = bench.cells
    bench.behave({"*": "frozen"})
    ready = bench.folder(cell) / "ready"
    thread = signal_when(ready.exists, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        bench.run(jobs=1)
    thread.join()
    until(lambda: not is_busy(bench.folder(cell)))
    assert read_failure(bench.folder(cell)) is None


def test_a_killed_driver_leaves_no_cell_to_run_twice(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bench = Bench(tmp_path, seeds=[0])
    bench.behave({"*": "sleep 3"})
    process = bench.start(jobs=2)
    until(lambda: all((bench.folder(cell) / "ready").exists() for cell in bench.cells[:2]))
    process.kill()
    process.communicate()
    assert all(is_busy(bench.folder(cell)) for cell in bench.cells[:2])
    bench.behave({})
    assert bench.run(jobs=2) is None
    assert capfd.readouterr().out.count("still running from before: ") == 2
    assert bench.finished() == 4
    assert [bench.starts(cell) for cell in bench.cells] == [1] * 4
    assert not list(bench.out.glob("cells/*/two at once"))


def test_two_drivers_share_a_study(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.behave({"*": "sleep 0.3"})
    other = bench.start(jobs=2)
    until(lambda: bench.starts(bench.cells[0]) == 1)
    bench.run(jobs=2)
    other.communicate(timeout=100)
    assert bench.finished() == 8
    assert not list(bench.out.glob("cells/*/two at once"))
    assert [bench.starts(cell) for cell in bench.cells] == [1] * 8


def test_a_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    """As when a default has changed since: the name does not tell the folder's content any more."""
    bench = Bench(tmp_path)
    folder = bench.folder(bench.cells[0])
    folder.mkdir(parents=True)
    bench.cells[1].spec.write(folder)
    with pytest.raises(StudyError, match="made with other defaults"):
        bench.run()
    assert not (folder / "starts").exists()
    assert (folder / CELL).exists()


def test_only_the_chosen_cells_run(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.run(cells=bench.cells[3:5])
    assert [bench.starts(cell) for cell in bench.cells] == [0, 0, 0, 1, 1, 0, 0, 0]
    assert len(unique(bench.cells)) == 8


def test_a_job_that_is_not_accepted_stops_no_other(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    command = [sys.executable, str(STUB), str(bench.plan)]

    class Full(LocalExecutor):
        def submit(self, folder: Path) -> LocalJob:
            if folder.name == bench.cells[1].id:
                raise ValueError("the job was not accepted: the queue is full")
            return super().submit(folder)

    assert run_cells(bench.cells, bench.out, Full(2, command)) is None
    failure = read_failure(cell_folder(bench.out, bench.cells[1].id))
    assert failure is not None
    assert "queue is full" in failure.error
    others = [one for one in bench.cells if one.id != bench.cells[1].id]
    assert all((cell_folder(bench.out, one.id) / "result.json").is_file() for one in others)
