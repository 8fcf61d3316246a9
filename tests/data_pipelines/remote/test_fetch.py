"""Single files over HTTP from a server that misbehaves, with the retries counted."""

import hashlib
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.counts import ReadCounts
from data_pipelines.remote.fetch import (
    Clock,
    Limits,
    ShardFetchError,
    Stopped,
    fetch,
    fetch_bytes,
)
from data_pipelines.remote.request import filesystem, join_url, shown
from tests.data_pipelines.remote.hostile_server import Fault, HostileServer

pytest.importorskip("aiohttp")

CONTENT = np.random.default_rng(0).bytes(300_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
LIMITS = Limits(stall_s=0.3, give_up_s=2.0, backoff_s=0.01)
FILE = "/set/a.tar"


class Memory:
    """A sink that remembers how large its blocks were."""

    def __init__(self, data: bytes = b"") -> None:
        self.data, self.largest = bytearray(data), 0

    def length(self) -> int:
        return len(self.data)

    def blocks(self) -> Iterator[bytes]:
        yield bytes(self.data)

    def append(self, block: bytes) -> None:
        self.largest = max(self.largest, len(block))
        self.data += block

    def clear(self) -> None:
        self.data.clear()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HostileServer]:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/a.tar").write_bytes(CONTENT)
    (tmp_path / "set/b.tar").write_bytes(CONTENT)
    with HostileServer(tmp_path) as running:
        yield running


def get(
    server: HostileServer, memory: Memory | None = None, limits: Limits = LIMITS
) -> tuple[bytes, ReadCounts]:
    memory, counts = memory or Memory(), ReadCounts()
    fetch(
        server.url + FILE,
        memory,
        size=len(CONTENT),
        most=len(CONTENT),
        digest=DIGEST,
        clock=Clock(limits),
        counts=counts,
    )
    return bytes(memory.data), counts


def wrong_length(length: int) -> Fault:
    return Fault(headers={"Content-Length": str(length)})


@pytest.mark.parametrize(
    ("faults", "retries", "damaged", "sent"),
    [
        ([], 0, 0, 300_000),
        ([Fault(status=503)] * 2, 2, 0, 300_000),
        ([Fault(status=503, headers={"Retry-After": "0"})] * 2, 2, 0, 300_000),
        ([Fault(status=500), Fault(status=429), Fault(status=408)], 3, 0, 300_000),
        ([Fault(cut_after=100_000)], 1, 0, 300_000),
        ([Fault(cut_after=0)], 1, 0, 300_000),
        ([Fault(cut_after=100_000)] * 2, 2, 0, 300_000),
        ([Fault(stall_after=100_000)], 1, 0, 300_000),
        ([Fault(stall_after=0)], 1, 0, 300_000),
        ([Fault(cut_after=100_000), Fault(no_ranges=True)], 1, 0, 400_000),
        ([Fault(garbage=True)], 1, 0, 300_000),
        ([Fault(damage_at=200_000)], 0, 1, 600_000),
        ([Fault(damage_at=200_000)] * 2, 0, 2, 900_000),
        ([Fault(content=b"An error page, with status 200")], 0, 1, None),
        ([wrong_length(299_000)], 0, 1, None),
        ([wrong_length(301_000)], 0, 1, None),
        ([Fault(status=302, headers={"Location": "/set/b.tar"})], 0, 0, 300_000),
    ],
    ids=[
        "well", "503", "retry_after", "statuses", "cut", "cut_at_once", "cut_twice", "stall",
        "stall_at_once", "no_ranges", "not_http", "damaged", "damaged_twice", "error_page",
        "too_short", "too_long", "redirect",
    ],
)  # fmt: skip
def test_faults_are_overcome(
    server: HostileServer, faults: list[Fault], retries: int, damaged: int, sent: int | None
) -> None:
    server.once[FILE] = list(faults)
    content, counts = get(server)
    assert content == CONTENT
    assert (counts.retries, counts.checksum_failures) == (retries, damaged)
    assert not server.once[FILE]  # all faults were met
    if sent is not None:
        assert server.sent() == counts.bytes_fetched == sent


def test_goes_on_where_it_was_cut(server: HostileServer) -> None:
    server.once[FILE] = [Fault(cut_after=100_000), Fault(cut_after=50_000)]
    get(server)
    assert [request.start for request in server.log] == [None, 100_000, 150_000]


def test_goes_on_with_what_is_there(server: HostileServer) -> None:
    content, counts = get(server, Memory(CONTENT[:250_000]))
    assert content == CONTENT
    assert counts.bytes_fetched == server.sent() == 50_000


def test_a_complete_part_needs_no_request(server: HostileServer) -> None:
    content, counts = get(server, Memory(CONTENT))
    assert content == CONTENT
    assert counts == ReadCounts()
    assert not server.log


