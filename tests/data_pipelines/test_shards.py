"""Reading tars: ours, webdataset's, others', and damaged ones."""

import gzip
import io
import json
import pickle
import tarfile
from pathlib import Path

import pytest
import webdataset

from data_pipelines.index import index_shards
from data_pipelines.manifest import Manifest, Shard, ShardSetError
from data_pipelines.shard_index import split_name
from data_pipelines.shards import OpenShard, SampleError, ShardReader
from data_pipelines.store import LocalStore
from tests.data_pipelines.samples import flat_png, write_numbered_tars, write_tar

PNG = flat_png(7)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a.png", ("a", "png")),
        ("./a.PNG", ("a", "png")),
        ("a.b/c.d.png", ("a.b/c", "d.png")),
        ("x/y/z.json", ("x/y/z", "json")),
        ("README", ("", "")),
        ("a/.hidden", ("", "")),
        ("a.b/c", ("", "")),
    ],
)
def test_split_name(name: str, parts: tuple[str, str]) -> None:
    assert split_name(name) == parts


def test_members_of_a_key_need_not_be_neighbours(tmp_path: Path) -> None:
    members = [
        ("a.png", PNG),
        ("b.cls", b"12\n"),
        ("a.json", b'{"class": "cat", "caption": "A", "width": 8, "height": 9, "other": []}'),
        ("c/d.jpeg", b"picture"),
        ("b.seg.png", b"not this one"),
        ("b.webp", b"b's picture"),
        ("b.txt", b" a caption\n"),
        ("README", b"belongs to nothing"),
    ]
    write_tar(tmp_path / "a.tar", members)
    index = OpenShard(tmp_path / "a.tar")
    assert [index.key(number) for number in range(len(index))] == ["a", "b", "c/d"]
    a, b, c = (index.read(number, "a.tar") for number in range(3))
    assert (a.image, a.extension, a.class_, a.caption) == (PNG, "png", "cat", "A")
    assert (a.width, a.height) == (8, 9)
    assert (b.image, b.extension, b.class_, b.caption) == (b"b's picture", "webp", 12, "a caption")
    assert (c.image, c.class_, c.caption, c.width) == (b"picture", None, None, None)


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("k.json", b"{}")], "no image"),
        ([("k.png", PNG), ("k.json", b"{")], "not valid JSON"),
        ([("k.png", PNG), ("k.json", b"[" * 100_000)], "not valid JSON"),
        ([("k.png", PNG), ("k.json", b"3")], "not a JSON object"),
        ([("k.png", PNG), ("k.json", b'{"class": [1]}')], "its class is a list"),
        ([("k.png", PNG), ("k.json", b'{"class": true}')], "its class is a bool"),
        ([("k.png", PNG), ("k.json", b'{"caption": 5}')], "its caption is a int"),
        ([("k.png", PNG), ("k.json", b'{"width": "8"}')], "its width is '8'"),
        ([("k.png", PNG), ("k.json", b'{"synthetic": 1}')], "its synthetic is a int"),
        ([("k.png", PNG), ("k.json", b" " * (2**20 + 1))], "the limit for its kind"),
        ([("k.png", PNG), ("k.png", PNG)], "appears twice"),
        ([("k.png", PNG), ("k.json", b"{}"), ("k.json", b"{}")], "appears twice"),
    ],
)
def test_bad_samples(tmp_path: Path, members: list[tuple[str, bytes]], reason: str) -> None:
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(SampleError, match=reason) as caught:
        OpenShard(tmp_path / "a.tar").read(0, "some/a.tar")
    assert (caught.value.shard, caught.value.key) == ("some/a.tar", "k")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def whole_tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("a.png", "b.png"):
            info = tarfile.TarInfo(name)
            info.size = len(PNG)
            tar.addfile(info, io.BytesIO(PNG))
    return buffer.getvalue()


