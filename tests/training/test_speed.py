"""Step times by a clock that is moved by hand, and their extremes over real processes."""

import math
import os
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator

from simple_diffusion.training import speed
from simple_diffusion.training.speed import (
    SPEED_FIELDS,
    Extremes,
    Lap,
    Stopwatch,
    memory_gb,
    mfu,
    reduce_min_max,
    speed_fields,
)
from simple_diffusion.training.telemetry import progress_notes
from tests.training.checkpoint_ranks import run_ranks


class Clock:
    """Stands in for the time module."""

    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now

    def go(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(speed, "time", clock)
    return clock


def assert_lap(lap: Lap, *expected: float) -> None:
    values = (lap.seconds, lap.data_wait, lap.step_seconds, lap.longest)
    assert values == pytest.approx(expected, nan_ok=True)


class TestStopwatch:
    def test_a_lap_of_steps(self, clock: Clock) -> None:
        """Steps of 2 s and 4 s, in which 1.5 s were spent waiting for data; then a queue of 2 s."""
        watch = Stopwatch()
        clock.go(2.0)
        watch.waited(1.5)
        watch.step()
        clock.go(4.0)
        watch.step()
        clock.go(2.0)
        assert_lap(watch.lap(), 8.0, 1.5 / 8, 4.0, 4.0)

    def test_the_next_lap_starts_afresh(self, clock: Clock) -> None:
        watch = Stopwatch()
        clock.go(100.0)
        watch.waited(50.0)
        watch.step()
        watch.lap()
        clock.go(3.0)
        watch.step()
        assert_lap(watch.lap(), 3.0, 0.0, 3.0, 3.0)

    def test_pauses_do_not_count(self, clock: Clock) -> None:
        """Validation, say. It does in the run's seconds, which are what a person waits for."""
        watch = Stopwatch()
        clock.go(1.0)
        with watch.paused():
            clock.go(500.0)
        clock.go(1.0)
        watch.step()
        assert_lap(watch.lap(), 2.0, 0.0, 2.0, 2.0)
        assert watch.seconds == 502.0

    def test_waiting_for_others_is_in_the_time_but_not_in_the_steps(self, clock: Clock) -> None:
        """So that the process that is slow itself has the longest steps, not those it holds up."""
        watch = Stopwatch()
        for _ in range(2):
            clock.go(1.0)
            with watch.with_others():
                clock.go(3.0)
            watch.step()
        assert_lap(watch.lap(), 8.0, 0.0, 1.0, 1.0)

    def test_without_steps_there_is_no_step_time(self, clock: Clock) -> None:
        watch = Stopwatch()
        clock.go(2.0)
        assert_lap(watch.lap(), 2.0, 0.0, math.nan, math.nan)

    def test_earlier_sessions_count(self, clock: Clock) -> None:
        watch = Stopwatch(60.0)
        clock.go(5.0)
        assert watch.seconds == 65.0


def test_mfu_is_done_over_possible() -> None:
    """3 GFLOP an image, 500 images/s, on 4 devices of 1 TFLOP/s: 1.5 of 4 TFLOP/s."""
    assert mfu(3e9, 500.0, 1.0, 4) == pytest.approx(0.375)
    assert mfu(3e9, 500.0, None, 4) is None


def test_memory_of_a_process_is_some() -> None:
    before = memory_gb(torch.device("cpu"))
    held = torch.ones(50_000_000)  # 200 MB
    assert 0.15 < memory_gb(torch.device("cpu")) - before < 0.3
    assert held.sum() == 50_000_000


def test_extremes_of_one_process() -> None:
    values = {"step": 2.5, "memory": math.nan}
    found = reduce_min_max(values, Accelerator(cpu=True))
    assert found["step"] == Extremes(2.5, 2.5, 0)
    assert math.isnan(found["memory"].low)
    assert math.isnan(found["memory"].high)


def _extremes(rank: int, group: dist.ProcessGroup) -> Any:
    world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 3, "MASTER_PORT": 1}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", **{k: str(v) for k, v in world.items()}}
    accelerator = Accelerator(cpu=True)  # joins the group that there is
    assert accelerator.num_processes == 3
    values = {"step": (0.25, 0.75, 0.5)[rank], "memory": 4.0, "odd": (1.0, math.nan, 2.0)[rank]}
    lap = Lap(2.0, (0.1, 0.2, 0.0)[rank], values["step"], (1.0, 2.0, 9.0)[rank])
    fields = speed_fields(lap, 64, 7.0, accelerator, flops_per_image=3e9, peak_tflops=0.1)
    return reduce_min_max(values, accelerator), fields


def test_extremes_of_several() -> None:
    answers = run_ranks(3, _extremes)
    assert all(isinstance(answer, tuple) for answer in answers), answers
    for found, fields in answers:
        assert found["step"] == Extremes(0.25, 0.75, 1)
        assert found["memory"] == Extremes(4.0, 4.0, 0)
        assert math.isnan(found["odd"].high)
        assert set(fields) == set(SPEED_FIELDS) - {"memory_reserved_gb"}  # of GPUs
        assert fields["images_per_second"] == 32.0  # all processes together
        assert fields["mfu"] == pytest.approx(3e9 * 32 / (0.1e12 * 3))
        assert (fields["step_seconds_min"], fields["step_seconds_max"]) == (0.25, 0.75)
        assert (fields["step_seconds_longest"], fields["slowest_rank"]) == (9.0, 1)
        assert (fields["data_wait"], fields["seconds"]) == (0.2, 7.0)
    assert len({fields["memory_gb"] for _, fields in answers}) == 1


def test_without_a_peak_there_is_no_mfu() -> None:
    lap = Lap(2.0, 0.1, 0.2, 0.3)
    accelerator = Accelerator(cpu=True)
    fields = speed_fields(lap, 64, 7.0, accelerator, flops_per_image=3e9, peak_tflops=None)
    assert "mfu" not in fields
    line = {"loss": 1.0, "grad_norm": 1.0, "lr": 1e-3, "skipped": 0, "replaced": 0, **fields}
    assert "MFU" not in progress_notes(line)
