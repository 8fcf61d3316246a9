"""Memory of one device when several share a network: copies of it, or pieces.

What a device computes with does not depend on how weights are kept: a micro-batch is rehearsed
once, with all weights at hand, and every layout is priced from the same record of its moments.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from simple_diffusion.config_cluster import Strategy
from simple_diffusion.models.uvit import UViT
from simple_diffusion.plan.live import PARTS

FLOAT32 = 4
# fully_shard holds a block's weights whole while it runs, and those of the next one, gathered ahead
# of need; of its gradients the ones that come, and a packed copy that is sent.
GATHERED_BLOCKS, WHOLE_GRADIENTS = 2, 2
Shapes = tuple[torch.Size, ...]


@dataclass(frozen=True)
class Layout:
    """How devices share the weights.

    Attributes:
        devices: how many work together.
        strategy: as `parallel.strategy`; with one device, it makes no difference.
        shards: devices that share one copy of the weights; 1 under ddp.
        recompute: levels whose blocks compute their activations again, as `parallel.recompute`.
        chosen: whether the config itself says so.
    """

    devices: int
    strategy: Strategy
    shards: int
    recompute: tuple[int, ...]
    chosen: bool = False

    @property
    def name(self) -> str:
        """How people call it."""
        if self.devices == 1:
            return "alone"
        if self.strategy == "ddp":
            return "DDP"
        return "FSDP2" if self.shards == self.devices else f"FSDP2 by {self.shards}"


@dataclass(frozen=True)
class NetworkSizes:
    """What sharding needs to know of a network: the shapes of its parameters.

    Attributes:
        blocks: of each of the blocks, which are gathered one by one.
        rest: outside the blocks; they stay gathered through a micro-batch.
        teacher_calls: of a few-step objective's teacher in a micro-batch. Where weights are cut up,
            the teacher has pieces of its own.
    """

    blocks: tuple[Shapes, ...]
    rest: Shapes
    teacher_calls: int = 0

    @classmethod
    def of(cls, network: UViT, teacher_calls: int = 0) -> "NetworkSizes":
        """Measure a network, which may be without content."""
        blocks = [
            list(block.parameters())
            for level in range(len(network.levels) + 1)
            for block in network.blocks(level)
        ]
        inside = {id(parameter) for block in blocks for parameter in block}
        return cls(
            tuple(tuple(parameter.shape for parameter in block) for block in blocks),
            tuple(p.shape for p in network.parameters() if id(p) not in inside),
            teacher_calls,
        )

    @property
    def parameters(self) -> int:
        """Of the whole network."""
        return sum(shape.numel() for shapes in (*self.blocks, self.rest) for shape in shapes)

    def piece(self, shards: int) -> int:
        """Parameters that the first of so many devices keeps."""
        return _piece(self.rest, shards) + sum(_piece(block, shards) for block in self.blocks)

    def sent(self, shards: int) -> int:
        """Parameters that one device sends on its way round the ring in a micro-batch.

        The blocks go round three times: gathered for the forward pass, again for the backward
        pass, and their gradients scattered; the rest twice, since it stays gathered between. Those
        of a teacher go round once a call.
        """
        blocks = sum(_piece(block, shards) for block in self.blocks)
        rounds = 3 + self.teacher_calls
        return (shards - 1) * (rounds * blocks + 2 * _piece(self.rest, shards))

    def sent_once(self, shards: int) -> int:
        """Parameters that one device sends once a step: a teacher's rest, which stays gathered."""
        return self.teacher_rest(shards) // shards * (shards - 1)

    def gathered(self, shards: int) -> int:
        """Parameters and gradients that a device holds whole for a moment in training.

        Gradients of the rest wait whole for the end of the backward pass, when no block's are left.
        A teacher has done its work by then, but what is outside its blocks stays.
        """
        block = shards * max((_piece(block, shards) for block in self.blocks), default=0)
        rest = shards * _piece(self.rest, shards)
        gradients = max(rest + WHOLE_GRADIENTS * block, WHOLE_GRADIENTS * rest)
        return self.teacher_rest(shards) + rest + GATHERED_BLOCKS * block + gradients

    def teacher_rest(self, shards: int) -> int:
        """Parameters of a teacher that a device holds whole from its call until the next step."""
        return shards * _piece(self.rest, shards) if self.teacher_calls else 0


