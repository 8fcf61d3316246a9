"""Several shard sets with weights as one order: which set is due is a pure function of the count.

Weights are rounded to integers q_i that sum to M = 2^16. In a fixed cycle of M turns set i has
q_i, spread so evenly that after any g turns it had within 1 of g q_i / M. So set i's own count of
samples is n_i(g) = (g // M) q_i + its turns before g % M in the cycle, and its own order does the
rest. Every sample of a set appears once per epoch of that set.
"""

import heapq
from collections.abc import Sequence
from fractions import Fraction
from math import ceil

import numpy as np

from data_pipelines.hashing import Domain, hash_words
from data_pipelines.order.labels import Ints, sort_labels
from data_pipelines.order.order import Order, Piece, check_ranks, cut

_CYCLE_BITS = 16
CYCLE = 2**_CYCLE_BITS


def set_seed(seed: int, number: int) -> int:
    """Returns the seed of the `number`-th set's own order in a mixture seeded by `seed`."""
    return int(hash_words(seed, Domain.SET, number))


def quantise(weights: Sequence[float]) -> Ints:
    """Rounds weights to integers that sum to 2^16, by the largest remainder.

    Args:
        weights: Relative shares, positive and finite; they need not sum to 1.

    Raises:
        ValueError: There are none, or one is not positive or less than about 2^-17 of the sum.
    """
    if not weights:
        raise ValueError("weights is empty: a mixture needs at least one shard set")
    for number, weight in enumerate(weights):
        if not 0.0 < weight < float("inf"):
            raise ValueError(f"weight {number} is {weight}; it must be positive and finite")
    total = sum(map(Fraction, weights))
    exact = [Fraction(weight) * CYCLE / total for weight in weights]
    quotas = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: quotas[i] - exact[i])
    for number in by_remainder[: CYCLE - sum(quotas)]:
        quotas[number] += 1
    for number, quota in enumerate(quotas):
        if not quota:
            raise ValueError(
                f"weight {number} is {weights[number]:g} of {float(total):g}, less than one sample "
                f"in {CYCLE}; leave that shard set out or give it more"
            )
    return np.array(quotas, dtype=np.int64)


