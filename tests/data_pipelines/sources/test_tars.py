"""Tars as a source: the same images, classes and captions in new shards, chosen by one look."""

import io
import json
import pickle
from pathlib import Path

import pytest

from data_pipelines.index import index_shards
from data_pipelines.sample import Rejected
from data_pipelines.sources.storage import Filters, Storage
from data_pipelines.sources.tars import TarSource
from tests.data_pipelines.samples import encode, photo, write_tar
from tests.data_pipelines.sources.sets import build, listed, read_all, refused, tree_bytes

SIZES = [(20, 30), (30, 20), (8, 8), (40, 10), (20, 20), (25, 30), (30, 30)]  # height, width


def image(number: int) -> bytes:
    return encode(photo(*SIZES[number], number), "JPEG" if number % 2 else "PNG")


def write_set(root: Path, counts: tuple[int, ...] = (3, 0, 4)) -> Path:
    """Tars whose n-th sample overall has the key n, a class, a caption of n letters, a field."""
    number = 0
    for tar, count in enumerate(counts):
        members = []
        for _ in range(count):
            extension = "jpg" if number % 2 else "png"
            fields = {"class": f"c{number % 3}", "caption": "x" * number, "by": f"p{number % 2}"}
            members.append((f"{number}.{extension}", image(number)))
            members.append((f"{number}.json", json.dumps(fields).encode()))
            number += 1
        write_tar(root / f"{tar}.tar", members)
    return root


@pytest.mark.parametrize("indexed", [False, True])
def test_new_shards_hold_the_same(tmp_path: Path, indexed: bool) -> None:
    root = write_set(tmp_path / "in")
    if indexed:
        index_shards(root, progress=False)
    report = build(TarSource(root), tmp_path / "out", shard_samples=2)
    assert [shard.samples for shard in report.manifest.shards] == [2, 2, 2, 1]
    samples = read_all(report)
    assert list(samples) == [str(number) for number in range(7)]
    for number, sample in enumerate(samples.values()):
        assert sample.image == image(number)
        assert (sample.height, sample.width) == SIZES[number]
        assert (sample.class_, sample.caption) == (f"c{number % 3}", "x" * number or None)
    assert report.manifest.classes == ("c0", "c1", "c2")
    assert report.manifest.source == "tars of the folder in"


def test_what_the_manifest_says_goes_along(tmp_path: Path) -> None:
    root = write_set(tmp_path / "in")
    manifest = root / "manifest.json"
    index_shards(root, progress=False)
    document = json.loads(manifest.read_text())
    document |= {"licence": "CC0", "source": "my camera", "classes": ["c2", "none", "c0", "c1"]}
    document["class_counts"] = [2, 0, 3, 2]
    manifest.write_text(json.dumps(document))
    report = build(TarSource(root), tmp_path / "out")
    assert report.manifest.classes == ("c2", "none", "c0", "c1")  # the labels stay what they were
    assert report.manifest.class_counts == (2, 0, 3, 2)
    assert (report.manifest.licence, report.manifest.source) == ("CC0", "my camera")
    assert TarSource(root, licence="mine").licence == "mine"
    document["classes"], document["class_counts"] = ["c2", "none", "c0"], [2, 0, 3]
    manifest.write_text(json.dumps(document))
    source = TarSource(root)
    result = source.sample(listed(source)[1])
    assert isinstance(result, Rejected)
    assert result.reason == "unknown class: 'c1' is not in the manifest"


def test_filters_leave_full_shards(tmp_path: Path) -> None:
    root = write_set(tmp_path / "in")
    filters = Filters(min_side=20, max_aspect=1.3, max_caption=5)
    source = TarSource(root, filters=filters)
    assert [item.key for item in listed(source)] == ["1", "4", "5"]
    assert refused(source) == {
        "0.tar, 0": "too wide: 30 x 20",
        "0.tar, 2": "too small: 8 x 8",
        "2.tar, 3": "too small: 10 x 40",
        "2.tar, 6": "caption too long: 6 characters",
    }
    report = build(source, tmp_path / "out", shard_samples=2)
    assert [shard.samples for shard in report.manifest.shards] == [2, 1]
    assert report.tally.rejected == {"too wide": 1, "too small": 2, "caption too long": 1}


def test_duplicates_the_first_in_order_stays(tmp_path: Path) -> None:
    a, b, c = (encode(photo(9, 9, seed)) for seed in range(3))
    write_tar(tmp_path / "in" / "0.tar", [("w.png", a), ("x.png", b), ("y.png", a)])
    members = [("p.png", c), ("q.png", b), ("q.txt", b"another caption"), ("r.png", c)]
    write_tar(tmp_path / "in" / "1.tar", members)
    source = TarSource(tmp_path / "in", drop_duplicates=True)
    assert [item.key for item in listed(source)] == ["w", "x", "p"]
    assert refused(source) == {
        "0.tar, y": "duplicate: the same bytes as 0.tar, w",
        "1.tar, q": "duplicate: the same bytes as 0.tar, x",
        "1.tar, r": "duplicate: the same bytes as 1.tar, p",
    }
    # What is not wanted is no original.
    captioned = TarSource(tmp_path / "in", drop_duplicates=True, filters=Filters(min_caption=1))
    assert [item.key for item in listed(captioned)] == ["q"]


