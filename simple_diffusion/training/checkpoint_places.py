"""Where checkpoints lie: a folder on a disk, or a prefix of an object store.

On a disk a checkpoint is written under a temporary name, synced, and renamed: the final name is
whole or not there. An object store has no rename: there the marker file is written last, and a
folder without it does not exist.
"""

import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from data_pipelines.remote.request import filesystem, shown

MARKER = "COMPLETE.json"
DAMAGED = "DAMAGED.json"  # the marker of a checkpoint in an object store that was set aside
_NAME = re.compile(r"(\d+)(?:-(\d+))?")
_TEMPORARY, _OLD = ".tmp-", ".old-"
_UPLOAD_PART = 64 * 2**20  # of at most 10,000: files up to 640 GB

logger = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or read; the message names it and the remedy."""


class Folder(Protocol):
    """One checkpoint's files. Names are plain: the callers have checked them."""

    @property
    def path(self) -> Path | str:
        """The folder, or its URL."""
        ...

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none."""
        ...

    def open(self, name: str) -> BinaryIO:
        """A file to read, unbuffered.

        Raises:
            OSError: it is not there, or cannot be read.
        """
        ...

    def create(self, name: str) -> Any:
        """A context manager that gives a file to write; it is durable, and all there, on leaving.

        Raises:
            OSError: there is no space, or no permission.
        """
        ...


@dataclass(frozen=True)
class Place:
    """A checkpoint that may be complete."""

    images_seen: int
    attempt: int  # the same images may be saved again in an object store, beside the first
    folder: Folder


class Places(Protocol):
    """All the checkpoints of a run. Every method but `listed` and `temporary` is rank 0's."""

    @property
    def path(self) -> Path | str:
        """The folder, or its URL."""
        ...

    def listed(self) -> list[Place]:
        """Those there are, oldest first; they may be damaged."""
        ...

    def begin(self, images_seen: int) -> str:
        """Make room for a new one, and clean up what earlier attempts left.

        Returns:
            Its name while it is being written, for `temporary`.
        """
        ...

    def temporary(self, name: str) -> Folder:
        """The folder of a name that `begin` gave."""
        ...

    def commit(self, name: str, images_seen: int) -> Folder:
        """All files are written, the marker too: from now on it exists."""
        ...

    def abort(self, name: str) -> None:
        """Remove what was written."""
        ...

    def delete(self, place: Place) -> None:
        """Remove a complete one; at no moment does half of it look whole."""
        ...

    def set_aside(self, place: Place) -> str:
        """Put a damaged one where it is not found any more; where, for people."""
        ...

    def restore(self) -> None:
        """Put back what was moved away for a successor that never came."""
        ...

    def free_bytes(self) -> int | None:
        """What is left on the disk; None where there is no such limit."""
        ...


def places_of(root: str | Path) -> Places:
    """The checkpoints in a folder or at a URL.

    Raises:
        ValueError: the URL's protocol is not known, or needs an extra.
    """
    if isinstance(root, str) and "://" in root:
        return RemotePlaces(_one_url(root))
    return LocalPlaces(Path(root))


def folder_of(path: str | Path) -> Folder:
    """One checkpoint's folder.

    Raises:
        ValueError: the URL's protocol is not known, or needs an extra.
    """
    if isinstance(path, str) and "://" in path:
        return RemoteFolder(_one_url(path).rstrip("/"))
    return LocalFolder(Path(path))


@dataclass(frozen=True)
class LocalFolder:
    """A folder on a disk."""

    path: Path

    def size(self, name: str) -> int | None:
        """See `Folder`."""
        file = self.path / name
        return file.stat().st_size if file.is_file() else None

    def open(self, name: str) -> BinaryIO:
        """See `Folder`."""
        return open(self.path / name, "rb", buffering=0)

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """See `Folder`."""
        with open(self.path / name, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())


