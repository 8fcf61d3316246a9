"""A run's state goes into a checkpoint and comes back; that of another run does not."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from simple_diffusion.config_files import dump_config, parse_config
from simple_diffusion.training.data_facts import DataFacts
from simple_diffusion.training.ema import Ema
from simple_diffusion.training.health import Health
from simple_diffusion.training.run_folder import RunError
from simple_diffusion.training.run_state import RunState
from simple_diffusion.training.state import Checkpoint, CheckpointError, CheckpointStore
from simple_diffusion.training.telemetry import Window

CPU = torch.device("cpu")
DATA = {"source": "s", "licence": "l", "images": 1, "classes": ["a"], "class_counts": [1]}
CONFIG = dump_config(parse_config("seed: 0", "test"))


def make(*, data: str = "icons", config: str = CONFIG, main: bool = True) -> RunState:
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    return RunState(
        network=network,
        optimizer=optimizer,
        ema=Ema(dict(network.named_parameters()), [0.1], every_steps=1),
        health=Health(3, 5.0),
        window=Window(CPU),
        data=DataFacts.from_state(DATA),
        data_name=data,
        config_text=config,
        main=main,
        processes=1,
    )


def train(state: RunState, steps: int) -> None:
    for _ in range(steps):
        state.network(torch.ones(4, 3)).square().sum().backward()
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.step += 1
        state.images_seen += 8
        state.ema.update(state.parameters, state.step, state.images_seen)
        state.window.add("loss", torch.tensor([float(state.step), 1.0]))


def save(state: RunState, folder: Path) -> Checkpoint:
    store = CheckpointStore(folder)
    content = json.loads(json.dumps(state.to_json(lambda tensor: tensor, CPU)))
    store.save(state.images_seen, state.groups(), content)
    store.wait()
    found = store.newest()
    assert found is not None
    return found


def bits(state: RunState) -> dict[str, Any]:
    return {
        f"{group}/{name}": tensor.tolist()
        for group, tensors in state.groups().items()
        for name, tensor in tensors.items()
    }


def test_it_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    unbroken, first, second = make(), make(), make()
    train(unbroken, 5)
    train(first, 3)
    first.replaced, first.events_done = 4, True
    second.load(save(first, tmp_path))
    assert (second.step, second.images_seen, second.replaced) == (3, 24, 4)
    assert second.events_done
    train(second, 2)
    assert bits(second) == bits(unbroken)
    assert second.ema.state() == unbroken.ema.state()
    assert second.window.means(lambda t: t) == unbroken.window.means(lambda t: t)


def test_sums_come_back_once(tmp_path: Path) -> None:
    """All processes load the same: the main one takes the sums, or they would be counted twice."""
    first, other = make(), make(main=False)
    train(first, 3)
    first.replaced = 4
    other.load(save(first, tmp_path))
    assert other.replaced == 0
    assert other.window.reduced(lambda t: t) == {"loss": (0.0, 0)}


def test_other_data_is_refused(tmp_path: Path) -> None:
    first = make()
    train(first, 1)
    with pytest.raises(CheckpointError, match=r"data was icons, and is now photos; restore"):
        make(data="photos").load(save(first, tmp_path))


def test_another_config_is_refused(tmp_path: Path) -> None:
    first = make()
    train(first, 1)
    other = make(config=dump_config(parse_config("seed: 1", "test")))
    before = bits(other)
    with pytest.raises(RunError, match="seed"):
        other.load(save(first, tmp_path))
    assert bits(other) == before


@pytest.mark.parametrize(
    ("key", "value"),
    [("step", None), ("window", [1]), ("seconds", "x"), ("health", {"skipped": 1}), ("data", None)],
)
def test_a_state_that_makes_no_sense(tmp_path: Path, key: str, value: Any) -> None:
    first = make()
    train(first, 1)
    found = save(first, tmp_path)
    if key == "data":
        del found.state["identity"]
    else:
        found.state[key] = value
    if key == "step":
        del found.state[key]
    with pytest.raises(CheckpointError, match="its state cannot be used"):
        make().load(found)
