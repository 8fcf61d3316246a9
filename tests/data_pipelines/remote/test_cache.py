"""The cache of a node: shared, bounded, robust against killed processes and full disks."""

import errno
import hashlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.manifest import Manifest, ShardSetError
from data_pipelines.remote.cache import Cache, CacheSettings
from data_pipelines.remote.cache_files import CacheDiskError, CacheFullError, Held, Part
from data_pipelines.remote.fetch import Clock, ShardFetchError, Stopped, never
from data_pipelines.remote.node_locks import (
    EXCLUSIVE,
    LockFile,
)
from data_pipelines.store import RemoteStore
from tests.data_pipelines.remote.hostile_server import Fault, HostileServer
from tests.data_pipelines.remote.remote_sets import random_set

pytest.importorskip("aiohttp")

FORK = multiprocessing.get_context("fork")
SIZE = 100_000
A, B, C = "aa" * 32, "bb" * 32, "cc" * 32


def settings(folder: Path, shards: float = 10, **more: Any) -> CacheSettings:
    limits = {"stall_s": 0.3, "give_up_s": 2.0, "backoff_s": 0.01, **more}
    return CacheSettings(folder, int(shards * SIZE), **limits)


def files(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and path.suffix in (".tar", ".npz", ".part")
    ]


def stored(folder: Path) -> int:
    total = 0
    for path in files(folder):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def put_all(part: Part) -> None:
    part.append(bytes(SIZE))


def put(cache: Cache, digest: str, size: int = SIZE) -> Held:
    def download(part: Part) -> None:
        part.append(bytes(size - part.length()))

    return cache.hold(digest, size, download, what="x", clock=Clock(cache._limits), stop=never)[0]


def start(target: Callable[..., None], *arguments: Any) -> Any:
    process = FORK.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[HostileServer, Manifest]]:
    manifest = random_set(tmp_path / "root/set", [SIZE + number for number in range(8)])
    with HostileServer(tmp_path / "root") as server:
        yield server, manifest


def open_set(server: HostileServer, manifest: Manifest, cache: CacheSettings) -> RemoteStore:
    return RemoteStore(server.url + "/set", manifest, cache)


def read_all(server: HostileServer, manifest: Manifest, cache: CacheSettings, shift: int) -> None:
    """Reads every shard in a process of its own, from another place on each."""
    store, root = open_set(server, manifest, cache), server.root / "set"
    count = len(manifest.shards)
    for number in range(count):
        shard = (number + shift) % count
        held = store.local(shard)
        assert held.path.read_bytes() == (root / manifest.shards[shard].path).read_bytes()
        time.sleep(0.01)
        assert held.path.exists()
        held.close()


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_never_fetch_twice(
    served: tuple[HostileServer, Manifest], tmp_path: Path, processes: int
) -> None:
    server, manifest = served
    server.once["/set/03.tar"] = [Fault(status=503), Fault(cut_after=60_000), Fault(stall_after=9)]
    cache = settings(tmp_path / "cache")
    running = [start(read_all, server, manifest, cache, 0) for _ in range(processes)]
    for process in running:
        process.join(60)
        assert process.exitcode == 0
    assert server.sent() == sum(shard.bytes for shard in manifest.shards)
    assert server.requests() == len(manifest.shards) + 3
    assert stored(tmp_path / "cache") == server.sent()


def test_the_bound_holds_at_every_moment(
    served: tuple[HostileServer, Manifest], tmp_path: Path
) -> None:
    """Four processes that start at different places want more than there is room for."""
    server, manifest = served
    folder, bound = tmp_path / "cache", int(4.5 * SIZE)
    cache = settings(folder, 4.5, give_up_s=30.0)
    node = Cache(cache)
    running = [start(read_all, server, manifest, cache, 2 * number) for number in range(4)]
    most = 0
    while any(process.is_alive() for process in running):
        with node._room():  # names stay while they are counted; files grow on
            assert stored(folder) <= node.total() <= bound
            most = max(most, stored(folder))
        time.sleep(0.005)  # leaves the lock to those who are watched
    assert 2 * SIZE < most <= bound
    assert all(process.exitcode == 0 for process in running)


