"""Which sample comes next: a pure function of (seed, global sample number).

Sample number g of a run lies in epoch e = g // N, at place p = g % N of that epoch. Per epoch the
shards are permuted and dealt in turn to C streams. Inside a stream the samples are permuted within
windows of k shards. The epoch's order takes one sample from each stream that still has any, in
turn. So every sample appears exactly once per epoch, whatever the shard sizes, and nothing but
(seed, g) is needed to know which one is due: resuming, or another number of ranks, costs nothing.

Cost: O(shards) once per epoch, O(window) once per window of a stream, O(batch) per step.
"""

from collections.abc import Sequence
from functools import cached_property, partial
from typing import NamedTuple, Protocol

import numpy as np

from data_pipelines.hashing import Domain, permutation
from data_pipelines.order.epoch import EpochPlan
from data_pipelines.order.labels import Ints, groups, sort_labels
from data_pipelines.order.recent import Recent

MAX_DEFAULT_STREAMS = 128


class Piece(NamedTuple):
    """One rank's part of one step; the arrays are int64 of shape (batch / world_size,).

    Attributes:
        positions: Global sample numbers g of the run.
        sets: Number of each sample's shard set.
        shards: Number of each sample's shard in the manifest of its set.
        indices: Place of each sample inside its shard; with buckets, its place among the shard's
            samples of that bucket.
        bucket: The bucket of all samples of the step, on all ranks; -1 without buckets.
    """

    positions: Ints
    sets: Ints
    shards: Ints
    indices: Ints
    bucket: int = -1


class StepOrder(Protocol):
    """What the loader asks of an order: which samples a rank reads in a step."""

    def check_batch(self, batch_size: int, world_size: int) -> None:
        """Raises ValueError, with the remedy, if batches of this size cannot be split so."""

    def rank_batch(self, start: int, batch_size: int, rank: int, world_size: int) -> Piece:
        """Returns a rank's samples of the step before which `start` images were seen."""

    def used(self, images_seen: int, batch_size: int) -> Ints:
        """Returns how many of the first `images_seen` images came from each set, shape (sets,)."""

    def working_set(self, batch_size: int, world_size: int, ranks_per_node: int = 1) -> int:
        """Returns how many shards a node has under way at once, which its cache should hold."""


def default_streams(num_shards: int) -> int:
    """Returns min(128, the largest power of two that is at most `num_shards`)."""
    return min(MAX_DEFAULT_STREAMS, 1 << (num_shards.bit_length() - 1))


def check_ranks(batch_size: int, world_size: int) -> None:
    """Raises ValueError unless the batch splits evenly over the ranks."""
    if world_size < 1 or batch_size < 1 or batch_size % world_size:
        raise ValueError(
            f"batch size {batch_size} cannot be split over {world_size} ranks; "
            f"use a multiple of {max(world_size, 1)}"
        )


