"""Indexing tars that others made; reading them is tested in test_shards.py."""

import hashlib
import json
from pathlib import Path

import pytest

from data_pipelines.aspects import aspect_bins, read_aspect_counts
from data_pipelines.index import index_shards
from data_pipelines.manifest import Manifest, ShardSetError
from data_pipelines.shard_index import IMAGE, ShardIndex, index_path
from tests.data_pipelines.samples import encode, flat_png, photo, write_numbered_tars, write_tar

PNG = flat_png(1)


def test_counts_and_checksums(tmp_path: Path) -> None:
    write_numbered_tars(tmp_path, [3, 4])
    write_numbered_tars(tmp_path / "more", [2])
    report = index_shards(tmp_path, progress=False)
    manifest = Manifest.load(tmp_path)
    assert manifest == report.manifest
    names = ["more/set-000.tar", "set-000.tar", "set-001.tar"]
    assert [shard.path for shard in manifest.shards] == names
    assert [shard.samples for shard in manifest.shards] == [2, 3, 4]
    for shard in manifest.shards:
        data = (tmp_path / shard.path).read_bytes()
        assert (shard.bytes, shard.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert manifest.classes == ("class 0", "class 1", "class 2")
    assert sum(manifest.class_counts) == 9
    assert "9 samples in 3 shards, 3 classes" in str(report)


def test_indexing_twice_changes_nothing(tmp_path: Path) -> None:
    write_numbered_tars(tmp_path, [3, 4])
    index_shards(tmp_path, progress=False)
    first = (tmp_path / "manifest.json").read_bytes()
    index_shards(tmp_path, progress=False)
    assert (tmp_path / "manifest.json").read_bytes() == first


def test_labels_keep_their_meaning(tmp_path: Path) -> None:
    write_numbered_tars(tmp_path, [6])
    index_shards(tmp_path, progress=False)
    document = json.loads((tmp_path / "manifest.json").read_text())
    document.update(classes=["class 2", "gone", "class 0"], class_counts=[0, 0, 0], licence="CC0")
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    manifest = index_shards(tmp_path, progress=False).manifest
    assert manifest.classes == ("class 2", "gone", "class 0", "class 1")
    assert manifest.class_counts == (2, 0, 2, 2)
    assert manifest.licence == "CC0"


def test_an_unreadable_manifest_is_replaced(tmp_path: Path) -> None:
    write_numbered_tars(tmp_path, [2])
    (tmp_path / "manifest.json").write_text("{")
    index_shards(tmp_path, progress=False)
    assert Manifest.load(tmp_path).num_samples == 2


def test_numbers_are_their_own_labels(tmp_path: Path) -> None:
    members = [
        (f"{n}.{ext}", data) for n in (4, 2) for ext, data in (("png", PNG), ("cls", b"%d" % n))
    ]
    write_tar(tmp_path / "a.tar", members)
    manifest = index_shards(tmp_path, progress=False).manifest
    assert manifest.classes == ("0", "1", "2", "3", "4")
    assert manifest.class_counts == (0, 0, 1, 0, 1)


def test_absurd_class_numbers(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("a.png", PNG), ("a.cls", b"999999999999")])
    with pytest.raises(ShardSetError, match="class number 999999999999 is too large"):
        index_shards(tmp_path, progress=False)


def test_held_out_part_is_left_alone(tmp_path: Path) -> None:
    write_numbered_tars(tmp_path / "validation", [2])
    index_shards(tmp_path / "validation", progress=False)
    write_numbered_tars(tmp_path, [3])
    assert index_shards(tmp_path, progress=False).manifest.num_samples == 3


def test_synthetic_samples_are_counted(tmp_path: Path) -> None:
    flags = ("true", "false", "null", "true", '"yes"')
    members = [
        (f"{n}.{ext}", data)
        for n, flag in enumerate(flags)
        for ext, data in (("png", PNG), ("json", f'{{"synthetic": {flag}}}'.encode()))
    ]
    write_tar(tmp_path / "a.tar", [*members, ("real.png", PNG)])
    report = index_shards(tmp_path, progress=False)
    assert report.manifest.synthetic == 2
    assert report.manifest.num_samples == 6
    assert "2 synthetic" in str(report)
    assert [error.reason for error in report.bad] == ["its synthetic is a str, not true or false"]
    assert Manifest.load(tmp_path) == report.manifest


