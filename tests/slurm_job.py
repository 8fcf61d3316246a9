"""A training job in Slurm, started by the script that users start theirs with."""

import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "docker" / "slurm_train.sh"
UNFINISHED = ("PENDING", "CONFIGURING", "RUNNING", "SIGNALING", "COMPLETING", "REQUEUED")


class TrainingJob:
    """`sbatch docker/slurm_train.sh CONFIG ...`, one process on each of two nodes.

    Args:
        folder: for what it prints, and where it runs.
        config: a YAML file.
        overrides: of its keys.
        environment: to add to this process's, among it ``SLURM_CONF``; ``PYTHON`` names the
            interpreter.
        options: further ones of sbatch.

    Attributes:
        id: of Slurm.
        folder: as given.
    """

    def __init__(
        self,
        folder: Path,
        config: Path,
        *overrides: str,
        environment: Mapping[str, str],
        options: tuple[str, ...] = (),
    ) -> None:
        self.folder = folder
        self._environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
        words = ["sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=1", *options]
        self.id = self._ask(*words, str(SCRIPT), str(config), *overrides).strip()
        self._facts: dict[str, str] = {}

    @property
    def output(self) -> str:
        """All that its starts have printed so far."""
        path = self.folder / f"slurm-{self.id}.out"
        return path.read_text(errors="replace") if path.exists() else ""

    def facts(self) -> dict[str, str]:
        """What Slurm says of it, or said last: ``JobState``, ``Restarts``, ``ExitCode`` ..."""
        words = ["scontrol", "show", "job", "--oneliner", self.id]
        answer = self._run(*words)
        if answer.returncode == 0:  # else it is forgotten: it has ended
            pairs = (word.partition("=") for word in answer.stdout.split())
            self._facts = {name: value for name, _, value in pairs}
        return self._facts

    def ended(self) -> bool:
        """Whether it has, for good."""
        return self.facts().get("JobState") not in UNFINISHED

    def wait(self, seconds: float) -> dict[str, str]:
        """Until the end; returns the last facts.

        Raises:
            TimeoutError: with what the job printed.
        """
        deadline = time.monotonic() + seconds
        while not self.ended():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self._facts}\n{self.output}")
            time.sleep(0.3)
        return self._facts

    def preempt(self) -> None:
        """Ask for both nodes for something of higher priority that takes a second."""
        words = ["sbatch", "--partition=high", "--nodes=2", "--output=/dev/null", "--wrap=sleep 1"]
        self._ask(*words)

    def cancel(self) -> None:
        """End it for good, and wait until it has; nothing if it has ended."""
        self._run("scancel", self.id)
        self.wait(60)

    def _ask(self, *words: str) -> str:
        answer = self._run(*words)
        if answer.returncode:
            raise RuntimeError(f"{' '.join(words)}: {answer.stderr}")
        return answer.stdout

    def _run(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            words,
            env=self._environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
