"""Which sample comes next: a pure function of (seed, global sample number).

Sample number g of a run lies in epoch e = g // N, at place p = g % N of that epoch. Per epoch the
shards are permuted and dealt in turn to C streams. Inside a stream the samples are permuted within
windows of k shards. The epoch's order takes one sample from each stream that still has any, in
turn. So every sample appears exactly once per epoch, whatever the shard sizes, and nothing but
(seed, g) is needed to know which one is due: resuming, or another number of ranks, costs nothing.

Cost: O(shards) once per epoch, O(window) once per window of a stream, O(batch) per step.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from data_pipelines.hashing import permutation

Ints = NDArray[np.int64]
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

MAX_DEFAULT_STREAMS = 128
# Domains of the hash, so that the two kinds of permutation never share their keys.
_SHARDS, _WINDOW = 1, 2


class Piece(NamedTuple):
    """One rank's part of one step, each an int64 array of shape (batch / world_size,).

    Attributes:
        positions: Global sample numbers g.
        shards: Number of each sample's shard in the manifest.
        indices: Place of each sample inside its shard.
    """

    positions: Ints
    shards: Ints
    indices: Ints


def default_streams(num_shards: int) -> int:
    """Returns min(128, the largest power of two that is at most `num_shards`)."""
    return min(MAX_DEFAULT_STREAMS, 1 << (num_shards.bit_length() - 1))


class Order:
    """The order in which a shard set's samples are visited, epoch after epoch.

    Args:
        shard_sizes: Samples in each shard; shards without samples are allowed.
        seed: Chooses the permutations.
        streams: C, the number of streams: a power of two, at most the number of shards. By
            default min(128, the largest power of two that is at most the number of shards). With
            W ranks, a rank reads about C / W streams.
        window: k, the number of neighbouring shards of a stream that are shuffled together.

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
        self._epochs: _Cache[int, _Epoch] = _Cache(2)
        # Twice the streams, so that no window is permuted twice while streams cross its border.
        self._windows: _Cache[tuple[int, int, int], Ints] = _Cache(2 * streams)

    def locate(self, g: int | Ints) -> tuple[Ints, Ints]:
        """Finds the samples with the given global numbers.

        Args:
            g: Global sample numbers, any shape, not negative.

        Returns:
            Shard numbers and indices inside the shards, int64 arrays of the shape of `g`.
        """
        numbers = np.asarray(g, dtype=np.int64)
        flat = numbers.reshape(-1)
        streams, rounds = self._streams_of(flat)
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
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}; with world_size {world_size} it must be below that")
        numbers = start + np.arange(batch_size, dtype=np.int64)
        streams, rounds = self._streams_of(numbers)
        piece = batch_size // world_size
        mine = np.argsort(streams, kind="stable")[rank * piece : (rank + 1) * piece]
        epochs = numbers[mine] // self.num_samples
        shards, indices = self._locate_in_streams(epochs, streams[mine], rounds[mine])
        return Piece(numbers[mine], shards, indices)

    def check_batch(self, batch_size: int, world_size: int) -> None:
        """Raises ValueError unless the batch splits evenly over the ranks and the streams."""
        if world_size < 1 or batch_size < 1 or batch_size % world_size:
            raise ValueError(
                f"batch size {batch_size} cannot be split over {world_size} ranks; "
                f"use a multiple of {max(world_size, 1)}"
            )
        if batch_size % self.streams and self.streams % batch_size:
            fitting = min(batch_size & -batch_size, self.streams)
            raise ValueError(
                f"{self.streams} streams neither divide batch size {batch_size} nor are divided "
                f"by it; use a batch that is a multiple of {self.streams}, or {fitting} streams"
            )

    def _streams_of(self, numbers: Ints) -> tuple[Ints, Ints]:
        """Returns stream and place in the stream of each global sample number, shape (n,)."""
        if numbers.size and numbers.min() < 0:
            raise ValueError(f"sample number {numbers.min()} is negative")
        streams, rounds = np.empty_like(numbers), np.empty_like(numbers)
        epochs, places = np.divmod(numbers, self.num_samples)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            streams[chosen], rounds[chosen] = self._epoch(int(epoch)).deal(places[chosen])
        return streams, rounds

    def _locate_in_streams(self, epochs: Ints, streams: Ints, rounds: Ints) -> tuple[Ints, Ints]:
        shards, indices = np.empty_like(streams), np.empty_like(streams)
        pairs = epochs * self.streams + streams
        for pair in np.unique(pairs):
            chosen = np.flatnonzero(pairs == pair)
            epoch, stream = divmod(int(pair), self.streams)
            shards[chosen], indices[chosen] = self._locate_in_stream(epoch, stream, rounds[chosen])
        return shards, indices

    def _locate_in_stream(self, epoch: int, stream: int, places: Ints) -> tuple[Ints, Ints]:
        plan = self._epoch(epoch)
        ends = plan.window_ends[:, stream]
        windows = np.searchsorted(ends, places, side="right")
        shards, indices = np.empty_like(places), np.empty_like(places)
        for window in np.unique(windows):
            chosen = windows == window
            first = ends[window - 1] if window else 0
            length = int(ends[window] - first)
            key = (epoch, stream, int(window))
            order = self._windows.get(key, partial(self._permute_window, length))
            drawn = order[places[chosen] - first]
            rows = slice(int(window) * self.window, (int(window) + 1) * self.window)
            members = plan.shards[rows, stream]
            members = members[members >= 0]
            member_ends = np.cumsum(self.sizes[members])
            which = np.searchsorted(member_ends, drawn, side="right")
            shards[chosen] = members[which]
            indices[chosen] = drawn - (member_ends[which] - self.sizes[members[which]])
        return shards, indices

    def _permute_window(self, length: int, key: tuple[int, int, int]) -> Ints:
        order = permutation(length, self.seed, _WINDOW, *key)
        return order.astype(np.int32) if length < 2**31 else order  # half the memory

    def _epoch(self, epoch: int) -> "_Epoch":
        return self._epochs.get(epoch, self._plan_epoch)

    def _plan_epoch(self, epoch: int) -> "_Epoch":
        """Deals the permuted shards to the streams, O(shards)."""
        count, streams = self.sizes.size, self.streams
        rows = -(-count // streams)
        rows = -(-rows // self.window) * self.window
        dealt = np.full(rows * streams, -1, dtype=np.int64)
        dealt[:count] = permutation(count, self.seed, _SHARDS, epoch)
        lengths = np.where(dealt >= 0, self.sizes[dealt], 0).reshape(-1, self.window, streams)
        ends = np.cumsum(lengths.sum(axis=1), axis=0)
        return _Epoch(dealt.reshape(rows, streams), ends)


@dataclass
class _Epoch:
    """The plan of one epoch.

    Attributes:
        shards: Shard numbers, shape (rows, C): stream c reads column c downwards; -1 is none.
        window_ends: Samples of a stream up to the end of each window, shape (windows, C).
    """

    shards: Ints
    window_ends: Ints

    def __post_init__(self) -> None:
        self.lengths = self.window_ends[-1]
        ordered = np.sort(self.lengths)
        shorter = np.concatenate([[0], np.cumsum(ordered)[:-1]])
        live = ordered.size - np.arange(ordered.size)
        # Σ_c min(L_c, r) at r = the i-th shortest length: where the i-th stream has run dry.
        self._dry = shorter + live * ordered
        self._ordered = ordered

    def deal(self, places: Ints) -> tuple[Ints, Ints]:
        """Inverts the round-robin over ragged streams in closed form.

        Between two streams running dry, the set of live streams is constant, so a place is a
        quotient (which round) and a remainder (which live stream, in stream order).

        Args:
            places: Places in the epoch's order, shape (n,).

        Returns:
            Stream and place in that stream of each.
        """
        streams, rounds = np.empty_like(places), np.empty_like(places)
        dry = np.searchsorted(self._dry, places, side="right")  # streams that have run dry
        for gone in np.unique(dry):
            chosen = dry == gone
            done_rounds, done = (self._ordered[gone - 1], self._dry[gone - 1]) if gone else (0, 0)
            live = np.flatnonzero(self.lengths > done_rounds)
            quotient, remainder = np.divmod(places[chosen] - done, live.size)
            streams[chosen] = live[remainder]
            rounds[chosen] = done_rounds + quotient
        return streams, rounds


class _Cache(Generic[K, V]):
    """The most recently used `capacity` values of a function."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._values: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K, compute: Callable[[K], V]) -> V:
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        value = self._values[key] = compute(key)
        if len(self._values) > self._capacity:
            self._values.popitem(last=False)
        return value
