"""One epoch's plan: which stream reads which shards, and whose turn it is."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipelines.order.labels import Ints, groups


@dataclass
class EpochPlan:
    """The plan of one epoch.

    Attributes:
        shards: Shard numbers, shape (rows, C): stream c reads column c downwards; -1 is none.
        window_ends: Samples of a stream up to the end of each window, shape (windows, C).
        lengths: Samples of each stream, shape (C,).
    """

    shards: Ints
    window_ends: Ints

    @classmethod
    def of(cls, dealt: Ints, sizes: Ints, streams: int, window: int) -> "EpochPlan":
        """Deals shards to the streams in turn, O(shards).

        Args:
            dealt: All shard numbers in the order in which they are dealt.
            sizes: Samples of each shard.
            streams: C.
            window: k, in shards.
        """
        rows = -(-sizes.size // streams)
        rows = -(-rows // window) * window
        padded = np.full(rows * streams, -1, dtype=np.int64)
        padded[: sizes.size] = dealt
        lengths = np.where(padded >= 0, sizes[padded], 0).reshape(-1, window, streams)
        ends = np.cumsum(lengths.sum(axis=1), axis=0)
        return cls(padded.reshape(rows, streams), ends)

    def __post_init__(self) -> None:
        self.lengths = self.window_ends[-1]
        ordered = np.sort(self.lengths)
        shorter = np.concatenate([[0], np.cumsum(ordered)[:-1]])
        live = ordered.size - np.arange(ordered.size)
        # Σ_c min(L_c, r) at r = the i-th shortest length: where the i-th stream has run dry.
        self._dry = shorter + live * ordered
        self._ordered = ordered

    def times(self, rounds: Ints) -> NDArray[np.float64]:
        """When in the epoch, from 0 to 1, the streams come to their places `rounds`."""
        dry = np.searchsorted(self._ordered, rounds)
        before = np.concatenate([[0], np.cumsum(self._ordered)])[dry]
        places = before + (self._ordered.size - dry) * rounds
        fractions: NDArray[np.float64] = places / max(1, int(self._dry[-1]))
        return fractions

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
        for gone, chosen in groups(dry):
            done_rounds, done = (self._ordered[gone - 1], self._dry[gone - 1]) if gone else (0, 0)
            live = np.flatnonzero(self.lengths > done_rounds)
            quotient, remainder = np.divmod(places[chosen] - done, live.size)
            streams[chosen] = live[remainder]
            rounds[chosen] = done_rounds + quotient
        return streams, rounds
