"""The plan of a run: its numbers, and how they look on paper."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from simple_diffusion.config import RunConfig
from simple_diffusion.plan.counts import count_flops, count_parameters
from simple_diffusion.plan.live import PARTS
from simple_diffusion.plan.paper import flop_lines, parameter_lines, row, si
from simple_diffusion.plan.phases import (
    Phase,
    PhaseMemory,
    differentiates_forward,
    local_batch,
    rehearse,
)

# What the trainer's evaluator allows the yardstick (eval.wiener): float32 coefficients of so many
# images, four times over, as long as that is below the limit.
YARDSTICK_COPIES, YARDSTICK_LIMIT = 4, 4_000_000_000


@dataclass(frozen=True)
class Plan:
    """What a run needs; bytes are those of one device, beyond the imported libraries.

    Attributes:
        name: the run's folder.
        parameters: number of parameters by part of the network.
        forward_flops: of one image through the network; a multiply-add counts as 2.
        step_flops: of one image in a training step, forward and backward. As in all counts of
            this kind, only matrix products and convolutions are counted.
        total_images: length of the run.
        devices: how many work together.
        images: images of a step on one device.
        micro_batch: images that a device takes at once.
        memory: peak of each phase.
        yardstick: an upper bound for the memory of the Wiener yardstick; 0 without one.
        notes: what the numbers leave out.
    """

    name: str
    parameters: dict[str, int]
    forward_flops: int
    step_flops: int
    total_images: int
    devices: int
    images: int
    micro_batch: int
    memory: dict[Phase, PhaseMemory]
    yardstick: int
    notes: tuple[str, ...]

    @property
    def total_parameters(self) -> int:
        """All parameters of the network."""
        return sum(self.parameters.values())

    @property
    def peak(self) -> int:
        """Bytes that the process grows by, at the most."""
        kept = self.memory["drawing"].total if self.yardstick else 0
        return max(*(m.total for m in self.memory.values()), kept + self.yardstick)

    def images_per_second(self, hours: float) -> float:
        """The rate over all devices that ends the run after so many hours.

        Raises:
            ValueError: no positive number of hours.
        """
        if not hours > 0:
            raise ValueError(f"--hours {hours}: give the time of the run, more than 0")
        return self.total_images / (3600 * hours)

    def text(self, hours: float | None = None) -> str:
        """The plan for people; with `hours`, also how fast the run must be.

        Raises:
            ValueError: no positive number of hours.
        """
        blocks = [
            parameter_lines(self.parameters),
            flop_lines(self.forward_flops, self.step_flops),
            self._memory_lines(),
            self._run_lines(hours),
            self.notes,
        ]
        return f"plan of {self.name}\n\n" + "\n\n".join("\n".join(block) for block in blocks)

    def _memory_lines(self) -> Iterator[str]:
        batch = f"{self.images} images"
        if self.micro_batch < self.images:
            batch += f", {self.micro_batch} at once"
        yield f"memory in MB at the peak of each phase; {batch} a step"
        yield row("", *(f"{phase:>12}" for phase in self.memory))
        for part in PARTS:
            sizes = [memory.parts[part] for memory in self.memory.values()]
            yield row(f"  {part}", *(f"{size / 1e6:12,.0f}" for size in sizes))
        holes = [m.total - sum(m.parts.values()) for m in self.memory.values()]
        known = all(memory.resident is not None for memory in self.memory.values())
        yield row(
            "  allocator's holes",
            *(f"{hole / 1e6:12,.0f}" if known else f"{'unknown':>12}" for hole in holes),
        )
        yield row("  total", *(f"{m.total / 1e6:12,.0f}" for m in self.memory.values()))
        if self.yardstick:
            yield row("  Wiener yardstick", f"{self.yardstick / 1e6:12,.0f}", "  more, at the end")
        yield row("peak", f"{self.peak / 1e6:12,.0f}")

    def _run_lines(self, hours: float | None) -> Iterator[str]:
        total = self.total_images * self.step_flops
        yield row("run", f"{self.total_images:,} images", f"  {si(total, 'FLOP')}")
        if hours is not None:
            rate = self.images_per_second(hours)
            speed = si(rate * self.step_flops, "FLOP/s")
            yield row(f"  in {hours:g} hours", f"{rate:,.3g} images/s", f"  {speed}")


def make_plan(config: RunConfig) -> Plan:
    """Count and rehearse a run on one device; nothing of its size is allocated.

    Raises:
        ValueError: a config whose network, objective or batch does not fit together.
    """
    # xformers computes what sdpa does, and a network with it cannot be made without a GPU.
    config = replace(config, model=replace(config.model, attention="sdpa"))
    devices = 1
    images, micro_batch = local_batch(config, devices)
    forward, step = count_flops(config)
    return Plan(
        name=config.run_dir,
        parameters=count_parameters(config),
        forward_flops=forward,
        step_flops=step,
        total_images=config.train.total_images,
        devices=devices,
        images=images,
        micro_batch=micro_batch,
        memory=rehearse(config, devices),
        yardstick=yardstick_bound(config),
        notes=tuple(_notes(config)),
    )


def _notes(config: RunConfig) -> Iterator[str]:
    yield "Memory is counted beyond the imported libraries, for one process on a CPU."
    if config.parallel.strategy == "fsdp2":
        yield "The config cuts the weights up between devices: plan it with --devices."
    if config.data.workers:
        yield "The loader's workers are processes of their own, and not counted."
    if config.scores.num:
        yield "The network that scores look at images with is not counted."
    if differentiates_forward(config):
        yield "What the few-step objective's forward derivative keeps for a moment is not counted."
    if config.train.compile:
        yield "What torch.compile adds or saves is not counted."


def yardstick_bound(config: RunConfig) -> int:
    """Bytes that fitting the Wiener yardstick may take at the end of a run; 0 without one."""
    if not config.validation.images:
        return 0
    pixels = 3 * config.data.image_size**2
    return min(YARDSTICK_COPIES * 4 * pixels * config.validation.wiener_images, YARDSTICK_LIMIT)
