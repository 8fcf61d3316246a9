"""Writing shard sets: contents, determinism, reuse, refusal, interruption and full disks."""

import errno
import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from data_pipelines.building import set_folder, writer
from data_pipelines.building import stream as build
from data_pipelines.building.stream import BuildReport, Rejected, Sample, write_shards
from data_pipelines.index import index_shards
from data_pipelines.manifest import Manifest, ShardSetError
from data_pipelines.shards import ShardReader
from data_pipelines.store import LocalStore
from data_pipelines.verify import verify
from tests.data_pipelines.samples import flat_png

CLASSES = ("ape", "bee")


def samples(count: int = 25) -> Iterator[Sample | Rejected]:
    for number in range(count):
        yield Sample(
            key=f"folder/s{number}",
            image=flat_png(number),
            extension="png",
            width=8,
            height=8,
            class_=CLASSES[number % 2],
            caption=f"text {number}" if number % 3 else None,
        )
    yield Rejected("x.png", "not an image")


def write(out: Path, **options: Any) -> BuildReport:
    defaults = {"source": "test", "licence": "CC0", "recipe": {"a": 1}, "progress": False}
    return write_shards(options.pop("items", samples), out, **{**defaults, **options})


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_what_is_written(tmp_path: Path) -> None:
    report = write(tmp_path / "set", shard_samples=10)
    manifest = Manifest.load(tmp_path / "set")
    assert manifest == report.manifest
    assert [shard.path for shard in manifest.shards] == [f"shard-{n:06d}.tar" for n in range(3)]
    assert [shard.samples for shard in manifest.shards] == [10, 10, 5]
    assert (manifest.classes, manifest.class_counts) == (CLASSES, (13, 12))
    assert report.rejected == (Rejected("x.png", "not an image"),)
    for shard in manifest.shards:
        data = (tmp_path / "set" / shard.path).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard.bytes, shard.sha256)
    with tarfile.open(tmp_path / "set" / manifest.shards[2].path) as tar:
        members = tar.getmembers()
    assert [member.offset for member in members[:2]] == [0, 512 + 512]  # no extended headers
    assert {(m.mtime, m.uid, m.uname, m.gname) for m in members} == {(0, 0, "", "")}
    sample = ShardReader(LocalStore(tmp_path / "set", manifest)).read(2, 3)
    assert (sample.key, sample.image, sample.class_) == ("folder/s23", flat_png(23), "bee")
    assert (sample.caption, sample.width, sample.height) == ("text 23", 8, 8)
    assert "25 images in 3 shard(s)" in str(report)
    assert "x.png: not an image" in str(report)


def half_synthetic() -> Iterator[Sample]:
    for number, item in enumerate(samples()):
        if isinstance(item, Sample):
            yield replace(item, synthetic=number % 5 < 2)


def test_synthetic_samples_say_so(tmp_path: Path) -> None:
    report = write(tmp_path / "set", items=half_synthetic, validation=0.3)
    held = report.validation
    assert held is not None
    assert report.manifest.synthetic + held.synthetic == 10
    assert held.synthetic > 0
    assert f"{report.manifest.synthetic} synthetic" in str(report)
    for root, manifest in ((report.out, report.manifest), (report.out / "validation", held)):
        read = list(webdataset.WebDataset(str(root / "shard-000000.tar"), shardshuffle=False))
        for item in read:
            made = int(item["__key__"].removeprefix("folder/s")) % 5 < 2
            assert json.loads(item["json"]).get("synthetic") == (True if made else None)
        assert Manifest.load(root) == manifest
        assert index_shards(root, progress=False).manifest.synthetic == manifest.synthetic
        assert verify(root, progress=False).sound
    assert " synthetic" not in str(write(tmp_path / "real"))


def test_given_classes_keep_their_order(tmp_path: Path) -> None:
    report = write(tmp_path / "set", classes=("bee", "cow", "ape"), validation=0.3)
    for manifest in (report.manifest, report.validation):
        assert manifest is not None
        assert manifest.classes == ("bee", "cow", "ape")
    total = np.add(report.manifest.class_counts, report.validation.class_counts)  # type: ignore[union-attr]
    assert total.tolist() == [12, 0, 13]
    assert write(tmp_path / "set", classes=("bee", "cow", "ape"), validation=0.3).reused
    with pytest.raises(ShardSetError, match="--overwrite"):
        write(tmp_path / "set", classes=("ape", "bee"), validation=0.3)


def test_plain_webdataset_reads_it(tmp_path: Path) -> None:
    write(tmp_path / "set", shard_samples=10)
    urls = [str(path) for path in sorted((tmp_path / "set").glob("*.tar"))]
    read = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [item["__key__"] for item in read] == [f"folder/s{number}" for number in range(25)]
    assert read[7]["png"] == flat_png(7)
    assert json.loads(read[7]["json"]) == {
        "class": "bee", "caption": "text 7", "width": 8, "height": 8,
    }  # fmt: skip
    assert json.loads(read[3]["json"]) == {"class": "bee", "width": 8, "height": 8}


def test_two_builds_are_byte_identical(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name, shard_samples=10, validation=0.3)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(contents(tmp_path / "one")) >= 5


