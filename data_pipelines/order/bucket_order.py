"""Aspect buckets as an order of whole steps: all samples of a step have one shape, on all ranks.

Each bucket has its own infinite order over its N_b samples, of which its k-th step of the run takes
numbers k B to (k + 1) B - 1, for batches of B. By the end of epoch e it has had
floor((e + 1) N_b / B) steps: at most B - 1 samples wait for the next epoch, none is lost. Within an
epoch the j-th of a bucket's S steps falls at time (j + u) / S, with u hashed from [0, 1): buckets
come in random order, yet all move through the shards together. Everything is a pure function of
(seed, B, step).
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipelines.hashing import Domain, hash_words, uniforms
from data_pipelines.order.labels import Ints
from data_pipelines.order.mixture import Turns
from data_pipelines.order.order import Order, Piece
from data_pipelines.order.recent import Recent


@dataclass
class _Steps:
    """The steps of one epoch, in order: each one's bucket and how many that bucket had before."""

    buckets: NDArray[np.int32]
    own: Ints


class BucketOrder:
    """The order of one shard set whose samples are grouped into buckets of one shape each.

    Args:
        counts: Samples of each bucket in each shard, shape (buckets, shards).
        batch_size: B, samples in a step, of all ranks.
        seed: Chooses the permutations.
        streams: As in `Order`.
        window: As in `Order`.

    Raises:
        ValueError: An argument is out of range, or there are no samples at all.
    """

    def __init__(
        self,
        counts: Sequence[Sequence[int]] | Sequence[Ints] | Ints,
        *,
        batch_size: int,
        seed: int,
        streams: int | None = None,
        window: int = 4,
    ) -> None:
        table = np.asarray(counts, dtype=np.int64)
        if table.ndim != 2 or table.size == 0:
            raise ValueError("counts is empty: it needs a row for each bucket, a column a shard")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        # The shards are dealt alike for all buckets, so that a rank meets each shard once.
        self._orders = {
            bucket: Order(
                row,
                seed=int(hash_words(seed, Domain.BUCKET, bucket)),
                deal_seed=seed,
                streams=streams,
                window=window,
            )
            for bucket, row in enumerate(table)
            if row.any()
        }
        if not self._orders:
            raise ValueError(f"the {table.shape[1]} shards hold no samples")
        self.batch_size = batch_size
        self.num_samples = int(table.sum())
        self._num_shards = int(table.any(axis=0).sum())
        self._seed = seed
        self._steps: Recent[int, _Steps] = Recent(2)

    def check_batch(self, batch_size: int, world_size: int) -> None:
        """Raises ValueError unless this is the batch size of the order and can be split so."""
        if batch_size != self.batch_size:
            raise ValueError(
                f"batch size {batch_size} is not the {self.batch_size} that this order of buckets "
                "was made for: which samples share a step depends on it"
            )
        next(iter(self._orders.values())).check_batch(batch_size, world_size)

    def rank_batch(self, start: int, batch_size: int, rank: int, world_size: int) -> Piece:
        """Returns one rank's samples of the step that begins at global sample number `start`.

        Raises:
            ValueError: The batch does not split evenly over ranks or streams, is not that of the
                order, or `start` is not a multiple of it.
        """
        self.check_batch(batch_size, world_size)
        bucket, own = self.find(whole_steps(start, batch_size))
        first = own * batch_size
        piece = self._orders[bucket].rank_batch(first, batch_size, rank, world_size)
        return piece._replace(positions=piece.positions - first + start, bucket=bucket)

    def used(self, images_seen: int, batch_size: int) -> Ints:
        """Returns how many of the first `images_seen` images came from this set, shape (1,)."""
        return np.array([images_seen], dtype=np.int64)

    def working_set(self, batch_size: int, world_size: int, ranks_per_node: int = 1) -> int:
        """Returns how many distinct shards a node has under way at once, at most.

        It is that of the bucket with the largest (see `Order.working_set`), as often as windows of
        one stream are under way at once because the buckets do not keep step with each other.

        Raises:
            ValueError: The batch cannot be split so, or is not that of the order.
        """
        self.check_batch(batch_size, world_size)
        orders = self._orders.values()
        largest = max(o.working_set(batch_size, world_size, ranks_per_node) for o in orders)
        return min(self._num_shards, largest * self._windows_at_once())

    def _windows_at_once(self) -> int:
        """How many windows of a stream are under way at once, at most, in the first epoch.

        All buckets deal the shards alike, so the w-th window of a stream is the same shards in
        all: it is under way from when the first bucket begins it until the last has ended it.
        """
        starts, ends = [], []
        for order in self._orders.values():
            plan = order.plan(0)
            step = self.batch_size / order.num_samples
            last = plan.window_ends
            first = np.concatenate([np.zeros_like(last[:1]), last[:-1]])
            used = last > first  # a bucket may have no sample there
            starts.append(np.where(used, plan.times(first) - step, np.inf))
            ends.append(np.where(used, plan.times(last) + step, -np.inf))
        begin, end = np.min(starts, axis=0), np.max(ends, axis=0)
        most = 1
        for stream in range(begin.shape[1]):
            there = np.isfinite(begin[:, stream])
            begun, ended = np.sort(begin[there, stream]), np.sort(end[there, stream])
            at_once = np.arange(1, len(begun) + 1) - np.searchsorted(ended, begun, side="left")
            most = max(most, int(at_once.max(initial=1)))
        return most

    def find(self, step: int) -> tuple[int, int]:
        """Returns the bucket of a step of the run, and how many steps that bucket had before."""
        epoch = self._epoch(step)
        steps = self._steps.get(epoch, self._plan_steps)
        place = step - self._steps_before(epoch)
        return int(steps.buckets[place]), int(steps.own[place])

    def _steps_before(self, epoch: int) -> int:
        """Steps of all buckets before an epoch."""
        sizes = (order.num_samples for order in self._orders.values())
        return sum(epoch * size // self.batch_size for size in sizes)

    def _epoch(self, step: int) -> int:
        """The last epoch that begins at or before a step (those before it may have no steps)."""
        # Rounding down costs each bucket less than one step, which bounds the epoch on both sides.
        low = step * self.batch_size // self.num_samples
        high = (step + len(self._orders)) * self.batch_size // self.num_samples
        return low + bisect_right(range(low, high + 1), step, key=self._steps_before) - 1

    def _plan_steps(self, epoch: int) -> _Steps:
        """Sorts the steps of an epoch by their times, O(steps)."""
        buckets, own, times = [], [], []
        for bucket, order in self._orders.items():
            first = epoch * order.num_samples // self.batch_size
            count = (epoch + 1) * order.num_samples // self.batch_size - first
            turns = np.arange(count, dtype=np.int64)
            buckets.append(np.full(count, bucket, dtype=np.int32))
            own.append(first + turns)
            offsets = uniforms(self._seed, Domain.TIME, epoch, bucket, turns)
            times.append((turns + offsets) / max(count, 1))
        order_of_times = np.argsort(np.concatenate(times), kind="stable")
        return _Steps(np.concatenate(buckets)[order_of_times], np.concatenate(own)[order_of_times])


class MixedSteps:
    """Several bucketed shard sets with weights: every step is of one set, all of them in turn.

    Args:
        orders: Each set's own order, all for the same batch size; seed them apart, with
            `mixture.set_seed`.
        weights: Relative share of each set among the steps.

    Raises:
        ValueError: The numbers of orders and weights or the batch sizes differ, or see
            `mixture.quantise`.
    """

    def __init__(self, orders: Sequence[BucketOrder], weights: Sequence[float]) -> None:
        if len(orders) != len(weights):
            raise ValueError(f"there are {len(orders)} shard sets but {len(weights)} weights")
        sizes = sorted({order.batch_size for order in orders})
        if len(sizes) > 1:
            raise ValueError(f"the orders are for different batch sizes: {sizes}")
        self.turns = Turns(weights)
        self._orders = tuple(orders)

    def check_batch(self, batch_size: int, world_size: int) -> None:
        """Raises ValueError unless this is the batch size of the orders and can be split so."""
        for order in self._orders:
            order.check_batch(batch_size, world_size)

    def rank_batch(self, start: int, batch_size: int, rank: int, world_size: int) -> Piece:
        """Returns one rank's samples of the step that begins at global sample number `start`.

        Raises:
            ValueError: As `BucketOrder.rank_batch`.
        """
        self.check_batch(batch_size, world_size)
        step = np.array([whole_steps(start, batch_size)])
        sets, own = self.turns.find(step)
        number, first = int(sets[0]), int(own[0]) * batch_size
        piece = self._orders[number].rank_batch(first, batch_size, rank, world_size)
        return piece._replace(
            positions=piece.positions - first + start,
            sets=np.full_like(piece.sets, number),
        )

    def used(self, images_seen: int, batch_size: int) -> Ints:
        """Returns how many of the first `images_seen` images came from each set, shape (sets,)."""
        return self.turns.before(whole_steps(images_seen, batch_size)) * batch_size

    def working_set(self, batch_size: int, world_size: int, ranks_per_node: int = 1) -> int:
        """Returns how many distinct shards a node has under way at once: those of all sets.

        Raises:
            ValueError: As `BucketOrder.working_set`.
        """
        return sum(o.working_set(batch_size, world_size, ranks_per_node) for o in self._orders)


def whole_steps(images_seen: int, batch_size: int) -> int:
    """Returns after how many steps so many images were seen.

    Raises:
        ValueError: It is within a step: with buckets the batch size is part of the order.
    """
    if images_seen < 0:
        raise ValueError(f"sample number {images_seen} is negative")
    if images_seen % batch_size:
        raise ValueError(
            f"{images_seen} images seen are no whole steps of {batch_size}; with aspect buckets "
            "a run goes on with the batch size that it began with"
        )
    return images_seen // batch_size
