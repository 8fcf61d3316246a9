"""Locks among the processes of a node: `flock` on files, which the kernel frees when one dies.

A lock belongs to an open file. Forked workers would inherit it, keep it, and keep the space of
files that were deleted since; so a child closes what this module opened before it does anything.
"""

import contextlib
import errno
import fcntl
import os
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path

SHARED, EXCLUSIVE = fcntl.LOCK_SH, fcntl.LOCK_EX
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_guard = threading.Lock()
_open: set[int] = set()


def _close_in_child() -> None:
    global _guard
    _guard = threading.Lock()
    while _open:
        os.close(_open.pop())


# Held over the fork, so that no descriptor is opened and not yet written down.
os.register_at_fork(
    before=lambda: _guard.acquire(),
    after_in_parent=lambda: _guard.release(),
    after_in_child=_close_in_child,
)


class LockFile:
    """An open file that can be locked against other openings of it, in any process or thread.

    Args:
        path: The file.
        flags: As for `os.open`.

    Raises:
        OSError: It cannot be opened.
    """

    def __init__(self, path: Path, flags: int = os.O_RDWR) -> None:
        self.path = path
        self._pid = os.getpid()
        with _guard:
            self.fd = os.open(path, flags | os.O_CLOEXEC, 0o666)
            _open.add(self.fd)

    def lock(self, kind: int) -> bool:
        """Takes the lock, SHARED or EXCLUSIVE, unless another opening is in the way."""
        try:
            fcntl.flock(self.fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def wait(self, kind: int, seconds: float, stop: Callable[[], bool] = lambda: False) -> bool:
        """Takes the lock, waiting up to `seconds`, or until `stop` returns True."""
        end, pause = time.monotonic() + seconds, 0.001
        while not self.lock(kind):
            if time.monotonic() > end or stop():
                return False
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        return True

    def is_current(self) -> bool:
        """Whether the path still names this file: another process may have removed it."""
        mine = os.fstat(self.fd)
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            return False
        return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)

    def close(self) -> None:
        """Gives up the lock and the file; twice does no harm."""
        if self.fd < 0:
            return
        # In a forked child the number may mean another file by now.
        if self._pid == os.getpid():
            with _guard:
                _open.discard(self.fd)
                with contextlib.suppress(OSError):  # where there are no locks, none is kept
                    fcntl.flock(
                        self.fd, fcntl.LOCK_UN
                    )  # even if a child between fork and exec has a copy
                os.close(self.fd)
        self.fd = -1


def check_locks(folder: Path) -> None:
    """Refuses a folder whose file system has no locks, or does as if it had.

    Raises:
        ValueError: Its files cannot be locked; the message says what to do.
    """
    first = second = None
    remedy = "put the cache on a local disk of each node (setting `folder` of the cache)"
    try:
        first = LockFile(folder / "room.lock", os.O_RDWR | os.O_CREAT)
        second = LockFile(folder / "room.lock")
        if not first.wait(EXCLUSIVE, 60.0):
            raise ValueError(f"{folder}: another process has held room.lock for 60 s; end it")
        if second.lock(EXCLUSIVE):
            raise ValueError(f"{folder}: its file system grants a lock twice; {remedy}")
    except OSError as error:
        if error.errno in _NO_LOCKS:
            raise ValueError(
                f"{folder}: its file system has no file locks ({error.strerror}); {remedy}"
            ) from None
        raise ValueError(
            f"{folder}: cannot be written to ({error.strerror}); give the cache a folder of yours"
        ) from None
    finally:
        for file in (first, second):
            if file is not None:
                file.close()


def allowed_open_files(wanted: int, parts: int = 1) -> int:
    """How many of `wanted` files may be held open, leaving half the process's limit for others.

    The soft limit is raised towards the hard one where that is not enough.

    Args:
        wanted: At best so many.
        parts: How many shares of this size the process needs: one for each of those who ask, two
            for one whose files take two descriptors.
    """
    needed = 2 * parts * wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return max(1, wanted)
    return max(1, min(wanted, soft // (2 * parts)))