def test_held_out_samples(tmp_path: Path) -> None:
    report = write(tmp_path / "set", shard_samples=10, validation=0.3)
    held = Manifest.load(tmp_path / "set" / "validation")
    assert held == report.validation
    assert held.classes == report.manifest.classes
    assert held.num_samples + report.manifest.num_samples == 25
    assert 1 <= held.num_samples <= 15

    def keys(root: Path, manifest: Manifest) -> set[str]:
        reader = ShardReader(LocalStore(root, manifest))
        return {reader.key(s, i) for s, e in enumerate(manifest.shards) for i in range(e.samples)}

    test = keys(tmp_path / "set" / "validation", held)
    assert test.isdisjoint(keys(tmp_path / "set", report.manifest))
    # Which samples are held out depends on their keys alone.
    fewer = write(tmp_path / "fewer", items=lambda: samples(15), validation=0.3)
    assert fewer.validation is not None
    assert keys(tmp_path / "fewer" / "validation", fewer.validation) == {
        key for key in test if int(key.removeprefix("folder/s")) < 15
    }


def test_a_complete_set_is_reused(tmp_path: Path) -> None:
    write(tmp_path / "set", validation=0.3)
    before = contents(tmp_path / "set")

    def never() -> Iterator[Sample]:
        raise AssertionError("nothing is to be built")

    report = write(tmp_path / "set", validation=0.3, items=never)
    assert report.reused
    assert "nothing to do" in str(report)
    assert contents(tmp_path / "set") == before


def test_another_recipe_is_refused_and_replaced_on_request(tmp_path: Path) -> None:
    write(tmp_path / "set", validation=0.3)
    with pytest.raises(ShardSetError, match=r"a: 1 -> 2.*--overwrite"):
        write(tmp_path / "set", validation=0.3, recipe={"a": 2})
    with pytest.raises(ShardSetError, match=r"validation: 0\.3 -> 0\.0.*--overwrite"):
        write(tmp_path / "set")
    report = write(tmp_path / "set", recipe={"a": 2}, overwrite=True)
    assert not report.reused
    names = ["manifest.json", "shard-000000.index.npz", "shard-000000.tar"]
    assert sorted(contents(tmp_path / "set")) == names


def test_a_damaged_set_is_not_reused(tmp_path: Path) -> None:
    write(tmp_path / "set", shard_samples=10)
    (tmp_path / "set" / "shard-000001.tar").unlink()
    with pytest.raises(ShardSetError, match=r"shard-000001\.tar.*--overwrite"):
        write(tmp_path / "set", shard_samples=10)
    write(tmp_path / "set", shard_samples=10, overwrite=True)
    assert Manifest.load(tmp_path / "set").num_samples == 25


@pytest.mark.parametrize("overwrite", [False, True])
def test_other_peoples_files_are_never_replaced(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "thesis.txt").write_text("years of work")
    with pytest.raises(ShardSetError, match=r"such as thesis\.txt"):
        write(tmp_path / "set", overwrite=overwrite)
    (tmp_path / "file").write_text("a file")
    with pytest.raises(ShardSetError, match="is a file"):
        write(tmp_path / "file", overwrite=overwrite)
    assert (tmp_path / "set" / "thesis.txt").read_text() == "years of work"


def interrupted(error: BaseException) -> Iterator[Sample | Rejected]:
    yield from samples(12)
    raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("bug")])
def test_an_interrupted_build_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        write(tmp_path / "set", items=lambda: interrupted(error), shard_samples=5)
    assert list(tmp_path.iterdir()) == []
    write(tmp_path / "set")
    with pytest.raises(type(error)):
        write(tmp_path / "set", items=lambda: interrupted(error), recipe={}, overwrite=True)
    assert Manifest.load(tmp_path / "set").num_samples == 25  # the old set is still there


def test_a_killed_build_does_not_look_complete(tmp_path: Path) -> None:
    """As after SIGKILL: the partial folder is still there."""
    (tmp_path / "set.partial").mkdir()
    (tmp_path / "set.partial" / "shard-000000.tar").write_bytes(b"half")
    with pytest.raises(ShardSetError, match="no such folder"):
        Manifest.load(tmp_path / "set")
    write(tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_no_space_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = writer.HashedFile.write

    def full(self: Any, data: Any) -> int:
        if self.size > 20_000 and not self._file.closed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written(self, data)

    monkeypatch.setattr(writer.HashedFile, "write", full)
    with pytest.raises(ShardSetError, match=r"set: no space left on the disk.*free some"):
        write(tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_too_little_space_is_seen_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(
        set_folder.shutil, "disk_usage", lambda path: usage._replace(free=20 * 2**20)
    )
    monkeypatch.setattr(build, "_CHECK_EVERY", 5)
    write(tmp_path / "small", total=26)
    with pytest.raises(ShardSetError, match=r"MiB more are needed.*20 MiB free"):
        write(tmp_path / "large", total=10**6)
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_nothing_to_write(tmp_path: Path) -> None:
    with pytest.raises(ShardSetError, match=r"no usable image came from test; x\.png: not an"):
        write(tmp_path / "set", items=lambda: samples(0))
    with pytest.raises(ShardSetError, match="use a larger share"):
        write(tmp_path / "set", items=lambda: samples(3), validation=1e-9)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": 1.0}, "must be a share"),
        ({"validation": -0.1}, "must be a share"),
        ({"shard_samples": 0}, "at least 1"),
        ({"classes": ("ape", "cow")}, "'folder/s1' has the class 'bee', which is not in the list"),
        ({"classes": ("ape", "bee", "ape")}, "names one twice"),
        ({"items": lambda: [*samples(2), *samples(1)]}, "two samples have the key 'folder/s0'"),
    ],
)
def test_bad_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "set", **options)
    assert list(tmp_path.iterdir()) == []
