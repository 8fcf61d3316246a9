"""Where a set may be made, and whose fault an error of the disk is."""

import errno
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.building import set_folder
from data_pipelines.building.build_set import build_set
from data_pipelines.building.combine import Source, combine
from data_pipelines.building.split import split
from data_pipelines.building.stream import write_shards
from data_pipelines.manifest import Manifest, ShardSetError
from data_pipelines.sample import Rejected, Sample
from data_pipelines.sources.base import ImageSource, Item
from data_pipelines.sources.folder import FolderSource
from data_pipelines.sources.huggingface import HuggingFaceSource
from data_pipelines.sources.imagenet import ImageNetSource
from data_pipelines.sources.table import TableSource
from data_pipelines.sources.tars import TarSource
from tests.data_pipelines.building.numbered import Numbered, contents
from tests.data_pipelines.samples import encode, photo


def build(out: Path | str, source: ImageSource | None = None, **options: Any) -> None:
    build_set(source or Numbered(20), out, shard_samples=8, progress=False, **options)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A shard set with a held-out part."""
    build(tmp_path / "x", validation=0.3)
    return tmp_path / "x"


@pytest.mark.parametrize(
    ("src", "out"),
    [
        ("x", "x"),
        ("x/validation", "x"),
        ("x", "x/validation"),
        ("x", "x/new"),
        ("x", "../" + "{parent}"),
        ("link", "x"),
        ("x.partial", "x"),
    ],
)
def test_no_source_is_touched(source: Path, tmp_path: Path, src: str, out: str) -> None:
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "x.partial").mkdir()
    (tmp_path / "x.partial" / "shard-000000.tar").write_bytes(
        (source / "shard-000000.tar").read_bytes()
    )
    before = contents(tmp_path)
    root, target = tmp_path / src, tmp_path / out.format(parent=tmp_path.name)
    refused = pytest.raises(ShardSetError, match="is, holds or lies in the source")
    for one in (
        TarSource(root),
        FolderSource(root),
        ImageNetSource(root),
        HuggingFaceSource(str(root)),
    ):
        with refused:
            build(target, one, overwrite=True)
    with refused:
        split(root, target, validation=0.5, overwrite=True, progress=False)
    with refused:
        combine([Source(root)], target, overwrite=True, progress=False)
    assert contents(tmp_path) == before


def test_a_set_may_lie_beside_its_table(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(photo(20, 30, 1)))
    (tmp_path / "t.csv").write_text("path\na.png\n")
    build(tmp_path / "data" / "set", TableSource(tmp_path / "t.csv"))
    with pytest.raises(ShardSetError, match=r"is, holds or lies in the source .*t\.csv"):
        build(tmp_path, TableSource(tmp_path / "t.csv"), overwrite=True)


@pytest.mark.parametrize("name", ["set", "set.partial"])
def test_links_and_mount_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / name).symlink_to(tmp_path / "disk")
    with pytest.raises(ShardSetError, match=rf"{name}: is a link.*\({tmp_path}/disk\)"):
        build(tmp_path / "set")
    with pytest.raises(ShardSetError, match=f"{name}: is a link"):
        write_shards(list, tmp_path / "set", source="", licence="", recipe={}, progress=False)
    (tmp_path / name).unlink()
    monkeypatch.setattr(set_folder.os.path, "ismount", lambda path: Path(path).name == name)
    with pytest.raises(ShardSetError, match=f"{name}: is a mount point.*inside"):
        build(tmp_path / "set")
    assert list((tmp_path / "disk").iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["disk"]


def test_out_is_where_we_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    build(".")
    assert Manifest.load(tmp_path / "here").num_samples == 16
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


class Denied(Numbered):
    """A source that may not be read."""

    def items(self) -> Any:
        yield from super().items()
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/photos/secret")


def test_errors_of_the_source_are_not_those_of_the_set(tmp_path: Path) -> None:
    with pytest.raises(PermissionError, match="/photos/secret"):
        build(tmp_path / "set", Denied())


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_of_the_set_come_through_workers(tmp_path: Path, workers: int) -> None:
    """The folder of results cannot be written, which only the workers see."""
    with pytest.raises(ShardSetError, match=r"set: cannot be written \(Read-only.*results"):
        build(tmp_path / "set", ReadOnly(out=tmp_path / "set"), workers=workers)


class ReadOnly(Numbered):
    """Its first sample finds the folder of results on a read-only disk."""

    def __init__(self, out: Path) -> None:
        super().__init__(20)
        object.__setattr__(self, "out", out)

    def sample(self, item: Item) -> Sample | Rejected:
        found = super().sample(item)
        if isinstance(found, Sample):
            return replace(found, fields=_Refusing(self.out))  # type: ignore[attr-defined]
        return found


class _Refusing(Mapping[str, Any]):
    """Fields that fail when they are written."""

    def __init__(self, out: Path) -> None:
        self._out = out

    def __iter__(self) -> Any:
        path = f"{self._out}.partial/results/x"
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, name: str) -> Any:
        raise KeyError(name)


def test_names_that_are_not_unicode(tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"photos-\xff")
    (odd / "cats").mkdir(parents=True)
    (odd / "cats" / "1.png").write_bytes(encode(photo(20, 30, 1)))
    build(tmp_path / "set", FolderSource(odd, licence=os.fsdecode(b"\xfe")))
    manifest = Manifest.load(tmp_path / "set")
    assert manifest.source == r"images of the folder photos-\udcff"
    assert manifest.licence == r"\udcfe"
