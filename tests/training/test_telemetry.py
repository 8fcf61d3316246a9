"""Metrics lines and window means survive kills."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from simple_diffusion.training.telemetry import MetricsFile, Window

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
