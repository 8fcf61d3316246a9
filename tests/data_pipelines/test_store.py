"""Stores: local and remote sets give the same bytes; configuration comes from fsspec's own."""

import hashlib
import json
import logging
import os
import pickle
import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fsspec.config import conf, set_conf_env

from data_pipelines.counts import ReadCounts
from data_pipelines.manifest import Manifest, ShardSetError
from data_pipelines.remote import request as remote_source
from data_pipelines.remote.cache import CacheSettings
from data_pipelines.remote.fetch import Limits, ShardFetchError
from data_pipelines.shard_index import index_path
from data_pipelines.shard_sets import ShardSets, WeightedSet, set_names
from data_pipelines.shards import ShardReader
from data_pipelines.store import (
    LocalStore,
    RemoteStore,
    ShardStore,
    check_working_set,
    is_remote,
    load_manifest,
    open_store,
)
from tests.data_pipelines.remote.hostile_server import Fault, HostileServer
from tests.data_pipelines.remote.remote_sets import random_set, sample_set

pytest.importorskip("aiohttp")

QUICK = Limits(stall_s=0.3, give_up_s=1.0, backoff_s=0.01)


def cache(folder: Path, size: int = 10**7) -> CacheSettings:
    return CacheSettings(folder, size, stall_s=0.3, give_up_s=2.0, backoff_s=0.01)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[HostileServer, Manifest]]:
    manifest = sample_set(tmp_path / "root/set", [7, 11, 2])
    with HostileServer(tmp_path / "root") as server:
        yield server, manifest


def test_what_is_remote() -> None:
    assert is_remote("s3://bucket/set")
    assert is_remote("https://host/set")
    assert not is_remote("data/set")
    assert not is_remote(Path("data/set"))


def check_same(store: ShardStore, root: Path, manifest: Manifest) -> None:
    assert store.manifest == manifest
    for number, shard in enumerate(manifest.shards):
        handle = store.local(number)
        assert handle.path.read_bytes() == (root / shard.path).read_bytes()
        handle.close()
        handle.close()
        index = store.index(number)
        assert index is not None
        assert (len(index), index.sha256) == (shard.samples, shard.sha256)


def test_local_and_remote_are_the_same(
    served: tuple[HostileServer, Manifest], tmp_path: Path
) -> None:
    server, manifest = served
    root = tmp_path / "root/set"
    check_same(open_store(root), root, manifest)
    store = open_store(server.url + "/set/", cache(tmp_path / "cache"))
    for _ in range(2):
        check_same(store, root, manifest)
    requests = [request.path for request in server.log]
    assert len(requests) == len(set(requests)) == 7  # the manifest, three tars, three indices
    counts = store.counts.take()
    assert (counts.shards_fetched, counts.cache_hits) == (3, 3)
    assert counts.bytes_fetched == server.sent() + server.sent(".npz")
    assert counts.wait_seconds > 0
    check_same(store, root, manifest)
    assert store.counts == ReadCounts(cache_hits=3)


def test_stores_are_picklable(served: tuple[HostileServer, Manifest], tmp_path: Path) -> None:
    server, manifest = served
    root = tmp_path / "root/set"
    for store in (open_store(root), open_store(server.url + "/set", cache(tmp_path / "cache"))):
        store.counts.add(retries=3)
        copy = pickle.loads(pickle.dumps(store))
        assert copy.counts == ReadCounts()
        check_same(copy, root, manifest)


def test_a_forked_worker_counts_for_itself(
    served: tuple[HostileServer, Manifest], tmp_path: Path
) -> None:
    """And reads over the network although the parent's event loop stayed behind."""
    server, _ = served
    store = open_store(server.url + "/set", cache(tmp_path / "cache"))
    store.local(0).close()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            assert store.counts == ReadCounts()
            store.local(1).close()
            store.local(0).close()
            assert (store.counts.shards_fetched, store.counts.cache_hits) == (1, 1)
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert store.counts.shards_fetched == 1
    assert server.requests() == 2