def cut(batch: Ints, rank: int, world_size: int) -> Ints:
    """Returns a rank's contiguous part of a batch.

    Raises:
        ValueError: There is no such rank.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank is {rank}; with world_size {world_size} it must be below that")
    piece = len(batch) // world_size
    return batch[rank * piece : (rank + 1) * piece]


class Order:
    """The order in which a shard set's samples are visited, epoch after epoch.

    Args:
        shard_sizes: Samples in each shard; shards without samples are allowed.
        seed: Chooses the permutations.
        streams: C, the number of streams: a power of two, at most the number of shards. By
            default min(128, the largest power of two that is at most the number of shards). With
            W ranks, a rank reads about C / W streams.
        window: k, the number of neighbouring shards of a stream that are shuffled together.
        deal_seed: Seed of the shards' own permutation, `seed` by default. Orders over the same
            shards with equal ones, whatever the samples, read the same shards about together.

    Raises:
        ValueError: An argument is out of range, or there are no samples at all.
    """

    def __init__(
        self,
        shard_sizes: Sequence[int] | Ints,
        *,
        seed: int,
        streams: int | None = None,
        window: int = 4,
        deal_seed: int | None = None,
    ) -> None:
        sizes = np.asarray(shard_sizes, dtype=np.int64)
        if sizes.ndim != 1 or sizes.size == 0:
            raise ValueError("shard_sizes is empty: an order needs at least one shard")
        if (sizes < 0).any():
            raise ValueError(f"shard_sizes has a negative entry ({sizes.min()})")
        if sizes.sum() == 0:
            raise ValueError(f"the {sizes.size} shards hold no samples")
        if window < 1:
            raise ValueError(f"window is {window}; it must be at least 1 shard")
        streams = default_streams(sizes.size) if streams is None else streams
        if streams < 1 or streams & (streams - 1):
            raise ValueError(f"streams is {streams}; it must be a power of two")
        if streams > sizes.size:
            raise ValueError(
                f"streams is {streams} but there are only {sizes.size} shards; "
                f"use at most {default_streams(sizes.size)}"
            )
        self.sizes = sizes
        self.seed = seed
        self.streams = streams
        self.window = window
        self.num_samples = int(sizes.sum())
        self._deal_seed = seed if deal_seed is None else deal_seed
        self._epochs: Recent[int, EpochPlan] = Recent(2)
        # Two for each stream while it crosses a border, and two for whoever reads ahead.
        self._windows: Recent[tuple[int, int, int], Ints] = Recent(4 * streams)

    def locate(self, g: int | Ints) -> tuple[Ints, Ints]:
        """Finds the samples with the given global numbers.

        Args:
            g: Global sample numbers, any shape, not negative.

        Returns:
            Shard numbers and indices inside the shards, int64 arrays of the shape of `g`.
        """
        numbers = np.asarray(g, dtype=np.int64)
        flat = numbers.reshape(-1)
        streams, rounds = self.deal(flat)
        shards, indices = self._locate_in_streams(flat // self.num_samples, streams, rounds)
        return shards.reshape(numbers.shape), indices.reshape(numbers.shape)

    def rank_batch(self, start: int, batch_size: int, rank: int, world_size: int) -> Piece:
        """Returns one rank's samples of the step that begins at global sample number `start`.

        The step's samples, numbers start to start + batch_size - 1 (which may span epochs), are
        sorted by stream and cut into equal contiguous pieces, so that a rank keeps to few streams.

        Raises:
            ValueError: The batch does not split evenly over ranks or streams.
        """
        self.check_batch(batch_size, world_size)
        numbers = start + np.arange(batch_size, dtype=np.int64)
        streams, rounds = self.deal(numbers)
        mine = cut(sort_labels(streams, self.streams), rank, world_size)
        epochs = numbers[mine] // self.num_samples
        shards, indices = self._locate_in_streams(epochs, streams[mine], rounds[mine])
        return Piece(numbers[mine], np.zeros_like(shards), shards, indices)

    def used(self, images_seen: int, batch_size: int) -> Ints:
        """Returns how many of the first `images_seen` images came from this set, shape (1,)."""
        return np.array([images_seen], dtype=np.int64)

    def check_batch(self, batch_size: int, world_size: int) -> None:
        """Raises ValueError unless the batch splits evenly over the ranks and the streams."""
        check_ranks(batch_size, world_size)
        if batch_size % self.streams and self.streams % batch_size:
            fitting = min(batch_size & -batch_size, self.streams)
            raise ValueError(
                f"{self.streams} streams neither divide batch size {batch_size} nor are divided "
                f"by it; use a batch that is a multiple of {self.streams}, or {fitting} streams"
            )

    def working_set(self, batch_size: int, world_size: int, ranks_per_node: int = 1) -> int:
        """Returns how many distinct shards a node has under way at once, at most.

        A shard is under way from the step that reads its first sample to the one that reads its
        last. A cache of fewer shards fetches some of them again and again.

        Of a step, a node reads n = batch_size / world_size * ranks_per_node neighbouring samples in
        the order of their streams (if the batch is smaller than the streams, so of each round of C
        samples). Every stream gives at least m = max(1, batch_size / C) of them, so the node reads
        T <= floor((n - 2) / m) + 2 streams. In each a window of k shards is under way, or, where
        one ends and the next begins within the step, as many of both as there are samples.

        This holds for steps within an epoch in which no stream runs dry; the few in which some do
        may touch more shards, for a last sample each.

        Args:
            batch_size: Samples in a step, of all ranks.
            world_size: Number of ranks.
            ranks_per_node: How many neighbouring ranks share a cache.

        Raises:
            ValueError: The batch does not split evenly over ranks or streams.
        """
        self.check_batch(batch_size, world_size)
        shared = min(ranks_per_node, world_size)
        taken = batch_size // world_size * shared * max(1, self.streams // batch_size)
        return self.under_way(taken, max(1, batch_size // self.streams), whole=shared == world_size)

    def under_way(self, taken: int, least: float, *, whole: bool) -> int:
        """Returns the shards under way where `taken` samples are read, in the order of streams.

        Args:
            taken: n.
            least: m, what each stream but the first and the last gives at least.
            whole: Whether these are all samples of the step, so the first and last stream as well.
        """
        window, edges = self.window, 0 if whole else min(taken, 2)
        streams = min(self.streams, taken, int((taken - 2) // least) + 2)
        # At most max(k, samples) shards of a stream: most for the samples where it gives only m.
        spread = int((taken - edges) * max(window, least) / least) + edges * window
        # Nor has it more than two windows, and what fits in whole between them.
        short = int(np.searchsorted(self._smallest, taken, side="right"))
        return min(self._smallest.size, 2 * window * streams + short, spread)

    @cached_property
    def _smallest(self) -> Ints:
        """Samples of the smallest, the two smallest, ... shards that have any."""
        return np.cumsum(np.sort(self.sizes[self.sizes > 0]))

    def deal(self, numbers: Ints) -> tuple[Ints, Ints]:
        """Returns stream and place in the stream of each global sample number, shape (n,)."""
        if numbers.size and numbers.min() < 0:
            raise ValueError(f"sample number {numbers.min()} is negative")
        streams, rounds = np.empty_like(numbers), np.empty_like(numbers)
        epochs, places = np.divmod(numbers, self.num_samples)
        for epoch, chosen in groups(epochs):
            streams[chosen], rounds[chosen] = self.plan(epoch).deal(places[chosen])
        return streams, rounds

    def _locate_in_streams(self, epochs: Ints, streams: Ints, rounds: Ints) -> tuple[Ints, Ints]:
        shards, indices = np.empty_like(streams), np.empty_like(streams)
        pairs = epochs * self.streams + streams
        for pair, chosen in groups(pairs):
            epoch, stream = divmod(pair, self.streams)
            shards[chosen], indices[chosen] = self._locate_in_stream(epoch, stream, rounds[chosen])
        return shards, indices

    def _locate_in_stream(self, epoch: int, stream: int, places: Ints) -> tuple[Ints, Ints]:
        plan = self.plan(epoch)
        ends = plan.window_ends[:, stream]
        windows = np.searchsorted(ends, places, side="right")
        shards, indices = np.empty_like(places), np.empty_like(places)
        for window, chosen in groups(windows):
            first = ends[window - 1] if window else 0
            length = int(ends[window] - first)
            key = (epoch, stream, window)
            order = self._windows.get(key, partial(self._permute_window, length))
            drawn = order[places[chosen] - first]
            rows = slice(window * self.window, (window + 1) * self.window)
            members = plan.shards[rows, stream]
            members = members[members >= 0]
            member_ends = np.cumsum(self.sizes[members])
            which = np.searchsorted(member_ends, drawn, side="right")
            shards[chosen] = members[which]
            indices[chosen] = drawn - (member_ends[which] - self.sizes[members[which]])
        return shards, indices

    def _permute_window(self, length: int, key: tuple[int, int, int]) -> Ints:
        order = permutation(length, self.seed, Domain.WINDOW, *key)
        return order.astype(np.int32) if length < 2**31 else order  # half the memory

    def plan(self, epoch: int) -> EpochPlan:
        """Which stream reads which shards in an epoch."""
        return self._epochs.get(epoch, self._plan_epoch)

    def _plan_epoch(self, epoch: int) -> EpochPlan:
        dealt = permutation(self.sizes.size, self._deal_seed, Domain.SHARDS, epoch)
        return EpochPlan.of(dealt, self.sizes, self.streams, self.window)
