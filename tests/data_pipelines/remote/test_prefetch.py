"""Prefetching: in order, within its share, given up when read, and quickly gone."""

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.loader import make_loader
from data_pipelines.manifest import Manifest
from data_pipelines.order.order import Order
from data_pipelines.remote.cache import CacheSettings
from data_pipelines.remote.prefetch import SIGHT, Prefetcher
from data_pipelines.shard_sets import ShardSets, WeightedSet
from data_pipelines.store import LocalStore, RemoteStore, open_store
from tests.data_pipelines.remote.hostile_server import Fault, HostileServer
from tests.data_pipelines.remote.remote_sets import random_set, sample_set

pytest.importorskip("aiohttp")

SIZE = 50_000


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[HostileServer, Manifest]]:
    manifest = random_set(tmp_path / "root/set", [SIZE] * 8)
    with HostileServer(tmp_path / "root") as server:
        yield server, manifest


def open_set(
    server: HostileServer, manifest: Manifest, folder: Path, shards: int = 8, **more: Any
) -> RemoteStore:
    limits = {"stall_s": 0.3, "give_up_s": 2.0, "backoff_s": 0.01, **more}
    return RemoteStore(
        server.url + "/set", manifest, CacheSettings(folder, shards * SIZE, **limits)
    )


def until(condition: Callable[[], bool]) -> None:
    """Waits for what must come; the time that it takes is not judged."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def asked(server: HostileServer) -> list[int]:
    return [int(request.path[-6:-4]) for request in server.log]


def held(prefetcher: Prefetcher) -> set[int]:
    return {shard for _, shard in prefetcher._held}


def steps(*shards: int) -> list[list[tuple[int, int]]]:
    return [[(0, shard)] for shard in shards]


def test_in_order_and_within_its_share(
    served: tuple[HostileServer, Manifest], tmp_path: Path
) -> None:
    server, manifest = served
    store = open_set(server, manifest, tmp_path / "cache")
    needs = steps(5, 5, 3, 5, 0, 7, 1)
    prefetcher = Prefetcher([store], needs, max_bytes=3 * SIZE, threads=1)
    until(lambda: held(prefetcher) == {5, 3, 0})
    time.sleep(0.1)
    assert asked(server) == [5, 3, 0]  # no room for 7
    prefetcher.consumed(2)
    time.sleep(0.1)
    assert held(prefetcher) == {5, 3, 0}  # step 3 needs 5 again
    prefetcher.consumed(3)
    until(lambda: held(prefetcher) == {5, 0, 7})
    prefetcher.consumed(4)
    until(lambda: held(prefetcher) == {0, 7, 1})
    assert asked(server) == [5, 3, 0, 7, 1]
    prefetcher.consumed(7)
    assert not prefetcher._held
    assert not prefetcher._sizes
    prefetcher.close()
    assert (store.counts.shards_fetched, store.counts.cache_hits) == (5, 0)
    assert store.counts.wait_seconds == 0


def test_what_it_holds_is_not_removed(
    served: tuple[HostileServer, Manifest], tmp_path: Path
) -> None:
    server, manifest = served
    store = open_set(server, manifest, tmp_path / "cache", 3)
    prefetcher = Prefetcher([store], steps(0, 1), max_bytes=2 * SIZE)
    until(lambda: held(prefetcher) == {0, 1})
    for shard in (2, 3, 4):
        store.local(shard).close()
    store.local(0).close()
    store.local(1).close()
    assert store.counts.cache_hits == 2
    prefetcher.close()
    assert sorted(asked(server)) == [0, 1, 2, 3, 4]


def test_two_ranks_and_their_readers_fetch_once(
    served: tuple[HostileServer, Manifest], tmp_path: Path
) -> None:
    """Both go through the whole set at once, in a cache of half of it."""
    server, manifest = served
    orders = [list(range(8)), list(range(8))]
    errors: list[BaseException] = []

    def rank(order: list[int]) -> None:
        try:
            store = open_set(server, manifest, tmp_path / "cache", 4)
            prefetcher = Prefetcher([store], steps(*order), max_bytes=SIZE, threads=2)
            for number, shard in enumerate(order, start=1):
                with store.local(shard) as handle:  # type: ignore[attr-defined]
                    name = manifest.shards[shard].path
                    assert handle.path.read_bytes() == (server.root / "set" / name).read_bytes()
                    meet.wait(20)
                prefetcher.consumed(number)
            prefetcher.close()
        except BaseException as error:
            errors.append(error)
            meet.abort()

    meet = threading.Barrier(2)
    threads = [threading.Thread(target=rank, args=(order,)) for order in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert server.sent() == 8 * SIZE


def test_sight_is_bounded(served: tuple[HostileServer, Manifest], tmp_path: Path) -> None:
    server, manifest = served
    taken = 0

    def endless() -> Iterator[list[tuple[int, int]]]:
        nonlocal taken
        while True:
            taken += 1
            yield [(0, taken % 2)]

    store = open_set(server, manifest, tmp_path / "cache")
    prefetcher = Prefetcher([store], endless(), max_bytes=8 * SIZE)
    until(lambda: taken == SIGHT)
    prefetcher.consumed(10)
    until(lambda: taken == SIGHT + 10)
    time.sleep(0.05)
    assert taken == SIGHT + 10
    prefetcher.close()


def test_local_sets_and_large_shards_are_passed_over(
    served: tuple[HostileServer, Manifest], tmp_path: Path
) -> None:
    server, manifest = served
    local, store = (
        LocalStore(server.root / "set", manifest),
        open_set(server, manifest, tmp_path / "cache"),
    )
    prefetcher = Prefetcher([local], steps(0, 1), max_bytes=8 * SIZE)
    assert not prefetcher._threads
    prefetcher.consumed(1)
    prefetcher.close()
    needs = [[(0, 0), (1, 3)], [(0, 1), (1, 4)]]
    prefetcher = Prefetcher([local, store], needs, max_bytes=8 * SIZE)
    until(lambda: held(prefetcher) == {3, 4})
    prefetcher.close()
    prefetcher = Prefetcher([store], steps(6), max_bytes=SIZE - 1)
    time.sleep(0.1)
    assert 6 not in asked(server)
    prefetcher.close()


def test_what_is_needed_next_takes_the_place_of_what_is_needed_later(
    served: tuple[HostileServer, Manifest], tmp_path: Path
) -> None:
    server, manifest = served
    store = open_set(server, manifest, tmp_path / "cache")
    needs = steps(0, 1, 2, 3, 0, 4, 1)
    prefetcher = Prefetcher([store], needs, max_bytes=3 * SIZE, threads=1)
    until(lambda: held(prefetcher) == {0, 1, 2})
    prefetcher.consumed(1)  # 0 is needed again, but 3 before it
    until(lambda: held(prefetcher) == {1, 2, 3})
    prefetcher.consumed(2)
    until(lambda: held(prefetcher) == {2, 3, 0})
    prefetcher.consumed(3)
    until(lambda: held(prefetcher) == {3, 0, 4})
    prefetcher.consumed(4)
    until(lambda: held(prefetcher) == {0, 4, 1})
    prefetcher.close()
    assert server.sent() == 5 * SIZE  # what was given up was still in the cache


def test_gives_up_its_shards_while_a_reader_waits(
    served: tuple[HostileServer, Manifest], tmp_path: Path
) -> None:
    """Those that are needed last first, however much of the cache is its share."""
    server, manifest = served
    store = open_set(server, manifest, tmp_path / "cache", 3, give_up_s=60.0)
    other = open_set(server, manifest, tmp_path / "cache", 3, give_up_s=60.0)
    prefetcher = Prefetcher([store], steps(0, 1, 2), max_bytes=3 * SIZE)
    until(lambda: held(prefetcher) == {0, 1, 2})
    with other.local(5) as handle:  # type: ignore[attr-defined]
        assert handle.path.exists()
        assert 0 in held(prefetcher)
    assert other.counts.shards_fetched == 1
    until(lambda: held(prefetcher) == {0, 1, 2})
    prefetcher.close()


def test_one_cause_is_told_once(
    served: tuple[HostileServer, Manifest], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server, manifest = served
    for shard in manifest.shards:
        server.always[f"/set/{shard.path}"] = Fault(status=403)
    store = open_set(server, manifest, tmp_path / "cache")
    with caplog.at_level(logging.WARNING, logger="data_pipelines"):
        prefetcher = Prefetcher([store], steps(*range(8)), max_bytes=8 * SIZE)
        until(lambda: len(prefetcher._failed) == 8)
        prefetcher.close()
    assert len(caplog.messages) == 1
    assert sorted(asked(server)) == list(range(8))  # none was tried again at once


@pytest.mark.parametrize(
    ("counts", "streams", "window", "batch", "workers"),
    [
        ([10] * 16, 4, 1, 12, 0),
        ([10] * 32, 4, 2, 16, 0),
        ([1, 2, 3, 5, 8, 13] * 5 + [60, 80], 4, 1, 16, 0),
        ([10] * 16, 4, 1, 12, 2),
    ],
)
@pytest.mark.parametrize("part", [0.0, 1.0])
def test_a_small_cache_suffices(
    tmp_path: Path,
    counts: list[int],
    streams: int,
    window: int,
    batch: int,
    workers: int,
    part: float,
) -> None:
    """From the least that is not refused on, runs go on, an epoch in sight or more."""
    manifest = sample_set(tmp_path / "root/set", counts)
    sizes = sorted((shard.bytes for shard in manifest.shards), reverse=True)
    order = Order(counts, seed=1, streams=streams, window=window)
    shards = order.working_set(batch, 1, 1)
    least, enough = sum(sizes[: -(-shards // 2)]), sum(sizes[:shards])
    room = int(least + part * (enough - least))
    with HostileServer(tmp_path / "root") as server:
        settings = CacheSettings(tmp_path / "cache", room, 5.0, 5.0, 0.01)
        loader = make_loader(
            ShardSets([WeightedSet(server.url + "/set")], settings),
            image_size=8,
            batch_size=batch,
            total_images=2 * sum(counts),
            seed=1,
            streams=streams,
            window=window,
            workers=workers,
        )
        assert sum(len(batch.keys) for batch in loader) >= 2 * sum(counts)


def test_a_failure_is_left_to_the_reader(
    served: tuple[HostileServer, Manifest], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server, manifest = served
    server.once["/set/01.tar"] = [Fault(status=404)]
    store = open_set(server, manifest, tmp_path / "cache")
    with caplog.at_level(logging.WARNING):
        prefetcher = Prefetcher([store], steps(0, 1, 2), max_bytes=3 * SIZE)
        until(lambda: held(prefetcher) == {0, 2} and 1 in asked(server))
        until(lambda: "not fetched ahead of need" in caplog.text)
    assert "/set/01.tar" in caplog.text
    store.local(1).close()  # by now it is there
    assert asked(server).count(1) == 2
    prefetcher.close()


def test_what_came_too_late_is_dropped(
    served: tuple[HostileServer, Manifest], tmp_path: Path
) -> None:
    server, manifest = served
    server.once["/set/00.tar"] = [Fault(stall_after=10)]
    store = open_set(server, manifest, tmp_path / "cache", stall_s=60.0, give_up_s=60.0)
    prefetcher = Prefetcher([store], steps(0, 1), max_bytes=SIZE, threads=1)
    until(lambda: asked(server) == [0])
    prefetcher.consumed(1)
    until(lambda: held(prefetcher) == {1})
    prefetcher.close()


def test_closes_while_the_server_stalls(
    served: tuple[HostileServer, Manifest], tmp_path: Path
) -> None:
    server, manifest = served
    for shard in manifest.shards:
        server.always[f"/set/{shard.path}"] = Fault(stall_after=10)
    store = open_set(server, manifest, tmp_path / "cache", stall_s=60.0, give_up_s=60.0)
    prefetcher = Prefetcher([store], steps(0, 1, 2, 3), max_bytes=8 * SIZE)
    until(lambda: server.requests() == 4)
    prefetcher.close()
    assert not any(thread.is_alive() for thread in prefetcher._threads)
    prefetcher.close()


@pytest.mark.parametrize("end", ["", "raise KeyboardInterrupt"])
def test_the_interpreter_ends_without_being_asked_twice(
    served: tuple[HostileServer, Manifest], tmp_path: Path, end: str
) -> None:
    server, manifest = served
    for shard in manifest.shards:
        server.always[f"/set/{shard.path}"] = Fault(stall_after=10)
    program = f"""
