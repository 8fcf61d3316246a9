"""Steps of one bucket against a simulation that carries samples over by hand."""

import itertools
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.hashing import hash_words, permutation, uniforms
from data_pipelines.order.bucket_order import BucketOrder, MixedSteps
from data_pipelines.order.mixture import CYCLE, set_seed
from data_pipelines.order.order import Piece

Place = tuple[int, int]
Step = tuple[int, list[Place]]  # bucket; shard and index of each sample


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[list[int]], int, int]:
    """Samples of each bucket in each shard, a number of streams and a window."""
    shards = draw(st.integers(1, 9))
    row = st.lists(st.integers(0, 7), min_size=shards, max_size=shards)
    table = draw(st.lists(row, min_size=1, max_size=4).filter(lambda t: any(map(any, t))))
    exponent = draw(st.integers(0, shards.bit_length() - 1))
    return table, 2**exponent, draw(st.integers(1, 3))


def bucket_epoch(
    sizes: list[int], seed: int, bucket: int, streams: int, window: int, epoch: int
) -> list[Place]:
    """One epoch of one bucket, sample by sample."""
    dealt = permutation(len(sizes), seed, 1, epoch).tolist()
    own_seed = int(hash_words(seed, 5, bucket))
    queues: list[list[Place]] = []
    for stream in range(streams):
        shards = dealt[stream::streams]
        queue: list[Place] = []
        for number in range(0, len(shards), window):
            inside = [(s, i) for s in shards[number : number + window] for i in range(sizes[s])]
            key = (epoch, stream, number // window)
            queue += [inside[i] for i in permutation(len(inside), own_seed, 2, *key)]
        queues.append(queue)
    turns = itertools.zip_longest(*queues)
    return [place for turn in turns for place in turn if place is not None]


def simulate(
    table: list[list[int]], batch_size: int, seed: int, streams: int, window: int
) -> Iterator[Step]:
    """The steps of a run without end, with a queue for each bucket's samples."""
    waiting: list[list[Place]] = [[] for _ in table]
    for epoch in itertools.count():
        timed: list[tuple[float, int, int]] = []
        for bucket, sizes in enumerate(table):
            waiting[bucket] += bucket_epoch(sizes, seed, bucket, streams, window, epoch)
            count = len(waiting[bucket]) // batch_size
            for turn in range(count):
                offset = float(uniforms(seed, 6, epoch, bucket, turn))
                timed.append(((turn + offset) / count, bucket, turn))
        for _, bucket, _ in sorted(timed):
            yield bucket, waiting[bucket][:batch_size]
            del waiting[bucket][:batch_size]
        assert all(len(left) < batch_size for left in waiting)


def fitting(batch_size: int, streams: int) -> int:
    """The batch size made a multiple of the streams."""
    return -(-batch_size // streams) * streams


def step_of(order: BucketOrder | MixedSteps, start: int, batch_size: int) -> Piece:
    return order.rank_batch(start, batch_size, 0, 1)


def in_order(piece: Piece) -> list[Place]:
    """The places of a step's samples, by their positions."""
    rows = np.argsort(piece.positions)
    return list(zip(piece.shards[rows].tolist(), piece.indices[rows].tolist(), strict=True))


@settings(deadline=None, max_examples=100)
@given(shape=tables(), batch_size=st.integers(1, 12), seed=st.integers(0, 2**40))
def test_closed_form_is_the_simulation(
    shape: tuple[list[list[int]], int, int], batch_size: int, seed: int
) -> None:
    table, streams, window = shape
    batch_size = fitting(batch_size, streams)
    order = BucketOrder(table, batch_size=batch_size, seed=seed, streams=streams, window=window)
    steps = simulate(table, batch_size, seed, streams, window)
    for number, (bucket, places) in zip(range(40), steps, strict=False):
        piece = step_of(order, number * batch_size, batch_size)
        assert piece.bucket == bucket
        assert in_order(piece) == places
        first = number * batch_size
        assert sorted(piece.positions.tolist()) == list(range(first, first + batch_size))
        assert not piece.sets.any()
        assert order.used(first, batch_size).tolist() == [first]


@settings(deadline=None, max_examples=60)
@given(shape=tables(), batch_size=st.integers(1, 12), epochs=st.integers(1, 4))
def test_each_sample_once_per_epoch_but_for_the_remainder(
    shape: tuple[list[list[int]], int, int], batch_size: int, epochs: int
) -> None:
    table, streams, window = shape
    batch_size = fitting(batch_size, streams)
    order = BucketOrder(table, batch_size=batch_size, seed=1, streams=streams, window=window)
    totals = [sum(sizes) for sizes in table]
    steps = sum(epochs * total // batch_size for total in totals)
    seen: list[Counter[Place]] = [Counter() for _ in table]
    for number in range(steps):
        piece = step_of(order, number * batch_size, batch_size)
        seen[piece.bucket].update(in_order(piece))
    for sizes, total, visits in zip(table, totals, seen, strict=True):
        assert epochs * total - visits.total() == epochs * total % batch_size  # at most B - 1
        for shard, size in enumerate(sizes):
            for index in range(size):
                # Those that wait are of this epoch, but where an epoch is less than a batch.
                missing = epochs - visits[shard, index]
                assert 0 <= missing <= 1 + batch_size // total


@settings(deadline=None, max_examples=60)
@given(shape=tables(), start=st.integers(0, 10**9), world_size=st.sampled_from([2, 4, 8]))
def test_elastic_anywhere(
    shape: tuple[list[list[int]], int, int], start: int, world_size: int
) -> None:
    table, streams, window = shape
    order = BucketOrder(table, batch_size=16, seed=2, streams=streams, window=window)
    whole = step_of(order, 16 * start, 16)
    pieces = [order.rank_batch(16 * start, 16, rank, world_size) for rank in range(world_size)]
    assert {piece.bucket for piece in pieces} == {whole.bucket}
    for name in ("positions", "sets", "shards", "indices"):
        joined = np.concatenate([getattr(piece, name) for piece in pieces])
        assert joined.tolist() == getattr(whole, name).tolist()


@pytest.mark.parametrize("table", [[[7, 11, 2]], [[1]], [[0, 1], [0, 0]], [[3, 0, 4], [4, 11, 0]]])
def test_ragged_sets_single_samples_and_more_ranks_than_shards(table: list[list[int]]) -> None:
    order = BucketOrder(table, batch_size=8, seed=0)
    for step in range(30):
        pieces = [order.rank_batch(8 * step, 8, rank, 8) for rank in range(8)]
        assert all(len(piece.positions) == 1 for piece in pieces)
        bucket = pieces[0].bucket
        for piece in pieces:
            assert piece.bucket == bucket
            assert piece.indices[0] < table[bucket][piece.shards[0]]


def test_buckets_meet_the_shards_together() -> None:
    # 64 shards with 4 and 2 samples of two buckets: at any time, both are at the same shards.
    table = [[40] * 64, [20] * 64]
    order = BucketOrder(table, batch_size=16, seed=0, streams=4, window=1)
    last: dict[int, float] = {}
    for step in range(64 * 60 // 16):
        piece = step_of(order, 16 * step, 16)
        met = {0: 0.0, 1: 0.0}
        for bucket in met:
            own = order._orders[bucket]
            rounds = own.deal(np.array([order.find(step)[1] * 16]))[1]
            met[bucket] = float(rounds[0]) / (own.num_samples / 4)
        last[piece.bucket] = met[piece.bucket]
        if len(last) == 2:
            assert abs(last[0] - last[1]) < 2 / 80 + 2 / 160  # two steps of each


def test_a_shard_is_read_by_the_same_rank_in_all_buckets() -> None:
    order = BucketOrder([[8] * 64, [4] * 64, [16] * 64], batch_size=32, seed=0, streams=16)
    readers: dict[int, set[int]] = {}
    for rank in range(4):
        for start in range(0, 28 * 64, 32):
            for shard in order.rank_batch(start, 32, rank, 4).shards.tolist():
                readers.setdefault(shard, set()).add(rank)
    assert len(readers) == 64
    assert all(len(ranks) == 1 for ranks in readers.values())


def test_small_buckets_come_up_every_few_epochs() -> None:
    order = BucketOrder([[32], [3]], batch_size=8, seed=0)
    buckets = [order.find(step)[0] for step in range(35 * 8 // 8)]  # eight epochs
    assert Counter(buckets) == {0: 32, 1: 3}
    # Of 4, 4, then 5 steps and so on: floor((e + 1) 3 / 8) rises in epochs 2, 5 and 7.
    ends = [0, 4, 8, 13, 17, 21, 26, 30, 35]
    assert [1 in buckets[a:b] for a, b in itertools.pairwise(ends)] == [
        False, False, True, False, False, True, False, True
    ]  # fmt: skip


def test_buckets_come_in_random_order_evenly() -> None:
    order = BucketOrder([[1000], [1000]], batch_size=10, seed=0)
    buckets = np.array([order.find(step)[0] for step in range(200)])
    assert np.abs(np.cumsum(2 * buckets - 1)).max() <= 2  # each is within a step of its time
    assert 40 < (buckets[1:] != buckets[:-1]).sum() < 190  # neither in blocks nor by turns


def test_epochs_and_seeds_differ() -> None:
    runs = [
        [in_order(step_of(BucketOrder([[60], [60]], batch_size=4, seed=seed), 4 * s, 4))
         for s in range(60)]
        for seed in (0, 1)
    ]  # fmt: skip
    parts = [run[a : a + 30] for run in runs for a in (0, 30)]
    for one, other in itertools.combinations(parts, 2):
        assert sum(a == b for a, b in zip(one, other, strict=True)) < 3


@settings(deadline=None, max_examples=15)
@given(weights=st.lists(st.integers(1, 5), min_size=2, max_size=2), start=st.integers(0, 3 * CYCLE))
def test_mixed_steps_take_each_set_s_steps_in_turn(weights: list[int], start: int) -> None:
    def orders() -> list[BucketOrder]:
        tables = [[[7, 11, 2], [4, 0, 1]], [[9], [8]]]
        return [
            BucketOrder(table, batch_size=4, seed=set_seed(0, i)) for i, table in enumerate(tables)
        ]

    mixed = MixedSteps(orders(), weights)
    had = (mixed.used(4 * start, 4) // 4).tolist()
    assert sum(had) == start
    for step in range(start, start + 30):
        whole = step_of(mixed, 4 * step, 4)
        number = int(whole.sets[0])
        assert set(whole.sets.tolist()) == {number}
        expected = step_of(orders()[number], 4 * had[number], 4)
        assert whole.bucket == expected.bucket
        assert in_order(whole) == in_order(expected)
        assert sorted(whole.positions.tolist()) == list(range(4 * step, 4 * step + 4))
        pieces = [mixed.rank_batch(4 * step, 4, rank, 2) for rank in range(2)]
        assert [p.bucket for p in pieces] == [whole.bucket] * 2
        for name in ("positions", "sets", "shards", "indices"):
            joined = np.concatenate([getattr(piece, name) for piece in pieces])
            assert joined.tolist() == getattr(whole, name).tolist()
        had[number] += 1
        for count, weight in zip(had, weights, strict=True):
            # Within 1 of the quotas' proportion, which is within 2^-16 of the weights'.
            exact = (step + 1) * weight / sum(weights)
            assert abs(count - exact) < 1 + (step + 1) / CYCLE
        assert mixed.used(4 * step + 4, 4).tolist() == [4 * count for count in had]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"counts": []}, "counts is empty"),
        ({"counts": [3, 4]}, "a row for each bucket"),
        ({"counts": [[0, 0], [0, 0]]}, "the 2 shards hold no samples"),
        ({"counts": [[1, -1]]}, "negative"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"streams": 4}, "only 2 shards"),
        ({"window": 0}, "at least 1 shard"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BucketOrder(**{"counts": [[4, 5]], "batch_size": 4, "seed": 0, **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("start", "batch_size", "rank", "world_size", "message"),
    [
        (0, 8, 0, 1, "8 is not the 4 that this order of buckets was made for"),
        (6, 4, 0, 1, "6 images seen are no whole steps of 4"),
        (-4, 4, 0, 1, "-4 is negative"),
        (0, 4, 0, 3, "cannot be split over 3 ranks"),
        (0, 4, 2, 2, "rank is 2"),
    ],
)
def test_bad_batches(start: int, batch_size: int, rank: int, world_size: int, message: str) -> None:
    order = BucketOrder([[4, 5]], batch_size=4, seed=0)
    for each in (order, MixedSteps([order, order], [1, 2])):
        with pytest.raises(ValueError, match=message):
            each.rank_batch(start, batch_size, rank, world_size)


def test_batches_and_streams_must_fit() -> None:
    with pytest.raises(ValueError, match="2 streams neither divide batch size 3"):
        BucketOrder([[4, 5]], batch_size=3, seed=0).check_batch(3, 1)


def test_mixed_orders_must_fit() -> None:
    one, other = (BucketOrder([[4]], batch_size=b, seed=0) for b in (4, 8))
    with pytest.raises(ValueError, match=r"different batch sizes: \[4, 8\]"):
        MixedSteps([one, other], [1, 1])
    with pytest.raises(ValueError, match="1 shard sets but 2 weights"):
        MixedSteps([one], [1, 1])
