"""What the data order costs at scale, and how many shards each node reads in an epoch.

    python benchmarks/order.py --samples 1000000000 --shards 100000 --world_size 1024

Each order is measured in its own process, on one rank. "first" is all that stands between a list of
shard sizes and the first batch: making the order, planning the epoch, permuting windows. Memory is
the growth of the process over what it had after its imports.

Shards per node: in every `--stride`-th step of an epoch, which windows of which streams each node
reads from; the shards of those windows count as read. `--check` reads every sample of a set a
thousandth of the size as well, and counts the distinct shards.
"""

import argparse
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

import numpy as np
from numpy.typing import NDArray

from data_pipelines.hashing import uniforms
from data_pipelines.order.bucket_order import BucketOrder
from data_pipelines.order.mixture import Mixture, reversed_bits, set_seed
from data_pipelines.order.order import Order

AnyOrder = Order | Mixture | BucketOrder
Ints = NDArray[np.int64]

SHARES = (0.6, 0.3, 0.1)  # of the mixture's sets, by weight and by size
# Of the buckets: about that of photographs among seven shapes from 1:2 to 2:1.
BUCKETS = (0.04, 0.08, 0.30, 0.15, 0.33, 0.08, 0.02)


@dataclass(frozen=True)
class Scale:
    """Size of the simulated run."""

    samples: int
    shards: int
    world_size: int
    ranks_per_node: int
    batch_size: int
    streams: int | None
    raggedness: float

    @property
    def node_samples(self) -> int:
        """Samples of a step that a node reads."""
        return self.batch_size // self.world_size * self.ranks_per_node

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return -(-self.world_size // self.ranks_per_node)


def shard_sizes(scale: Scale, share: float, seed: int) -> Ints:
    """Sizes of a share of the shards: within a fraction `raggedness` of the mean, evenly spread."""
    mean = scale.samples / scale.shards
    low, high = int(mean * (1 - scale.raggedness)), int(mean * (1 + scale.raggedness))
    return np.random.default_rng(seed).integers(low, high + 1, round(scale.shards * share))


def plain(scale: Scale) -> Order:
    return Order(shard_sizes(scale, 1.0, 0), seed=0, streams=scale.streams)


def mixture(scale: Scale) -> Mixture:
    orders = [
        Order(
            shard_sizes(scale, share, number),
            seed=set_seed(0, number),
            streams=scale.streams,
        )
        for number, share in enumerate(SHARES)
    ]
    return Mixture(orders, SHARES)


def buckets(scale: Scale) -> BucketOrder:
    sizes = shard_sizes(scale, 1.0, 0)
    # The shares vary from shard to shard by a third or so, as the rounding of a random number.
    counts = [
        np.floor(sizes * share * (0.5 + uniforms(1, number, np.arange(sizes.size)))).astype(int)
        for number, share in enumerate(BUCKETS)
    ]
    return BucketOrder(counts, batch_size=scale.batch_size, seed=0, streams=scale.streams)


KINDS: dict[str, Callable[[Scale], AnyOrder]] = {
    "plain": plain,
    "mixture of 3": mixture,
    "7 buckets": buckets,
}


def measure(kind: str, scale: Scale, rank: int, batches: int) -> list[float]:
    """Returns ms to the first batch, ms per batch: mean and worst, and MiB of peak memory."""
    Order([2, 3], seed=0).rank_batch(0, 2, 0, 1)  # numpy loads parts of itself on first use
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    order = KINDS[kind](scale)
    made = time.perf_counter()
    first_step = scale.samples // scale.batch_size // 2
    times = []
    for step in range(first_step, first_step + 1 + batches):
        begun = time.perf_counter()
        order.rank_batch(step * scale.batch_size, scale.batch_size, rank, scale.world_size)
        times.append(1e3 * (time.perf_counter() - begun))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return [
        1e3 * (made - started) + times[0],
        float(np.mean(times[1:])),
        max(times[1:]),
        (peak - before) / 1024,
    ]


def parts(order: AnyOrder, start: int, batch_size: int) -> Iterator[tuple[Order, Ints]]:
    """The orders that a step's samples come from, and their own sample numbers, in set order."""
    numbers = start + np.arange(batch_size)
    if isinstance(order, Order):
        yield order, numbers
    elif isinstance(order, Mixture):
        sets, own = order.turns.find(numbers)
        for number in np.unique(sets):
            yield order._orders[number], own[sets == number]
    else:
        bucket, step = order.find(start // batch_size)
        yield order._orders[bucket], numbers - start + step * batch_size


def steps_of_epoch(order: AnyOrder, batch_size: int) -> int:
    """Whole steps in epoch 0, of each set its own."""
    if isinstance(order, BucketOrder):
        return order._steps_before(1)
    orders = order._orders if isinstance(order, Mixture) else [order]
    return sum(own.num_samples for own in orders) // batch_size


def windows_read(
    order: AnyOrder, scale: Scale, steps: int, stride: int
) -> dict[Order, NDArray[np.bool_]]:
    """Which windows each node reads from in epoch 0, shape (nodes, streams, windows) per order."""
    read: dict[Order, NDArray[np.bool_]] = {}
    borders: dict[Order, Ints] = {}
    for step in range(0, steps, stride):
        done = 0
        for own, numbers in parts(order, step * scale.batch_size, scale.batch_size):
            if own not in read:
                ends = own.plan(0).window_ends.T
                read[own] = np.zeros((scale.nodes, *ends.shape), dtype=np.bool_)
                borders[own] = (ends + np.arange(len(ends))[:, None] * own.num_samples).ravel()
            streams, rounds = own.deal(numbers)
            mixed = isinstance(order, Mixture)
            ranking = reversed_bits(own.streams)[streams] if mixed else streams
            by_stream = np.argsort(ranking, kind="stable")
            nodes = (done + np.arange(len(numbers))) // scale.node_samples
            done += len(numbers)
            chosen = by_stream[numbers[by_stream] < own.num_samples]  # of epoch 0
            nodes = nodes[numbers[by_stream] < own.num_samples]
            places = streams[chosen] * own.num_samples + rounds[chosen]
            found = np.searchsorted(borders[own], places, side="right")
            read[own].reshape(scale.nodes, -1)[nodes, found] = True
    return read


def shards_of_windows(order: AnyOrder, scale: Scale, stride: int) -> Ints:
    """Distinct shards of the windows that each node reads from in an epoch, shape (nodes,)."""
    steps = steps_of_epoch(order, scale.batch_size)
    counts = np.zeros(scale.nodes, dtype=np.int64)
    read = windows_read(order, scale, steps, stride)
    sets = [tuple(read)] if isinstance(order, BucketOrder) else [(own,) for own in read]
    for orders in sets:  # orders of one set of shards: buckets read the same ones
        shards = np.zeros((scale.nodes, orders[0].sizes.size), dtype=np.bool_)
        for own in orders:
            plan = own.plan(0)
            node, stream, window = np.nonzero(read[own])
            for row in range(own.window):
                members = plan.shards[window * own.window + row, stream]
                some = (members >= 0) & (own.sizes[members] > 0)
                shards[node[some], members[some]] = True
        counts += shards.sum(axis=1)
    return counts


def shards_counted(order: AnyOrder, scale: Scale) -> Ints:
    """Distinct shards that each node reads from in an epoch, sample by sample, shape (nodes,)."""
    read: list[set[tuple[int, int]]] = [set() for _ in range(scale.nodes)]
    for step in range(steps_of_epoch(order, scale.batch_size)):
        piece = order.rank_batch(step * scale.batch_size, scale.batch_size, 0, 1)
        places = list(zip(piece.sets.tolist(), piece.shards.tolist(), strict=True))
        for node, found in enumerate(read):
            found.update(places[node * scale.node_samples : (node + 1) * scale.node_samples])
    return np.array([len(found) for found in read])


def spread(kind: str, scale: Scale, stride: int) -> list[float]:
    """Returns shards of the windows read by a node: mean and most; the mean counted if small."""
    order = KINDS[kind](scale)
    read = shards_of_windows(order, scale, stride)
    figures = [float(read.mean()), float(read.max())]
    return figures if stride > 1 else [*figures, float(shards_counted(order, scale).mean())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=10**9)
    parser.add_argument("--shards", type=int, default=10**5)
    parser.add_argument("--rank", type=int, default=511)
    parser.add_argument("--world_size", type=int, default=1024)
    parser.add_argument("--ranks_per_node", type=int, default=8)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[2048, 16384])
    parser.add_argument("--streams", type=int, nargs="+", default=[128, 1024])
    parser.add_argument("--batches", type=int, default=100, help="batches timed after the first")
    parser.add_argument("--stride", type=int, default=20, help="count shards in every n-th step")
    parser.add_argument("--raggedness", type=float, default=0.5, help="0: shards of one size")
    parser.add_argument("--check", action="store_true", help="count shards in a small set, exactly")
    args = parser.parse_args()
    scales = [
        Scale(
            args.samples,
            args.shards,
            args.world_size,
            args.ranks_per_node,
            batch,
            streams,
            args.raggedness,
        )
        for batch in args.batch_sizes
        for streams in args.streams
    ]
    alone = partial(ProcessPoolExecutor, 1, mp_context=get_context("spawn"), max_tasks_per_child=1)
    print(f"{args.samples:,} samples in {args.shards:,} shards +-{args.raggedness:.0%}")
    print("| order | batch | streams | first ms | next ms | worst ms | MiB |")
    with alone() as pool:
        for scale in scales:
            for kind in KINDS:
                row = pool.submit(measure, kind, scale, args.rank, args.batches).result()
                figures = " | ".join(f"{figure:.1f}" for figure in row)
                print(f"| {kind} | {scale.batch_size} | {scale.streams} | {figures} |", flush=True)
    even = args.shards / scales[0].nodes
    print(f"\nshards that a node reads in an epoch; all / {scales[0].nodes} nodes: {even:.0f}")
    print("| order | batch | streams | mean | most | mean / even |")
    for scale in scales:
        for kind in KINDS:
            mean, most = spread(kind, scale, args.stride)[:2]
            figures = f"{mean:.0f} | {most:.0f} | {mean / even:.2f}"
            print(f"| {kind} | {scale.batch_size} | {scale.streams} | {figures} |", flush=True)
    if args.check:
        small = Scale(args.samples // 1000, args.shards // 10, 1024, 8, 2048, 128, args.raggedness)
        print("\na thousandth of the samples, a tenth of the shards: windows' shards and counted")
        for kind in KINDS:
            mean, _, counted = spread(kind, small, 1)
            print(f"| {kind} | {mean:.1f} | {counted:.1f} |", flush=True)


if __name__ == "__main__":
    main()
