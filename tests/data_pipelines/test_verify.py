"""Verifying: silent on a sound set, and every kind of damage is found."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.index import index_shards
from data_pipelines.manifest import Manifest, ShardSetError
from data_pipelines.shard_index import ShardIndex
from data_pipelines.verify import verify
from tests.data_pipelines.samples import flat_png, write_numbered_tars, write_tar


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_numbered_tars(tmp_path, [4, 3])
    index_shards(tmp_path, progress=False)
    return tmp_path


def test_sound(root: Path) -> None:
    report = verify(root, progress=False)
    assert (report.samples, report.problems, report.sound) == (7, (), True)
    assert "7 samples decoded, sound" in str(report)


def test_one_flipped_bit(root: Path) -> None:
    path = root / "set-001.tar"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # in the padding: no sample is touched
    path.write_bytes(data)
    report = verify(root, progress=False)
    assert report.samples == 7
    assert [p.split(": ", 1)[1] for p in report.problems] == ["its checksum is not the manifest's"]


def test_missing_cut_and_replaced_shards(root: Path) -> None:
    (root / "set-000.tar").unlink()
    (problem, *_) = verify(root, progress=False).problems
    assert "set-000.tar: cannot be read (No such file" in problem
    (root / "set-000.tar").write_bytes((root / "set-001.tar").read_bytes()[:700])
    problems = verify(root, progress=False).problems
    assert "set-000.tar: 700 bytes; the manifest says 10240" in problems[0]
    assert "set-000.tar: not a whole" in problems[1]
    write_numbered_tars(root, [5])
    problems = verify(root, progress=False).problems
    assert any("set-000.tar: 5 samples; the manifest says 4" in p for p in problems)
    assert any("class 'class 1': 3 samples; the manifest says 2" in p for p in problems)


def test_bad_samples(tmp_path: Path) -> None:
    size = json.dumps({"width": 8, "height": 9}).encode()
    members = [
        ("a.png", b"text"),
        ("b.png", flat_png(1)), ("b.json", size),
        ("c.png", flat_png(1)), ("c.json", b'{"class": "x"}'),
        ("d.json", b"{}"),
        ("e.png", flat_png(1)),
    ]  # fmt: skip
    write_tar(tmp_path / "a.tar", members)
    index_shards(tmp_path, progress=False)
    path = tmp_path / "manifest.json"
    document = json.loads(path.read_text())
    document.update(classes=["y"], class_counts=[1])
    path.write_text(json.dumps(document))
    report = verify(tmp_path, progress=False)
    assert report.samples == 1
    assert sorted(problem.removeprefix("a.tar: sample ") for problem in report.problems) == [
        "'a': not a file of a known format (JPEG, PNG, WEBP, GIF, BMP, TIFF)",
        "'b': 8 x 8 pixels; its .json says 8 x 9",
        "'c': class 'x' is not in the manifest",
        "'d': no image (.jpg, .jpeg, .png, .webp, .bmp, .gif, .tif, .tiff) among its members",
        "class 'y': 0 samples; the manifest says 1",
    ]


@pytest.mark.parametrize("stated", [0, 1, 3])
def test_synthetic_samples_are_counted(tmp_path: Path, stated: int) -> None:
    members = [("a.png", flat_png(1)), ("a.json", b'{"synthetic": true}'), ("b.png", flat_png(2))]
    write_tar(tmp_path / "a.tar", [*members, ("c.png", flat_png(3))])
    index_shards(tmp_path, progress=False)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"synthetic": stated}))
    wrong = () if stated == 1 else (f"1 synthetic samples; the manifest says {stated}",)
    assert verify(tmp_path, progress=False).problems == wrong


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(ShardSetError, match=r"manifest\.json: missing"):
        verify(tmp_path, progress=False)


def reindexed(root: Path, change: Callable[[ShardIndex], ShardIndex]) -> None:
    """Replaces the first index file by another, and says so in the manifest."""
    manifest = Manifest.load(root)
    shard = manifest.shards[0]
    path = root / "set-000.index.npz"
    digest = change(ShardIndex.load(path, tar_bytes=shard.bytes)).save(path)
    shards = (replace(shard, index=digest), *manifest.shards[1:])
    replace(manifest, shards=shards).save(root)


def moved(index: ShardIndex) -> ShardIndex:
    places = index.places.copy()
    places[1, 0, 0] += 512
    return replace(index, places=places)


def renamed(index: ShardIndex) -> ShardIndex:
    return replace(index, keys=index.keys.replace(b"00002", b"00009"))


def wider(index: ShardIndex) -> ShardIndex:
    widths = index.widths.copy()
    widths[2] = 16
    return replace(index, widths=widths)


def of_another(index: ShardIndex) -> ShardIndex:
    return replace(index, sha256=hashlib.sha256(b"another").hexdigest())


@pytest.mark.parametrize(
    ("change", "problems"),
    [
        (moved, ["set-000.index.npz: not what is in the shard"]),
        (renamed, ["set-000.index.npz: not what is in the shard"]),
        (of_another, ["set-000.index.npz: of another version of the shard"]),
        (
            wider,
            [
                "set-000.index.npz: other aspect ratios than the manifest says",
                "set-000.tar: sample '00002': 8 x 8 pixels; the index says 16 x 8",
            ],
        ),
    ],
)
def test_index_files(root: Path, change: Any, problems: list[str]) -> None:
    reindexed(root, lambda index: index)
    assert verify(root, progress=False).sound
    reindexed(root, change)
    assert [p.removeprefix(f"{root}/") for p in verify(root, progress=False).problems] == problems


def test_damaged_index_files(root: Path) -> None:
    path = root / "set-000.index.npz"
    data = bytearray(path.read_bytes())
    at = data.index(bytes.fromhex(Manifest.load(root).shards[0].sha256))
    data[at] ^= 1
    path.write_bytes(data)
    assert f"{path}: its checksum is not the manifest's" in verify(root, progress=False).problems
    path.write_bytes(b"PK")
    assert f"{path}: its checksum is not the manifest's" in verify(root, progress=False).problems
    path.unlink()
    (problem,) = verify(root, progress=False).problems
    assert problem == f"{path}: cannot be read (No such file or directory)"


@pytest.mark.parametrize("workers", [2, 3])
def test_every_damage_is_found_by_any_number_of_workers(tmp_path: Path, workers: int) -> None:
    write_numbered_tars(tmp_path, [2, 3, 4, 5, 6], bad={6: b"text", 13: flat_png(1)[:40]})
    index_shards(tmp_path, progress=False)
    (tmp_path / "set-000.tar").unlink()
    (tmp_path / "set-001.index.npz").unlink()
    path = tmp_path / "set-004.tar"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    (tmp_path / "set-003.tar").write_bytes((tmp_path / "set-003.tar").read_bytes()[:3000])
    one = verify(tmp_path, progress=False)
    assert len(one.problems) >= 6
    found = "\n".join(one.problems)
    names = ("000.tar", "001.index.npz", "002.tar: sample '00006'", "003.tar", "004.tar")
    places = [found.index(f"set-{name}") for name in names]
    assert places == sorted(places)
    assert verify(tmp_path, workers=workers, progress=False) == one
