"""A run on many devices: what each way of sharing the weights needs, and what the run costs."""

import math
from dataclasses import dataclass

from simple_diffusion.devices import Device
from simple_diffusion.plan.layouts import Layout, LayoutParts
from simple_diffusion.plan.traffic import Traffic

# Of a device's memory as it is sold, left to its driver, its kernels' workspaces, the buffers of
# communication and the holes between tensors.
MARGIN = 0.05


@dataclass(frozen=True)
class Terms:
    """What a plan takes for granted.

    Attributes:
        mfu: share of the device's peak that the arithmetic reaches; what is computed again counts.
        price: of one device for an hour; None if it is not asked for.
        per_node: devices in a node.
        node_gbit_s: out of a node, Gbit/s.
    """

    mfu: float = 0.4
    price: float | None = None
    per_node: int = 8
    node_gbit_s: float = 3200.0

    def __post_init__(self) -> None:
        if not 0.0 < self.mfu <= 1.0:
            raise ValueError(f"--mfu {self.mfu}: the share of the peak must lie in (0, 1]")
        if self.price is not None and not 0.0 <= self.price < math.inf:
            raise ValueError(f"--price {self.price}: give the price of a device for an hour")
        if self.per_node < 1:
            raise ValueError(f"--devices-per-node {self.per_node}: must be at least 1")
        if not 0.0 < self.node_gbit_s < math.inf:
            raise ValueError(f"--network-gbit {self.node_gbit_s}: must be positive")


@dataclass(frozen=True)
class LayoutPlan:
    """One way of sharing the weights.

    Attributes:
        layout: which.
        training: bytes of each part at the peak of a training step.
        evaluation: the same of evaluation and drawing, whichever needs more.
        largest_micro_batch: the largest divisor of a device's share that fits; 0 if none does,
            None if the device's memory is not known.
        step_flops: of one image, with what is computed again.
        traffic: of a step, with the config's micro-batch.
        compute_seconds: of a step; None where the device's peak is not known.
    """

    layout: Layout
    training: LayoutParts
    evaluation: LayoutParts
    largest_micro_batch: int | None
    step_flops: int
    traffic: Traffic
    compute_seconds: float | None

    @property
    def peak(self) -> int:
        """Bytes on one device, at the most."""
        return max(sum(self.training.values()), sum(self.evaluation.values()))

    @property
    def waits(self) -> bool | None:
        """Whether a step's communication takes longer than its arithmetic; None: not known."""
        if self.compute_seconds is None or self.traffic.seconds is None:
            return None
        return self.traffic.seconds > self.compute_seconds

    @property
    def step_seconds(self) -> float | None:
        """Time of a step in which arithmetic and communication overlap; None where not known."""
        if self.compute_seconds is None:
            return None
        return max(self.compute_seconds, self.traffic.seconds or 0.0)


@dataclass(frozen=True)
class ClusterPlan:
    """What a run needs on many devices.

    Attributes:
        name: the run's folder.
        device: each of them.
        count: how many.
        terms: what was taken for granted.
        batch: images of a step.
        share: of them, on one device.
        micro_batch: images that a device takes at once.
        total_images: length of the run.
        peak_tflops: of one device in training's precision; None where not known.
        precision: training's.
        parameters: of the network, by part.
        forward_flops, step_flops: of one image, nothing computed again.
        checkpoint_bytes: of one checkpoint; each device's host keeps a copy of its share of them
            while they are written.
        levels: of the network, the transformer counted.
        layouts: the ways of sharing.
        compiles: whether blocks are compiled.
    """

    name: str
    device: Device
    count: int
    terms: Terms
    batch: int
    share: int
    micro_batch: int
    total_images: int
    peak_tflops: float | None
    precision: str
    parameters: dict[str, int]
    forward_flops: int
    step_flops: int
    checkpoint_bytes: int
    levels: int
    layouts: tuple[LayoutPlan, ...]
    compiles: bool

    @property
    def budget(self) -> float | None:
        """Bytes of a device that a run may use; None where not known."""
        memory = self.device.memory_gb
        return None if memory is None else memory * 1e9 * (1 - MARGIN)

    @property
    def own(self) -> LayoutPlan:
        """The way that the config says."""
        return next(plan for plan in self.layouts if plan.layout.chosen)

    def fits(self, plan: LayoutPlan) -> bool | None:
        """Whether the budget holds the peak; None where it is not known."""
        return None if self.budget is None else plan.peak <= self.budget

    def images_per_second(self, plan: LayoutPlan) -> float | None:
        """Of all devices together."""
        return None if plan.step_seconds is None else self.batch / plan.step_seconds

    def hours(self, plan: LayoutPlan) -> float | None:
        """Of the whole run, evaluation and checkpoints left out."""
        rate = self.images_per_second(plan)
        return None if rate is None else self.total_images / rate / 3600

    def cost(self, plan: LayoutPlan) -> float | None:
        """Of all devices' hours."""
        hours = self.hours(plan)
        if hours is None or self.terms.price is None:
            return None
        return hours * self.count * self.terms.price