def test_manifest_is_retried_and_checked(served: tuple[HostileServer, Manifest]) -> None:
    server, manifest = served
    url, path = server.url + "/set", "/set/manifest.json"
    server.once[path] = [Fault(status=503), Fault(cut_after=20), Fault(stall_after=100)]
    assert load_manifest(url, QUICK) == manifest
    assert server.requests(".json") == 4
    for content, message in [
        (b"{", r"/set/manifest\.json: not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b"<html>", "not valid JSON"),
    ]:
        server.once[path] = [Fault(content=content)]
        with pytest.raises(ShardSetError, match=message):
            load_manifest(url, QUICK)
    document = json.loads((server.root / "set/manifest.json").read_text())
    document["shards"][0]["path"] = "../../etc/passwd"
    server.once[path] = [Fault(content=json.dumps(document).encode())]
    with pytest.raises(ShardSetError, match="not a path inside the set's folder"):
        load_manifest(url, QUICK)
    document |= {"shards": []}
    server.once[path] = [Fault(content=json.dumps(document).encode())]
    with pytest.raises(ShardSetError, match="holds no samples"):
        load_manifest(url, QUICK)
    server.always[path] = Fault(headers={"Content-Length": str(2**40)})
    with pytest.raises(ShardFetchError, match="1099511627776 bytes, more than"):
        load_manifest(url, QUICK)
    with pytest.raises(ShardFetchError, match=r"nothing/manifest\.json.*no such file"):
        load_manifest(server.url + "/nothing", QUICK)


def test_a_wrong_index_is_refused(served: tuple[HostileServer, Manifest], tmp_path: Path) -> None:
    server, manifest = served
    root = tmp_path / "root/set"
    broken = index_path(root / manifest.shards[0].path)
    good, other = broken.read_bytes(), index_path(root / manifest.shards[1].path).read_bytes()
    broken.write_bytes(other)
    with pytest.raises(ShardSetError, match="not the index that the manifest names"):
        LocalStore(root, manifest).index(0)
    store = RemoteStore(server.url + "/set", manifest, cache(tmp_path / "cache"))
    with pytest.raises(ShardFetchError, match="after 3 tries: its SHA-256"):
        store.index(0)
    broken.write_bytes(good[:-50] + bytes(50))
    digest = hashlib.sha256(broken.read_bytes()).hexdigest()
    shards = (replace(manifest.shards[0], index=digest), replace(manifest.shards[1], index=""))
    for shown_root in (root, server.url + "/set"):
        bad = replace(manifest, shards=shards)
        opened: Any = (
            RemoteStore(str(shown_root), bad, cache(tmp_path / "cache"))
            if is_remote(shown_root)
            else LocalStore(root, bad)
        )
        with pytest.raises(ShardSetError, match="not a usable index"):
            opened.index(0)
        assert opened.index(1) is None
    broken.unlink()
    with pytest.raises(ShardSetError, match=r"cannot be read \(No such file"):
        LocalStore(root, manifest).index(0)


def test_caches_that_are_too_small(
    served: tuple[HostileServer, Manifest], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server, manifest = served
    with pytest.raises(ShardSetError, match=r"shard set-001\.tar has \d+ bytes but the cache"):
        RemoteStore(server.url + "/set", manifest, cache(tmp_path / "cache", 10_000))
    with pytest.raises(ValueError, match="needs a cache"):
        open_store(server.url + "/set")
    sizes = sorted(shard.bytes for shard in manifest.shards)
    room = sizes[1] + sizes[2]
    store = RemoteStore(server.url + "/set", manifest, cache(tmp_path / "cache", room))
    local = LocalStore(tmp_path / "root/set", manifest)
    with caplog.at_level(logging.WARNING):
        check_working_set([local, store], 2)
        assert caplog.messages == []
        check_working_set([local, store], 3)
        assert f"with {sum(sizes) / 1e9:.3g} GB no shard would be fetched twice" in caplog.text
    small = RemoteStore(server.url + "/set", manifest, cache(tmp_path / "small", sizes[2]))
    check_working_set([local, small], 2)
    with pytest.raises(ValueError, match=f"have up to {room / 1e9:.3g} GB; raise"):
        check_working_set([local, small], 3)


def test_a_query_is_sent_and_not_shown(
    served: tuple[HostileServer, Manifest], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server, _ = served
    with caplog.at_level(logging.DEBUG, logger="data_pipelines"):
        store = open_store(server.url + "/set?sig=secret", cache(tmp_path / "cache"))
        store.local(0).close()
    assert {request.query for request in server.log} == {"sig=secret"}
    server.always["/set/set-001.tar"] = Fault(status=403)
    with pytest.raises(ShardFetchError, match="HTTP status 403") as caught:
        store.local(1)
    assert "secret" not in str(caught.value) + store.root + caplog.text


@pytest.mark.parametrize(
    "location",
    [
        "/set/manifest.json?sig=ab%3Dsecret%2F",
        "ftp://x/?X-Amz-Signature=secret",
        "http://[bad/?X-Amz-Signature=secret",
    ],
)
def test_what_a_server_leads_to_is_not_shown(
    served: tuple[HostileServer, Manifest], location: str
) -> None:
    """Nor the URL as the client writes it anew, with other escapes."""
    server, _ = served
    server.always["/set/manifest.json"] = Fault(status=302, headers={"Location": location})
    with pytest.raises(ShardFetchError, match="Redirect") as caught:
        load_manifest(server.url + "/set?sig=ab%2Fcd%3Dsecret%7E", QUICK)
    assert "secret" not in str(caught.value)


def test_errors_of_several_sets_do_not_show_secrets(
    served: tuple[HostileServer, Manifest], tmp_path: Path
) -> None:
    server, _ = served
    url = server.url.replace("http://", "http://user:secret@") + "/set?sig=secret"
    for sets in ([WeightedSet(url, 0.0)], [WeightedSet(url), WeightedSet(url)]):
        with pytest.raises(ValueError, match=r"/set\?\.\.\.: ") as caught:
            ShardSets(sets, cache(tmp_path / "cache"))
        assert "secret" not in str(caught.value)
    assert set_names(["https://h/a/set/?sig=secret", "https://h/b/set?...", "s3://b/c/"]) == (
        "set-0",
        "set-1",
        "c",
    )


def test_readers_of_several_sets_make_room_for_each_other(
    served: tuple[HostileServer, Manifest], tmp_path: Path
) -> None:
    """One thread reads from two sets in turn; the cache holds one shard of one of them."""
    server, manifest = served
    room = max(shard.bytes for shard in manifest.shards)
    settings = cache(tmp_path / "cache", room)
    readers = [ShardReader(open_store(server.url + "/set", settings)) for _ in range(2)]
    for reader, other in zip(readers, readers[::-1], strict=True):
        reader.beside = [other]
    first = [reader.key(shard, 0) for shard in range(3) for reader in readers]
    again = [reader.key(shard, 0) for shard in range(3) for reader in readers]
    assert first == again
    assert len(set(first)) == 3


def test_waiting_for_an_index_counts(
    served: tuple[HostileServer, Manifest], tmp_path: Path
) -> None:
    server, _ = served
    store = open_store(server.url + "/set", cache(tmp_path / "cache"))
    store.index(0)
    assert store.counts.take().wait_seconds > 0
    store.index(0)
    assert store.counts.take().wait_seconds == 0


def test_headers_of_the_users_fsspec_configuration(
    served: tuple[HostileServer, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, manifest = served
    monkeypatch.setitem(conf, "http", {"headers": {"X-Who": "me"}})
    monkeypatch.setattr(remote_source, "_filesystems", {})
    assert load_manifest(server.url + "/set", QUICK) == manifest
    assert server.log[-1].headers["X-Who"] == "me"
    assert server.log[-1].headers["Accept-Encoding"] == "identity"


@pytest.fixture(scope="module")
def s3_endpoint() -> Iterator[str]:
    server = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = server.ThreadedMotoServer("127.0.0.1", port, verbose=False)
    running.start()
    yield f"http://127.0.0.1:{port}"
    running.stop()


@pytest.mark.parametrize("configured_by", ["aws", "fsspec"])
def test_s3(
    s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, configured_by: str
) -> None:
    import fsspec

    root, bucket = tmp_path / "set", f"bucket-{configured_by}"
    manifest = random_set(root, [9 * 2**20, 1000])
    keys = {"key": "testing", "secret": "testing", "endpoint_url": s3_endpoint}
    admin = fsspec.filesystem("s3", **keys, skip_instance_cache=True)
    admin.mkdir(bucket)
    admin.put(str(root) + "/", f"{bucket}/a set/", recursive=True)

    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    if configured_by == "aws":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    else:
        monkeypatch.setitem(conf, "s3", {})
        set_conf_env(conf, {"FSSPEC_S3": json.dumps(keys)})
    monkeypatch.setattr(remote_source, "_filesystems", {})
    fsspec.get_filesystem_class("s3").clear_instance_cache()

    settings = CacheSettings(tmp_path / "cache", 10**8, stall_s=20.0, give_up_s=40.0)
    store = open_store(f"s3://{bucket}/a set", settings)
    assert store.manifest == manifest
    for number, shard in enumerate(manifest.shards):
        with store.local(number) as held:  # type: ignore[attr-defined]
            assert held.path.read_bytes() == (root / shard.path).read_bytes()
    assert store.counts.bytes_fetched == sum(shard.bytes for shard in manifest.shards)
    assert store.counts.retries == 0

    # Goes on in the middle, and meets what S3 says when something is wrong.
    shutil.rmtree(tmp_path / "cache")
    shard = manifest.shards[0]
    part = tmp_path / f"cache/{shard.sha256[:2]}/{shard.sha256}.{shard.bytes}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes((root / shard.path).read_bytes()[: 2**20])
    store.counts.take()
    store.local(0).close()
    assert store.counts.bytes_fetched == shard.bytes - 2**20
    admin.rm(f"{bucket}/a set/01.tar")
    with pytest.raises(ShardFetchError, match=r"01\.tar: .* 1 try: there is no such file"):
        store.local(1)
    admin.pipe(f"{bucket}/a set/01.tar", b"short")
    with pytest.raises(ShardFetchError, match="after 3 tries: the server's file has 5 bytes"):
        store.local(1)
    with pytest.raises(ShardFetchError, match="after 1 try: there is no such file"):
        open_store("s3://no-such-bucket/set", settings)
