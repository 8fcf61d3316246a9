"""The index of a tar: the same as reading its headers, and of no use to an attacker."""

import io
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.manifest import ShardSetError
from data_pipelines.shard_index import ShardIndex, index_path
from data_pipelines.shards import OpenShard
from tests.data_pipelines.samples import write_tar

MEMBERS = [
    ("ä/a.png", b"first picture"),
    ("b.cls", b"12"),
    ("ä/a.json", b'{"caption": "A"}'),
    ("b.jpg", b"second"),
    ("c.txt", b"no picture"),
    ("c.txt", b"twice"),
    ("d.xyz", b"foreign"),
]


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    write_tar(tmp_path / "s-000.tar", MEMBERS)
    return tmp_path / "s-000.tar"


def described(tar: Path) -> ShardIndex:
    index = ShardIndex.scan(tar)
    sides = np.array([640, 0, 3, 4])
    return index.described(sides, sides + 1, "ab" * 32)


def test_scan_finds_the_bytes_themselves(tar: Path) -> None:
    index, data = ShardIndex.scan(tar), tar.read_bytes()
    assert [index.key(number) for number in range(len(index))] == ["ä/a", "b", "c", "d"]
    assert index.repeated == (2,)
    found = [
        [data[o : o + n] if o >= 0 else None for o, n in sample] for sample in index.places.tolist()
    ]
    assert found[0] == [b"first picture", b'{"caption": "A"}', None, None]
    assert found[1] == [b"second", None, b"12", None]
    assert found[2][0] is None
    assert found[3] == [None] * 4


def test_round_trip(tar: Path) -> None:
    index = described(tar)
    path = index_path(tar)
    assert path.name == "s-000.index.npz"
    digest = index.save(path)
    again = ShardIndex.load(path, tar_bytes=tar.stat().st_size)
    assert again.to_bytes() == index.to_bytes() == path.read_bytes()
    assert again.sha256 == "ab" * 32
    assert (again.widths.tolist(), again.heights.tolist()) == ([640, 0, 3, 4], [641, 1, 4, 5])
    assert digest == replace(again).save(path)
    assert sorted(p.name for p in tar.parent.iterdir()) == ["s-000.index.npz", "s-000.tar"]


def test_reading_by_the_index_is_reading_by_the_headers(tar: Path) -> None:
    by_headers, by_index = OpenShard(tar), OpenShard(tar, described(tar))
    for number in (0, 1):
        assert by_headers.read(number, "s") == by_index.read(number, "s")


def _written(arrays: dict[str, np.ndarray], compressed: bool = False) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


def _arrays(index: ShardIndex) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(index.to_bytes())) as file:
        return dict(file)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("places", np.full((4, 4, 2), 10**6), "reaches outside"),
        ("places", np.full((4, 4, 2), -2), "reaches outside"),
        ("places", np.full((4, 4, 2), 2**62), "reaches outside"),
        ("places", np.zeros((3, 4, 2), dtype=np.int64), "shape"),
        ("places", np.zeros((4, 4, 2), dtype=np.float64), "type float64"),
        ("places", np.array([[object()]]), "pickle|Object"),
        ("extensions", np.array([2, 0, 0, 99], dtype=np.uint8), "known extension"),
        ("key_ends", np.array([4, 3, 6, 7]), "follow each other"),
        ("key_ends", np.array([4, 5, 6, 99]), "follow each other"),
        ("keys", np.zeros((2, 2), dtype=np.uint8), "dimensions"),
        ("widths", np.array([-1, 0, 0, 0], dtype=np.int32), "negative size"),
        ("repeated", np.array([4]), "not there"),
        ("sha256", np.zeros(3, dtype=np.uint8), "checksum"),
    ],
)
def test_lies(tar: Path, name: str, value: np.ndarray, reason: str) -> None:
    arrays = {**_arrays(described(tar)), name: value}
    with pytest.raises(ValueError, match=reason):
        ShardIndex.from_bytes(_written(arrays), tar_bytes=tar.stat().st_size)


def test_damage(tar: Path) -> None:
    good = described(tar).to_bytes()
    size = tar.stat().st_size
    ShardIndex.from_bytes(good, tar_bytes=size)
    for data in (b"", b"no zip", good[:-30], good[: len(good) // 2], good[200:]):
        with pytest.raises(ValueError, match=r"."):
            ShardIndex.from_bytes(data, tar_bytes=size)
    arrays = _arrays(described(tar))
    with pytest.raises(ValueError, match="compressed"):  # a small file must not become a large one
        ShardIndex.from_bytes(_written(arrays, compressed=True), tar_bytes=size)
    del arrays["widths"]
    with pytest.raises(ValueError, match="'widths' is missing"):
        ShardIndex.from_bytes(_written(arrays), tar_bytes=size)


def test_a_header_that_claims_more_than_there_is(tar: Path) -> None:
    arrays = _arrays(described(tar))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, array)
            data = content.getvalue()
            if name == "keys":
                huge = b"'shape': (7000000000000000,)"
                data = data.replace(b"'shape': (7,)", huge)
                data = data.replace(b" " * (len(huge) - len(b"'shape': (7,)")), b"", 1)
            archive.writestr(f"{name}.npy", data)
    with pytest.raises(ValueError, match=r"."):
        ShardIndex.from_bytes(buffer.getvalue(), tar_bytes=tar.stat().st_size)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ShardSetError, match=r"s\.index\.npz: not a usable index.*data index"):
        ShardIndex.load(tmp_path / "s.index.npz", tar_bytes=1)