class Turns:
    """Whose turn it is, with every prefix within 1 of the exact proportion.

    Set i's turn j must come no sooner than floor(j M / q_i), lest the set be a whole turn ahead,
    and no later than ceil((j + 1) M / q_i) - 1, lest it be one behind. That all can be met at once
    is a theorem of Tijdeman (1980), "The chairman assignment problem"; dealing each turn to the
    nearest deadline then meets them, as with any jobs of length 1 on one machine (used in the same
    way by Baruah et al. 1996, "Proportionate progress").

    Args:
        weights: Relative shares of the sets.

    Raises:
        ValueError: See `quantise`.

    Attributes:
        quotas: Turns of each set in a cycle of 2^16, shape (sets,).
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self.quotas = quantise(weights)
        self._sets = _cycle(self.quotas.tolist())
        self._places = np.empty(CYCLE, dtype=np.int64)
        for number, quota in enumerate(self.quotas):
            self._places[self._sets == number] = np.arange(quota)

    def find(self, turns: Ints) -> tuple[Ints, Ints]:
        """Returns the set of each turn, and how many turns that set had before, shapes as given."""
        if turns.size and turns.min() < 0:
            raise ValueError(f"sample number {turns.min()} is negative")
        cycles, places = turns >> _CYCLE_BITS, turns & (CYCLE - 1)
        sets = self._sets[places]
        return sets, cycles * self.quotas[sets] + self._places[places]

    def before(self, turn: int) -> Ints:
        """Returns how many turns each set had before this one, shape (sets,)."""
        cycles, place = divmod(turn, CYCLE)
        within = np.bincount(self._sets[:place], minlength=len(self.quotas))
        return cycles * self.quotas + within


def _cycle(quotas: list[int]) -> Ints:
    """Deals the turns of a cycle, earliest deadline first, shape (2^16,)."""
    sets = np.empty(CYCLE, dtype=np.int64)
    waiting: list[list[int]] = [[] for _ in range(CYCLE + 1)]
    waiting[0] = list(range(len(quotas)))
    had = [0] * len(quotas)
    ready: list[tuple[int, int]] = []
    for turn in range(CYCLE):
        for number in waiting[turn]:
            deadline = -(-(had[number] + 1) * CYCLE // quotas[number]) - 1
            heapq.heappush(ready, (deadline, number))
        deadline, number = heapq.heappop(ready)
        assert deadline >= turn
        sets[turn] = number
        had[number] += 1
        waiting[max(turn + 1, had[number] * CYCLE // quotas[number])].append(number)
    return sets


class Mixture:
    """Samples of several shard sets, mixed within every batch.

    Args:
        orders: Each set's own order; seed them apart, with `set_seed`.
        weights: Relative share of each set among the samples.

    Raises:
        ValueError: The numbers of orders and weights differ, or see `quantise`.
    """

    def __init__(self, orders: Sequence[Order], weights: Sequence[float]) -> None:
        if len(orders) != len(weights):
            raise ValueError(f"there are {len(orders)} shard sets but {len(weights)} weights")
        self.turns = Turns(weights)
        self._orders = tuple(orders)
        # Place of each set's each stream in a step, one array after the other.
        self._firsts = np.cumsum([0, *(order.streams for order in orders)])
        self._ranking = np.concatenate(
            [
                first + reversed_bits(order.streams)
                for first, order in zip(self._firsts, orders, strict=False)
            ]
        )

    def check_batch(self, batch_size: int, world_size: int) -> None:
        """Raises ValueError unless the batch splits evenly over the ranks."""
        check_ranks(batch_size, world_size)

    def rank_batch(self, start: int, batch_size: int, rank: int, world_size: int) -> Piece:
        """Returns one rank's samples of the step that begins at global sample number `start`.

        The step's samples are sorted by set and stream and cut into equal contiguous pieces, so
        that a rank keeps to few streams. A step has no whole number of rounds over a set's streams,
        and those that give a sample more are neighbours; so streams are sorted by their reversed
        bits, which spreads neighbours evenly. Else the cuts would wander over many streams.

        Raises:
            ValueError: The batch does not split evenly over the ranks, or `start` is negative.
        """
        self.check_batch(batch_size, world_size)
        numbers = start + np.arange(batch_size, dtype=np.int64)
        sets, own = self.turns.find(numbers)
        ranking = np.empty_like(own)
        for number, order in enumerate(self._orders):
            chosen = np.flatnonzero(sets == number)
            streams, _ = order.deal(own[chosen])
            ranking[chosen] = self._ranking[self._firsts[number] + streams]
        mine = cut(sort_labels(ranking, self._firsts[-1]), rank, world_size)
        piece = Piece(numbers[mine], sets[mine], np.empty_like(mine), np.empty_like(mine))
        for number in np.unique(piece.sets):
            chosen = np.flatnonzero(piece.sets == number)
            places = self._orders[number].locate(own[mine[chosen]])
            piece.shards[chosen], piece.indices[chosen] = places
        return piece

    def used(self, images_seen: int, batch_size: int) -> Ints:
        """Returns how many of the first `images_seen` images came from each set, shape (sets,)."""
        return self.turns.before(images_seen)

    def working_set(self, batch_size: int, world_size: int, ranks_per_node: int = 1) -> int:
        """Returns how many distinct shards, of all sets, a node has under way at once, at most.

        See `Order.working_set`; here a node's part of a set varies by a few samples a step, and the
        figure holds until the first stream of a set runs dry.

        Raises:
            ValueError: The batch does not split evenly over the ranks.
        """
        self.check_batch(batch_size, world_size)
        expected = batch_size * self.turns.quotas / CYCLE
        ends = np.cumsum(expected)
        taken = batch_size // world_size * min(ranks_per_node, world_size)
        largest = 0
        for first in range(0, batch_size, taken):
            shards = 0
            for number, order in enumerate(self._orders):
                # In a step the sets before have their exact shares within 2 each, the streams
                # before any one theirs within log2(C) / 3 + 1 (the discrepancy of reversed bits).
                slack = 2 * number + order.streams.bit_length() / 3 + 1
                low = max(first, ends[number] - expected[number] - slack)
                high = min(first + taken, ends[number] + slack + 2, batch_size)
                if low < high:
                    whole = taken == batch_size
                    read = expected[number] if whole else high - low + 2 * slack
                    rounds = max(1.0, order.streams / expected[number])
                    least = max(1.0, expected[number] / order.streams)
                    shards += order.under_way(ceil(read * rounds), least, whole=whole)
            largest = max(largest, shards)
        return largest


def reversed_bits(count: int) -> Ints:
    """Returns 0 to count - 1, a power of two, each with its binary digits reversed."""
    ranking = np.zeros(1, dtype=np.int64)
    while len(ranking) < count:
        ranking = np.concatenate([2 * ranking, 2 * ranking + 1])
    return ranking
