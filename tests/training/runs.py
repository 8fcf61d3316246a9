"""Starting real training processes, and comparing what runs left behind."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

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


def metrics(run: Path) -> list[dict[str, Any]]:
    """The metrics lines, without the fields that clocks decide."""
    lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMING_FIELDS} for line in lines]


def last_tensors(run: Path) -> dict[str, Tensor]:
    """All tensors of the newest checkpoint: weights, averages and optimiser."""
    newest = max(path for path in (run / "checkpoints").iterdir() if path.name.isdigit())
    groups = {path.stem: load_file(path) for path in newest.glob("*.safetensors")}
    return {f"{group}/{name}": t for group, ts in groups.items() for name, t in ts.items()}