def fetch_slowly(server: HostileServer, manifest: Manifest, cache: CacheSettings) -> None:
    open_set(server, manifest, cache).local(0)


def test_a_killed_download_is_continued(
    served: tuple[HostileServer, Manifest], tmp_path: Path
) -> None:
    server, manifest = served
    server.once["/set/00.tar"] = [Fault(stall_after=70_000)]
    cache = settings(tmp_path / "cache", stall_s=60.0, give_up_s=60.0)
    victim = start(fetch_slowly, server, manifest, cache)
    while stored(tmp_path / "cache") < 70_000:
        time.sleep(0.01)
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    store = open_set(server, manifest, cache)
    with store.local(0) as held:
        assert held.path.read_bytes() == (server.root / "set/00.tar").read_bytes()
    assert [request.start for request in server.log] == [None, 70_000]
    assert store.counts.bytes_fetched == SIZE - 70_000
    assert [path.suffix for path in files(tmp_path / "cache")] == [".tar"]


def test_who_waits_takes_over_from_a_killed_process(
    served: tuple[HostileServer, Manifest], tmp_path: Path
) -> None:
    server, manifest = served
    server.once["/set/00.tar"] = [Fault(stall_after=70_000)]
    cache = settings(tmp_path / "cache", stall_s=60.0, give_up_s=60.0)
    victim = start(fetch_slowly, server, manifest, cache)
    while stored(tmp_path / "cache") < 70_000:
        time.sleep(0.01)
    store = open_set(server, manifest, cache)
    waiting = threading.Thread(target=lambda: store.local(0).close())
    waiting.start()
    time.sleep(0.1)
    assert server.requests() == 1
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    waiting.join(30)
    assert server.sent() == SIZE
    assert store.counts.wait_seconds > 0.1


def test_waiting_for_a_hung_process_ends(tmp_path: Path) -> None:
    cache = Cache(settings(tmp_path, give_up_s=0.5))
    part = cache._claim(A, SIZE)
    assert isinstance(part, LockFile)
    with pytest.raises(ShardFetchError, match=r"what it is.*another process.*0\.5 s"):
        cache.hold(
            A, SIZE, lambda part: None, what="what it is", clock=Clock(cache._limits), stop=never
        )
    with pytest.raises(Stopped):
        cache.hold(A, SIZE, lambda part: None, what="", clock=Clock(cache._limits), stop=lambda: 1)
    part.close()


def test_least_recently_given_up_goes_first(tmp_path: Path) -> None:
    cache = Cache(settings(tmp_path, 3))
    held = {digest: put(cache, digest) for digest in (A, B, C)}
    for digest in (B, A, C):
        held[digest].close()
        time.sleep(0.02)
    put(cache, "dd" * 32).close()
    assert {path.stem[:2] for path in files(tmp_path)} == {"aa", "cc", "dd"}
    put(cache, "ee" * 32, 2 * SIZE).close()
    assert {path.stem[:2] for path in files(tmp_path)} == {"dd", "ee"}


def test_what_is_held_stays_and_what_waits_is_told(tmp_path: Path) -> None:
    cache = Cache(settings(tmp_path, 2, give_up_s=0.4))
    first, second = put(cache, A), put(cache, B)
    with pytest.raises(CacheFullError, match=r"no room for x \(100000 bytes\).*raise the limit"):
        put(cache, C)
    assert {path.stem[:2] for path in files(tmp_path)} == {"aa", "bb"}
    threading.Timer(0.1, second.close).start()
    put(cache, C)
    assert {path.stem[:2] for path in files(tmp_path)} == {"aa", "cc"}
    first.close()


def test_nothing_is_removed_in_vain(tmp_path: Path) -> None:
    cache = Cache(settings(tmp_path, 2, give_up_s=0.2))
    put(cache, A).close()
    put(cache, B)
    with pytest.raises(CacheFullError):
        put(cache, C, 2 * SIZE)
    assert {path.stem[:2] for path in files(tmp_path)} == {"aa", "bb"}