def test_bad_samples_are_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("a.json", b"{}"), ("b.png", PNG), ("b.json", b"{")])
    report = index_shards(tmp_path, progress=False)
    assert [(error.shard, error.key) for error in report.bad] == [("a.tar", "a"), ("a.tar", "b")]
    assert "2 samples cannot be used" in str(report)
    assert report.manifest.num_samples == 2


def test_nothing_to_index(tmp_path: Path) -> None:
    with pytest.raises(ShardSetError, match=r"no \.tar files.*data build"):
        index_shards(tmp_path, progress=False)
    with pytest.raises(ShardSetError, match="no such folder"):
        index_shards(tmp_path / "nowhere", progress=False)
    write_tar(tmp_path / "a.tar", [("README", b"hello")])
    with pytest.raises(ShardSetError, match="its 1 tars hold no samples"):
        index_shards(tmp_path, progress=False)
    (tmp_path / "b.tar").write_bytes(b"damaged")
    with pytest.raises(ShardSetError, match=r"b\.tar: not a whole"):
        index_shards(tmp_path, progress=False)
    assert not (tmp_path / "manifest.json").exists()


def test_index_files(tmp_path: Path) -> None:
    stated = b'{"width": 30, "height": 20}'
    silly = b'{"width": 4294967297, "height": 20}'
    members = [
        ("a.png", encode(photo(9, 7))),  # by its header
        ("b.jpg", encode(photo(20, 30), "JPEG")),
        ("b.json", stated),
        ("c.png", PNG),
        ("c.json", silly),
        ("d.json", stated),  # no image
        ("e.png", b"text"),
    ]
    write_tar(tmp_path / "deep" / "a.tar", members)
    report = index_shards(tmp_path, progress=False)
    (shard,) = report.manifest.shards
    path = tmp_path / "deep" / "a.tar"
    index = ShardIndex.load(index_path(path), tar_bytes=shard.bytes)
    assert hashlib.sha256(index_path(path).read_bytes()).hexdigest() == shard.index
    assert index.sha256 == shard.sha256
    assert [index.key(i) for i in range(5)] == list("abcde")
    assert index.widths.tolist() == [7, 30, 8, 0, 0]
    assert index.heights.tolist() == [9, 20, 8, 0, 0]
    offset, size = index.places[1, IMAGE]
    assert path.read_bytes()[offset : offset + size] == members[1][1]
    bins = aspect_bins(index.widths, index.heights).tolist()
    assert read_aspect_counts(shard.aspects) == {number: bins.count(number) for number in bins}
    assert [(error.key, error.reason.split()[0]) for error in report.bad] == [
        ("d", "no"),
        ("e", "not"),
    ]


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_change_nothing(tmp_path: Path, workers: int) -> None:
    for name in ("one", "many"):
        write_numbered_tars(tmp_path / name, [3, 4, 5], {4: b"text"})
    one = index_shards(tmp_path / "one", progress=False)
    many = index_shards(tmp_path / "many", workers=workers, progress=False)
    assert str(many).replace("many", "one") == str(one)
    for path in (tmp_path / "one").iterdir():
        there = path.read_bytes().replace(b"folder one", b"folder many")
        assert (tmp_path / "many" / path.name).read_bytes() == there
    assert len(list((tmp_path / "one").iterdir())) == 7


def test_a_damaged_tar_of_many(tmp_path: Path) -> None:
    write_numbered_tars(tmp_path, [3, 4, 5])
    (tmp_path / "set-001.tar").write_bytes(b"damaged")
    with pytest.raises(ShardSetError, match=r"set-001\.tar: not a whole"):
        index_shards(tmp_path, workers=2, progress=False)
    with pytest.raises(ValueError, match="workers is 0"):
        index_shards(tmp_path, workers=0, progress=False)
