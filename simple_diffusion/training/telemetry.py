"""What a run says while it trains: JSON lines, window means, a progress bar, trackers."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

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
    "images_per_second",
    "data_wait",
    "memory_gb",
    "seconds",
    "read_mb_per_second",
    *REMOTE_FIELDS,
)


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

    Its state goes into checkpoints, so that a resumed run's first line is the unbroken run's.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, name: str, values: Tensor) -> None:
        """Add a tensor of values (or one value) under a name."""
        total = values.detach().double().sum()
        self.sums[name] = self.sums[name] + total if name in self.sums else total
        self.counts[name] = self.counts.get(name, 0) + values.numel()

    def reduced(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, tuple[float, int]]:
        """(sum, count) of each name over all processes.

        Args:
            reduce: sums a tensor over the processes.
        """
        names = sorted(self.sums)
        if not names:
            return {}
        counts = torch.tensor([self.counts[n] for n in names], device=self.device).double()
        sums, totals = reduce(torch.stack([torch.stack([self.sums[n] for n in names]), counts]))
        each = zip(names, sums.tolist(), totals.tolist(), strict=True)
        return {name: (total, int(count)) for name, total, count in each}

    def means(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Mean of each name over all processes; then start afresh."""
        means = {name: total / count for name, (total, count) in self.reduced(reduce).items()}
        self.sums, self.counts = {}, {}
        return means

    def load_state_dict(self, state: dict[str, tuple[float, int]]) -> None:
        self.counts = {name: count for name, (_, count) in state.items()}
        self.sums = {
            name: torch.tensor(total, dtype=torch.float64, device=self.device)
            for name, (total, _) in state.items()
        }


class Stopwatch:
    """Wall time, and the share of it spent waiting for data since the last reading."""

    def __init__(self, seconds_before: float = 0.0) -> None:
        now = time.perf_counter()
        self._origin, self._since, self._waited = now - seconds_before, now, 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keep what is done inside (validation, pictures) out of the window."""
        before = time.perf_counter()
        yield
        self._since += time.perf_counter() - before

    def waited(self, seconds: float) -> None:
        """Count time spent waiting for the loader."""
        self._waited += seconds

    @property
    def seconds(self) -> float:
        """Seconds of this run, earlier sessions included."""
        return time.perf_counter() - self._origin

    def window(self) -> tuple[float, float]:
        """(seconds of the window, share of them spent waiting); starts a new window."""
        now = time.perf_counter()
        elapsed = max(now - self._since, 1e-9)
        share = self._waited / elapsed
        self._since, self._waited = now, 0.0
        return elapsed, share


def memory_gb(device: torch.device) -> float:
    """Peak memory of the device's allocator, or the process's resident memory on a CPU, in GB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return psutil.Process().memory_info().rss / 1e9


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