def test_left_behind_parts_count_and_give_way(tmp_path: Path) -> None:
    cache = Cache(settings(tmp_path, 2))
    (tmp_path / "aa").mkdir()
    (tmp_path / f"aa/{A}.{SIZE}.part").write_bytes(bytes(10))
    assert cache.total() == SIZE
    put(cache, B).close()
    assert len(files(tmp_path)) == 2
    put(cache, C).close()
    assert {path.stem[:2] for path in files(tmp_path)} == {"bb", "cc"}


def test_a_cut_file_is_fetched_again(tmp_path: Path) -> None:
    cache = Cache(settings(tmp_path))
    held = put(cache, A)
    os.truncate(held.path, 5)
    with pytest.raises(ShardSetError, match=r"100000 bytes.*in use"):
        put(cache, A)
    held.close()
    with put(cache, A) as again:
        assert again.path.stat().st_size == SIZE


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, written = Cache(settings(tmp_path)), 0
    real = os.pwrite

    def pwrite(fd: int, data: Any, offset: int) -> int:
        nonlocal written
        if written >= 50_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        written += (count := real(fd, data[:30_000], offset))
        return count

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(CacheFullError, match=r"the disk is full .* bytes free\).*free some space"):
        put(cache, A)
    assert not files(tmp_path)


def test_a_download_that_fails_before_it_began_leaves_nothing(tmp_path: Path) -> None:
    def download(part: Part) -> None:
        raise ShardFetchError("x", 1, "not there")

    cache = Cache(settings(tmp_path))
    with pytest.raises(ShardFetchError):
        cache.hold(A, SIZE, download, what="x", clock=Clock(cache._limits), stop=never)
    assert not files(tmp_path)