def test_a_damaged_part_is_fetched_again(server: HostileServer) -> None:
    content, counts = get(server, Memory(b"x" + CONTENT[1:200_000]))
    assert content == CONTENT
    assert counts.checksum_failures == 1
    assert server.sent() == 400_000


@pytest.mark.parametrize(
    ("fault", "message", "requests"),
    [
        (Fault(status=404), "after 1 try: there is no such file", 1),
        (Fault(status=403), "after 1 try: HTTP status 403", 1),
        (Fault(status=410), "after 1 try: HTTP status 410", 1),
        (Fault(damage_at=5), "after 3 tries: its SHA-256 is [0-9a-f]{64}, the manifest says", 3),
        (wrong_length(5), "after 3 tries: the server's file has 5 bytes, the manifest says 300", 3),
        (Fault(headers={"Content-Encoding": "gzip"}), "the server compresses the file", 1),
    ],
    ids=["404", "403", "410", "damaged", "length", "compressed"],
)
def test_given_up_at_once(server: HostileServer, fault: Fault, message: str, requests: int) -> None:
    server.always[FILE] = fault
    with pytest.raises(ShardFetchError, match=message) as caught:
        get(server)
    assert server.requests() == requests
    assert caught.value.url == server.url + FILE
    assert caught.value.tries == requests
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.tries) == (str(caught.value), requests)


@pytest.mark.parametrize(
    ("fault", "last"),
    [
        (Fault(status=503), "HTTP status 503"),
        (Fault(stall_after=0), r"nothing arrived for 0\.3 s"),
        (Fault(cut_after=0), "ClientPayloadError|the answer ended"),
        (Fault(cut_after=100, no_ranges=True), "ClientPayloadError|the answer ended"),
        (Fault(drip_s=0.02), "the server sends too slowly"),
    ],
    ids=["503", "stall", "cut", "cut_no_ranges", "drip"],
)
def test_given_up_after_a_time(server: HostileServer, fault: Fault, last: str) -> None:
    server.always[FILE] = fault
    with pytest.raises(ShardFetchError, match=rf"a\.tar.*too little arrived for 0\.9 s.*({last})"):
        get(server, limits=Limits(stall_s=0.3, give_up_s=0.9, backoff_s=0.05))


def test_no_server(tmp_path: Path) -> None:
    with HostileServer(tmp_path) as server:
        gone = server.url
    with pytest.raises(
        ShardFetchError, match=r"too little arrived for 0\.5 s.*ClientConnectorError"
    ):
        fetch_bytes(gone + "/x", most=10, limits=Limits(0.3, 0.5, 0.05))


def test_stopped_in_the_middle(server: HostileServer) -> None:
    server.always[FILE] = Fault(stall_after=100)
    memory = Memory()
    with pytest.raises(Stopped):
        fetch(
            server.url + FILE,
            memory,
            size=len(CONTENT),
            most=len(CONTENT),
            digest=DIGEST,
            clock=Clock(Limits(60.0, 60.0)),
            counts=ReadCounts(),
            stop=lambda: memory.length() == 100,
        )


def test_blocks_are_bounded(server: HostileServer, tmp_path: Path) -> None:
    large = bytes(20_000_000)
    (tmp_path / "set/a.tar").write_bytes(large)
    memory = Memory()
    digest = hashlib.sha256(large).hexdigest()
    fetch(
        server.url + FILE,
        memory,
        size=len(large),
        most=len(large),
        digest=digest,
        clock=Clock(LIMITS),
        counts=ReadCounts(),
    )
    assert memory.largest <= 4 * 2**20


def test_small_files(server: HostileServer) -> None:
    url = server.url + FILE
    server.once[FILE] = [Fault(status=503), Fault(cut_after=1000)]
    counts = ReadCounts()
    assert fetch_bytes(url, most=300_000, limits=LIMITS, counts=counts) == CONTENT
    assert (counts.retries, counts.bytes_fetched) == (2, 300_000)
    assert fetch_bytes(url, most=300_000, digest=DIGEST, limits=LIMITS) == CONTENT
    with pytest.raises(ShardFetchError, match="300000 bytes, more than the 299999"):
        fetch_bytes(url, most=299_999, limits=LIMITS)
    with pytest.raises(ShardFetchError, match="SHA-256"):
        fetch_bytes(url, most=300_000, digest="0" * 64, limits=LIMITS)


