"""What a run is besides its config: everything that a checkpoint keeps, and how it comes back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from data_pipelines.counts import ReadCounts
from simple_diffusion.training.data_facts import DataFacts
from simple_diffusion.training.ema import Ema
from simple_diffusion.training.health import Health
from simple_diffusion.training.run_folder import RunError, refuse_other_config
from simple_diffusion.training.state import (
    Checkpoint,
    CheckpointError,
    TensorGroups,
    load_optimizer,
    optimizer_tensors,
)
from simple_diffusion.training.telemetry import Stopwatch, Window

MODEL, OPTIMIZER = "model", "optimizer"


@dataclass
class RunState:
    """The state of one run on this process.

    Attributes:
        network: whose weights are trained.
        optimizer: over them.
        ema: their averages.
        health: skipped steps.
        window: sums since the last metrics line.
        data: what checkpoints tell of the training set to those who sample and export.
        data_name: fingerprint of the data, which may not change.
        config_text: the run's config as YAML.
        main: whether this is the main process, which keeps the sums of all after a resume.
        processes: how many there are.
        step: optimiser steps done or skipped.
        images_seen: the one integer from which data, noise and learning rate follow.
        events_done: whether this step's validation and pictures are done.
        replaced: images of this process that could not be used.
        watch: seconds of training.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    ema: Ema
    health: Health
    window: Window
    data: DataFacts
    data_name: str
    config_text: str
    main: bool
    processes: int
    step: int = 0
    images_seen: int = 0
    events_done: bool = False
    replaced: int = 0
    reads: ReadCounts = field(default_factory=ReadCounts)
    watch: Stopwatch = field(default_factory=Stopwatch)

    def __post_init__(self) -> None:
        self.parameters: dict[str, Tensor] = dict(self.network.named_parameters())
        self._names = {parameter: name for name, parameter in self.parameters.items()}

    def averages(self) -> TensorGroups:
        """The averages by name."""
        return {name: self.ema.tensors(name) for name in self.ema.names}

    def groups(self) -> TensorGroups:
        """All tensors of a checkpoint; sharded ones as they are."""
        optimizer = optimizer_tensors(self.optimizer, self._names)
        return {MODEL: self.parameters, **self.averages(), OPTIMIZER: optimizer}

    def to_json(self, reduce: Callable[[Tensor], Tensor], device: torch.device) -> dict[str, Any]:
        """The rest of a checkpoint. Every process calls it.

        Args:
            reduce: sums a tensor over the processes.
            device: where such tensors must be.
        """
        return {
            "images_seen": self.images_seen,
            "step": self.step,
            "ema_updated_at": self.ema.state()["updated_at"],
            "events_done": self.events_done,
            "replaced": int(reduce(torch.tensor(self.replaced, device=device))),
            "window": self.window.reduced(reduce),
            "health": self.health.state(),
            "seconds": self.watch.seconds,
            "identity": {"data": self.data_name},
            "config": self.config_text,
            "data": self.data.to_state(),
            "world_size": self.processes,
            "torch": torch.__version__,
        }

    def load(self, found: Checkpoint) -> None:
        """Become what a checkpoint says. Every process calls it.

        Raises:
            CheckpointError: it is of another run, another model, or damaged.
        """
        try:
            self._check(found)
            found.load_into({MODEL: self.parameters, **self.averages()})
            load_optimizer(found, self.optimizer, self._names)
            self._load_json(found.state)
        except (CheckpointError, RunError):
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{found.path}: its state cannot be used: {error!r}") from None

    def _check(self, found: Checkpoint) -> None:
        was = found.state["identity"].get("data")
        if was != self.data_name:
            raise CheckpointError(
                f"{found.path}: the run's data was {was}, and is now {self.data_name}; restore "
                "it, or choose another --run_dir"
            )
        if "config" in found.state:
            refuse_other_config(str(found.state["config"]), self.config_text, str(found.path))

    def _load_json(self, state: Mapping[str, Any]) -> None:
        self.step, self.images_seen = state["step"], state["images_seen"]
        self.ema.load_state({"updated_at": state["ema_updated_at"]})
        self.events_done = state["events_done"]
        self.watch = Stopwatch(state["seconds"])
        if "health" in state:
            self.health.load_state(state["health"])
        # The main process holds the sums of all.
        self.replaced = state["replaced"] if self.main else 0
        window = state["window"].items()
        self.window.load_state_dict({k: (s, n) if self.main else (0.0, 0) for k, (s, n) in window})