def test_small_files(tmp_path: Path) -> None:
    content = b"an index"
    digest = hashlib.sha256(content).hexdigest()
    cache, calls = Cache(settings(tmp_path, 1)), []

    def fetch() -> bytes:
        calls.append(1)
        time.sleep(0.05)
        return content

    threads = [
        threading.Thread(target=cache.read, args=(digest, fetch), kwargs={"what": "x"})
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.read(digest, fetch, what="x")[0] == content
    assert len(calls) == 1
    assert [path.name for path in files(tmp_path)] == [f"{digest}.npz"]
    files(tmp_path)[0].write_bytes(b"damaged!")
    assert cache.read(digest, fetch, what="x")[0] == content
    assert len(calls) == 2
    # The room of small files is counted, and given to larger ones.
    put(cache, A).close()
    assert [path.stem[:2] for path in files(tmp_path)] == ["aa"]
    put(cache, A)
    assert cache.read(digest, fetch, what="x")[0] == content
    assert [path.stem[:2] for path in files(tmp_path)] == ["aa"]


def test_waiting_for_a_hung_index_ends(tmp_path: Path) -> None:
    cache = Cache(settings(tmp_path, give_up_s=0.3))
    (tmp_path / "aa").mkdir()
    other = LockFile(tmp_path / f"aa/{A}.0.part", os.O_RDWR | os.O_CREAT)
    assert other.lock(EXCLUSIVE)
    with pytest.raises(ShardFetchError, match=r"what it is.*another process.*0\.3 s"):
        cache.read(A, lambda: b"", what="what it is")
    other.close()


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    """Whatever is put into the folder: it is neither counted nor removed."""
    cache = Cache(settings(tmp_path, 2))
    others = [
        tmp_path / "photos/wedding.jpg",
        tmp_path / "photos/video.part",
        tmp_path / "aa/notes.tar",
        tmp_path / f"aa/{B}.tar",
        tmp_path / f"photos/{A}.tar",
    ]
    for path in others:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(3 * SIZE))
        os.utime(path, (1, 1))
    (tmp_path / f"aa/{'aa' * 31}bb.tar").symlink_to(others[0])
    assert cache.total() == 0
    for digest in (A, B, C):
        put(cache, digest).close()
    assert cache.total() == 2 * SIZE
    assert all(path.stat().st_size == 3 * SIZE for path in others)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.pdf").touch()
    with pytest.raises(ValueError, match=r"holds other files \('thesis.pdf'\).*folder of its own"):
        Cache(settings(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.pdf"]
    cache = Cache(settings(tmp_path / "cache"))
    tag = (tmp_path / "cache/CACHEDIR.TAG").read_text()
    assert tag.startswith("Signature: 8a477f597d28d172789f06886806bc55\n")
    put(cache, A).close()
    (tmp_path / "cache/note").touch()  # it is a cache, whatever came into it later
    with put(Cache(settings(tmp_path / "cache")), A):
        pass
    (tmp_path / "cache/CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55\n")
    with pytest.raises(ValueError, match=r"holds other files \('note'\)"):
        Cache(settings(tmp_path / "cache"))
    (tmp_path / "cache/note").unlink()
    Cache(settings(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("number", "call", "kind", "remedy"),
    [
        (errno.ENOSPC, "mkdir", CacheFullError, "bytes.*free some space"),
        (errno.EDQUOT, "mkdir", CacheFullError, "bytes.*free some space"),
        (errno.EROFS, "mkdir", CacheDiskError, "repair the disk or its rights"),
        (errno.EMFILE, "listdir", CacheDiskError, "ulimit -n"),
        (errno.EIO, "rename", CacheDiskError, "repair the disk or its rights"),
    ],
)
def test_a_failing_disk_is_an_error_of_the_set(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    call: str,
    kind: type[CacheDiskError],
    remedy: str,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    cache = Cache(settings(tmp_path))
    monkeypatch.setattr(os, call, fail)
    message = rf"{tmp_path}: .*{os.strerror(number)}.*{remedy}"
    with pytest.raises(ShardSetError, match=message) as caught:
        put(cache, A)
    assert type(caught.value) is kind
    with pytest.raises(kind, match=message):
        cache.read(B, lambda: b"", what="x")


def test_who_waits_first_gives_up_its_own(tmp_path: Path) -> None:
    cache = Cache(settings(tmp_path, 2, give_up_s=0.3))
    own = [put(cache, A), put(cache, B)]

    def full() -> None:
        own.pop().close()

    clock = Clock(cache._limits)
    held, _ = cache.hold(C, SIZE, put_all, what="x", clock=clock, stop=never, full=full)
    assert {path.stem[:2] for path in files(tmp_path)} == {"aa", "cc"}
    assert not cache.is_wanted()
    held.close()


def test_who_reads_goes_first(tmp_path: Path) -> None:
    """Who fetches ahead of need takes no room while a reader waits for it."""
    cache = Cache(settings(tmp_path, 2, give_up_s=30.0))
    first, second = put(cache, A), put(cache, B)
    limits, got = cache._limits, []

    def read() -> None:
        got.append(
            cache.hold(
                C, 2 * SIZE, put_all, what="x", clock=Clock(limits), stop=never, full=lambda: None
            )[0]
        )

    reader = threading.Thread(target=read)
    reader.start()
    while not cache.is_wanted():
        time.sleep(0.01)
    first.close()  # room for another small one, but not for the reader's
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 5

    with pytest.raises(Stopped):
        cache.hold("dd" * 32, SIZE, put_all, what="x", clock=Clock(limits), stop=stop)
    second.close()
    reader.join(30)
    assert {path.stem[:2] for path in files(tmp_path)} == {"cc"}
    assert not cache.is_wanted()
    got[0].close()


def test_folders_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be made"):
        Cache(settings(tmp_path / "file/cache"))
    with pytest.raises(ValueError, match="max_bytes is 0"):
        CacheSettings(tmp_path, 0)
    with pytest.raises(ValueError, match="stall_s is -1"):
        CacheSettings(tmp_path, 1, stall_s=-1)
