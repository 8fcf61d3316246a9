"""What reading cost: bytes, downloads, cache hits, retries and waiting, for the training log."""

import os
import threading
from dataclasses import dataclass, fields, replace

_LOCK = threading.Lock()


def _new_lock() -> None:
    # A thread of the parent may have held the lock when a worker was forked.
    global _LOCK
    _LOCK = threading.Lock()


os.register_at_fork(after_in_child=_new_lock)


@dataclass
class ReadCounts:
    """Counters of one process or, added up, of several.

    Attributes:
        bytes_read: Bytes of the images handed to the decoder.
        bytes_fetched: Bytes that arrived over the network, those fetched twice included.
        shards_fetched: Remote shards that were brought into the cache.
        cache_hits: Remote shards that a reader found in the cache when it opened them.
        retries: Requests that were repeated because a server failed, stalled or cut the line.
        checksum_failures: Downloads thrown away because their bytes or their length were wrong.
        wait_seconds: Time that readers waited for shards that were not in the cache yet.
    """

    bytes_read: int = 0
    bytes_fetched: int = 0
    shards_fetched: int = 0
    cache_hits: int = 0
    retries: int = 0
    checksum_failures: int = 0
    wait_seconds: float = 0.0

    def __add__(self, other: "ReadCounts") -> "ReadCounts":
        sums = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return ReadCounts(**sums)

    def add(self, **changes: float) -> None:
        """Adds to the named counters; threads may do so at the same time."""
        with _LOCK:
            for name, change in changes.items():
                setattr(self, name, getattr(self, name) + change)

    def take(self) -> "ReadCounts":
        """Returns a copy and starts again from nothing."""
        with _LOCK:
            taken = replace(self)
            for f in fields(self):
                setattr(self, f.name, f.default)
        return taken
