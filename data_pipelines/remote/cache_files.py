"""A shard in the cache, whole and in use or on its way, and what a disk that fails ends in."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from data_pipelines.manifest import ShardSetError
from data_pipelines.remote.node_locks import LockFile

_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
_BLOCK = 2**20


class CacheDiskError(ShardSetError):
    """The cache's disk cannot be read or written."""


class CacheFullError(CacheDiskError):
    """A file must be fetched, but all that the cache holds is in use, or the disk is full."""


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Says of what goes wrong with the cache's disk where that is and what to do.

    Raises:
        CacheFullError: The disk is full.
        CacheDiskError: It cannot be used otherwise.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL_DISK:
            raise CacheFullError(
                f"{folder}: the disk is full ({error.strerror}; {_free(folder)}) while shards are "
                "fetched; free some space or lower the cache's limit"
            ) from None
        if error.errno in (errno.EMFILE, errno.ENFILE):
            remedy = "raise the limit of open files (ulimit -n), or read from fewer shards at once"
        else:
            remedy = "repair the disk or its rights, or put the cache (its `folder`) elsewhere"
        raise CacheDiskError(
            f"{folder}: the cache cannot be used ({error.strerror or error}); {remedy}"
        ) from None


def _free(folder: Path) -> str:
    try:
        disk = os.statvfs(folder)
    except OSError:
        return "how much is free cannot be told"
    return f"{disk.f_favail} names and {disk.f_bavail * disk.f_frsize} bytes free"


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
        with disk_errors(self._folder):
            while block := os.pread(self._file.fd, _BLOCK, offset):
                yield block
                offset += len(block)

    def append(self, block: bytes) -> None:
        """Adds bytes at the end.

        Raises:
            CacheDiskError: The disk is full, or cannot be written.
        """
        view, offset = memoryview(block), self.length()
        with disk_errors(self._folder):
            while view:
                written = os.pwrite(self._file.fd, view, offset)
                view, offset = view[written:], offset + written

    def sync(self) -> None:
        """Sees the bytes onto the disk: after a power cut a name must not stand for zeros."""
        with disk_errors(self._folder):
            os.fsync(self._file.fd)

    def clear(self) -> None:
        """Throws all bytes away."""
        with disk_errors(self._folder):
            os.ftruncate(self._file.fd, 0)
