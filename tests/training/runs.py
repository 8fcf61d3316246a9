"""Starting real training processes, and comparing what runs left behind."""

import json
import multiprocessing as mp
import os
import socket
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from simple_diffusion.training.state import open_checkpoint
from simple_diffusion.training.telemetry import TIMING_FIELDS
from tests.processes import forking
from tests.training.driven import drive

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def command(config: Path, *overrides: str, processes: int = 1) -> list[str]:
    """The words that train a config, through torchrun for several processes."""
    start = [sys.executable, "-m"]
    if processes > 1:
        start += ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"]
    return [*start, "simple_diffusion", "train", str(config), *overrides]


@dataclass(frozen=True)
class Ended:
    """How one process ended, or the first of several that did not end well."""

    code: int
    output: str


class Started:
    """Processes that train: several are each told who it is, as on a cluster, without torchrun.

    They are forked from one that has imported everything, so that they start at once.

    Args:
        config: a YAML file.
        overrides: of its keys.
        processes: how many.
        driven: what `tests.training.driven` is to do with them.
    """

    def __init__(
        self,
        config: Path,
        *overrides: str,
        processes: int = 1,
        driven: dict[str, Any] | None = None,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        words = ["train", str(config), *overrides]
        world: dict[str, str] = {}
        if processes > 1:
            world = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1"}
            world["MASTER_PORT"] = str(free_port())
        self.processes: list[mp.process.BaseProcess] = []
        for rank in range(processes):
            ours = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if world else {}
            self._output(rank).touch()
            given = (words, ENVIRONMENT | world | ours, self._output(rank), driven or {})
            self.processes.append(forking().Process(target=drive, args=given))
            self.processes[-1].start()

    def end(self) -> list[Ended]:
        """Wait for them.

        Raises:
            TimeoutError: some have not ended after five minutes; with what all printed.
        """
        deadline = time.monotonic() + 300
        try:
            for process in self.processes:
                process.join(max(0.0, deadline - time.monotonic()))
            hung = [rank for rank, process in enumerate(self.processes) if process.is_alive()]
        finally:
            ended = self.kill()
        if hung:
            raise TimeoutError(f"processes {hung} have not ended: {ended}")
        return ended

    def kill(self) -> list[Ended]:
        """SIGKILL to those that are left."""
        for process in self.processes:
            process.kill()
            process.join()
        with self._folder:
            return [
                Ended(process.exitcode or 0, self._output(rank).read_text(errors="replace"))
                for rank, process in enumerate(self.processes)
            ]

    def _output(self, rank: int) -> Path:
        return Path(self._folder.name) / str(rank)


def launch(config: Path, *overrides: str, **how: Any) -> list[Ended]:
    """Train to the end, in processes as `Started` has them."""
    return Started(config, *overrides, **how).end()


def train(config: Path, *overrides: str, processes: int = 1) -> Ended:
    """Train to the end in other processes; their output together."""
    ended = launch(config, *overrides, processes=processes)
    code = next((one.code for one in ended if one.code), 0)
    return Ended(code, "\n".join(one.output for one in ended))


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def metrics(run: Path) -> list[dict[str, Any]]:
    """The metrics lines, without those and the fields that clocks and interruptions decide."""
    lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["kind"] not in ("checkpoint", "stop")]
    return [{k: v for k, v in line.items() if k not in TIMING_FIELDS} for line in lines]


def last_tensors(run: Path) -> dict[str, Tensor]:
    """All tensors of the newest checkpoint: weights, averages and optimiser."""
    newest = max(path for path in (run / "checkpoints").iterdir() if path.name.isdigit())
    found = open_checkpoint(newest)
    return {
        f"{group}/{name}": tensor
        for group in found.groups()
        for name, tensor in found.tensors(group).items()
    }
