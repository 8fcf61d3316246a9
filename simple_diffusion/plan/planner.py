"""Making the plan of a run on many devices: every layout from a few rehearsals of one device."""

import math
import re
from collections.abc import Callable
from dataclasses import replace

from simple_diffusion.config import RunConfig
from simple_diffusion.devices import DEVICES, Device, find_device
from simple_diffusion.plan.cluster import MARGIN, ClusterPlan, LayoutPlan, Terms
from simple_diffusion.plan.counts import (
    count_flops,
    count_parameters,
    count_step,
    count_teacher_calls,
    meta_network,
)
from simple_diffusion.plan.layouts import (
    FLOAT32,
    Layout,
    LayoutParts,
    Moments,
    NetworkSizes,
    evaluation_parts,
    layouts,
    training_parts,
)
from simple_diffusion.plan.phases import Rehearsal, local_batch
from simple_diffusion.plan.traffic import Wires, traffic


def parse_devices(text: str) -> tuple[int, Device]:
    """`64xH100` -> (64, the device).

    Raises:
        ValueError: not of this form, or of a device that is not in the table.
    """
    match = re.fullmatch(r"\s*(\d{1,6})\s*x\s*(.+?)\s*", text, flags=re.IGNORECASE)
    if match is None or int(match[1]) < 1:
        raise ValueError(f"--devices {text}: give a number and a device, such as 64xH100 or 8xcpu")
    device = find_device(match[2])
    if device is None:
        known = ", ".join(device.name for device in DEVICES)
        raise ValueError(f"--devices {text}: {match[2]!r} is not in the table, which has {known}")
    return int(match[1]), device


def make_cluster_plan(
    config: RunConfig,
    count: int,
    device: Device,
    terms: Terms | None = None,
    *,
    own_only: bool = False,
) -> ClusterPlan:
    """Count and rehearse a run on many devices; nothing of its size is allocated.

    Args:
        config: the run.
        count: devices.
        device: each of them.
        terms: what to take for granted.
        own_only: leave out all ways of sharing but the config's own.

    Raises:
        ValueError: a config whose network, objective or batch does not fit together, or that
            cannot be divided between so many devices.
    """
    terms = terms or Terms()
    _check(config, count, device)
    # xformers computes what sdpa does, and a network with it cannot be made without a GPU.
    config = replace(config, model=replace(config.model, attention="sdpa"))
    share, micro = local_batch(config, count)
    network = meta_network(config)
    parallel = config.parallel
    ways = layouts(
        parallel.strategy if count > 1 else "ddp",
        parallel.shards,
        parallel.recompute,
        devices=count,
        per_node=terms.per_node,
        levels=len(network.levels) + 1,
    )
    peak = config.log.peak_tflops
    if peak is None:
        bf16 = config.train.precision == "bf16"
        peak = device.tflops_bf16 if bf16 else device.tflops_fp32
    if own_only:
        ways = [way for way in ways if way.chosen]
    forward, step = count_flops(config)
    sizes = NetworkSizes.of(network, count_teacher_calls(config))
    planner = _Planner(config, count, device, terms, sizes, peak, step)
    return ClusterPlan(
        name=config.run_dir,
        device=device,
        count=count,
        terms=terms,
        batch=config.train.batch_size,
        share=share,
        micro_batch=micro,
        total_images=config.train.total_images,
        peak_tflops=peak,
        precision=config.train.precision,
        parameters=count_parameters(config),
        forward_flops=forward,
        step_flops=step,
        # weights, two moments, averages
        checkpoint_bytes=FLOAT32 * planner.sizes.parameters * (3 + len(config.ema.lengths)),
        levels=len(network.levels) + 1,
        layouts=tuple(map(planner.plan, ways)),
        compiles=config.train.compile,
    )


def _check(config: RunConfig, count: int, device: Device) -> None:
    batch, shards = config.train.batch_size, config.parallel.shards
    if batch % count:
        raise ValueError(
            f"train.batch_size {batch} is not divisible by {count} devices; use a number of "
            "devices that divides it, or another batch"
        )
    if shards is not None and count % shards:
        raise ValueError(
            f"parallel.shards {shards} does not divide {count} devices; use a divisor, such as the "
            "number of devices of a node"
        )
    known = device.memory_gb is not None
    if known and config.train.precision == "bf16" and device.tflops_bf16 is None:
        raise ValueError(
            f"train.precision is bf16, which {device.name} has no arithmetic for; "
            "set --train.precision=fp32"
        )


