"""What a run says while it trains: JSON lines, means of a window, the progress bar's notes."""

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simple_diffusion.training.speed import SPEED_FIELDS
from simple_diffusion.training.speed import Stopwatch as Stopwatch
from simple_diffusion.training.speed import memory_gb as memory_gb

# Fields about remote shards, in a line only where any were read.
REMOTE_FIELDS = (
    "fetched_mb",
    "shards_fetched",
    "cache_hits",
    "fetch_retries",
    "checksum_failures",
    "fetch_wait",
)
# Fields that differ between two runs of the same thing: clocks, memory, what came over a network.
TIMING_FIELDS = (
    *SPEED_FIELDS,
    "read_mb_per_second",
    "stall_seconds",
    "bytes",
    *REMOTE_FIELDS,
)

_TERM = "loss/"  # begins the names of the loss's parts


class MetricsFile:
    """`metrics.jsonl`: one JSON object a line, appended and flushed at once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, line: dict[str, Any]) -> None:
        """Write one line. Numbers that JSON has no name for (nan, inf) are written as null."""
        plain = {key: _finite(value) for key, value in line.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(plain, allow_nan=False) + "\n")

    def sync(self) -> None:
        """Make what was written survive a crash of the machine."""
        if self.path.exists():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())

    def lines(self) -> list[dict[str, Any]]:
        """All complete lines; a torn last one (the process was killed) is left out."""
        if not self.path.exists():
            return []
        lines = []
        for text in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                break
            if isinstance(line, dict):
                lines.append(line)
        return lines

    def rewind(self, keep: Callable[[dict[str, Any]], bool]) -> int:
        """Drop the lines that a resumed run will write again; returns how many went."""
        lines = self.lines()
        kept = [line for line in lines if keep(line)]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        temporary.replace(self.path)
        return len(lines) - len(kept)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class Window:
    """Sums of per-image quantities since the last metrics line, kept on the device.

    Values that are not finite (of a step that was skipped for them) are left out, on the device:
    nothing here waits for it before the means are asked for. The state goes into checkpoints, so
    that a resumed run's first line is the unbroken run's.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}

    def add(self, name: str, values: Tensor) -> None:
        """Add a tensor of values (or one value) under a name; those that are finite count."""
        values = values.detach().double()
        finite = values.isfinite()
        total, count = torch.where(finite, values, 0.0).sum(), finite.sum(dtype=torch.float64)
        known = name in self.sums
        self.sums[name] = self.sums[name] + total if known else total
        self.counts[name] = self.counts[name] + count if known else count

    def reduced(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, tuple[float, int]]:
        """(sum, count) of each name over all processes.

        Args:
            reduce: sums a tensor over the processes.
        """
        names = sorted(self.sums)
        if not names:
            return {}
        each = [torch.stack([kept[n] for n in names]) for kept in (self.sums, self.counts)]
        sums, counts = reduce(torch.stack(each)).tolist()
        return {n: (total, int(count)) for n, total, count in zip(names, sums, counts, strict=True)}

    def means(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Mean of each name over all processes, nan where no value was finite; starts afresh."""
        sums = self.reduced(reduce).items()
        means = {name: total / count if count else math.nan for name, (total, count) in sums}
        self.sums, self.counts = {}, {}
        return means

    def load_state_dict(self, state: Mapping[str, tuple[float, int]]) -> None:
        """Take over what `reduced` gave: one process all of it, the others zeros."""
        self.sums = {name: self._scalar(total) for name, (total, _) in state.items()}
        self.counts = {name: self._scalar(count) for name, (_, count) in state.items()}

    def _scalar(self, value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float64, device=self.device)


def reads_of_line(reads: Mapping[str, float], seconds: float) -> dict[str, float]:
    """What a metrics line says of reading.

    Args:
        reads: the fields of `ReadCounts`, summed over the processes, since the last line.
        seconds: length of that time.
    """
    line = {"read_mb_per_second": reads["bytes_read"] / 1e6 / seconds}
    remote = {
        "fetched_mb": reads["bytes_fetched"] / 1e6,
        "shards_fetched": reads["shards_fetched"],
        "cache_hits": reads["cache_hits"],
        "fetch_retries": reads["retries"],
        "checksum_failures": reads["checksum_failures"],
        "fetch_wait": reads["wait_seconds"],
    }
    assert tuple(remote) == REMOTE_FIELDS
    return line | remote if any(remote.values()) else line


def data_notes(line: Mapping[str, Any]) -> str:
    """What the progress line says of remote shards, and of what is amiss with the data."""
    notes = {
        "MB fetched": line.get("fetched_mb", 0),
        "retries": line.get("fetch_retries", 0),
        "wrong checksums": line.get("checksum_failures", 0),
        "images replaced": line["replaced"],
    }
    return "".join(f", {count:.0f} {name}" for name, count in notes.items() if count)


def progress_notes(line: Mapping[str, Any]) -> str:
    """What the progress bar says after each train line: the run's health at a glance."""
    terms = [f"{k[len(_TERM) :]} {v:.4f}" for k, v in line.items() if k.startswith(_TERM)]
    parts = [f"loss {line['loss']:.4f}" + (f" ({', '.join(terms)})" if terms else "")]
    parts += [f"grad {line['grad_norm']:.3g}", f"lr {line['lr']:.1e}"]
    parts.append(f"{line['images_per_second']:.3g} img/s")
    if "mfu" in line:
        parts.append(f"MFU {100 * line['mfu']:.1f}%")
    parts += [f"{line['memory_gb']:.1f} GB", f"data wait {100 * line['data_wait']:.0f}%"]
    if line["skipped"]:
        parts.append(f"{line['skipped']} skipped")
    return ", ".join(parts) + data_notes(line)


def tracker_values(line: Mapping[str, Any]) -> dict[str, float]:
    """The fields of a metrics line that trackers can plot: finite numbers."""
    return {
        name: value
        for name, value in line.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
