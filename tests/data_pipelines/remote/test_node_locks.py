"""Locks of files between processes, and the limit of open files."""

import contextlib
import errno
import os
import resource
from pathlib import Path

import pytest

from data_pipelines.remote import node_locks
from data_pipelines.remote.cache import Cache
from data_pipelines.remote.node_locks import (
    EXCLUSIVE,
    SHARED,
    LockFile,
    allowed_open_files,
    check_locks,
)
from tests.data_pipelines.remote.test_cache import FORK, settings, start


def test_locks(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    first, second = LockFile(tmp_path / "f"), LockFile(tmp_path / "f")
    assert first.lock(SHARED)
    assert second.lock(SHARED)
    assert not first.lock(EXCLUSIVE)
    second.close()
    assert first.wait(EXCLUSIVE, 1.0)
    third = LockFile(tmp_path / "f")
    assert not third.wait(SHARED, 0.02)
    assert third.is_current()
    (tmp_path / "f").unlink()
    assert not third.is_current()
    (tmp_path / "f").touch()
    assert not third.is_current()
    first.close()
    first.close()
    assert third.lock(SHARED)


def test_a_forked_child_holds_nothing(tmp_path: Path) -> None:
    """Neither the lock nor the descriptor, which would keep a removed file's space."""
    (tmp_path / "f").touch()
    parent = LockFile(tmp_path / "f")
    assert parent.lock(EXCLUSIVE)
    stay, told = FORK.Event(), FORK.Queue()

    def child() -> None:
        names = []
        for descriptor in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # that of the listing itself
                names.append(os.readlink(descriptor))
        told.put(names)
        parent.close()  # as when it is collected: must not close a file of the child's
        stay.wait(20)

    process = start(child)
    assert str(tmp_path / "f") not in told.get(timeout=20)
    parent.close()
    other = LockFile(tmp_path / "f")
    assert other.lock(EXCLUSIVE)
    stay.set()
    process.join(20)
    assert process.exitcode == 0
    other.close()


def test_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, kind: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    check_locks(tmp_path)
    monkeypatch.setattr(node_locks.fcntl, "flock", lambda fd, kind: None)
    with pytest.raises(ValueError, match=r"grants a lock twice.*local disk"):
        Cache(settings(tmp_path))
    monkeypatch.setattr(node_locks.fcntl, "flock", refuse)
    with pytest.raises(ValueError, match=r"no file locks \(No locks available\).*local disk"):
        Cache(settings(tmp_path))


def test_the_limit_of_open_files_is_raised() -> None:
    old = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        hard = old[1] if old[1] != resource.RLIM_INFINITY else 10_000
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, old[1]))
        assert allowed_open_files(100) == 100
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 300
        assert allowed_open_files(200) == 200
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 400
        assert allowed_open_files(200, 3) == 200
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 1200
        if old[1] != resource.RLIM_INFINITY:
            assert allowed_open_files(hard, 3) == hard // 6
            assert allowed_open_files(hard) == hard // 2
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, old)
