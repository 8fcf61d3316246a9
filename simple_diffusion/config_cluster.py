"""The part of a run's config about many devices, and about what must not be lost on them."""

import math
from dataclasses import dataclass
from typing import Literal

from simple_diffusion.config_checks import require

Strategy = Literal["ddp", "fsdp2"]


@dataclass(frozen=True)
class ParallelConfig:
    """How the devices share the work.

    `strategy` ddp: each holds all weights; fsdp2: weights, gradients, optimiser and averages are
    cut up between `shards` devices (null: all of them; fewer: one copy for each group of so many).
    `recompute` names levels whose blocks compute their activations again in the backward pass
    instead of keeping them: 0 is the highest resolution, the number of levels the transformer.
    """

    strategy: Strategy = "ddp"
    shards: int | None = None
    recompute: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        require(self.shards is None or self.shards >= 1, "parallel.shards must be at least 1")
        require(
            self.shards is None or self.strategy == "fsdp2",
            "parallel.shards is for parallel.strategy fsdp2; leave it null with ddp",
        )
        require(
            min(self.recompute, default=0) >= 0 and len(set(self.recompute)) == len(self.recompute),
            "parallel.recompute must be different levels from 0",
        )


@dataclass(frozen=True)
class HealthConfig:
    """When a run is not well.

    A step with a non-finite loss or gradient is skipped; `max_skipped` of them in a row stop the
    run. A gradient norm above `spike_factor` times the recent median is logged. Processes that
    make no progress for `stall_seconds` (several times that while they save or start) end, naming
    the one that they wait for.
    """

    max_skipped: int = 10
    spike_factor: float = 5.0
    stall_seconds: float = 900.0

    def __post_init__(self) -> None:
        require(self.max_skipped >= 1, "health.max_skipped must be at least 1")
        require(self.spike_factor > 1.0, "health.spike_factor must be above 1")
        require(
            1.0 <= self.stall_seconds < math.inf, "health.stall_seconds must be finite, from 1 up"
        )


@dataclass(frozen=True)
class CheckpointConfig:
    """Save every so many images; keep the newest `keep` and multiples of `milestone_images`.

    `path` is where they go, a folder or a URL such as s3://bucket/run; null is the run's own
    folder. `grace_seconds` is the time that the launcher leaves between a signal and the kill: a
    run that needs longer to save says so.
    """

    every_images: int = 10_000
    keep: int = 2
    milestone_images: int | None = None
    path: str | None = None
    grace_seconds: float = 30.0

    def __post_init__(self) -> None:
        require(self.every_images >= 1, "checkpoint.every_images must be at least 1")
        require(self.keep >= 1, "checkpoint.keep must be at least 1")
        milestone = self.milestone_images
        require(
            milestone is None or milestone >= 1, "checkpoint.milestone_images must be at least 1"
        )
        require(self.grace_seconds > 0.0, "checkpoint.grace_seconds must be positive")


@dataclass(frozen=True)
class InitConfig:
    """Start from another run's weights, at this one's resolution, instead of from chance.

    `run` is its folder, `weights` which of them (null: its first average), `checkpoint` the images
    that it had seen (null: its newest).
    """

    run: str | None = None
    weights: str | None = None
    checkpoint: int | None = None

    def __post_init__(self) -> None:
        require(
            self.run is not None or (self.weights is None and self.checkpoint is None),
            "init_from.weights and init_from.checkpoint need init_from.run",
        )