def test_a_small_file_of_untold_length(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(CONTENT)
    with HostileServer(tmp_path) as server:
        server.always["/m"] = Fault(no_length=True)
        assert fetch_bytes(server.url + "/m", most=300_000, limits=LIMITS) == CONTENT
        with pytest.raises(ShardFetchError, match="larger than the 1000 bytes"):
            fetch_bytes(server.url + "/m", most=1000, limits=LIMITS)


def test_what_a_server_says_is_cut_short(server: HostileServer) -> None:
    server.always[FILE] = Fault(garbage=True)
    with pytest.raises(ShardFetchError) as caught:
        get(server, limits=Limits(0.3, 0.5, 0.05))
    assert "ClientResponseError" in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("root", "path", "url"),
    [
        ("http://h:1/a/", "b/c.tar", "http://h:1/a/b/c.tar"),
        ("https://h/a?sig=x%2F", "b c#?%.tar", "https://h/a/b%20c%23%3F%25.tar?sig=x%2F"),
        ("http://h/a", "//evil/x.tar", "http://h/a///evil/x.tar"),
        ("http://h/a", "http://evil/x.tar", "http://h/a/http%3A//evil/x.tar"),
        ("s3://bucket/set/", "b c#.tar", "s3://bucket/set/b c#.tar"),
    ],
)
def test_join_url(root: str, path: str, url: str) -> None:
    assert join_url(root, path) == url


@pytest.mark.parametrize("root", ["simplecache::http://h/a", "http://h/a#b"])
def test_urls_that_are_refused(root: str) -> None:
    with pytest.raises(ValueError, match=r"chained|'#'"):
        join_url(root, "a.tar")


def test_secrets_are_not_shown(server: HostileServer) -> None:
    assert shown("https://me:word@h:1/a/b.tar?sig=1") == "https://h:1/a/b.tar?..."
    with pytest.raises(ShardFetchError) as caught:
        fetch_bytes(server.url + "/no?sig=secret", most=1, limits=LIMITS)
    assert "secret" not in str(caught.value)
    assert server.log[-1].query == "sig=secret"


def test_odd_names_arrive(tmp_path: Path) -> None:
    name = "a b#?%25&é.tar"
    (tmp_path / name).write_bytes(b"here")
    with HostileServer(tmp_path) as server:
        assert fetch_bytes(join_url(server.url, name), most=9, limits=LIMITS) == b"here"


def test_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # as if it were not installed
    with pytest.raises(
        ValueError, match=r"gs://bucket/set: .*pip install 'simple-diffusion\[gcs\]"
    ):
        filesystem("gs://bucket/set")
    with pytest.raises(ValueError, match="Protocol not known: nonsense"):
        filesystem("nonsense://x")


def test_other_file_systems(tmp_path: Path) -> None:
    """Whatever fsspec reads can be a source."""
    (tmp_path / "a.tar").write_bytes(CONTENT)
    memory, counts = Memory(CONTENT[:1000]), ReadCounts()
    fetch(
        f"file://{tmp_path}/a.tar",
        memory,
        size=len(CONTENT),
        most=len(CONTENT),
        digest=DIGEST,
        clock=Clock(LIMITS),
        counts=counts,
    )
    assert memory.data == CONTENT
    assert counts.bytes_fetched == len(CONTENT) - 1000
    with pytest.raises(ShardFetchError, match="no such file"):
        fetch_bytes(f"file://{tmp_path}/b.tar", most=9, limits=LIMITS)


def test_a_stalled_server_does_not_keep_the_interpreter(server: HostileServer) -> None:
    server.always[FILE] = Fault(stall_after=0)
    program = f"""
import sys, threading
from data_pipelines.remote.fetch import Limits, fetch_bytes
def run():
    fetch_bytes("{server.url}{FILE}", most=9**9, limits=Limits(60.0, 600.0))
threading.Thread(target=run, daemon=True).start()
sys.stdin.readline()
"""
    root = Path(__file__).resolve().parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=root, stdin=subprocess.PIPE
    ) as other:
        deadline = time.monotonic() + 60
        while not server.requests() and time.monotonic() < deadline:
            time.sleep(0.05)
        other.communicate(b"now\n", timeout=25)
    assert other.returncode == 0
    assert server.requests() == 1


def test_limits_are_checked() -> None:
    with pytest.raises(ValueError, match="stall_s is 0"):
        Limits(stall_s=0.0)


def test_progress_earns_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("data_pipelines.remote.fetch.time.monotonic", lambda: now)
    clock = Clock(Limits(give_up_s=100.0))
    now = 90.0
    clock.progress(32 * 2**10 * 5)  # five seconds' worth
    assert clock.left == pytest.approx(15.0)
    clock.progress(2**40)
    assert clock.left == pytest.approx(100.0)
    now = 200.0
    assert clock.left < 0


def test_threads_end_with_their_requests(server: HostileServer) -> None:
    server.once[FILE] = [Fault(stall_after=1000)] * 2
    get(server)
    for thread in threading.enumerate():
        if thread.name == "shard-read":
            thread.join(5.0)
            assert not thread.is_alive()
