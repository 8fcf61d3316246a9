"""How fast a run is and how full its devices are: step times, waiting, memory, MFU."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch
from accelerate import Accelerator
from torch import Tensor

# Fields about how fast the processes are, and how full.
SPEED_FIELDS = (
    "images_per_second",
    "mfu",
    "data_wait",
    "memory_gb",
    "memory_reserved_gb",
    "step_seconds_min",
    "step_seconds_max",
    "step_seconds_longest",
    "slowest_rank",
    "seconds",
)


@dataclass(frozen=True)
class Lap:
    """The time between two metrics lines, as one process saw it.

    Attributes:
        seconds: its length, pauses left out.
        data_wait: share of it spent waiting for the loader.
        step_seconds: mean time of a step, without the wait for other processes; nan without steps.
        longest: the longest of these steps; nan without steps.
    """

    seconds: float
    data_wait: float
    step_seconds: float
    longest: float


class Stopwatch:
    """Wall time: of the run, of the steps since the last metrics line, and of waiting in them."""

    def __init__(self, seconds_before: float = 0.0) -> None:
        now = time.perf_counter()
        self._origin = now - seconds_before
        self._start(now)

    def _start(self, now: float) -> None:
        self._since, self._waited, self._with_others = now, 0.0, 0.0
        self._step_since, self._steps, self._longest = now, 0, math.nan

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keep what is done inside (validation, pictures, saving) out of the window."""
        before = time.perf_counter()
        yield
        pause = time.perf_counter() - before
        self._since += pause
        self._step_since += pause

    @contextmanager
    def with_others(self) -> Iterator[None]:
        """Keep the wait inside, for other processes to arrive, out of this one's step time."""
        before = time.perf_counter()
        yield
        wait = time.perf_counter() - before
        self._with_others += wait
        self._step_since += wait

    def waited(self, seconds: float) -> None:
        """Count time spent waiting for the loader."""
        self._waited += seconds

    def step(self) -> None:
        """A step has ended."""
        now = time.perf_counter()
        self._steps += 1
        seconds = now - self._step_since
        self._longest = seconds if math.isnan(self._longest) else max(self._longest, seconds)
        self._step_since = now

    @property
    def seconds(self) -> float:
        """Seconds of this run, earlier sessions included."""
        return time.perf_counter() - self._origin

    def lap(self) -> Lap:
        """The time since the last lap; starts a new one.

        The mean step is of the whole time, so that what the device still had queued when its last
        step was given out is counted (call this after `Window.means`, which waits for it).
        """
        now = time.perf_counter()
        elapsed = max(now - self._since, 1e-9)
        mean = (elapsed - self._with_others) / self._steps if self._steps else math.nan
        lap = Lap(elapsed, self._waited / elapsed, mean, self._longest)
        self._start(now)
        return lap


@dataclass(frozen=True)
class Extremes:
    """The smallest and the largest of a number that each process has.

    Attributes:
        low, high: those; nan if any process had nan.
        highest_rank: the first of the processes with the largest.
    """

    low: float
    high: float
    highest_rank: int


def reduce_min_max(values: Mapping[str, float], accelerator: Accelerator) -> dict[str, Extremes]:
    """Extremes of each value over all processes, which all call this with the same names."""
    mine = torch.tensor([list(values.values())], dtype=torch.float64, device=accelerator.device)
    everyone: Tensor = accelerator.gather(mine).cpu()  # (processes, values)
    low, high = everyone.amin(0).tolist(), everyone.amax(0).tolist()
    ranks = everyone.argmax(0).tolist()
    return dict(zip(values, map(Extremes, low, high, ranks), strict=True))


def mfu(
    flops_per_image: float, images_per_second: float, peak_tflops: float | None, processes: int
) -> float | None:
    """Model FLOPs utilisation: the share of the devices' peak that the model's arithmetic takes.

    Chowdhery et al. 2022 (PaLM), appendix B: activations computed again do not count.

    Args:
        flops_per_image: of a training step without recomputation; a multiply-add is 2.
        images_per_second: over all processes.
        peak_tflops: of one device in training's precision, 10^12 FLOP/s; None where not known.
        processes: devices that share the work.

    Returns:
        The share, 1 for all of it; None without a peak.
    """
    if peak_tflops is None:
        return None
    return flops_per_image * images_per_second / (peak_tflops * 1e12 * processes)


def memory_gb(device: torch.device) -> float:
    """Peak memory of the device's allocator, or the process's resident memory on a CPU, in GB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return psutil.Process().memory_info().rss / 1e9


def speed_fields(
    lap: Lap,
    images: int,
    seconds: float,
    accelerator: Accelerator,
    *,
    flops_per_image: float,
    peak_tflops: float | None,
) -> dict[str, float]:
    """SPEED_FIELDS of a metrics line: how fast the processes are, and how full.

    All processes call it. Memory and the share of waiting are those of the process that has most.

    Args:
        lap: of this process.
        images: trained on in that time by all processes.
        seconds: of the whole run.
        accelerator: of these processes.
        flops_per_image: of a training step, without recomputation.
        peak_tflops: of one device; None where not known, and then there is no ``mfu``.
    """
    mine = {
        "step": lap.step_seconds,
        "longest": lap.longest,
        "data_wait": lap.data_wait,
        "memory": memory_gb(accelerator.device),
    }
    if accelerator.device.type == "cuda":
        mine["reserved"] = torch.cuda.max_memory_reserved(accelerator.device) / 1e9
    of = reduce_min_max(mine, accelerator)
    rate = images / lap.seconds
    used = mfu(flops_per_image, rate, peak_tflops, accelerator.num_processes)
    fields: dict[str, float | None] = {
        "images_per_second": rate,
        "mfu": used,
        "data_wait": of["data_wait"].high,
        "memory_gb": of["memory"].high,
        "memory_reserved_gb": of["reserved"].high if "reserved" in of else None,
        "step_seconds_min": of["step"].low,
        "step_seconds_max": of["step"].high,
        "step_seconds_longest": of["longest"].high,
        "slowest_rank": of["step"].highest_rank,
        "seconds": seconds,
    }
    assert tuple(fields) == SPEED_FIELDS
    return {name: value for name, value in fields.items() if value is not None}
