"""What devices send each other in a step, and how long that takes with nothing in the way.

Everything goes round in rings: to gather or to reduce-scatter X bytes, each of n devices sends
(n-1)/n X, and to all-reduce them twice that. A ring that spans nodes leaves each node once, so that
a node sends what one device does, through an adapter that its devices share.
"""

from dataclasses import dataclass

from simple_diffusion.plan.layouts import FLOAT32, Layout, NetworkSizes


@dataclass(frozen=True)
class Wires:
    """What connects devices.

    Attributes:
        per_node: devices in a node.
        link_gb_s: between the devices of a node, GB/s in one direction; None where not known.
        node_gbit_s: out of a node, Gbit/s.
    """

    per_node: int
    link_gb_s: float | None
    node_gbit_s: float


@dataclass(frozen=True)
class Traffic:
    """One step's communication.

    Attributes:
        bytes: that each device sends.
        seconds: that this takes if nothing else is in the way; None where a link is not known.
    """

    bytes: float
    seconds: float | None


def traffic(layout: Layout, sizes: NetworkSizes, wires: Wires, micro_batches: int) -> Traffic:
    """Communication of one optimiser step.

    ddp all-reduces the gradients once. fsdp2 gathers the blocks' weights for the forward and again
    for the backward pass (the others once) and reduce-scatters all gradients, in each micro-batch;
    with several copies of the weights, the pieces of the gradients are then all-reduced between
    these. A few-step objective's teacher is gathered for each of its calls (what is outside the
    blocks once a step). All of it is float32, under autocast too. Sending in a node and out of it
    at once is not counted on: the times are added. Norms, counts and losses are left out.

    Args:
        layout: how the weights are shared.
        sizes: of the network.
        wires: between the devices.
        micro_batches: of a step.
    """
    shards, copies = layout.shards, layout.devices // layout.shards
    inside = FLOAT32 * sizes.sent(shards)
    once = FLOAT32 * sizes.sent_once(shards)
    between = 2 * (copies - 1) / copies * FLOAT32 * sizes.piece(shards)
    if layout.strategy == "ddp":
        micro_batches = 1
    # Devices next to each other share a copy, so that those with the same piece are `shards` apart:
    # so many of a node's rings leave it.
    rings = min(shards, wires.per_node)
    inside, between = micro_batches * inside + once, micro_batches * between
    seconds = _seconds(wires, inside, 1, leaves=shards > wires.per_node)
    seconds_between = _seconds(wires, between, rings, leaves=layout.devices > wires.per_node)
    if seconds is None or seconds_between is None:
        return Traffic(inside + between, None)
    return Traffic(inside + between, seconds + seconds_between)


def _seconds(wires: Wires, sent: float, rings: int, *, leaves: bool) -> float | None:
    """Time of rings that run at once, each device sending `sent` bytes, through the narrowest."""
    if not sent:
        return 0.0
    node = rings * sent / (wires.node_gbit_s * 1e9 / 8) if leaves else 0.0
    if wires.link_gb_s is None:
        return None
    return max(node, sent / (wires.link_gb_s * 1e9))