import time
from pathlib import Path
from data_pipelines.remote.prefetch import Prefetcher
from data_pipelines.store import CacheSettings, open_store
settings = CacheSettings(Path({str(tmp_path / "cache")!r}), 10**7, 60.0, 600.0)
store = open_store("{server.url}/set", settings)
prefetcher = Prefetcher([store], [[(0, 0)], [(0, 1)]], max_bytes=10**7)
time.sleep(1)
{end}
"""
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, timeout=30, capture_output=True, check=False
    )
    assert (done.returncode != 0) == bool(end), done.stderr
    assert server.requests() == 2


def test_workers_fork_beside_it(served: tuple[HostileServer, Manifest], tmp_path: Path) -> None:
    """A DataLoader's workers, forked while the threads are at it, read and release as usual."""
    torch_data = pytest.importorskip("torch.utils.data")
    server, _ = served
    settings = CacheSettings(tmp_path / "cache", 4 * SIZE, 5.0, 20.0, 0.01)
    store = open_store(server.url + "/set", settings)

    class Shards(torch_data.Dataset):  # type: ignore[misc, name-defined]
        def __len__(self) -> int:
            return 24

        def __getitem__(self, item: int) -> int:
            handle = store.local(item % 8)
            size = handle.path.stat().st_size
            handle.close()
            return size

    needs = steps(*(item % 8 for item in range(24)))
    prefetcher = Prefetcher([store], needs, max_bytes=2 * SIZE)
    loader = torch_data.DataLoader(Shards(), batch_size=None, num_workers=2)
    for number, size in enumerate(loader, start=1):
        assert size == SIZE
        prefetcher.consumed(number)
    prefetcher.close()
