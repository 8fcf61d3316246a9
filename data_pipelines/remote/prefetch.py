"""Brings remote shards into the cache ahead of need, those that are read next before all others."""

import heapq
import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from data_pipelines.manifest import ShardSetError
from data_pipelines.remote.fetch import ShardFetchError, Stopped
from data_pipelines.remote.node_locks import allowed_open_files
from data_pipelines.store import RemoteStore, ShardHandle, ShardStore, descriptor_parts

logger = logging.getLogger(__name__)

SIGHT = 512  # steps; far enough that a shard arrives in time, near enough to be worked out cheaply
_MOST_OPEN = 4096
_GOODBYE_S = 5.0
_WATCH_S = 0.25

_Place = tuple[int, int]  # set, shard


class Prefetcher:
    """Threads that fetch the shards of the coming steps and hold them until they were read.

    Where there is no room for all in sight, the shard that is needed next takes the place of one
    that is needed later (Belady, 1966). While a reader waits for room, of this run or of another
    one that shares the cache, nothing is fetched and those needed last are given up.

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
        self._max_open = allowed_open_files(_MOST_OPEN, descriptor_parts(stores))
        self._changed = threading.Condition()
        self._closed = self._planning = self._at_end = self._yields = False
        self._consumed = 0  # steps handed out
        self._seen = 0  # steps looked at
        self._needed: dict[_Place, deque[int]] = {}  # shards in sight: the steps that need them
        # Those neither here nor under way, by the next step that needs them, or an earlier one.
        self._waiting: list[tuple[int, _Place]] = []
        self._failed: set[_Place] = set()  # until the step is over that needed them
        self._told: set[tuple[type, str]] = set()  # failures since the last success
        self._sizes: dict[_Place, int] = {}  # of the shards held or under way
        self._held: dict[_Place, ShardHandle] = {}
        self._threads = [
            threading.Thread(target=self._run, name=f"prefetch-{number}", daemon=True)
            for number in range(threads if self._stores else 0)
        ]
        if self._stores:
            self._threads.append(
                threading.Thread(target=self._watch, name="prefetch-watch", daemon=True)
            )
        for thread in self._threads:
            thread.start()

    def consumed(self, steps: int) -> None:
        """Tells that `steps` steps were handed out since the start.

        Shards that none of the coming steps in sight needs are given up.
        """
        with self._changed:
            self._consumed = max(self._consumed, steps)
            handles = []
            for place, needs in list(self._needed.items()):
                passed = False
                while needs and needs[0] < self._consumed:
                    needs.popleft()
                    passed = True
                if not needs:
                    del self._needed[place]
                    self._failed.discard(place)
                    if place in self._held:
                        handles.append(self._drop(place))
                elif passed and place in self._failed:
                    self._failed.remove(place)
                    self._await(place)
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
            handle: ShardHandle | None = None
            error: Exception | None = None
            try:
                handle = self._stores[place[0]].prefetch(place[1], lambda: self._is_unwanted(place))
            except Stopped:
                pass
            except (ValueError, OSError) as caught:  # ShardSetError is a ValueError
                error = caught
            with self._changed:
                if handle is not None and not self._is_unwanted(place):
                    self._held[place] = handle
                    self._told.clear()
                    handle = None
                else:
                    del self._sizes[place]
                    if error is not None:
                        self._tell(error)
                    if place in self._needed and error is not None:
                        self._failed.add(place)
                    elif place in self._needed:  # in sight again since it was given up
                        self._await(place)
                self._changed.notify_all()
            if handle is not None:
                handle.close()

    def _tell(self, error: Exception) -> None:
        """Logs a failure, once for all the shards that fail for the same reason."""
        cause = type(error), error.reason if isinstance(error, ShardFetchError) else ""
        if cause not in self._told:
            self._told.add(cause)
            logger.warning("not fetched ahead of need: %s", error)

    def _watch(self) -> None:
        """While a reader waits for room, gives up one shard after the other, the last first."""
        while True:
            try:
                wanted = any(store.room_is_wanted() for store in self._stores.values())
            except ShardSetError:  # those who fetch meet it too, and tell
                wanted = False
            handle: ShardHandle | None = None
            with self._changed:
                if wanted != self._yields:
                    self._yields = wanted
                    self._changed.notify_all()
                if wanted and self._held:
                    last = max(self._held, key=lambda place: self._needed[place][0])
                    handle = self._drop(last)
                    self._await(last)
                if not self._closed:
                    self._changed.wait_for(lambda: self._closed, _WATCH_S)
                closed = self._closed
            if handle is not None:
                handle.close()
            if closed:
                return

    def _is_unwanted(self, place: _Place) -> bool:
        return self._closed or place not in self._needed

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
        """The shard that is needed next and not here, if there is room or room can be made."""
        place = None if self._yields else self._first()
        if place is None:
            return None
        due, size = self._needed[place][0], self._size(place)
        excess = sum(self._sizes.values()) + size - self._max_bytes
        surplus = len(self._sizes) + 1 - self._max_open
        given: list[_Place] = []
        if excess > 0 or surplus > 0:
            later = [other for other in self._held if self._needed[other][0] > due]
            for other in sorted(later, key=lambda other: self._needed[other][0], reverse=True):
                if excess <= 0 and surplus <= 0:
                    break
                excess, surplus = excess - self._sizes[other], surplus - 1
                given.append(other)
            if excess > 0 or surplus > 0:
                return None
        for other in given:
            self._drop(other).close()
            self._await(other)
        heapq.heappop(self._waiting)
        self._sizes[place] = size
        return place

    def _first(self) -> _Place | None:
        """The shard at the head of the queue, once that is its right place."""
        while self._waiting:
            step, place = self._waiting[0]
            if place not in self._needed or place in self._sizes or place in self._failed:
                heapq.heappop(self._waiting)
            elif self._needed[place][0] != step:
                heapq.heapreplace(self._waiting, (self._needed[place][0], place))
            else:
                return place
        return None

    def _await(self, place: _Place) -> None:
        """Puts a shard that is needed into the queue, if it can be held at all."""
        if self._size(place) <= self._max_bytes:
            heapq.heappush(self._waiting, (self._needed[place][0], place))

    def _drop(self, place: _Place) -> ShardHandle:
        """A shard that is no longer held, to be closed."""
        del self._sizes[place]
        return self._held.pop(place)

    def _size(self, place: _Place) -> int:
        return self._stores[place[0]].manifest.shards[place[1]].bytes

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
                    if place in self._needed:
                        self._needed[place].append(self._seen)
                    else:
                        self._needed[place] = deque([self._seen])
                        self._await(place)
        self._seen += step is not None