def largest_divisor(share: int, *, near: int, total: Callable[[int], int], budget: float) -> int:
    """The largest divisor of a device's share whose `total` bytes fit; 0 if none does.

    By the line through two sizes, then by looking at what it promises. Memory is the largest of
    several moments, each linear in the batch, so outside of the two sizes it lies on the line or
    above it: what the line refuses does not fit.

    Args:
        share: images of a step on one device.
        near: a divisor, or a size between them, to begin at.
        total: bytes with a micro-batch of so many images; rises with it.
        budget: bytes that there are.
    """
    divisors = [n for n in range(1, share + 1) if share % n == 0]
    at = max(i for i, n in enumerate(divisors) if n <= near)
    other = at + 1 if at + 1 < len(divisors) else at - 1
    promised = divisors
    if len(divisors) > 1:
        low, high = sorted((divisors[at], divisors[other]))
        slope = (total(high) - total(low)) / (high - low)
        promised = [n for n in divisors if total(low) + (n - low) * slope <= budget]
    return next((n for n in reversed(promised) if total(n) <= budget), 0)


class _Planner:
    """Plans one layout after the other, rehearsing nothing twice."""

    def __init__(
        self,
        config: RunConfig,
        count: int,
        device: Device,
        terms: Terms,
        sizes: NetworkSizes,
        peak_tflops: float | None,
        step_flops: int,
    ) -> None:
        self.config, self.count, self.device, self.terms = config, count, device, terms
        self.sizes = sizes
        self._peak = peak_tflops
        self.share, self.micro = local_batch(config, count)
        self._rehearsals: dict[tuple[int, ...], Rehearsal] = {}
        self._moments: dict[tuple[tuple[int, ...], int], Moments] = {}
        self._flops: dict[tuple[int, ...], int] = {(): step_flops}
        self._phases = self._rehearse_evaluation()

    def plan(self, layout: Layout) -> LayoutPlan:
        flops = self._step_flops(layout.recompute)
        seconds = None
        if self._peak is not None:
            seconds = self.share * flops / (self._peak * 1e12 * self.terms.mfu)
        wires = Wires(self.terms.per_node, self.device.link_gb_s, self.terms.node_gbit_s)
        return LayoutPlan(
            layout=layout,
            training=self._training(layout, self.micro),
            evaluation=self._evaluation(layout),
            largest_micro_batch=self._largest(layout),
            step_flops=flops,
            traffic=traffic(layout, self.sizes, wires, math.ceil(self.share / self.micro)),
            compute_seconds=seconds,
        )

    def _training(self, layout: Layout, micro: int) -> LayoutParts:
        return training_parts(
            layout,
            self.sizes,
            self._rehearse(layout.recompute, micro),
            averages=len(self.config.ema.lengths),
            accumulates=micro < self.share,
        )

    def _evaluation(self, layout: Layout) -> LayoutParts:
        averages = len(self.config.ema.lengths)
        parts = (
            evaluation_parts(layout, self.sizes, moments, averages=averages)
            for moments in self._phases
        )
        return max(parts, key=lambda part: sum(part.values()))

    def _largest(self, layout: Layout) -> int | None:
        if self.device.memory_gb is None:
            return None
        budget = self.device.memory_gb * 1e9 * (1 - MARGIN)
        if sum(self._evaluation(layout).values()) > budget:
            return 0

        def total(micro: int) -> int:
            return sum(self._training(layout, micro).values())

        return largest_divisor(self.share, near=self.micro, total=total, budget=budget)

    def _rehearsal(self, recompute: tuple[int, ...]) -> Rehearsal:
        if recompute not in self._rehearsals:
            parallel = replace(self.config.parallel, recompute=recompute)
            self._rehearsals[recompute] = Rehearsal(
                replace(self.config, parallel=parallel), self.count
            )
        return self._rehearsals[recompute]

    def _rehearse(self, recompute: tuple[int, ...], micro: int) -> Moments:
        key = recompute, micro
        if key not in self._moments:
            rehearsal = self._rehearsal(recompute)
            rehearsal.micro_batch(micro)
            self._moments[key] = Moments.of(rehearsal.memory.moments)
        return self._moments[key]

    def _rehearse_evaluation(self) -> list[Moments]:
        rehearsal = self._rehearsal(tuple(sorted(self.config.parallel.recompute)))
        found = []
        if self.config.validation.images:
            rehearsal.validation()
            found.append(Moments.of(rehearsal.memory.moments))
        rehearsal.drawing()
        return [*found, Moments.of(rehearsal.memory.moments)]

    def _step_flops(self, recompute: tuple[int, ...]) -> int:
        if recompute not in self._flops:
            self._flops[recompute] = count_step(self.config, recompute)
        return self._flops[recompute]
