"""A shard in the cache, whole and in use or on its way, and how writing to a full disk ends."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from data_pipelines.manifest import ShardSetError
from data_pipelines.remote.node_locks import LockFile

_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
_BLOCK = 2**20


class CacheFullError(ShardSetError):
    """A file must be fetched, but all that the cache holds is in use, or the disk is full."""


class Held:
    """A file of the cache that stays there until this is closed.

    Attributes:
        path: The file.
    """

    def __init__(self, file: LockFile, path: Path) -> None:
        self.path = path
        self._file = file

    def __enter__(self) -> "Held":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the file up, as the last to go so far; twice does no harm."""
        if self._file.fd >= 0:
            with contextlib.suppress(OSError):  # another user's file: its place in the queue stays
                os.utime(self.path)
        self._file.close()


class Part:
    """A file under way, locked, its room set aside: the `Sink` of a download."""

    def __init__(self, file: LockFile, folder: Path) -> None:
        self._file, self._folder = file, folder

    def length(self) -> int:
        """Bytes that are there."""
        return os.fstat(self._file.fd).st_size

    def blocks(self) -> Iterator[bytes]:
        """The bytes that are there."""
        offset = 0
        while block := os.pread(self._file.fd, _BLOCK, offset):
            yield block
            offset += len(block)

    def append(self, block: bytes) -> None:
        """Adds bytes at the end.

        Raises:
            CacheFullError: The disk is full.
        """
        view, offset = memoryview(block), self.length()
        with self._disk():
            while view:
                written = os.pwrite(self._file.fd, view, offset)
                view, offset = view[written:], offset + written

    def sync(self) -> None:
        """Sees the bytes onto the disk: after a power cut a name must not stand for zeros."""
        with self._disk():
            os.fsync(self._file.fd)

    def clear(self) -> None:
        """Throws all bytes away."""
        os.ftruncate(self._file.fd, 0)

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in _FULL_DISK:
                raise CacheFullError(f"{self._folder}: writing failed ({error.strerror})") from None
            free = shutil.disk_usage(self._folder).free
            raise CacheFullError(
                f"{self._folder}: the disk is full ({error.strerror}; {free} bytes free) while "
                "shards are fetched; free some space or lower the cache's limit"
            ) from None
