"""One attempt at a cell, in real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eval.ablate.folder import LOG, Failure, claim_log, is_busy, read_failure
from tests.eval.ablate.drive import STUB

ROOT = Path(__file__).resolve().parents[3]


def start(folder: Path, behaviour: str) -> "subprocess.Popen[bytes]":
    folder.mkdir(exist_ok=True)
    plan = folder.parent / "behaviour.json"
    plan.write_text(json.dumps({"*": behaviour}))
    words = [sys.executable, "-m", "eval.ablate.job", str(folder), sys.executable, str(STUB)]
    return subprocess.Popen([*words, str(plan)], cwd=ROOT, stdout=subprocess.DEVNULL)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("behaviour", "code", "failure"),
    [
        ("ok", 0, None),
        ("again", 75, None),
        ("crash", 1, Failure("ValueError: the reason", 1)),
        ("silent", 1, Failure("exit code 3, and nothing in the log", 3)),
        ("killed", 1, Failure("killed by SIGKILL (out of memory?)", -9)),
        ("empty", 1, Failure("ended without a result", 0)),
    ],
)
def test_how_it_ends(tmp_path: Path, behaviour: str, code: int, failure: Failure | None) -> None:
    cell = tmp_path / "cell"
    assert start(cell, behaviour).wait(30) == code
    assert read_failure(cell) == failure
    assert (cell / "result.json").exists() == (code == 0)
    assert not is_busy(cell)


def test_the_log_is_appended(tmp_path: Path) -> None:
    cell = tmp_path / "cell"
    start(cell, "crash").wait(30)
    start(cell, "silent").wait(30)
    text = (cell / LOG).read_text()
    assert text.count("--- ") == 2
    assert "Traceback" in text
    assert read_failure(cell) == Failure("exit code 3, and nothing in the log", 3)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
@pytest.mark.parametrize("behaviour", ["sleep 60", "deaf 60"])
def test_a_request_to_stop_is_no_failure(
    tmp_path: Path, behaviour: str, number: signal.Signals
) -> None:
    cell = tmp_path / "cell"
    job = start(cell, behaviour)
    wait_for(cell / "ready")
    job.send_signal(number)
    assert job.wait(30) == 75
    assert read_failure(cell) is None
    assert not is_busy(cell)


def test_a_signal_to_all_processes_of_the_job(tmp_path: Path) -> None:
    """As schedulers send it: the command knows SIGTERM, not SIGUSR2, and gets both."""
    cell = tmp_path / "cell"
    job = start(cell, "sleep 60")
    wait_for(cell / "ready")
    (command,) = [int(line.split()[0]) for line in (cell / "starts").read_text().splitlines()]
    os.kill(command, signal.SIGUSR2)
    time.sleep(0.2)
    assert job.poll() is None
    job.send_signal(signal.SIGUSR2)
    assert job.wait(30) == 75
    assert read_failure(cell) is None


def test_a_cell_at_work_is_left_alone(tmp_path: Path) -> None:
    cell = tmp_path / "cell"
    cell.mkdir()
    with claim_log(cell):
        assert start(cell, "crash").wait(30) == 75
    assert not (cell / "starts").exists()
    assert read_failure(cell) is None


def test_the_command_goes_on_when_its_watcher_is_killed(tmp_path: Path) -> None:
    cell = tmp_path / "cell"
    job = start(cell, "sleep 1")
    wait_for(cell / "ready")
    job.kill()
    job.wait(30)
    assert is_busy(cell)
    wait_for(cell / "result.json")
