"""Where the shards of a set are: a folder, or a URL whose shards are fetched into a cache."""

import hashlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakSet

from data_pipelines.counts import ReadCounts
from data_pipelines.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest, ShardSetError
from data_pipelines.remote.cache import Cache, CacheSettings
from data_pipelines.remote.cache_files import Held, Part
from data_pipelines.remote.fetch import Clock, Limits, Stop, fetch, fetch_bytes, never
from data_pipelines.remote.request import is_url, join_url, shown
from data_pipelines.shard_index import INDEX_SUFFIX, MAX_INDEX_BYTES, ShardIndex, index_path

logger = logging.getLogger(__name__)

__all__ = [
    "CacheSettings",
    "LocalStore",
    "RemoteStore",
    "ShardHandle",
    "ShardStore",
    "check_working_set",
    "descriptor_parts",
    "is_remote",
    "load_manifest",
    "open_store",
]


def _hold_nothing() -> None:
    """The `full` of a caller who has nothing to give up."""


class ShardHandle(Protocol):
    """A shard on the local disk that stays there until it is closed.

    Attributes:
        path: The tar.
    """

    @property
    def path(self) -> Path: ...

    def close(self) -> None:
        """Gives the shard up; closing twice does no harm."""


class ShardStore(Protocol):
    """The shards of one set. It can be sent to worker processes, by fork or by pickle.

    Attributes:
        root: The set's folder or URL, for people: without what may be secret.
        manifest: Its manifest.
        counts: What this process read, and fetched, since it was last taken.
        bounded: Whether open shards take up room that others may need.
    """

    root: str
    manifest: Manifest
    counts: ReadCounts
    bounded: bool

    def local(self, shard: int, full: Callable[[], None] = _hold_nothing) -> ShardHandle:
        """Returns a shard as a local file, fetched if need be.

        Args:
            shard: Which one.
            full: Called where there is no room for it: gives up what the caller holds.

        Raises:
            ShardSetError: It cannot be had.
        """

    def index(self, shard: int) -> ShardIndex | None:
        """Returns the shard's stored index, None where the manifest names none.

        Raises:
            ShardSetError: It is missing or damaged.
        """


