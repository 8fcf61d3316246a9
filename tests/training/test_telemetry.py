"""Metrics lines and window means survive kills; what is said of a run while it trains."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from simple_diffusion.training.telemetry import (
    REMOTE_FIELDS,
    MetricsFile,
    Window,
    data_notes,
    progress_notes,
    reads_of_line,
    tracker_values,
)

CPU = torch.device("cpu")


def same(tensor: Tensor) -> Tensor:
    """The sum over one process."""
    return tensor


def test_rewind_drops_later_and_torn_lines(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    for images in (10, 20, 30):
        metrics.append({"images_seen": images, "loss": images / 7})
    with metrics.path.open("a") as file:
        file.write('{"images_seen": 40, "lo')
    assert metrics.rewind(lambda line: line["images_seen"] <= 20) == 1
    assert [line["images_seen"] for line in metrics.lines()] == [10, 20]
    metrics.append({"images_seen": 30, "loss": 30 / 7})
    assert metrics.lines()[2] == {"images_seen": 30, "loss": 30 / 7}


def test_non_finite_numbers_stay_valid_json(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.append({"loss": float("nan"), "lr": 1.0})
    assert json.loads(metrics.path.read_text()) == {"loss": None, "lr": 1.0}


def test_window_means_are_per_image_and_start_afresh() -> None:
    window = Window(CPU)
    window.add("loss", torch.tensor([1.0, 2.0]))
    window.add("loss", torch.tensor([6.0]))
    assert window.means(same) == {"loss": 3.0}
    assert window.means(same) == {}


def test_restored_window_goes_on_bit_for_bit() -> None:
    values = torch.rand(50, generator=torch.Generator().manual_seed(0))
    whole, first, second = Window(CPU), Window(CPU), Window(CPU)
    for value in values:
        whole.add("loss", value)
    for value in values[:20]:
        first.add("loss", value)
    second.load_state_dict(json.loads(json.dumps(first.reduced(same))))
    for value in values[20:]:
        second.add("loss", value)
    assert second.means(same) == whole.means(same)
    assert whole.means(same) == {}


def test_reduction_sums_over_processes() -> None:
    window = Window(CPU)
    window.add("loss", torch.tensor([1.0, 3.0]))
    other = torch.tensor([[8.0], [2.0]], dtype=torch.float64)  # sum 8 over 2 images elsewhere
    assert window.means(lambda mine: mine + other) == {"loss": pytest.approx(3.0)}


def test_what_is_not_finite_is_left_out() -> None:
    """A skipped step's losses, without a host that looks at them."""
    window = Window(CPU)
    window.add("loss", torch.tensor([1.0, math.nan, math.inf, 4.0]))
    window.add("grad_norm", torch.tensor(math.nan))
    window.add("grad_norm", torch.tensor(6.0))
    window.add("loss/never", torch.tensor([math.nan, -math.inf]))
    assert window.reduced(same)["loss"] == (5.0, 2)
    means = window.means(same)
    assert (means["loss"], means["grad_norm"]) == (2.5, 6.0)
    assert math.isnan(means["loss/never"])


LINE = {
    "kind": "train",
    "step": 12,
    "images_seen": 1200,
    "loss": 0.123456,
    "loss/plain": 0.11,
    "grad_norm": 0.4567,
    "lr": 3e-4,
    "skipped": 0,
    "replaced": 0,
    "images_per_second": 1234.5,
    "memory_gb": 61.25,
    "data_wait": 0.0349,
}


class TestProgressNotes:
    def test_the_run_at_a_glance(self) -> None:
        assert progress_notes(LINE | {"mfu": 0.4321, "skipped": 2}) == (
            "loss 0.1235 (plain 0.1100), grad 0.457, lr 3.0e-04, 1.23e+03 img/s, MFU 43.2%, "
            "61.2 GB, data wait 3%, 2 skipped"
        )

    def test_what_is_not_known_or_not_amiss_is_not_said(self) -> None:
        assert progress_notes({k: v for k, v in LINE.items() if "/" not in k}) == (
            "loss 0.1235, grad 0.457, lr 3.0e-04, 1.23e+03 img/s, 61.2 GB, data wait 3%"
        )

    def test_remote_data_and_damage(self) -> None:
        line = LINE | {"fetched_mb": 120.4, "fetch_retries": 3, "replaced": 7}
        assert progress_notes(line).endswith(
            "data wait 3%, 120 MB fetched, 3 retries, 7 images replaced"
        )
        assert data_notes(LINE) == ""

    def test_steps_that_were_all_skipped(self) -> None:
        line = LINE | {"loss": math.nan, "grad_norm": math.nan, "skipped": 5}
        assert progress_notes(line).startswith("loss nan (plain 0.1100), grad nan, ")


def test_trackers_get_what_they_can_plot() -> None:
    line = {"kind": "train", "step": 3, "loss": math.nan, "lr": 0.5, "top": math.inf, "ok": True}
    assert tracker_values(line | {"mfu": None, "samples": [1, 2]}) == {"step": 3, "lr": 0.5}


def test_what_a_line_says_of_reading() -> None:
    nothing = dict.fromkeys(
        (
            "bytes_read",
            "bytes_fetched",
            "shards_fetched",
            "cache_hits",
            "retries",
            "checksum_failures",
            "wait_seconds",
        ),
        0.0,
    )
    assert reads_of_line(nothing | {"bytes_read": 6e6}, 2.0) == {"read_mb_per_second": 3.0}
    line = reads_of_line(nothing | {"bytes_fetched": 5e6, "retries": 1.0}, 2.0)
    assert set(line) == {"read_mb_per_second", *REMOTE_FIELDS}
    assert (line["fetched_mb"], line["fetch_retries"]) == (5.0, 1.0)
