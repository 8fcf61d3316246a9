"""The order against a literal, slow reading of its definition, and its promises."""

import hashlib
import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.hashing import permutation
from data_pipelines.order.order import Order, default_streams

Place = tuple[int, int]


@st.composite
def shapes(draw: st.DrawFn) -> tuple[list[int], int, int]:
    """Ragged shard sizes, a number of streams and a window."""
    sizes = draw(st.lists(st.integers(0, 12), min_size=1, max_size=40).filter(any))
    exponent = draw(st.integers(0, len(sizes).bit_length() - 1))
    return sizes, 2**exponent, draw(st.integers(1, 5))


def literal_epoch(
    sizes: list[int], seed: int, streams: int, window: int, epoch: int
) -> list[Place]:
    """One epoch's order, written down sample by sample."""
    dealt = permutation(len(sizes), seed, 1, epoch).tolist()
    queues: list[list[Place]] = []
    for stream in range(streams):
        shards = dealt[stream::streams]
        queue: list[Place] = []
        for number in range(0, len(shards), window):
            inside = [(s, i) for s in shards[number : number + window] for i in range(sizes[s])]
            key = (epoch, stream, number // window)
            queue += [inside[i] for i in permutation(len(inside), seed, 2, *key)]
        queues.append(queue)
    turns = itertools.zip_longest(*queues)
    return [place for turn in turns for place in turn if place is not None]


def places(order: Order, numbers: np.ndarray) -> list[Place]:
    shards, indices = order.locate(numbers)
    return list(zip(shards.tolist(), indices.tolist(), strict=True))


@settings(deadline=None, max_examples=150)
@given(shape=shapes(), seed=st.integers(-5, 2**40), epoch=st.integers(0, 10**6))
def test_locate_is_the_definition(shape: tuple[list[int], int, int], seed: int, epoch: int) -> None:
    sizes, streams, window = shape
    order = Order(sizes, seed=seed, streams=streams, window=window)
    n = order.num_samples
    numbers = np.arange(epoch * n, (epoch + 1) * n)
    assert places(order, numbers) == literal_epoch(sizes, seed, streams, window, epoch)


@settings(deadline=None, max_examples=150)
@given(shape=shapes(), seed=st.integers(0, 99))
def test_each_sample_once_per_epoch(shape: tuple[list[int], int, int], seed: int) -> None:
    sizes, streams, window = shape
    order = Order(sizes, seed=seed, streams=streams, window=window)
    everything = sorted((s, i) for s, size in enumerate(sizes) for i in range(size))
    for epoch in range(3):
        numbers = np.arange(epoch * order.num_samples, (epoch + 1) * order.num_samples)
        assert sorted(places(order, numbers)) == everything


@settings(deadline=None, max_examples=150)
@given(
    shape=shapes(),
    world_size=st.sampled_from([1, 2, 3, 4, 6, 8]),
    factor=st.integers(1, 3),
    start=st.integers(0, 500),
)
def test_ranks_share_the_step_between_them(
    shape: tuple[list[int], int, int], world_size: int, factor: int, start: int
) -> None:
    sizes, streams, window = shape
    order = Order(sizes, seed=1, streams=streams, window=window)
    batch_size = factor * int(np.lcm(world_size, streams))
    pieces = [order.rank_batch(start, batch_size, r, world_size) for r in range(world_size)]
    whole = order.rank_batch(start, batch_size, 0, 1)
    for name in ("positions", "shards", "indices"):
        joined = np.concatenate([getattr(piece, name) for piece in pieces])
        assert joined.tolist() == getattr(whole, name).tolist()
    assert {len(piece.positions) for piece in pieces} == {batch_size // world_size}
    assert sorted(whole.positions.tolist()) == list(range(start, start + batch_size))
    shards, indices = order.locate(whole.positions)
    assert shards.tolist() == whole.shards.tolist()
    assert indices.tolist() == whole.indices.tolist()


def test_golden_order() -> None:
    # Runs in progress go by this order: it may never change.
    order = Order([7, 11, 2, 0, 5, 9, 3, 13, 4, 6], seed=42, streams=4, window=2)
    numbers = np.array([0, 1, 2, 3, 17, 44, 59, 60, 61, 119, 600, 1234567])
    shards, indices = order.locate(numbers)
    assert shards.tolist() == [4, 5, 9, 7, 5, 5, 7, 5, 4, 8, 4, 2]
    assert indices.tolist() == [2, 3, 5, 0, 8, 1, 3, 0, 2, 3, 4, 0]
    piece = order.rank_batch(52, 16, 1, 2)
    assert piece.positions.tolist() == [54, 55, 56, 57, 58, 59, 63, 67]
    assert piece.shards.tolist() == [1, 7, 7, 1, 1, 7, 7, 7]
    assert piece.indices.tolist() == [5, 4, 12, 2, 0, 3, 8, 6]


def test_golden_digest() -> None:
    order = Order(range(1, 200), seed=7)
    shards, indices = order.locate(np.arange(3 * 19900))
    content = shards.astype("<i8").tobytes() + indices.astype("<i8").tobytes()
    assert hashlib.sha256(content).hexdigest().startswith("f99daa069a3c551fd6f1637254d36274")


def test_one_set_without_buckets() -> None:
    order = Order([5, 6], seed=0)
    piece = order.rank_batch(4, 4, 1, 2)
    assert piece.sets.tolist() == [0, 0]
    assert piece.bucket == -1
    assert order.used(13, 4).tolist() == [13]


def test_orders_dealt_alike_meet_the_same_shards() -> None:
    # Other samples in them and other permutations of those, but the shards in the same order.
    one = Order([4] * 32, seed=1, streams=2, window=1, deal_seed=9)
    other = Order([2] * 32, seed=2, streams=2, window=1, deal_seed=9)
    for epoch in range(3):
        met = one.locate(epoch * 128 + np.arange(0, 128, 2))[0].reshape(16, 4)
        assert (met == met[:, :1]).all()
        assert other.locate(epoch * 64 + np.arange(0, 64, 4))[0].tolist() == met[:, 0].tolist()
    assert (
        one.locate(np.arange(128))[1].tolist()
        != Order([4] * 32, seed=3, streams=2, window=1, deal_seed=9)
        .locate(np.arange(128))[1]
        .tolist()
    )


def test_threads_may_share_an_order() -> None:
    order = Order([50] * 32, seed=0, streams=16, window=1)
    expected = [order.locate(np.arange(s, s + 64)) for s in range(0, 6400, 64)]
    shared = Order([50] * 32, seed=0, streams=16, window=1)

    def find(step: int) -> bool:
        return np.array_equal(shared.locate(np.arange(64 * step, 64 * step + 64)), expected[step])

    steps = [*range(100), *reversed(range(100))]
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(find, steps))


def test_a_rank_reads_its_own_streams_only() -> None:
    # 64 equal shards, 16 streams, 4 ranks: each shard is read by one rank, in one epoch.
    order = Order([8] * 64, seed=0, streams=16)
    readers: dict[int, set[int]] = {}
    for rank in range(4):
        for start in range(0, 512, 32):
            for shard in order.rank_batch(start, 32, rank, 4).shards.tolist():
                readers.setdefault(shard, set()).add(rank)
    assert len(readers) == 64
    assert all(len(ranks) == 1 for ranks in readers.values())


def test_epochs_and_seeds_differ() -> None:
    orders = [Order([10] * 10, seed=seed).locate(np.arange(300)) for seed in (0, 1)]
    indices = [shards * 10 + index for shards, index in orders]
    epochs = [*indices[0].reshape(3, 100).tolist(), *indices[1].reshape(3, 100).tolist()]
    for a, b in itertools.combinations(epochs, 2):
        assert sum(x == y for x, y in zip(a, b, strict=True)) < 15  # one in 100 by chance


def test_batches_mix_the_shards() -> None:
    # 100 shards of 100: 64 streams, so a batch of 64 takes one sample from each of 64 shards.
    order = Order([100] * 100, seed=0)
    for start in range(0, 6400, 64):
        shards = order.rank_batch(start, 64, 0, 1).shards
        assert np.bincount(shards).max() == 1


@pytest.mark.parametrize(("shards", "streams"), [(1, 1), (3, 2), (64, 64), (127, 64), (9999, 128)])
def test_default_streams(shards: int, streams: int) -> None:
    assert default_streams(shards) == streams
    assert Order([1] * shards, seed=0).streams == streams


def test_scalars_and_shapes() -> None:
    order = Order([3, 4], seed=0)
    shard, index = order.locate(5)
    grid_shards, grid_indices = order.locate(np.array([[5, 0], [1, 5]]))
    assert shard.shape == ()
    assert grid_shards.shape == (2, 2)
    assert (grid_shards[0, 0], grid_indices[0, 0]) == (shard, index)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shard_sizes": []}, "at least one shard"),
        ({"shard_sizes": [0, 0]}, "hold no samples"),
        ({"shard_sizes": [4, -1]}, "negative"),
        ({"streams": 3}, "power of two"),
        ({"streams": 0}, "power of two"),
        ({"streams": 8}, "only 4 shards; use at most 4"),
        ({"window": 0}, "at least 1 shard"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Order(**{"shard_sizes": [5] * 4, "seed": 0, **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("batch_size", "rank", "world_size", "message"),
    [
        (6, 0, 4, "cannot be split over 4 ranks"),
        (0, 0, 1, "cannot be split"),
        (4, 2, 2, "rank is 2"),
        (6, 0, 1, "multiple of 4, or 2 streams"),
    ],
)
def test_bad_batches(batch_size: int, rank: int, world_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Order([5] * 4, seed=0).rank_batch(0, batch_size, rank, world_size)


def test_negative_sample_number() -> None:
    with pytest.raises(ValueError, match="-1 is negative"):
        Order([5], seed=0).locate(-1)
