"""Checkpoints in an object store: whole or not there, although nothing can be renamed."""

import json
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from data_pipelines.remote import request
from simple_diffusion.training import checkpoint_dcp
from simple_diffusion.training.checkpoint_places import DAMAGED, MARKER, folder_of, places_of
from simple_diffusion.training.state import (
    Checkpoint,
    CheckpointError,
    CheckpointStore,
    Saved,
    find_checkpoint,
    open_checkpoint,
)
from tests.training.checkpoint_ranks import die, run_alone, run_ranks, same, trained, whole

TENSORS = {"model": {"w": torch.arange(12.0).reshape(3, 4), "b": torch.tensor(2.0)}}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = server.ThreadedMotoServer("127.0.0.1", port, verbose=False)
    running.start()
    yield f"http://127.0.0.1:{port}"
    running.stop()


def use_s3(endpoint: str) -> None:
    """Turn this process's s3:// to a server of ours."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            del os.environ[name]
    os.environ |= {
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    request._filesystems.clear()


@pytest.fixture
def url(endpoint: str, monkeypatch: pytest.MonkeyPatch, request: Any) -> Iterator[str]:
    """The URL of an empty folder."""
    import fsspec

    before = dict(os.environ)
    use_s3(endpoint)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    bucket = f"b{abs(hash(request.node.nodeid))}"
    fsspec.filesystem("s3").mkdir(bucket)
    yield f"s3://{bucket}/a run/checkpoints"
    os.environ.clear()
    os.environ.update(before)


def save(store: CheckpointStore, images_seen: int, **state: Any) -> str:
    store.save(images_seen, TENSORS, state)
    store.wait()
    saved = store.poll()
    assert saved is not None
    return saved.path


def newest(store: CheckpointStore) -> Checkpoint:
    found = store.newest()
    assert found is not None
    return found


def files_in(url: str) -> set[str]:
    files = request.filesystem(url)
    files.invalidate_cache()
    root = files._strip_protocol(url)
    return {path.removeprefix(root).lstrip("/") for path in files.find(root)}


def test_round_trip(url: str) -> None:
    store = CheckpointStore(url + "/")
    assert store.newest() is None
    assert not store.exists()
    path = save(store, 640, step=10)
    assert path == f"{url}/000000000640"
    assert store.exists()
    for found in (newest(store), find_checkpoint(url, 640), open_checkpoint(path)):
        assert (found.path, found.state["step"]) == (path, 10)
        target = {n: torch.zeros_like(t) for n, t in TENSORS["model"].items()}
        found.load_into({"model": target})
        read = found.tensors("model")
        for name, tensor in TENSORS["model"].items():
            assert torch.equal(read[name], tensor)
            assert torch.equal(target[name], tensor)
    with pytest.raises(CheckpointError, match="no checkpoint at image 3; there are 640"):
        find_checkpoint(url, 3)


def test_old_ones_go_and_milestones_stay(url: str) -> None:
    store = CheckpointStore(url, keep=1, milestone_images=200)
    for images in (100, 200, 300, 400, 500):
        save(store, images)
    assert {name.partition("/")[0] for name in files_in(url)} == {
        f"{images:012d}" for images in (200, 400, 500)
    }


def test_the_same_step_again_replaces_it_once_it_is_whole(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(url, keep=1)
    save(store, 8, step=1)
    original = checkpoint_dcp.write_text

    def refuse_the_marker(folder: Any, name: str, text: str) -> Any:
        if name == MARKER:
            raise PermissionError(13, "Permission denied")
        return original(folder, name, text)

    monkeypatch.setattr(checkpoint_dcp, "write_text", refuse_the_marker)
    store.save(8, TENSORS, {"step": 2})
    with pytest.raises(CheckpointError, match="could not be saved: Permission denied"):
        store.wait()
    assert newest(store).state["step"] == 1
    monkeypatch.undo()
    save(store, 8, step=3)
    assert newest(store).state["step"] == 3
    assert len({name.partition("/")[0] for name in files_in(url)}) == 1


def kill_while_saving(endpoint: str, url: str, what: str) -> None:
    """Save at image 2 in another process, which is killed."""
    use_s3(endpoint)
    setattr(checkpoint_dcp, what, lambda *_: die())
    store = CheckpointStore(url)
    store.save(2, TENSORS, {})
    store.wait()


@pytest.mark.parametrize("what", ["write_tensors", "write_text"])
def test_a_killed_save_is_not_there_and_is_cleaned_up(url: str, endpoint: str, what: str) -> None:
    store = CheckpointStore(url)
    save(store, 1)
    assert run_alone(kill_while_saving, endpoint, url, what) == -9
    if what == "write_text":
        assert "000000000002/rank-00000.safetensors" in files_in(url)
    assert newest(store).path == f"{url}/000000000001"
    save(store, 3)
    assert {name.partition("/")[0] for name in files_in(url)} == {"000000000001", "000000000003"}


@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_a_damaged_one_is_set_aside(
    url: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(url)
    save(store, 1, step=1)
    broken = f"{save(store, 2, step=2)}/rank-00000.safetensors"
    files = request.filesystem(url)
    if damage == "missing":
        files.rm_file(broken)
    else:
        content = bytearray(files.cat_file(broken))
        content[-1] ^= 1
        files.pipe_file(broken, bytes(content))
    assert find_checkpoint(url).state["step"] == 1
    assert f"000000000002/{MARKER}" in files_in(url)
    with caplog.at_level(logging.WARNING):
        assert newest(store).state["step"] == 1
    assert "CHECKPOINT DAMAGED" in caplog.text
    assert f"000000000002/{DAMAGED}" in files_in(url)
    assert newest(store).state["step"] == 1
    # The same image again goes beside it, and later saves leave the damaged one for people.
    save(store, 2, step=4)
    assert newest(store).state["step"] == 4
    assert f"000000000002/{DAMAGED}" in files_in(url)


def share(rank: int, group: dist.ProcessGroup, endpoint: str, url: str, layout: str) -> Any:
    """Save together, and load what was saved into something else."""
    use_s3(endpoint)
    groups, _ = trained(layout)
    expected = whole(groups)
    store = CheckpointStore(url, group=group)
    store.save(8, groups, {})
    found = store.newest()
    assert found is not None
    other, _ = trained(layout, seed=1, steps=1)
    found.load_into(other)
    return store.poll(), same(whole(other), expected)


def test_many_processes(url: str, endpoint: str) -> None:
    answers = run_ranks(2, share, endpoint, url, "fsdp")
    for saved, alike in answers:
        assert isinstance(saved, Saved)
        assert alike
    marker = json.loads(request.filesystem(url).cat_file(f"{saved.path}/{MARKER}"))
    assert saved.bytes == sum(facts["bytes"] for facts in marker.values())
    assert set(marker) >= {"rank-00000.safetensors", "rank-00001.safetensors"}


def test_a_shard_is_read_without_the_rest(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(url)
    store.save(1, {"model": {"w": torch.zeros(2**16), "v": torch.ones(4, 3)}}, {})
    found = newest(store)
    asked: list[int] = []
    kind = type(request.filesystem(url).open(f"{found.path}/state.json", cache_type="none"))
    original = kind._fetch_range

    def count(self: Any, start: int, end: int) -> bytes:
        asked.append(end - start)
        data: bytes = original(self, start, end)
        return data

    monkeypatch.setattr(kind, "_fetch_range", count)
    found.shapes("model")
    from simple_diffusion.training.shard_files import TensorFile

    with TensorFile(folder_of(str(found.path)), "rank-00000.safetensors") as file:
        asked.clear()
        assert file.rows("model/v", 1, 3).tolist() == [[1.0] * 3] * 2
    assert asked == [2 * 3 * 4]


def test_a_bucket_that_is_not_there(url: str) -> None:
    store = CheckpointStore("s3://nobody-made-this/x")
    store.save(1, TENSORS, {})
    with pytest.raises(CheckpointError, match="s3://nobody-made-this/x could not be saved"):
        store.wait()


@pytest.mark.parametrize(("url", "message"), [("nope://x/y", "nope"), ("s3://x::file://y", "::")])
def test_urls_that_cannot_be(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CheckpointStore(url)


def test_folders_are_no_urls(tmp_path: Path) -> None:
    assert places_of(str(tmp_path)).path == tmp_path
    assert folder_of(tmp_path).path == tmp_path