@dataclass(frozen=True)
class LocalPlaces:
    """The checkpoints in a folder of a disk that all nodes share."""

    path: Path

    def listed(self) -> list[Place]:
        """See `Places`."""
        if not self.path.is_dir():
            return []
        paths = {path.name: path for path in self.path.iterdir()}
        # One that was moved away for its successor, which never came, is still the one.
        moved = {name.removeprefix(_OLD): paths[name] for name in paths if name.startswith(_OLD)}
        found = sorted(
            (int(name), path) for name, path in (moved | paths).items() if name.isdigit()
        )
        return [Place(images_seen, 0, LocalFolder(path)) for images_seen, path in found]

    def begin(self, images_seen: int) -> str:
        """See `Places`."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._remove_temporaries()
        name = f"{_TEMPORARY}{images_seen:012d}"
        (self.path / name).mkdir()
        return name

    def temporary(self, name: str) -> LocalFolder:
        """See `Places`."""
        return LocalFolder(self.path / name)

    def commit(self, name: str, images_seen: int) -> LocalFolder:
        """See `Places`."""
        final = self.path / f"{images_seen:012d}"
        _sync_folder(self.path / name)
        if final.exists():  # the same step, saved again once its events were done
            final.rename(self.path / f"{_OLD}{images_seen:012d}")
        (self.path / name).rename(final)
        _sync_folder(self.path)
        self._remove_temporaries()
        return LocalFolder(final)

    def abort(self, name: str) -> None:
        """See `Places`."""
        shutil.rmtree(self.path / name, ignore_errors=True)
        with suppress(OSError):
            self.restore()

    def delete(self, place: Place) -> None:
        """See `Places`."""
        assert isinstance(place.folder, LocalFolder)
        (place.folder.path / MARKER).unlink(missing_ok=True)
        shutil.rmtree(place.folder.path, ignore_errors=True)

    def set_aside(self, place: Place) -> str:
        """See `Places`."""
        assert isinstance(place.folder, LocalFolder)
        path = place.folder.path
        aside = path.with_name(f"{path.name}.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        return str(aside)

    def restore(self) -> None:
        """See `Places`."""
        for path in self.path.glob(f"{_OLD}*"):
            final = self.path / path.name.removeprefix(_OLD)
            if not final.exists():
                path.rename(final)

    def free_bytes(self) -> int | None:
        """See `Places`."""
        return shutil.disk_usage(self.path).free if self.path.is_dir() else None

    def _remove_temporaries(self) -> None:
        self.restore()
        for path in (*self.path.glob(f"{_TEMPORARY}*"), *self.path.glob(f"{_OLD}*")):
            shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True)
class RemoteFolder:
    """A prefix of an object store."""

    path: str

    def size(self, name: str) -> int | None:
        """See `Folder`."""
        files = _fresh(self.path)
        try:
            found: dict[str, Any] = files.info(f"{self.path}/{name}")
        except FileNotFoundError:
            return None
        return int(found["size"]) if found["type"] == "file" else None

    def open(self, name: str) -> BinaryIO:
        """See `Folder`."""
        # Without a cache a read is one request for just these bytes.
        opened: BinaryIO = filesystem(self.path).open(f"{self.path}/{name}", cache_type="none")
        return opened

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """See `Folder`."""
        url = f"{self.path}/{name}"
        file = filesystem(self.path).open(url, "wb", block_size=_UPLOAD_PART)
        try:
            yield file
        except BaseException:
            file.discard()
            file.closed = True  # closing it would publish the half
            raise
        file.close()


@dataclass(frozen=True)
class RemotePlaces:
    """The checkpoints below a URL."""

    path: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", self.path.rstrip("/"))
        filesystem(self.path)  # says now what is not installed

    def listed(self) -> list[Place]:
        """See `Places`."""
        return [place for place, files in self._all() if MARKER in files]

    def begin(self, images_seen: int) -> str:
        """See `Places`."""
        attempts = [-1]
        for place, files in self._all():
            if MARKER in files or DAMAGED in files:
                if place.images_seen == images_seen:
                    attempts.append(place.attempt)
            else:
                self._remove(place.folder)
        attempt = max(attempts) + 1
        return f"{images_seen:012d}" + (f"-{attempt}" if attempt else "")

    def temporary(self, name: str) -> RemoteFolder:
        """See `Places`."""
        return RemoteFolder(f"{self.path}/{name}")

    def commit(self, name: str, images_seen: int) -> RemoteFolder:
        """See `Places`."""
        for place in self.listed():
            if place.images_seen == images_seen and not str(place.folder.path).endswith(f"/{name}"):
                self.delete(place)  # the same step, saved again once its events were done
        return self.temporary(name)

    def abort(self, name: str) -> None:
        """See `Places`."""
        try:
            self._remove(self.temporary(name))
        except Exception as error:
            # whatever the store cannot do now; `begin` tries again
            logger.warning("%s/%s: could not be removed: %s", shown(self.path), name, error)

    def delete(self, place: Place) -> None:
        """See `Places`."""
        filesystem(self.path).rm_file(f"{place.folder.path}/{MARKER}")
        self._remove(place.folder)

    def set_aside(self, place: Place) -> str:
        """See `Places`."""
        marker, aside = f"{place.folder.path}/{MARKER}", f"{place.folder.path}/{DAMAGED}"
        _fresh(self.path).mv(marker, aside)
        return aside

    def restore(self) -> None:
        """Nothing is ever moved away."""

    def free_bytes(self) -> int | None:
        """See `Places`."""
        return None

    def _all(self) -> list[tuple[Place, set[str]]]:
        """Every folder of a checkpoint's name, with the names of its files."""
        files: dict[str, set[str]] = {}
        store = _fresh(self.path)
        root = store._strip_protocol(self.path)
        for path in store.find(root):
            folder, _, name = path.removeprefix(root).strip("/").partition("/")
            files.setdefault(folder, set()).add(name)
        found = []
        for folder, names in files.items():
            match = _NAME.fullmatch(folder)
            if match:
                place = Place(int(match[1]), int(match[2] or 0), self.temporary(folder))
                found.append((place, names))
        return sorted(found, key=lambda item: (item[0].images_seen, item[0].attempt))

    def _remove(self, folder: Folder) -> None:
        with suppress(FileNotFoundError):
            _fresh(self.path).rm(str(folder.path), recursive=True)


def _one_url(url: str) -> str:
    if "::" in url:
        raise ValueError(f"{shown(url)}: chained URLs ('::') are not supported")
    return url


def _fresh(url: str) -> Any:
    """The file system of a URL, without what it remembers of listings."""
    files = filesystem(url)
    files.invalidate_cache()
    return files


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
