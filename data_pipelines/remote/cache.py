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
from typing import NamedTuple

from data_pipelines.manifest import ShardSetError
from data_pipelines.remote.cache_files import CacheFullError, Held, Part
from data_pipelines.remote.fetch import Clock, Limits, ShardFetchError, Stop, Stopped
from data_pipelines.remote.node_locks import EXCLUSIVE, SHARED, LockFile, check_locks

_WHOLE, _SMALL, _PART = ".tar", ".npz", ".part"
_ROOM = "room.lock"
_POLL_S = 0.05
_ROOM_S = 120.0  # nobody holds room.lock for longer than it takes to list the folder


@dataclass(frozen=True)
class CacheSettings:
    """Where remote shards are kept, and how long a server may fail.

    Attributes:
        folder: A folder on a local disk; all processes of the node give the same.
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


class _Entry(NamedTuple):
    path: Path
    size: int
    given_up: int  # ns


class Cache:
    """The cache of one node. It can be sent to other processes: it holds nothing open.

    Args:
        settings: Where and how large.

    Raises:
        ValueError: The folder cannot be made, written to, or locked.
    """

    def __init__(self, settings: CacheSettings) -> None:
        self.folder = Path(settings.folder)
        self.max_bytes = settings.max_bytes
        self._limits = settings.limits
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"{self.folder}: the cache's folder cannot be made ({error.strerror})"
            ) from None
        check_locks(self.folder)

    def hold(
        self,
        digest: str,
        size: int,
        download: Callable[[Part], None],
        *,
        what: str,
        clock: Clock,
        stop: Stop,
    ) -> tuple[Held, bool]:
        """Returns a file, and whether it was there already.

        Args:
            digest: SHA-256 of its content.
            size: Its bytes.
            download: Completes a `Part`, checked; called by one process at a time for one file.
            what: The file's origin, for messages.
            clock: Patience with whoever is downloading.
            stop: Asked often; waiting ends where it returns True.

        Raises:
            CacheFullError: There is no room, and none came for `give_up_s`.
            ShardFetchError: Another process has been at it without progress for `give_up_s`.
            Stopped: `stop` returned True.
            Exception: What `download` raises.
        """
        waited, room = False, Clock(self._limits)
        arrived = 0
        while True:
            held = self._open(digest, size)
            if held is not None:
                return held, not waited
            part = self._claim(digest, size)
            if isinstance(part, LockFile):
                return self._complete(part, digest, download), False
            waited = True
            if part is None:  # no room
                if room.left <= 0:
                    raise CacheFullError(self._no_room(size, what))
            else:  # another process is at it
                clock.progress(max(0, part - arrived))
                arrived = part
                if clock.left <= 0:
                    raise ShardFetchError(
                        what,
                        0,
                        f"another process fetches it, without progress for "
                        f"{self._limits.give_up_s:g} s",
                    )
            if stop():
                raise Stopped
            time.sleep(_POLL_S)

    def total(self) -> int:
        """Bytes of all files, those under way in full."""
        return sum(entry.size for entry in self._entries())

    def read(self, digest: str, fetch: Callable[[], bytes]) -> bytes:
        """Returns a small file's content: from the cache, or else from `fetch`, then kept.

        Args:
            digest: Its SHA-256.
            fetch: Returns it, checked; called by one process at a time for one file.

        Raises:
            Exception: What `fetch` raises.
        """
        path = self._path(digest, _SMALL)
        while (data := _content(path, digest)) is None:
            path.parent.mkdir(exist_ok=True)
            file = LockFile(self._path(digest, ".0" + _PART), os.O_RDWR | os.O_CREAT)
            try:
                # Who held the lock before may have finished, and this is the finished file.
                if not file.wait(EXCLUSIVE, 2 * self._limits.give_up_s) or not file.is_current():
                    continue
                if (data := _content(path, digest)) is None:
                    data = fetch()
                    self._keep(file, data, path)
                file.path.unlink(missing_ok=True)
                return data
            finally:
                file.close()
        return data

    def _keep(self, file: LockFile, data: bytes, path: Path) -> None:
        part = Part(file, self.folder)
        with self._room():
            if self._make_room(len(data)):  # else it is fetched again next time
                part.clear()
                part.append(data)
                part.sync()
                os.rename(file.path, path)

    def _path(self, digest: str, suffix: str) -> Path:
        return self.folder / digest[:2] / f"{digest}{suffix}"

    def _open(self, digest: str, size: int) -> Held | None:
        """The file with a reader's lock, where it is there."""
        path = self._path(digest, _WHOLE)
        while True:
            try:
                file = LockFile(path, os.O_RDONLY)
            except FileNotFoundError:
                return None
            # Only who removes files takes an exclusive lock, and only for a moment.
            if file.wait(SHARED, _ROOM_S) and file.is_current():
                if os.fstat(file.fd).st_size == size:
                    return Held(file, path)
                self._remove_cut(file, size)
            file.close()

    def _remove_cut(self, file: LockFile, size: int) -> None:
        with self._room():
            if not file.lock(EXCLUSIVE):
                file.close()
                raise ShardSetError(
                    f"{file.path}: does not have the {size} bytes that a manifest says, and is in "
                    "use; if another program cut it, end the runs that read it and remove it"
                )
            file.path.unlink(missing_ok=True)

    def _claim(self, digest: str, size: int) -> LockFile | int | None:
        """The locked part file; or the bytes that another process has; or None: there is no room.

        A part file of its final size in its name sets the room aside.
        """
        path = self._path(digest, f".{size}{_PART}")
        with contextlib.suppress(FileNotFoundError):
            file = LockFile(path)
            mine, arrived = file.lock(EXCLUSIVE), os.fstat(file.fd).st_size
            file.close()
            if not mine:
                return arrived
        with self._room():
            if self._path(digest, _WHOLE).exists():
                return 0
            if not path.exists():
                if not self._make_room(size):
                    return None
                path.parent.mkdir(exist_ok=True)
            file = LockFile(path, os.O_RDWR | os.O_CREAT)
            if file.lock(EXCLUSIVE):
                return file
            file.close()
            return 0

    def _complete(self, file: LockFile, digest: str, download: Callable[[Part], None]) -> Held:
        part, path = Part(file, self.folder), self._path(digest, _WHOLE)
        try:
            download(part)
            part.sync()
            with self._room():  # nobody may remove it between the two locks
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
    def _room(self) -> Iterator[None]:
        """The right to set room aside, to remove, and to rename."""
        lock = LockFile(self.folder / _ROOM, os.O_RDWR | os.O_CREAT)
        try:
            if not lock.wait(EXCLUSIVE, _ROOM_S):
                raise CacheFullError(
                    f"{lock.path}: another process has held it for {_ROOM_S:g} s; is it stopped? "
                    "End it"
                )
            yield
        finally:
            lock.close()

    def _make_room(self, size: int) -> bool:
        """Removes the files given up longest ago until `size` bytes fit, or none at all."""
        entries = self._entries()
        excess = sum(entry.size for entry in entries) + size - self.max_bytes
        taken: list[LockFile] = []
        try:
            for entry in sorted(entries, key=lambda entry: entry.given_up):
                if excess <= 0:
                    break
                with contextlib.suppress(FileNotFoundError, PermissionError):
                    file = LockFile(entry.path)
                    taken.append(file)
                    if file.lock(EXCLUSIVE):
                        excess -= entry.size
                    else:
                        taken.pop().close()
            if excess <= 0:
                for file in taken:
                    file.path.unlink(missing_ok=True)
        finally:
            for file in taken:
                file.close()
        return excess <= 0

    def _entries(self) -> list[_Entry]:
        found = []
        for folder in self.folder.iterdir():
            if not folder.is_dir():
                continue
            for path in folder.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    status = path.stat()
                    size = status.st_size
                    if path.suffix == _PART:  # counts as what it will be
                        size = max(size, int(path.name.split(".")[1]))
                    found.append(_Entry(path, size, status.st_mtime_ns))
        return found

    def _no_room(self, size: int, what: str) -> str:
        return (
            f"{self.folder}: no room for {what} ({size} bytes): all of the {self.total()} bytes "
            f"in the cache are in use, its limit is {self.max_bytes}, and none was given up for "
            f"{self._limits.give_up_s:g} s; raise the limit, or read fewer shards at once (fewer "
            "streams, a smaller window)"
        )


def _content(path: Path, digest: str) -> bytes | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    return data if hashlib.sha256(data).hexdigest() == digest else None
