"""How many shards a node has under way at once, against counting them in whole epochs."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.hashing import permutation
from data_pipelines.order.bucket_order import BucketOrder, MixedSteps
from data_pipelines.order.mixture import Mixture
from data_pipelines.order.order import Order


@dataclass
class Read:
    """One sample of an epoch."""

    stream: int
    window: int
    shard: int


def read_epoch(sizes: list[int], seed: int, streams: int, window: int) -> list[Read]:
    """The samples of epoch 0 in order, written down one by one."""
    dealt = permutation(len(sizes), seed, 1, 0).tolist()
    queues: list[list[Read]] = []
    for stream in range(streams):
        shards = dealt[stream::streams]
        queue: list[Read] = []
        for number in range(0, len(shards), window):
            inside = [s for s in shards[number : number + window] for _ in range(sizes[s])]
            drawn = permutation(len(inside), seed, 2, 0, stream, number // window)
            queue += [Read(stream, number // window, inside[i]) for i in drawn]
        queues.append(queue)
    epoch: list[Read] = []
    while any(queues):
        epoch += [queue.pop(0) for queue in queues if queue]
    return epoch


def counted(
    sizes: list[int],
    *,
    streams: int,
    window: int,
    batch_size: int,
    world_size: int,
    ranks_per_node: int,
    seed: int = 0,
) -> int:
    """The most shards that a node has under way at once, while no stream runs dry."""
    epoch = read_epoch(sizes, seed, streams, window)
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    dry: dict[int, int] = {}
    for number, read in enumerate(epoch):
        first.setdefault(read.shard, number)
        last[read.shard] = number
        dry[read.stream] = number
    steps = range(0, len(epoch) - batch_size + 1, batch_size)
    steps_a_round = max(1, streams // batch_size)
    taken = batch_size // world_size * ranks_per_node
    most = 0
    for node in range(-(-world_size // ranks_per_node)):
        touched: list[set[tuple[int, int]]] = []
        for start in steps:
            batch = sorted(epoch[start : start + batch_size], key=lambda read: read.stream)
            mine = batch[node * taken : (node + 1) * taken]
            touched.append({(read.stream, read.window) for read in mine})
        for number, start in enumerate(steps):
            around = touched[number : number + steps_a_round]
            end = start + len(around) * batch_size
            if any(start <= gone < end for gone in dry.values()):
                continue
            windows = set().union(*around)
            under_way = {
                read.shard
                for read in epoch
                if (read.stream, read.window) in windows
                and first[read.shard] < start + batch_size
                and last[read.shard] >= start
            }
            most = max(most, len(under_way))
    return most


@settings(deadline=None, max_examples=200)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=24).filter(any),
    data=st.data(),
    window=st.integers(1, 4),
    world_size=st.sampled_from([1, 2, 4, 6]),
    ranks_per_node=st.sampled_from([1, 2, 6]),
    factor=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_never_more_than_said(
    sizes: list[int],
    data: st.DataObject,
    window: int,
    world_size: int,
    ranks_per_node: int,
    factor: int,
    seed: int,
) -> None:
    streams = 2 ** data.draw(st.integers(0, len(sizes).bit_length() - 1))
    batch_size = world_size * factor
    if batch_size % streams and streams % batch_size:
        batch_size = int(np.lcm(world_size, streams))
    order = Order(sizes, seed=seed, streams=streams, window=window)
    most = counted(
        sizes,
        streams=streams,
        window=window,
        batch_size=batch_size,
        world_size=world_size,
        ranks_per_node=min(ranks_per_node, world_size),
        seed=seed,
    )
    assert most <= order.working_set(batch_size, world_size, ranks_per_node)


@pytest.mark.parametrize(
    ("streams", "window", "batch_size", "world_size", "ranks_per_node", "shards"),
    [
        (4, 2, 4, 1, 1, 8),  # one node: all windows
        (8, 1, 8, 1, 1, 8),
        (8, 2, 2, 1, 1, 16),  # batches smaller than the streams: all windows in a round
        (8, 2, 2, 2, 1, 8),  # each of two ranks half of them
        (8, 3, 8, 4, 2, 12),  # 4 of the 8 streams
        (1, 2, 1, 1, 1, 2),
        (1, 1, 4, 1, 1, 2),  # a step on the border of two windows
        (4, 1, 16, 1, 1, 8),
    ],
)
def test_exact_for_equal_shards(
    streams: int, window: int, batch_size: int, world_size: int, ranks_per_node: int, shards: int
) -> None:
    sizes = [30] * (streams * window * 2)
    most = counted(
        sizes,
        streams=streams,
        window=window,
        batch_size=batch_size,
        world_size=world_size,
        ranks_per_node=ranks_per_node,
    )
    order = Order(sizes, seed=0, streams=streams, window=window)
    assert most == shards == order.working_set(batch_size, world_size, ranks_per_node)


def test_at_scale() -> None:
    # 128 nodes of 8 ranks, 128 streams: a node's own stream, and a neighbour's once some are dry.
    order = Order([10_000] * 100_000, seed=0)
    assert order.working_set(128, 128) == 4
    assert order.working_set(256, 256, 2) == 8
    # 16 samples of a stream a step: where a window ends, all 4 shards of two may be in one step.
    assert order.working_set(2048, 1024, 8) == 16
    assert order.working_set(2048, 8, 8) == 1024
    # 4 or fewer are no more than the window.
    assert order.working_set(512, 8, 8) == 512


def test_no_more_than_there_are() -> None:
    assert Order([7, 11, 2, 0], seed=0).working_set(64, 2, 1) == 3
    assert Order([5], seed=0).working_set(8, 8, 1) == 1


def test_mixtures_count_the_sets_that_a_node_reads() -> None:
    orders = [Order([1000] * 64, seed=i, streams=16) for i in range(2)]
    one_node = Mixture(orders, [1, 1]).working_set(64, 8, 8)
    assert one_node == 2 * 16 * 4  # all windows of both
    # With 4 nodes of 16 samples: 32 of each set, about 2 of a stream, over 2 nodes.
    assert 8 * 4 <= Mixture(orders, [1, 1]).working_set(64, 8, 2) < one_node
    # 1 in 64 samples is of the other set: whoever reads it meets all its windows.
    assert Mixture(orders, [63, 1]).working_set(64, 8, 8) == 2 * 16 * 4


@settings(deadline=None, max_examples=12)
@given(
    weights=st.lists(st.integers(1, 9), min_size=2, max_size=3),
    world_size=st.sampled_from([1, 2, 4]),
    factor=st.integers(1, 16),
    seed=st.integers(0, 99),
)
def test_mixtures_never_have_more_windows_than_said(
    weights: list[int], world_size: int, factor: int, seed: int
) -> None:
    batch_size = world_size * factor
    orders = [
        Order([100 + 7 * i] * 16, seed=seed + i, streams=2 ** (i + 1), window=2)
        for i in range(len(weights))
    ]
    mixture = Mixture(orders, weights)
    most = mixture.working_set(batch_size, world_size, 1)
    for start in range(0, 96, batch_size):  # in the first windows of all streams
        for rank in range(world_size):
            piece = mixture.rank_batch(start, batch_size, rank, world_size)
            own = mixture.turns.find(piece.positions)[1]
            windows = {
                (number, int(orders[number].deal(np.array([place]))[0][0]))
                for number, place in zip(piece.sets.tolist(), own.tolist(), strict=True)
            }
            assert 2 * len(windows) <= most


@pytest.mark.parametrize(("ranks", "on_node"), [(1, 1), (32, 8)])
@pytest.mark.parametrize("seed", [0, 1])
def test_buckets_that_do_not_keep_step(ranks: int, on_node: int, seed: int) -> None:
    """Every shard has another mix of shapes: what a node reads is counted, sample by sample."""
    rng = np.random.default_rng(seed)
    shares = np.array([0.02, 0.08, 0.25, 0.4, 0.15, 0.1])
    counts = (rng.uniform(0.5, 1.5, (6, 128)) * shares[:, None] * 60).astype(np.int64)
    order = BucketOrder(counts, batch_size=32, seed=seed, streams=16, window=2)
    most = order.working_set(32, ranks, on_node)
    first: dict[tuple[int, int], int] = {}
    last: dict[tuple[int, int], int] = {}
    steps = int(counts.sum()) // 32
    for step in range(steps):
        for rank in range(ranks):
            node = rank // on_node
            for shard in order.rank_batch(32 * step, 32, rank, ranks).shards.tolist():
                first.setdefault((node, shard), step)
                last[node, shard] = step
    # Near the end streams run dry, and the ranks' cuts move.
    under_way = [
        sum(first[key] <= step <= last[key] < steps * 0.8 for key in first if key[0] == 0)
        for step in range(int(steps * 0.8))
    ]
    assert max(under_way) <= most <= 128
    if ranks == 1:
        assert (
            max(under_way)
            > Order(counts[3], seed=seed, streams=16, window=2).working_set(32, 1) // 2
        )


def test_buckets_and_mixed_steps() -> None:
    def order(seed: int) -> BucketOrder:
        counts = [[300] * 64, [0] * 64, [200] * 64]
        return BucketOrder(counts, batch_size=32, seed=seed, streams=16)

    assert order(0).working_set(32, 4, 4) == 64
    plain = Order([300] * 64, seed=0, streams=16).working_set(32, 4, 1)
    assert plain <= order(0).working_set(32, 4, 1) <= 2 * plain
    assert MixedSteps([order(0), order(1)], [3, 1]).working_set(32, 4, 4) == 128


def test_bad_batches() -> None:
    with pytest.raises(ValueError, match="cannot be split over 3 ranks"):
        Order([5] * 4, seed=0).working_set(4, 3)
    with pytest.raises(ValueError, match="cannot be split over 3 ranks"):
        Mixture([Order([5] * 4, seed=0)], [1]).working_set(4, 3)
