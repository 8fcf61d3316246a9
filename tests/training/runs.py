"""Starting real training processes, and comparing what runs left behind."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from simple_diffusion.training.state import open_checkpoint
from simple_diffusion.training.telemetry import TIMING_FIELDS

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def command(config: Path, *overrides: str, processes: int = 1) -> list[str]:
    """The words that train a config, through torchrun for several processes."""
    start = [sys.executable, "-m"]
    if processes > 1:
        start += ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"]
    return [*start, "simple_diffusion", "train", str(config), *overrides]


def train(config: Path, *overrides: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
    """Train to the end in another process."""
    return subprocess.run(
        command(config, *overrides, processes=processes),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@dataclass(frozen=True)
class Ended:
    """How one process of several ended."""

    code: int
    output: str


def launch(
    config: Path, *overrides: str, processes: int, driven: dict[str, Any] | None = None
) -> list[Ended]:
    """Train in processes that are started one by one, as on a cluster, without torchrun.

    Args:
        config: a YAML file.
        overrides: of its keys.
        processes: how many.
        driven: what `tests.training.driven` is to do with them; None for the plain command.
    """
    module = "simple_diffusion" if driven is None else "tests.training.driven"
    words = [sys.executable, "-m", module, "train", str(config), *overrides]
    world = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1"}
    world |= {"MASTER_PORT": str(free_port()), "DRIVEN": json.dumps(driven or {})}
    started = [
        subprocess.Popen(
            words,
            env=ENVIRONMENT | world | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(processes)
    ]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return [Ended(p.returncode, output) for p, output in zip(started, outputs, strict=True)]


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
