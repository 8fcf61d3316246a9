"""Brings remote shards into the cache ahead of need, in the order in which they will be read."""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from data_pipelines.manifest import ShardSetError
from data_pipelines.remote.fetch import Stopped
from data_pipelines.remote.node_locks import allowed_open_files
from data_pipelines.store import RemoteStore, ShardHandle, ShardStore

logger = logging.getLogger(__name__)

SIGHT = 512  # steps; far enough that a shard arrives in time, near enough to be worked out cheaply
_MOST_OPEN = 4096
_GOODBYE_S = 5.0

_Place = tuple[int, int]  # set, shard


class Prefetcher:
    """Threads that fetch the shards of the coming steps and hold them until they were read.

    What cannot be fetched is left to the reader that needs it, which meets the error itself.

    Args:
        stores: The sets; those of a local folder need nothing and are passed over.
        needs: For each step, in order, the distinct (set, shard) that this rank reads in it.
        max_bytes: Most bytes to hold or fetch at a time: this rank's share of the cache.
        threads: Downloads at a time.
    """

    def __init__(
        self,
        stores: Sequence[ShardStore],
        needs: Iterable[Sequence[tuple[int, int]]],
        *,
        max_bytes: int,
        threads: int = 4,
    ) -> None:
        self._stores = {n: s for n, s in enumerate(stores) if isinstance(s, RemoteStore)}
        self._needs: Iterator[Sequence[_Place]] = iter(needs)
        self._max_bytes = max_bytes
        self._max_open = allowed_open_files(_MOST_OPEN)
        self._changed = threading.Condition()
        self._closed = self._planning = self._at_end = False
        self._consumed = 0  # steps handed out
        self._seen = 0  # steps looked at
        self._last: dict[_Place, int] = {}  # shards in sight: the last step looked at that needs it
        self._waiting: deque[_Place] = deque()  # not begun yet; some may be out of sight by now
        self._sizes: dict[_Place, int] = {}  # of the shards held or under way
        self._held: dict[_Place, ShardHandle] = {}
        self._threads = [
            threading.Thread(target=self._run, name=f"prefetch-{number}", daemon=True)
            for number in range(threads if self._stores else 0)
        ]
        for thread in self._threads:
            thread.start()

    def consumed(self, steps: int) -> None:
        """Tells that `steps` steps were handed out since the start.

        Shards that none of the coming steps in sight needs are given up.
        """
        with self._changed:
            self._consumed = max(self._consumed, steps)
            passed = [place for place, last in self._last.items() if last < self._consumed]
            handles = []
            for place in passed:
                del self._last[place]
                if place in self._held:
                    handles.append(self._held.pop(place))
                    del self._sizes[place]
            self._changed.notify_all()
        for handle in handles:
            handle.close()

    def close(self) -> None:
        """Ends the downloads, which can be gone on with later, and gives up all shards."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        end = time.monotonic() + _GOODBYE_S
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        with self._changed:
            handles = list(self._held.values())
            self._held.clear()
        for handle in handles:
            handle.close()

    def _run(self) -> None:
        while (place := self._next()) is not None:
            handle = self._fetch(place)
            with self._changed:
                if handle is not None and not self._is_unwanted(place):
                    self._held[place] = handle
                    handle = None
                else:
                    del self._sizes[place]
                self._changed.notify_all()
            if handle is not None:
                handle.close()

    def _fetch(self, place: _Place) -> ShardHandle | None:
        number, shard = place
        try:
            return self._stores[number].prefetch(shard, lambda: self._is_unwanted(place))
        except Stopped:
            return None
        except (ShardSetError, OSError) as error:
            logger.warning("not fetched ahead of need: %s", error)
            return None

    def _is_unwanted(self, place: _Place) -> bool:
        return self._closed or place not in self._last

    def _next(self) -> _Place | None:
        """Waits for the next shard to fetch, counts it as under way; None once closed."""
        with self._changed:
            while not self._closed:
                place = self._pick()
                if place is not None:
                    return place
                if self._planning or self._at_end or self._seen >= self._consumed + SIGHT:
                    self._changed.wait()
                else:
                    self._look()
        return None

    def _pick(self) -> _Place | None:
        """The first waiting shard, if there is room for it: the order is kept."""
        while self._waiting:
            place = self._waiting[0]
            number, shard = place
            size = self._stores[number].manifest.shards[shard].bytes
            fits_ever = size <= self._max_bytes
            if place in self._last and place not in self._sizes and fits_ever:
                full = sum(self._sizes.values()) + size > self._max_bytes
                if full or len(self._sizes) >= self._max_open:
                    return None
                self._sizes[place] = size
                self._waiting.popleft()
                return place
            self._waiting.popleft()
        return None

    def _look(self) -> None:
        """Looks at one more step. The lock is free meanwhile: an order takes its time."""
        self._planning = True
        self._changed.release()
        step: Sequence[_Place] | None = None
        try:
            step = next(self._needs, None)
        finally:
            self._changed.acquire()
            self._planning = False
            self._changed.notify_all()
            self._at_end = step is None
        if step is not None and self._seen >= self._consumed:
            for place in step:
                if place[0] in self._stores:
                    if place not in self._last:
                        self._waiting.append(place)
                    self._last[place] = self._seen
        self._seen += step is not None
