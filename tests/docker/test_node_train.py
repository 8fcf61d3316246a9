"""The launcher of one node's processes, with a stand-in for the program that it starts."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from simple_diffusion.training.signals import EXIT_REQUEUE

SCRIPT = Path(__file__).resolve().parents[2] / "docker" / "node_train.py"

# Stands for the package in `python -m simple_diffusion`: says who it is, and ends as it is told.
STUB = """
import os, signal, sys, time
rank = os.environ["RANK"]
ends = dict(zip(os.environ["ENDS"].split(","), os.environ["CODES"].split(",")))
def end(number, frame):
    sys.exit(75)
signal.signal(signal.SIGTERM, end)
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
line = " ".join([*sys.argv[1:], *(os.environ[name] for name in names)])
os.write(1, (line + "\\n").encode())  # at once: the other process writes to the same pipe
if rank in ends:
    code = int(ends[rank])
    os.kill(os.getpid(), -code) if code < 0 else sys.exit(code)
time.sleep(0 if os.environ["ENDS"] == "none" else 100)
"""


class TestNodeLauncher:
    @pytest.fixture
    def start(self, tmp_path: Path) -> Any:
        (tmp_path / "simple_diffusion.py").write_text(STUB)

        def start(ends: dict[int, int] | None, **variables: str) -> "subprocess.Popen[str]":
            told = {
                "ENDS": "none" if ends is None else ",".join(map(str, ends)),
                "CODES": ",".join(map(str, (ends or {}).values())),
            }
            return subprocess.Popen(
                [sys.executable, str(SCRIPT), "some.yaml", "--seed=1"],
                env={**os.environ, "PROCESSES": "2", **variables, **told},
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )

        return start

    def test_who_they_are(self, start: Any) -> None:
        node = {"NODES": "3", "NODE_RANK": "2", "MASTER_ADDR": "first", "MASTER_PORT": "123"}
        process = start(None, **node)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert sorted(output.splitlines()) == [
            "train some.yaml --seed=1 4 0 6 first 123",
            "train some.yaml --seed=1 5 1 6 first 123",
        ]

    @pytest.mark.parametrize(
        ("ends", "code"), [({0: 75, 1: 75}, 75), ({0: 2, 1: 2}, 2), ({0: 75, 1: -9}, 137)]
    )
    def test_the_highest_code(self, start: Any, ends: dict[int, int], code: int) -> None:
        process = start(ends)
        process.communicate(timeout=60)
        assert process.returncode == code

    def test_all_hear_of_the_end(self, start: Any) -> None:
        """A container's end is told to its first process; a hundred seconds would fail the test."""
        process = start({})
        for _ in range(2):
            process.stdout.readline()  # both have started
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == EXIT_REQUEUE

    def test_those_that_stay_are_ended(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """One ended with an error before the others could know of it."""
        (tmp_path / "simple_diffusion.py").write_text(STUB)
        text = SCRIPT.read_text()
        assert "WAIT_SECONDS = 60.0" in text
        quick = tmp_path / "node_train.py"
        quick.write_text(text.replace("WAIT_SECONDS = 60.0", "WAIT_SECONDS = 0.2"))
        ended = subprocess.run(
            [sys.executable, str(quick), "some.yaml"],
            env={**os.environ, "PROCESSES": "2", "ENDS": "1", "CODES": "1"},
            cwd=tmp_path,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == 137

    def test_no_gpu(self, tmp_path: Path) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "PROCESSES"}
        ended = subprocess.run(
            [sys.executable, str(SCRIPT), "some.yaml"],
            env={**environment, "PATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 2
        assert "no GPU and no PROCESSES" in ended.stderr
