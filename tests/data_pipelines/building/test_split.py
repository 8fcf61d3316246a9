"""Splitting a set that exists: nothing lost, nothing changed, no group on both sides."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.building.build_set import build_set
from data_pipelines.building.set_folder import share_of
from data_pipelines.building.split import split
from data_pipelines.index import index_shards
from data_pipelines.manifest import Manifest, ShardSetError
from data_pipelines.verify import verify
from tests.data_pipelines.building.numbered import Numbered, contents
from tests.data_pipelines.samples import flat_png, write_tar

QUIET: dict[str, Any] = {"progress": False}


def samples(root: Path) -> dict[str, tuple[bytes, dict[str, Any]]]:
    """Key -> image and metadata, read by tarfile alone."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(root.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                file = tar.extractfile(member)
                assert file is not None
                found.setdefault(key, {})[extension] = file.read()
    return {
        key: (members["png"], json.loads(members.get("json", b"{}")))
        for key, members in found.items()
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """90 samples of 13 photographers and a few of none, some of whom took one picture."""
    root = tmp_path / "all"
    for shard in range(3):
        members = []
        for n in range(30 * shard, 30 * shard + 30):
            metadata = {"class": f"c{n % 4}", "year": 1990 + n % 7, "tags": ["a", n], "width": 8}
            if n % 11:
                metadata["photographer"] = f"P{n * n % 13}"
            members += [
                (f"n{n}.png", flat_png(n)),
                (f"n{n}.json", json.dumps(metadata | {"height": 8}).encode()),
            ]
        write_tar(root / f"{shard}.tar", members)
    index_shards(root, progress=False)
    return root


def test_by_key(root: Path, tmp_path: Path) -> None:
    report = split(root, tmp_path / "out", validation=0.3, shard_samples=20, **QUIET)
    train, held = samples(tmp_path / "out"), samples(tmp_path / "out" / "validation")
    everything = samples(root)
    assert set(held) == {key for key in everything if share_of(key) < 0.3}
    assert 15 < len(held) < 40
    # Images, classes and all other fields are as they were.
    assert train | held == everything
    assert not set(train) & set(held)
    assert Manifest.load(tmp_path / "out").classes == Manifest.load(root).classes
    assert report.manifest.num_samples == len(train)
    for part in (tmp_path / "out", tmp_path / "out" / "validation"):
        assert verify(part, progress=False).sound


def test_as_if_it_had_been_built_so(tmp_path: Path) -> None:
    options: dict[str, Any] = {"shard_samples": 7, **QUIET}
    source = Numbered(count=58)
    build_set(source, tmp_path / "built", validation=0.25, **options)
    build_set(source, tmp_path / "whole", **options)
    split(tmp_path / "whole", tmp_path / "out", validation=0.25, **options)
    for part in ("", "validation"):
        built, cut = (
            {
                key: tuple(entry)
                for folder in [tmp_path / name / part]
                for key, entry in jpegs(folder).items()
            }
            for name in ("built", "out")
        )
        assert built == cut
        assert len(built) > 5


def jpegs(root: Path) -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = {}
    for path in sorted(root.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                found.setdefault(member.name.partition(".")[0], []).append(file.read())
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_no_group_on_both_sides(root: Path, tmp_path: Path, workers: int) -> None:
    out = tmp_path / "out"
    report = split(root, out, validation=0.4, field="photographer", workers=workers, **QUIET)
    train, held = samples(out), samples(out / "validation")
    of_train = {metadata.get("photographer") for _, metadata in train.values()}
    of_held = {metadata.get("photographer") for _, metadata in held.values()}
    assert len(of_held) > 1
    assert not of_train & of_held
    assert None in of_train
    assert of_held == {name for name in of_train | of_held if name and share_of(name) < 0.4}
    assert train | held == samples(root)
    lacking = len([n for n in range(90) if n % 11 == 0])
    assert f"without the field to split by: {lacking}" in str(report)


def test_fields_that_are_no_text(root: Path, tmp_path: Path) -> None:
    split(root, tmp_path / "out", validation=0.5, field="year", **QUIET)
    years = [
        {metadata["year"] for _, metadata in samples(part).values()}
        for part in (tmp_path / "out", tmp_path / "out" / "validation")
    ]
    assert not years[0] & years[1]
    assert years[0] | years[1] == set(range(1990, 1997))
    assert years[1] == {year for year in range(1990, 1997) if share_of(str(year)) < 0.5}


def test_keys_that_begin_anew_in_each_tar(tmp_path: Path) -> None:
    for shard in range(2):
        members = [(f"{n}.png", flat_png(10 * shard + n)) for n in range(10)]
        write_tar(tmp_path / "all" / f"{shard}.tar", members)
    index_shards(tmp_path / "all", progress=False)
    split(tmp_path / "all", tmp_path / "out", validation=0.3, **QUIET)
    parts = samples(tmp_path / "out"), samples(tmp_path / "out" / "validation")
    images = sorted(image for part in parts for image, _ in part.values())
    assert images == sorted(flat_png(n) for n in range(20))
    assert set(parts[0]) | set(parts[1]) == {f"{s:06d}/{n}" for s in range(2) for n in range(10)}


def test_bad_samples_are_named(tmp_path: Path) -> None:
    members = [(f"n{n}.png", flat_png(n)) for n in range(20)]
    members += [("n3.json", b"{"), ("n4.json", b"[]"), ("n5.json", b'{"who": "A"}')]
    members += [("n6.png", b"text")]  # twice
    write_tar(tmp_path / "all" / "a.tar", [*members, ("lone.json", b"{}")])
    index_shards(tmp_path / "all", progress=False)
    report = split(tmp_path / "all", tmp_path / "out", validation=0.3, **QUIET)
    names = {item.name.rpartition(": ")[2] for item in report.rejected}
    assert names == {"n3", "n4", "n6", "lone"}
    assert report.tally.samples == 17


def test_refusals(root: Path, tmp_path: Path) -> None:
    for share in (0.0, -0.5):
        with pytest.raises(ValueError, match="needs a share above 0"):
            split(root, tmp_path / "out", validation=share, **QUIET)
    for out in (root, tmp_path):
        with pytest.raises(ValueError, match="is, holds or lies in the source"):
            split(root, out, validation=0.1, **QUIET)
    with pytest.raises(ValueError, match="no image has a value of the field to split by"):
        split(root, tmp_path / "out", validation=0.1, field="nobody", **QUIET)
    with pytest.raises(ShardSetError, match="no such folder"):
        split(tmp_path / "nowhere", tmp_path / "out", validation=0.1, **QUIET)
    split(root, tmp_path / "out", validation=0.1, **QUIET)
    before = contents(tmp_path / "out")
    assert split(root, tmp_path / "out", validation=0.1, **QUIET).reused
    with pytest.raises(ShardSetError, match=r"field: None -> 'year'.*--overwrite"):
        split(root, tmp_path / "out", validation=0.1, field="year", **QUIET)
    assert contents(tmp_path / "out") == before
