"""Optimiser state through checkpoints: the next step is the same, bit for bit."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from simple_diffusion.training.state import (
    CheckpointError,
    CheckpointStore,
    find_checkpoint,
    load_optimizer,
    optimizer_tensors,
)


def make(fused: bool) -> tuple[nn.Linear, torch.optim.AdamW, dict[Tensor, str]]:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=fused)
    return layer, optimizer, {p: n for n, p in layer.named_parameters()}


def step(layer: nn.Linear, optimizer: torch.optim.AdamW, seed: int) -> None:
    for parameter in layer.parameters():
        generator = torch.Generator().manual_seed(seed)
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


def save(root: Path, tensors: dict[str, Tensor]) -> None:
    store = CheckpointStore(root)
    store.save(1, {"optimizer": tensors}, {})
    store.wait()


@pytest.mark.parametrize("fused", [False, True])
def test_the_next_step_is_the_same(tmp_path: Path, fused: bool) -> None:
    layer, optimizer, names = make(fused)
    for seed in range(5):
        step(layer, optimizer, seed)
    flat = optimizer_tensors(optimizer, names)
    assert set(flat) == {
        f"{p}/{k}" for p in ("weight", "bias") for k in ("step", "exp_avg", "exp_avg_sq")
    }
    save(tmp_path, flat)
    other, restored, other_names = make(fused)
    step(other, restored, 7)  # what it knew before is forgotten
    other.load_state_dict(layer.state_dict())
    load_optimizer(find_checkpoint(tmp_path), restored, other_names)
    step(layer, optimizer, 9)
    step(other, restored, 9)
    assert torch.equal(layer.weight, other.weight)
    assert torch.equal(layer.bias, other.bias)


def test_before_the_first_step_there_is_nothing(tmp_path: Path) -> None:
    layer, optimizer, names = make(True)
    save(tmp_path, optimizer_tensors(optimizer, names))
    step(layer, optimizer, 0)
    load_optimizer(find_checkpoint(tmp_path), optimizer, names)
    assert not optimizer.state


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"other/exp_avg": torch.zeros(2, 3)}, "optimizer has other/exp_avg, of no parameter"),
        ({"weight/exp_avg": torch.zeros(2, 4)}, r"weight/exp_avg \(2x4 float32 saved, 2x3"),
        ({"weight/step": torch.zeros(10)}, "weight/step"),
    ],
)
def test_of_another_model(tmp_path: Path, tensors: dict[str, Tensor], message: str) -> None:
    layer, optimizer, names = make(True)
    step(layer, optimizer, 0)
    before = dict(optimizer.state[layer.weight])
    save(tmp_path, tensors)
    with pytest.raises(CheckpointError, match=message):
        load_optimizer(find_checkpoint(tmp_path), optimizer, names)
    assert optimizer.state[layer.weight] == before