def with_size(field: bytes) -> bytes:
    """The tar with another size in its second header, checksum mended."""
    data = bytearray(whole_tar())
    header = data[1024:1536]
    header[124:136] = field
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data[1024:1536] = header
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text that is no tar" * 100,
        gzip.compress(whole_tar()),
        whole_tar()[: 512 + len(PNG) // 2],
        whole_tar()[: 1024 + 300],
        whole_tar()[:1024] + b"x" * 512 + whole_tar()[1536:],
        with_size(b"77777777777\0"),
        with_size(b"\xff" * 12),  # -1 in base 256
        with_size(b"\xff" * 10 + b"\xfe\x00"),  # -512: leads back to the same header
    ],
    ids=["empty", "text", "gzip", "cut_member", "cut_header", "garbage", "huge", "neg", "loop"],
)
def test_damaged_tars(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "bad.tar"
    path.write_bytes(data)
    with pytest.raises(ShardSetError, match=r"bad\.tar"):
        OpenShard(path)


def test_an_intact_tar_passes(tmp_path: Path) -> None:
    (tmp_path / "good.tar").write_bytes(whole_tar())
    assert len(OpenShard(tmp_path / "good.tar")) == 2


def test_reads_what_webdataset_writes(tmp_path: Path) -> None:
    with webdataset.ShardWriter(str(tmp_path / "%03d.tar"), maxcount=2, verbose=0) as writer:
        for number in range(5):
            metadata = {"caption": f"text {number}"}
            writer.write(
                {"__key__": f"s{number}", "png": flat_png(number), "cls": number, "json": metadata}
            )
    manifest = index_shards(tmp_path, progress=False).manifest
    assert [shard.samples for shard in manifest.shards] == [2, 2, 1]
    assert manifest.classes == ("0", "1", "2", "3", "4")
    reader = ShardReader(LocalStore(tmp_path, manifest))
    sample = reader.read(1, 1)
    assert (sample.key, sample.class_, sample.caption) == ("s3", 3, "text 3")
    assert sample.image == flat_png(3)


def test_reads_img2dataset_layout(tmp_path: Path) -> None:
    metadata = {
        "caption": "a cat", "url": "u", "key": "000000002", "status": "success",
        "error_message": None, "width": 8, "height": 8, "original_width": 90, "exif": "{}",
    }  # fmt: skip
    # Keys have gaps where downloads failed.
    members = [
        ("000000002.jpg", b"jpeg"),
        ("000000002.json", json.dumps(metadata).encode()),
        ("000000002.txt", b"a cat"),
        ("000000007.jpg", b"jpeg"),
        ("000000007.txt", b"ein Hund"),
    ]
    write_tar(tmp_path / "00000.tar", members)
    (tmp_path / "00000.parquet").write_bytes(b"ignored")
    (tmp_path / "00000_stats.json").write_text("{}")
    manifest = index_shards(tmp_path, progress=False).manifest
    assert (manifest.num_samples, manifest.classes) == (2, ())
    reader = ShardReader(LocalStore(tmp_path, manifest))
    assert reader.read(0, 0).caption == "a cat"
    assert reader.read(0, 0).width == 8
    assert reader.read(0, 1).caption == "ein Hund"
    assert reader.key(0, 1) == "000000007"


def test_count_must_be_the_manifests(tmp_path: Path) -> None:
    write_numbered_tars(tmp_path, [3])
    good = index_shards(tmp_path, progress=False).manifest.shards[0]
    shard = Shard(good.path, 4, good.bytes, good.sha256)
    manifest = Manifest((shard,), (), (), "", "")
    with pytest.raises(ShardSetError, match=r"holds 3 samples but the manifest says 4.*data index"):
        ShardReader(LocalStore(tmp_path, manifest)).read(0, 0)


def test_few_open_files(tmp_path: Path) -> None:
    write_numbered_tars(tmp_path, [1] * 6)
    manifest = index_shards(tmp_path, progress=False).manifest
    reader = ShardReader(LocalStore(tmp_path, manifest), max_open=2)
    for shard in (0, 1, 2, 0, 5, 4, 0):
        assert reader.read(shard, 0).key == f"{shard:05d}"
        assert len(reader._open) <= 2
    copy = pickle.loads(pickle.dumps(reader))
    assert copy.read(3, 0).key == "00003"
    reader.close()
    assert reader.read(1, 0).key == "00001"


def test_missing_shard(tmp_path: Path) -> None:
    manifest = Manifest((Shard("gone.tar", 1, 1, "0" * 64),), (), (), "", "")
    with pytest.raises(ShardSetError, match=r"gone\.tar: cannot be opened \(No such file"):
        ShardReader(LocalStore(tmp_path, manifest)).read(0, 0)