def _piece(shapes: Shapes, shards: int) -> int:
    """Parameters of the largest piece.

    fully_shard cuts each parameter along its first dimension, into pieces of equal size but for the
    last, which travel padded; one with fewer rows than devices leaves some of these without any.
    """
    return sum(-(-shape[0] // shards) * shape[1:].numel() for shape in shapes)


@dataclass(frozen=True)
class Moments:
    """Bytes of what comes and goes while a device works: the moments that can be the largest.

    Attributes:
        rows: columns are gradients, batch and activations; each row is a moment.
    """

    rows: "np.ndarray[tuple[int, int], np.dtype[np.int64]]"

    @classmethod
    def of(cls, moments: "array[int]") -> "Moments":
        """From `live.LiveMemory.moments`; of those with equal gradients the largest are kept."""
        table = np.frombuffer(moments, dtype=np.int64).reshape(-1, len(PARTS))
        columns = [PARTS.index(part) for part in ("gradients", "batch", "activations")]
        rows = table[:, columns]
        rows = rows[np.argsort(rows[:, 1:].sum(axis=1))[::-1]]
        _, first = np.unique(rows[:, 0], return_index=True)
        return cls(rows[np.sort(first)])

    def largest(self, gradient_share: float) -> tuple[int, int, int]:
        """(gradients, batch, activations) when their sum is largest, gradients counted in part."""
        shared = self.rows * np.array([gradient_share, 1.0, 1.0])
        gradients, batch, activations = shared[int(shared.sum(axis=1).argmax())]
        return round(gradients), round(batch), round(activations)


LayoutParts = dict[str, int]


def training_parts(
    layout: Layout, sizes: NetworkSizes, moments: Moments, *, averages: int, accumulates: bool
) -> LayoutParts:
    """Bytes of each part at the peak of a training step.

    Args:
        layout: how the weights are shared.
        sizes: of the network.
        moments: of one micro-batch, with `layout.recompute`.
        averages: how many are kept.
        accumulates: whether a step has several micro-batches: the later ones find gradients.
    """
    kept = _kept(layout, sizes, averages)
    piece = FLOAT32 * sizes.piece(layout.shards)
    constant = accumulates or _in_buckets(layout)
    share = 0.0 if constant else piece / (FLOAT32 * sizes.parameters)
    gradients, batch, activations = moments.largest(share)
    return kept | {
        "gradients": piece if constant else gradients,
        "gathered": FLOAT32 * sizes.gathered(layout.shards) if layout.strategy == "fsdp2" else 0,
        "batch": batch,
        "activations": activations,
    }


def evaluation_parts(
    layout: Layout, sizes: NetworkSizes, moments: Moments, *, averages: int
) -> LayoutParts:
    """Bytes of each part while a device uses averaged weights; sharded ones are put together."""
    kept = _kept(layout, sizes, averages)
    _, batch, activations = moments.largest(0.0)
    whole = 0
    if layout.strategy == "fsdp2":
        whole = FLOAT32 * (sizes.parameters + sizes.teacher_rest(layout.shards))
    return kept | {"gathered": whole, "batch": batch, "activations": activations}


def _in_buckets(layout: Layout) -> bool:
    """Whether gradients live in the buckets that DDP sends, which are never freed."""
    return layout.devices > 1 and layout.strategy == "ddp"


def _kept(layout: Layout, sizes: NetworkSizes, averages: int) -> LayoutParts:
    piece = FLOAT32 * sizes.piece(layout.shards)
    teacher = piece if sizes.teacher_calls and layout.strategy == "fsdp2" else 0
    return {
        "weights": piece + teacher,
        "gradients": piece if _in_buckets(layout) else 0,
        "optimiser": 2 * piece,
        "averages": averages * piece,
        "gathered": 0,
    }


def layouts(
    strategy: Strategy,
    shards: int | None,
    recompute: Sequence[int],
    *,
    devices: int,
    per_node: int,
    levels: int,
) -> list[Layout]:
    """The layouts that people choose between, the config's own among them.

    Args:
        strategy, shards, recompute: the config's own.
        devices: how many there are.
        per_node: of them, in one node.
        levels: of the network, the transformer counted.
    """
    ways: list[tuple[Strategy, int]] = [("ddp", 1)]
    if devices > 1:
        ways.append(("fsdp2", devices))
        if devices > per_node and devices % per_node == 0:
            ways.append(("fsdp2", per_node))
    own = (strategy, 1 if strategy == "ddp" else shards or devices)
    if own not in ways:
        ways.append(own)
    again = [(), tuple(range(levels))]
    mine = tuple(sorted(recompute))
    if mine not in again:
        again.insert(1, mine)
    return [
        Layout(devices, *way, levels_again, chosen=(way, levels_again) == (own, mine))
        for way in ways
        for levels_again in again
    ]