class _LocalHandle:
    """A file of a local set: nobody takes it away."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def close(self) -> None:
        pass


class LocalStore:
    """The shards of a local folder.

    Args:
        root: The folder.
        manifest: Its manifest.
    """

    bounded = False

    def __init__(self, root: str | Path, manifest: Manifest) -> None:
        self.root = str(root)
        self.manifest = manifest
        self.counts = ReadCounts()
        _STORES.add(self)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "counts": ReadCounts()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        _STORES.add(self)

    def local(self, shard: int, full: Callable[[], None] = _hold_nothing) -> ShardHandle:
        """Returns a shard; whether the file is there shows when it is opened."""
        return _LocalHandle(Path(self.root) / self.manifest.shards[shard].path)

    def index(self, shard: int) -> ShardIndex | None:
        """Returns the index file beside a shard, None where the manifest names none.

        Raises:
            ShardSetError: It is missing, damaged, or not the one that the manifest names.
        """
        entry = self.manifest.shards[shard]
        if not entry.index:
            return None
        path = index_path(Path(self.root) / entry.path)
        remedy = f"write it again with `simple-diffusion data index {self.root}`"
        try:
            if path.stat().st_size > MAX_INDEX_BYTES:
                raise ShardSetError(f"{path}: larger than {MAX_INDEX_BYTES} bytes; not an index")
            data = path.read_bytes()
        except OSError as error:
            raise ShardSetError(
                f"{path}: the index of a shard cannot be read ({error.strerror}); {remedy}"
            ) from None
        return _checked_index(data, str(path), entry.index, entry.bytes, remedy)


class RemoteStore:
    """The shards below a URL, fetched whole into a cache that all processes of the node share.

    Args:
        root: The URL; for http(s) it may have a query, which is sent with every request.
        manifest: Its manifest.
        settings: The cache, and when to give a server up.

    Raises:
        ShardSetError: A shard is larger than the cache.
        ValueError: The cache's folder cannot be used, or an extra is missing.
    """

    bounded = True

    def __init__(self, root: str, manifest: Manifest, settings: CacheSettings) -> None:
        self.root = shown(root)
        self.manifest = manifest
        self.settings = settings
        self.counts = ReadCounts()
        self._url = root
        self._cache = Cache(settings)
        _STORES.add(self)
        largest = max(manifest.shards, key=lambda shard: shard.bytes)
        if largest.bytes > settings.max_bytes:
            raise ShardSetError(
                f"{self.root}: shard {largest.path} has {largest.bytes} bytes but the cache "
                f"{settings.folder} may hold {settings.max_bytes}; raise its limit"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "counts": ReadCounts()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        _STORES.add(self)

    def local(self, shard: int, full: Callable[[], None] = _hold_nothing) -> ShardHandle:
        """Returns a shard from the cache, after fetching it where it is not there.

        Args:
            shard: Which one.
            full: Called where there is no room: gives up what the caller holds, lest they wait
                for themselves.

        Raises:
            ShardFetchError: The server failed for `give_up_s`, refused, or sent other bytes.
            ShardSetError: The cache or its disk is full, or the disk fails.
        """
        start = time.monotonic()
        held, was_there = self._hold(shard, never, full)
        if was_there:
            self.counts.add(cache_hits=1)
        else:
            self.counts.add(wait_seconds=time.monotonic() - start)
        return held

    def prefetch(self, shard: int, stop: Stop) -> ShardHandle:
        """As `local`, ahead of need: not counted as a hit or as waiting, and given up on `stop`.

        Where there is no room, those who call `local` go first.

        Raises:
            Stopped: `stop` returned True.
            ShardSetError: As `local`.
        """
        return self._hold(shard, stop, None)[0]

    def room_is_wanted(self) -> bool:
        """Whether a reader waits for room in the cache, in any process.

        Raises:
            ShardSetError: The cache's disk fails.
        """
        return self._cache.is_wanted()

    def index(self, shard: int) -> ShardIndex | None:
        """Returns a shard's stored index, None where the manifest names none; it is cached too.

        Raises:
            ShardFetchError: As `local`.
            ShardSetError: As `local`, or the index is damaged.
        """
        entry = self.manifest.shards[shard]
        if not entry.index:
            return None
        name = entry.path.removesuffix(".tar") + INDEX_SUFFIX
        url = join_url(self._url, name)
        start = time.monotonic()
        data, was_there = self._cache.read(
            entry.index,
            lambda: fetch_bytes(
                url,
                most=MAX_INDEX_BYTES,
                digest=entry.index,
                limits=self.settings.limits,
                counts=self.counts,
            ),
            what=shown(url),
        )
        if not was_there:
            self.counts.add(wait_seconds=time.monotonic() - start)
        remedy = "upload the set again"
        return _checked_index(data, shown(url), entry.index, entry.bytes, remedy)

    def _hold(self, shard: int, stop: Stop, full: Callable[[], None] | None) -> tuple[Held, bool]:
        entry = self.manifest.shards[shard]
        url = join_url(self._url, entry.path)
        clock = Clock(self.settings.limits)

        def download(file: Part) -> None:
            fetch(
                url,
                file,
                size=entry.bytes,
                most=entry.bytes,
                digest=entry.sha256,
                clock=clock,
                counts=self.counts,
                stop=stop,
            )
            self.counts.add(shards_fetched=1)

        return self._cache.hold(
            entry.sha256,
            entry.bytes,
            download,
            what=shown(url),
            clock=clock,
            stop=stop,
            full=full,
        )


def _checked_index(data: bytes, where: str, digest: str, tar_bytes: int, remedy: str) -> ShardIndex:
    if hashlib.sha256(data).hexdigest() != digest:
        raise ShardSetError(f"{where}: not the index that the manifest names; {remedy}")
    try:
        return ShardIndex.from_bytes(data, tar_bytes=tar_bytes)
    except ValueError as error:
        raise ShardSetError(
            f"{where}: not a usable index of its shard ({error}); {remedy}"
        ) from None


_STORES: WeakSet[LocalStore | RemoteStore] = WeakSet()


def _start_counting_again() -> None:
    # A forked worker counts what it reads itself; what the parent counted stays the parent's.
    for store in list(_STORES):
        store.counts = ReadCounts()


os.register_at_fork(after_in_child=_start_counting_again)


def is_remote(root: str | Path) -> bool:
    """Whether a set's place is a URL rather than a folder."""
    return is_url(str(root))


