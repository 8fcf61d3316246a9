"""The cache's folder: which files in it are the cache's own, and whose folder it is."""

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data_pipelines.remote.node_locks import EXCLUSIVE, LockFile, check_locks

WHOLE, SMALL, PART = ".tar", ".npz", ".part"
ROOM, WANTED = "room.lock", "room.wanted"
_TAG = "CACHEDIR.TAG"
# The signature is that of the Cache Directory Tagging Specification: backups pass the folder over.
_TAG_TEXT = b"""Signature: 8a477f597d28d172789f06886806bc55
# A cache of shards, kept by simple-diffusion. What is in it can be fetched again.
"""
_SUBFOLDER = re.compile(r"[0-9a-f]{2}")
_NAME = re.compile(r"([0-9a-f]{2})[0-9a-f]{62}(?:\.tar|\.npz|\.([0-9]{1,18})\.part)")
_OTHERS = (ROOM, WANTED, _TAG, "lost+found")  # the last: a whole disk for the cache


class Entry(NamedTuple):
    """A file of the cache.

    Attributes:
        path: Where it is.
        size: Its bytes; for one under way, those that it will have.
        given_up: When it was last given up, in ns.
    """

    path: Path
    size: int
    given_up: int


def file_path(folder: Path, digest: str, suffix: str) -> Path:
    """Where a file of the cache is: below a folder named after its first two digits."""
    return folder / digest[:2] / f"{digest}{suffix}"


def entries(folder: Path) -> Iterator[Entry]:
    """The cache's files; what it would not have named so is not its own and is left alone."""
    for below in os.listdir(folder):
        if not _SUBFOLDER.fullmatch(below):
            continue
        with contextlib.suppress(NotADirectoryError):
            for name in os.listdir(folder / below):
                match = _NAME.fullmatch(name)
                if match is None or match[1] != below:
                    continue
                path = folder / below / name
                with contextlib.suppress(FileNotFoundError):
                    status = path.lstat()
                    if stat.S_ISREG(status.st_mode):
                        size = max(status.st_size, int(match[2] or 0))
                        yield Entry(path, size, status.st_mtime_ns)


def make_room(folder: Path, size: int, most: int) -> bool:
    """Removes the files given up longest ago until `size` bytes more fit into `most`, or none.

    To be called by one process at a time.
    """
    there = sorted(entries(folder), key=lambda entry: entry.given_up)
    excess = sum(entry.size for entry in there) + size - most
    going: list[Path] = []
    for entry in there:
        if excess <= 0:
            break
        if _is_free(entry.path):
            excess -= entry.size
            going.append(entry.path)
    # Not all are locked at once, which would take as many descriptors: a reader may come between.
    return excess <= 0 and all(_is_free(path, remove=True) for path in going)


def _is_free(path: Path, *, remove: bool = False) -> bool:
    """Whether nobody uses a file, which is then removed if so wished."""
    try:
        file = LockFile(path)
    except FileNotFoundError:
        return True
    except PermissionError:  # another user's
        return False
    try:
        if not file.lock(EXCLUSIVE):
            return False
        if remove:
            path.unlink(missing_ok=True)
        return True
    finally:
        file.close()


def claim_folder(folder: Path) -> None:
    """Makes the folder and marks it as a cache.

    Raises:
        ValueError: It cannot be made, written to or locked, or holds what is not the cache's.
    """
    remedy = "give the cache a folder of its own (setting `folder` of the cache)"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{folder}: the cache's folder cannot be made ({error.strerror}); {remedy}"
        ) from None
    try:
        if not _is_marked(folder):
            foreign = [name for name in sorted(os.listdir(folder)) if not _is_own(name)]
            if foreign:
                raise ValueError(
                    f"{folder}: holds other files ({', '.join(map(repr, foreign[:3]))}"
                    f"{', ...' if foreign[3:] else ''}) and is no cache of shards; {remedy}"
                )
            check_locks(folder)
            (folder / _TAG).write_bytes(_TAG_TEXT)
            return
    except OSError as error:
        raise ValueError(
            f"{folder}: the cache's folder cannot be used ({error.strerror}); {remedy}"
        ) from None
    check_locks(folder)


def _is_marked(folder: Path) -> bool:
    try:
        with open(folder / _TAG, "rb") as file:
            return file.read(len(_TAG_TEXT)) == _TAG_TEXT
    except FileNotFoundError:
        return False


def _is_own(name: str) -> bool:
    return name in _OTHERS or _SUBFOLDER.fullmatch(name) is not None
