"""Remote shards on the local disk, shared by all processes of a node and bounded in size.

A file's name is the SHA-256 of its content. Who needs one that is not there downloads it into a
`.part` file, locked while it grows; the others wait for the lock, and find the whole file. A
reader's lock on a file keeps it there; to make room, the file that was given up longest ago goes
first. What a killed process leaves behind is unlocked, counted, continued or removed.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.manifest import ShardSetError
from data_pipelines.remote.cache_files import (
    CacheDiskError,
    CacheFullError,
    Held,
    Part,
    disk_errors,
)
from data_pipelines.remote.cache_folder import (
    PART,
    ROOM,
    SMALL,
    WANTED,
    WHOLE,
    claim_folder,
    entries,
    file_path,
    make_room,
)
from data_pipelines.remote.fetch import Clock, Limits, ShardFetchError, Stop, Stopped, never
from data_pipelines.remote.node_locks import EXCLUSIVE, SHARED, LockFile

_POLL_S = 0.05
_LONGEST_POLL_S = 1.0  # for room: looking for it lists the folder
_ROOM_S = 120.0  # nobody holds room.lock for longer than it takes to list the folder


@dataclass(frozen=True)
class CacheSettings:
    """Where remote shards are kept, and how long a server may fail.

    Attributes:
        folder: A folder of its own on a local disk; all processes of the node give the same.
            Several runs may share it: while one waits for room, all fetch less ahead of need.
        max_bytes: Most bytes in it.
        stall_s: As in `Limits`.
        give_up_s: As in `Limits`; also how long to wait for room.
        backoff_s: As in `Limits`.
    """

    folder: Path
    max_bytes: int
    stall_s: float = 30.0
    give_up_s: float = 600.0
    backoff_s: float = 0.5

    def __post_init__(self) -> None:
        if self.max_bytes < 1:
            raise ValueError(f"the cache's max_bytes is {self.max_bytes}; it must be positive")
        _ = self.limits  # checks them

    @property
    def limits(self) -> Limits:
        """When to ask a server again and when to give it up."""
        return Limits(self.stall_s, self.give_up_s, self.backoff_s)


class Cache:
    """The cache of one node. It can be sent to other processes: it holds nothing open.

    Args:
        settings: Where and how large.

    Raises:
        ValueError: The folder cannot be made, written to, or locked, or is no cache.
    """

    def __init__(self, settings: CacheSettings) -> None:
        self.folder = Path(settings.folder)
        self.max_bytes = settings.max_bytes
        self._limits = settings.limits
        claim_folder(self.folder)

    def hold(
        self,
        digest: str,
        size: int,
        download: Callable[[Part], None],
        *,
        what: str,
        clock: Clock,
        stop: Stop,
        full: Callable[[], None] | None = None,
    ) -> tuple[Held, bool]:
        """Returns a file, and whether it was there already.

        Args:
            digest: SHA-256 of its content.
            size: Its bytes.
            download: Completes a `Part`, checked; called by one process at a time for one file.
            what: The file's origin, for messages.
            clock: Patience with whoever is downloading.
            stop: Asked often; waiting ends where it returns True.
            full: Called where there is no room, to give up what the caller itself holds. None for
                who fetches ahead of need: they let those who are in need of room go first.

        Raises:
            CacheFullError: There is no room, and none came for `give_up_s`; or the disk is full.
            CacheDiskError: The disk fails otherwise.
            ShardFetchError: Another process has been at it without progress for `give_up_s`.
            Stopped: `stop` returned True.
            Exception: What `download` raises.
        """
        with disk_errors(self.folder), contextlib.ExitStack() as marks:
            waited, arrived, pause = False, 0, _POLL_S
            room: Clock | None = None
            mark: LockFile | None = None
            while True:
                held = self._open(digest, size, stop)
                if held is not None:
                    return held, not waited
                yields = full is None and self.is_wanted()
                part = None if yields else self._claim(digest, size, stop)
                if isinstance(part, LockFile):
                    marks.close()
                    return self._complete(part, digest, download, stop), False
                waited = True
                if part is not None:  # another process is at it
                    marks.close()
                    room, mark, pause = None, None, _POLL_S
                    clock.progress(max(0, part - arrived))
                    arrived = part
                    if clock.left <= 0:
                        raise self._hung(what)
                elif room is None:
                    room = Clock(self._limits)
                    if full is not None:
                        mark = LockFile(self.folder / WANTED, os.O_RDWR | os.O_CREAT)
                        marks.callback(mark.close)
                        full()
                        continue
                else:
                    if room.left <= 0:
                        raise CacheFullError(self._no_room(size, what))
                    if mark is not None:
                        mark.lock(EXCLUSIVE)  # where another one waits, its lock is the mark
                    pause = min(1.5 * pause, _LONGEST_POLL_S, max(room.left, _POLL_S))
                    clock.excuse(pause)
                _sleep(pause, stop)

    def is_wanted(self) -> bool:
        """Whether somebody waits for room who reads, and does not only fetch ahead of need."""
        with disk_errors(self.folder):
            file = LockFile(self.folder / WANTED, os.O_RDWR | os.O_CREAT)
            try:
                return not file.lock(SHARED)
            finally:
                file.close()

    def total(self) -> int:
        """Bytes of all files, those under way in full."""
        with disk_errors(self.folder):
            return sum(entry.size for entry in entries(self.folder))

    def read(self, digest: str, fetch: Callable[[], bytes], *, what: str) -> tuple[bytes, bool]:
        """Returns a small file's content, and whether it was there already.

        If not it comes from `fetch`, and is kept where there is room.

        Args:
            digest: Its SHA-256.
            fetch: Returns it, checked; called by one process at a time for one file.
            what: The file's origin, for messages.

        Raises:
            CacheDiskError: The disk fails.
            ShardFetchError: Another process has been at it for `give_up_s`.
            Exception: What `fetch` raises.
        """
        path, clock = file_path(self.folder, digest, SMALL), Clock(self._limits)
        waited = False
        with disk_errors(self.folder):
            while (data := _content(path, digest)) is None:
                path.parent.mkdir(exist_ok=True)
                part = file_path(self.folder, digest, ".0" + PART)
                file = LockFile(part, os.O_RDWR | os.O_CREAT)
                try:
                    if not file.wait(EXCLUSIVE, clock.left):
                        raise self._hung(what)
                    waited = True
                    # Who held the lock before may have finished, and this is the finished file.
                    if not file.is_current():
                        continue
                    if (data := _content(path, digest)) is None:
                        data = fetch()
                        self._keep(file, data, path)
                    part.unlink(missing_ok=True)
                    return data, False
                finally:
                    file.close()
        return data, not waited

    def _keep(self, file: LockFile, data: bytes, path: Path) -> None:
        # Its bytes count from now on. They are checked whenever it is read, so that they need not
        # be on the disk yet; nor may others wait for the disk meanwhile.
        part = Part(file, self.folder)
        part.clear()
        part.append(data)
        with self._room():
            if make_room(self.folder, 0, self.max_bytes):  # else it is fetched again next time
                os.rename(file.path, path)

    def _open(self, digest: str, size: int, stop: Stop) -> Held | None:
        """The file with a reader's lock, where it is there."""
        path = file_path(self.folder, digest, WHOLE)
        while True:
            try:
                file = LockFile(path, os.O_RDONLY)
            except FileNotFoundError:
                return None
            with contextlib.ExitStack() as undo:
                undo.callback(file.close)
                # Only who removes files takes an exclusive lock, and only for a moment.
                self._lock(file, SHARED, stop)
                if file.is_current():
                    if os.fstat(file.fd).st_size == size:
                        undo.pop_all()
                        return Held(file, path)
                    self._remove_cut(file, size, stop)

    def _remove_cut(self, file: LockFile, size: int, stop: Stop) -> None:
        with self._room(stop):
            if not file.lock(EXCLUSIVE):
                raise ShardSetError(
                    f"{file.path}: does not have the {size} bytes that a manifest says, and is in "
                    "use; if another program cut it, end the runs that read it and remove it"
                )
            file.path.unlink(missing_ok=True)

    def _claim(self, digest: str, size: int, stop: Stop = never) -> LockFile | int | None:
        """The locked part file; or the bytes that another process has; or None: there is no room.

        A part file of its final size in its name sets the room aside.
        """
        path = file_path(self.folder, digest, f".{size}{PART}")
        with contextlib.suppress(FileNotFoundError):
            file = LockFile(path)
            mine, arrived = file.lock(EXCLUSIVE), os.fstat(file.fd).st_size
            file.close()
            if not mine:
                return arrived
        with self._room(stop):
            if file_path(self.folder, digest, WHOLE).exists():
                return 0
            if not path.exists():
                if not make_room(self.folder, size, self.max_bytes):
                    return None
                path.parent.mkdir(exist_ok=True)
            file = LockFile(path, os.O_RDWR | os.O_CREAT)
            if file.lock(EXCLUSIVE):
                return file
            file.close()
            return 0

    def _complete(
        self, file: LockFile, digest: str, download: Callable[[Part], None], stop: Stop
    ) -> Held:
        part, path = Part(file, self.folder), file_path(self.folder, digest, WHOLE)
        try:
            download(part)
            part.sync()
            with self._room(stop):  # nobody may remove it between the two locks
                os.rename(file.path, path)
                file.lock(SHARED)
        except BaseException as error:
            # What is there is gone on with the next time, but for a full disk.
            if isinstance(error, CacheFullError) or not part.length():
                file.path.unlink(missing_ok=True)
            file.close()
            raise
        return Held(file, path)

    @contextlib.contextmanager
    def _room(self, stop: Stop = never) -> Iterator[None]:
        """The right to set room aside, to remove, and to rename."""
        lock = LockFile(self.folder / ROOM, os.O_RDWR | os.O_CREAT)
        try:
            self._lock(lock, EXCLUSIVE, stop)
            yield
        finally:
            lock.close()

    def _lock(self, file: LockFile, kind: int, stop: Stop) -> None:
        """Takes a lock that nobody holds for longer than it takes to list the folder."""
        if not file.wait(kind, _ROOM_S, stop):
            if stop():
                raise Stopped
            raise CacheDiskError(
                f"{file.path}: another process has held its lock for {_ROOM_S:g} s; is it "
                "stopped? End it"
            )

    def _no_room(self, size: int, what: str) -> str:
        return (
            f"{self.folder}: no room for {what} ({size} bytes): all of the {self.total()} bytes "
            f"in the cache are in use, its limit is {self.max_bytes}, and none was given up for "
            f"{self._limits.give_up_s:g} s; raise the limit, or read fewer shards at once (fewer "
            "streams, a smaller window)"
        )

    def _hung(self, what: str) -> ShardFetchError:
        reason = f"another process fetches it, without progress for {self._limits.give_up_s:g} s"
        return ShardFetchError(what, 0, reason)


def _sleep(seconds: float, stop: Stop) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if stop():
            raise Stopped
        time.sleep(min(left, _POLL_S))


def _content(path: Path, digest: str) -> bytes | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    return data if hashlib.sha256(data).hexdigest() == digest else None