def load_manifest(root: str | Path, limits: Limits | None = None) -> Manifest:
    """Reads and checks the manifest of a local or remote set.

    Args:
        root: Folder or URL.
        limits: For a URL: when to try again and when to give up.

    Raises:
        ShardSetError: As `Manifest.load`; for a URL also if it cannot be fetched.
        ValueError: The URL's kind is not known, or needs an extra.
    """
    if not is_remote(root):
        return Manifest.load(Path(root))
    url = join_url(str(root), MANIFEST_NAME)
    data = fetch_bytes(url, most=MAX_MANIFEST_BYTES, limits=limits or Limits())
    manifest = Manifest.from_bytes(data, shown(url))
    if manifest.num_samples == 0:
        raise ShardSetError(
            f"{shown(url)}: the shard set holds no samples; build it again "
            "(`simple-diffusion data build`) from a source that has images"
        )
    return manifest


def open_store(root: str | Path, cache: CacheSettings | None = None) -> ShardStore:
    """Opens a shard set.

    Args:
        root: Its folder or URL.
        cache: Where the shards of a URL are kept; a folder does without.

    Raises:
        ShardSetError: The set is missing, damaged or empty, or a shard is larger than the cache.
        ValueError: The URL's kind is not known or needs an extra, or the cache cannot be used.
    """
    if not is_remote(root):
        return LocalStore(root, load_manifest(root))
    if cache is None:
        raise ValueError(
            f"{shown(str(root))}: a remote shard set needs a cache on the local disk; copy the set "
            "to this machine to use it here"
        )
    return RemoteStore(str(root), load_manifest(root, cache.limits), cache)


def descriptor_parts(stores: Sequence[ShardStore]) -> int:
    """Descriptors that a process needs for one open shard of each set and one fetched ahead.

    A shard of a cache takes two: that of the file in memory and that of its lock.
    """
    remote = sum(store.bounded for store in stores)
    return len(stores) + remote + (1 if remote else 0)


def check_working_set(stores: Sequence[ShardStore], shards: int) -> None:
    """Refuses a cache that cannot hold the remote shards that are read from at the same time.

    Half of the most that can be under way is the least: a window of each stream, while none turns.

    Args:
        stores: The sets that a node reads.
        shards: How many of their shards, together, its processes have under way at once, at most;
            the windows that end in a step and those that begin are both counted.

    Raises:
        ValueError: The cache is too small; the message says what is needed.
    """
    remote = [store for store in stores if isinstance(store, RemoteStore)]
    if not remote:
        return
    sizes = sorted((s.bytes for store in remote for s in store.manifest.shards), reverse=True)
    most, folder = remote[0].settings.max_bytes, remote[0].settings.folder
    least, enough = sum(sizes[: -(-shards // 2)]), sum(sizes[:shards])
    if most < least:
        raise ValueError(
            f"{folder}: the cache may hold {most / 1e9:.3g} GB, but the shards that are read from "
            f"at once have up to {least / 1e9:.3g} GB; raise its limit to at least that, better to "
            f"{enough / 1e9:.3g} GB, or read from fewer at once (fewer streams, a smaller window)"
        )
    if most < enough:
        logger.warning(
            "%s: the cache may hold %.3g GB; with %.3g GB no shard would be fetched twice when "
            "windows of the order end and begin",
            folder,
            most / 1e9,
            enough / 1e9,
        )