def test_any_number_of_workers_finds_the_same(tmp_path: Path) -> None:
    root = write_set(tmp_path / "in", (1, 2, 1, 3))
    source = TarSource(root, drop_duplicates=True, group="by", storage=Storage(10))
    assert [item.group for item in listed(source)] == [f"p{number % 2}" for number in range(7)]
    prepared = source.prepared(tmp_path / "scan", workers=1, progress=False)
    assert list(pickle.loads(pickle.dumps(prepared)).items()) == list(source.items())
    for workers in (1, 2):
        build(source, tmp_path / f"out{workers}", workers=workers, shard_samples=3)
    assert tree_bytes(tmp_path / "out1") == tree_bytes(tmp_path / "out2")


def test_a_restart_does_not_look_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = TarSource(write_set(tmp_path / "in"))
    looks: list[int] = []
    scan = TarSource._scan

    def counted(self: TarSource, number: int) -> dict[str, object]:
        looks.append(number)
        if looks == [0, 1]:
            raise KeyboardInterrupt
        return scan(self, number)

    monkeypatch.setattr(TarSource, "_scan", counted)
    with pytest.raises(KeyboardInterrupt):
        source.prepared(tmp_path / "scan", workers=1, progress=False)
    found = source.prepared(tmp_path / "scan", workers=1, progress=False)
    assert looks == [0, 1, 1, 2]
    assert len(list(found.items())) == 7
    assert found.classes is None
    assert looks == [0, 1, 1, 2]


def test_numbers_are_labels_and_keys_are_made_unique(tmp_path: Path) -> None:
    for tar, classes in enumerate([(11, 2), (2, 0)]):
        members = []
        for number, class_ in enumerate(classes):
            members.append((f"{number:06d}.png", encode(photo(8, 8, 2 * tar + number))))
            members.append((f"{number:06d}.cls", str(class_).encode()))
        write_tar(tmp_path / "in" / f"{tar}.tar", members)
    report = build(TarSource(tmp_path / "in"), tmp_path / "out")
    assert report.manifest.classes == tuple(str(number) for number in range(12))
    samples = read_all(report)
    assert [sample.class_ for sample in samples.values()] == ["11", "2", "2", "0"]
    keys = list(samples)
    assert keys[:2] == ["000000", "000001"]
    assert keys[2].startswith("000000-")
    assert keys[3].startswith("000001-")


def test_unusable_samples_are_told(tmp_path: Path) -> None:
    whole = encode(photo(20, 20))
    members = [
        ("good.png", whole),
        ("text.txt", b"no image"),
        ("twice.png", whole),
        ("twice.png", whole),
        ("json.png", whole),
        ("json.json", b"{"),
        ("cut.png", whole[: len(whole) // 2]),
        ("liar.png", b"text"),
        ("a.b/dots.png", whole),
    ]
    write_tar(tmp_path / "in" / "0.tar", members)
    source = TarSource(tmp_path / "in", filters=Filters(min_side=10))
    reasons = refused(source)
    assert {name: reason.split(":")[0] for name, reason in reasons.items()} == {
        "0.tar, text": "unusable sample",
        "0.tar, twice": "unusable sample",
        "0.tar, json": "unusable sample",
        "0.tar, liar": "unreadable image",
    }
    report = build(source, tmp_path / "out")
    assert [key[:8] for key in read_all(report)] == ["good", "a_b/dots"]
    assert report.tally.rejected == {"unusable sample": 3, "unreadable image": 2}


def test_generated_images_stay_marked(tmp_path: Path) -> None:
    members = [("0.png", image(0)), ("0.json", b'{"synthetic": true}'), ("1.jpg", image(1))]
    write_tar(tmp_path / "in" / "0.tar", members)
    report = build(TarSource(tmp_path / "in"), tmp_path / "out")
    assert [sample.synthetic for sample in read_all(report).values()] == [True, False]
    assert report.manifest.synthetic == 1


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no such folder of tars"):
        list(TarSource(tmp_path / "gone").items())
    (tmp_path / "in").mkdir()
    with pytest.raises(ValueError, match=r"no \.tar files in it"):
        list(TarSource(tmp_path / "in").items())
    buffer = io.BytesIO(b"\x01" * 2048)
    (tmp_path / "in" / "0.tar").write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match=r"0\.tar: not a whole, uncompressed tar"):
        list(TarSource(tmp_path / "in").items())
