"""Manifests: round trip, determinism, and every way in which a set can be unusable."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.index import index_shards
from data_pipelines.manifest import Manifest, Shard, ShardSetError
from tests.data_pipelines.samples import write_numbered_tars


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_numbered_tars(tmp_path / "set", [3, 2])
    index_shards(tmp_path / "set", progress=False)
    return tmp_path / "set"


def edit(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = root / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_round_trip(tmp_path: Path) -> None:
    manifest = Manifest(
        shards=(Shard("a/b.tar", 0, 0, "0" * 64), Shard("ü.tar", 7, 9, "f" * 64)),
        classes=("Zebra", "ape"),
        class_counts=(4, 2),
        licence="CC0",
        source="a test",
        recipe={"size": 64, "sets": ["x"]},
    )
    manifest.save(tmp_path)
    assert Manifest.parse(tmp_path) == manifest
    first = (tmp_path / "manifest.json").read_bytes()
    manifest.save(tmp_path)
    assert (tmp_path / "manifest.json").read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]
    assert manifest.num_samples == 7


def test_sets_of_real_images_are_as_they_were(root: Path) -> None:
    """The keys and the fingerprint of the time before there was any provenance."""
    document = json.loads((root / "manifest.json").read_text())
    assert sorted(document) == [
        "class_counts", "classes", "format_version", "licence", "recipe", "shards", "source",
    ]  # fmt: skip
    manifest = Manifest.load(root)
    assert manifest.synthetic == 0
    content = [[entry["sha256"] for entry in document["shards"]], document["classes"]]
    assert manifest.fingerprint == hashlib.sha256(json.dumps(content).encode()).hexdigest()


def test_synthetic_samples_are_counted(root: Path) -> None:
    real = Manifest.load(root)
    edit(root, set_("synthetic", 5))
    manifest = Manifest.load(root)
    assert manifest == replace(real, synthetic=5)
    assert manifest.format_version == 1
    manifest.save(root)
    assert Manifest.load(root) == manifest


def test_fingerprint_is_of_the_data_only(root: Path) -> None:
    before = Manifest.load(root).fingerprint
    edit(root, lambda d: d.update(licence="other", source="elsewhere", recipe={"a": 1}))
    assert Manifest.load(root).fingerprint == before
    edit(root, lambda d: d["classes"].reverse())
    reordered = Manifest.load(root).fingerprint
    assert reordered != before
    edit(root, lambda d: d["shards"][0].update(sha256="0" * 64))
    assert Manifest.load(root).fingerprint not in (before, reordered)


def set_(key: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda d: d.update({key: value})


def set_shard(key: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda d: d["shards"][1].update({key: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_("format_version", 2), "later than this release reads"),
        (set_("format_version", "1"), "'format_version' must be a int, not str"),
        (set_("format_version", 0), "must be 1 or more"),
        (lambda d: d.pop("shards"), "'shards' is missing"),
        (set_("shards", []), "holds no samples"),
        (set_("classes", [1, 2, 3]), "list of strings"),
        (set_("classes", ["a", "a", "b"]), "names a class twice"),
        (set_("class_counts", [1]), "each of the 3 classes"),
        (set_("class_counts", [1, 2, -3]), "non-negative"),
        (set_("licence", None), "'licence' must be a str"),
        (set_("recipe", []), "'recipe' must be a dict"),
        (set_shard("path", "../outside.tar"), "not a path inside"),
        (set_shard("path", "/etc/passwd"), "not a path inside"),
        (set_shard("path", ""), "not a path inside"),
        (set_shard("path", "set-000.tar"), "names a file twice"),
        (set_shard("samples", True), r"'shards\[1\].samples' must be a int"),
        (set_shard("samples", -1), "must not be negative"),
        (set_shard("bytes", 2**70), "must not be negative"),
        (set_shard("bytes", 5), "bytes but the manifest says 5; .*data index"),
        (set_shard("sha256", "x" * 64), "64 hexadecimal digits"),
        (set_("synthetic", -1), "'synthetic' is -1; it must be a number"),
        (set_("synthetic", 6), "at most the 5 that there are"),
        (set_("synthetic", True), "'synthetic' is True"),
        (set_("synthetic", None), "'synthetic' is None"),
        (lambda d: d["shards"].append(3), r"shards\[2\] must be a JSON object"),
    ],
)
def test_bad_manifest(root: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    edit(root, change)
    with pytest.raises(ShardSetError, match=message) as caught:
        Manifest.load(root)
    assert str(root) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "\xff"])
def test_not_a_json_object(root: Path, text: str) -> None:
    (root / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(ShardSetError, match=r"manifest\.json: (not valid JSON|the file must be)"):
        Manifest.load(root)


def test_missing_folder_manifest_and_shard(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ShardSetError, match=r"no such folder; .*data build"):
        Manifest.load(tmp_path / "nowhere")
    (root / "set-001.tar").unlink()
    with pytest.raises(ShardSetError, match=r"set-001\.tar: .*cannot be read.*data index"):
        Manifest.load(root)
    (root / "manifest.json").unlink()
    with pytest.raises(ShardSetError, match=r"manifest\.json: missing.*data index"):
        Manifest.load(root)


def test_truncated_shard(root: Path) -> None:
    path = root / "set-000.tar"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ShardSetError, match=r"set-000\.tar: the file has \d+ bytes.*data index"):
        Manifest.load(root)


@pytest.mark.parametrize("root", ["s3://bucket/set", "http:/127.0.0.1/set"])
def test_urls_are_told_from_folders(root: str) -> None:
    with pytest.raises(ShardSetError, match=r"is a URL.*copy the set to a folder"):
        Manifest.load(Path(root))
