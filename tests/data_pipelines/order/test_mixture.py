"""Mixtures against counting by hand: exact proportions, each set's epochs whole, any ranks."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.order.mixture import CYCLE, Mixture, Turns, quantise, reversed_bits, set_seed
from data_pipelines.order.order import Order, Piece

Sample = tuple[int, int, int]
WEIGHTS = st.lists(st.floats(0.1, 500.0), min_size=1, max_size=12)
RAGGED = st.lists(
    st.lists(st.integers(0, 12), min_size=1, max_size=12).filter(any), min_size=1, max_size=4
)


def orders_of(sets: list[list[int]], seed: int = 3) -> list[Order]:
    return [Order(sizes, seed=set_seed(seed, i), window=2) for i, sizes in enumerate(sets)]


def samples(piece: Piece) -> dict[int, Sample]:
    found = zip(piece.sets.tolist(), piece.shards.tolist(), piece.indices.tolist(), strict=True)
    return dict(zip(piece.positions.tolist(), found, strict=True))


def run(mixture: Mixture, total: int, batch_size: int, world_size: int) -> list[Sample]:
    """The sample ids of a run, in order of their positions, from all ranks."""
    found: dict[int, Sample] = {}
    for start in range(0, total, batch_size):
        for rank in range(world_size):
            piece = samples(mixture.rank_batch(start, batch_size, rank, world_size))
            assert len(piece) == batch_size // world_size
            assert not found.keys() & piece.keys()
            found |= piece
    return [found[position] for position in range(total)]


@settings(deadline=None, max_examples=15)
@given(weights=WEIGHTS)
def test_every_prefix_is_within_one_of_the_proportion(weights: list[float]) -> None:
    turns = Turns(weights)
    sets, own = turns.find(np.arange(CYCLE))
    for number, quota in enumerate(turns.quotas.tolist()):
        had = np.cumsum(sets == number)
        assert had[-1] == quota
        assert np.abs(had * CYCLE - np.arange(1, CYCLE + 1) * quota).max() < CYCLE
        assert own[sets == number].tolist() == list(range(quota))


def test_extreme_weights() -> None:
    # One set with the smallest quota, one with nearly all: still within 1 everywhere.
    turns = Turns([1, CYCLE - 2, 1])
    assert turns.quotas.tolist() == [1, CYCLE - 2, 1]
    sets, _ = turns.find(np.arange(CYCLE))
    assert Counter(sets.tolist()) == {0: 1, 1: CYCLE - 2, 2: 1}


@settings(deadline=None, max_examples=100)
@given(weights=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12))
def test_quotas_are_the_weights_rounded(weights: list[float]) -> None:
    try:
        quotas = quantise(weights).tolist()
    except ValueError:
        assert min(weights) / sum(weights) < 1 / CYCLE
        return
    assert sum(quotas) == CYCLE
    total = sum(map(Fraction, weights))
    for weight, quota in zip(weights, quotas, strict=True):
        assert abs(quota - Fraction(weight) * CYCLE / total) < 1


def test_known_quotas() -> None:
    assert quantise([1, 1]).tolist() == [32768, 32768]
    assert quantise([0.3]).tolist() == [65536]
    # 21845.33 each; the one left over goes to the first.
    assert quantise([2, 2, 2]).tolist() == [21846, 21845, 21845]
    # 6553.6 and 58982.4
    assert quantise([1, 9]).tolist() == [6554, 58982]


@settings(deadline=None, max_examples=15)
@given(
    weights=st.lists(st.integers(1, 50), min_size=1, max_size=6),
    turn=st.integers(0, 10**12),
    length=st.integers(0, 300),
)
def test_turns_before_anywhere(weights: list[int], turn: int, length: int) -> None:
    turns = Turns(weights)
    sets, own = turns.find(np.arange(turn, turn + length))
    had = turns.before(turn).tolist()
    for number, place in zip(sets.tolist(), own.tolist(), strict=True):
        assert place == had[number]
        had[number] += 1
    assert turns.before(turn + length).tolist() == had
    assert sum(had) == turn + length


def test_whole_cycles_have_exact_counts() -> None:
    turns = Turns([5, 2, 1])
    for cycles in (1, 2, 10**9):
        assert turns.before(cycles * CYCLE).tolist() == [
            cycles * 5 * CYCLE // 8,
            cycles * 2 * CYCLE // 8,
            cycles * CYCLE // 8,
        ]


@settings(deadline=None, max_examples=25)
@given(
    sets=RAGGED,
    data=st.data(),
    world_size=st.sampled_from([1, 2, 3, 8]),
    factor=st.integers(1, 5),
)
def test_each_set_visits_its_own_samples_once_per_epoch(
    sets: list[list[int]], data: st.DataObject, world_size: int, factor: int
) -> None:
    weights = data.draw(st.lists(st.integers(1, 9), min_size=len(sets), max_size=len(sets)))
    batch_size = world_size * factor
    total = -(-3 * sum(map(sum, sets)) // batch_size) * batch_size
    mixture = Mixture(orders_of(sets), weights)
    visited = run(mixture, total, batch_size, world_size)
    for number, sizes in enumerate(sets):
        own = [(shard, index) for at, shard, index in visited if at == number]
        assert mixture.used(total, batch_size)[number] == len(own)
        everything = sorted((s, i) for s, size in enumerate(sizes) for i in range(size))
        for begin in range(0, len(own), len(everything)):
            epoch = sorted(own[begin : begin + len(everything)])
            assert len(set(epoch)) == len(epoch)
            if len(epoch) == len(everything):
                assert epoch == everything
        # In just the order that the set has by itself.
        shards, indices = orders_of(sets)[number].locate(np.arange(len(own)))
        assert own == list(zip(shards.tolist(), indices.tolist(), strict=True))


@pytest.mark.parametrize("world_size", [2, 4, 8, 16])
def test_any_number_of_ranks_reads_the_same(world_size: int) -> None:
    mixture = Mixture(orders_of([[7, 11, 2], [1], [30] * 9]), [3, 1, 2])
    for start in (0, 16, 48, 7, 10**9):
        whole = mixture.rank_batch(start, 16, 0, 1)
        pieces = [mixture.rank_batch(start, 16, rank, world_size) for rank in range(world_size)]
        for name in ("positions", "sets", "shards", "indices"):
            joined = np.concatenate([getattr(piece, name) for piece in pieces])
            assert joined.tolist() == getattr(whole, name).tolist()


def test_stopped_on_4_ranks_and_resumed_on_2_and_8() -> None:
    def mixture() -> Mixture:
        return Mixture(orders_of([[7, 11, 2], [5] * 5]), [2, 1])

    unbroken = run(mixture(), 96, 8, 1)
    for start, world_size in [(0, 4), (32, 2), (64, 8)]:
        resumed = mixture()
        for step in range(start, start + 32, 8):
            for rank in range(world_size):
                piece = resumed.rank_batch(step, 8, rank, world_size)
                for position, sample in samples(piece).items():
                    assert unbroken[position] == sample


def test_a_rank_keeps_to_few_streams() -> None:
    # 64 samples of 2 sets with 16 streams each, over 8 ranks: 8 samples, so 4 streams or so.
    sizes = [[100] * 16, [100] * 16]
    mixture = Mixture(orders_of(sizes), [1, 1])
    for start in range(0, 640, 64):
        for rank in range(8):
            piece = mixture.rank_batch(start, 64, rank, 8)
            streams = set()
            for number, order in enumerate(orders_of(sizes)):
                own = [p for p in samples(piece).items() if p[1][0] == number]
                turns = mixture.turns.find(np.array([p for p, _ in own], dtype=np.int64))[1]
                streams |= {(number, int(s)) for s in order.deal(turns)[0]}
            assert len(streams) <= 6


def test_a_rank_keeps_to_its_streams() -> None:
    # 96 and 32 samples of 512 and 64 streams: whichever come, a rank meets about its share of each.
    orders = [Order([40] * 512, seed=0, streams=512), Order([40] * 64, seed=1, streams=64)]
    mixture = Mixture(orders, [3, 1])
    met: list[set[tuple[int, int]]] = [set() for _ in range(16)]
    for start in range(0, 12800, 128):
        for rank, streams in enumerate(met):
            piece = mixture.rank_batch(start, 128, rank, 16)
            own = mixture.turns.find(piece.positions)[1]
            for number, place in zip(piece.sets.tolist(), own, strict=True):
                streams.add((number, int(orders[number].deal(place[None])[0][0])))
    # Of 576 streams over 16 ranks 36 are each one's share; with the cuts' wandering, not all.
    assert sum(map(len, met)) / 16 < 80


def test_reversed_bits() -> None:
    assert reversed_bits(1).tolist() == [0]
    assert reversed_bits(8).tolist() == [int(f"{i:03b}"[::-1], 2) for i in range(8)]


def test_sets_of_one_size_differ_in_their_order() -> None:
    one, other = orders_of([[40], [40]])
    assert one.locate(np.arange(40))[1].tolist() != other.locate(np.arange(40))[1].tolist()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], "2 shard sets but 1 weights"),
        ([1.0, 0.0], "weight 1 is 0.0; it must be positive"),
        ([-1.0, 1.0], "weight 0 is -1.0"),
        ([1.0, float("nan")], "weight 1 is nan"),
        ([1.0, float("inf")], "weight 1 is inf"),
        ([1.0, 1e6], "weight 0 is 1 of 1e.06, less than one sample in 65536"),
    ],
)
def test_bad_weights(weights: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mixture(orders_of([[4], [5]]), weights)


def test_no_weights() -> None:
    with pytest.raises(ValueError, match="at least one shard set"):
        quantise([])


@pytest.mark.parametrize(
    ("start", "batch_size", "rank", "world_size", "message"),
    [
        (0, 6, 0, 4, "cannot be split over 4 ranks"),
        (0, 0, 0, 1, "cannot be split"),
        (0, 4, 2, 2, "rank is 2"),
        (-4, 4, 0, 1, "-4 is negative"),
    ],
)
def test_bad_batches(start: int, batch_size: int, rank: int, world_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mixture(orders_of([[4], [5]]), [1, 1]).rank_batch(start, batch_size, rank, world_size)
