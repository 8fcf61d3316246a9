"""What the listing alone tells, before there is a shard."""

from pathlib import Path
from typing import Any

import pytest

from data_pipelines.building import executors
from data_pipelines.building.build_set import build_set
from data_pipelines.manifest import Manifest, ShardSetError
from data_pipelines.sample import Rejected, Sample
from data_pipelines.sources.base import ImageSource, Item
from data_pipelines.sources.table import TableSource
from data_pipelines.sources.tars import TarSource
from tests.data_pipelines.building.numbered import Numbered
from tests.data_pipelines.samples import encode, photo, write_tar


@pytest.fixture
def no_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object) -> None:
        raise AssertionError("no shard is to be made")

    monkeypatch.setattr(executors, "make_shard", never)


def table(folder: Path) -> ImageSource:
    (folder / "a.png").write_bytes(encode(photo(8, 8, 1)))
    (folder / "t.csv").write_text("path,class\na.png,70000\n")
    return TableSource(folder / "t.csv")


def tars(folder: Path) -> ImageSource:
    image = encode(photo(8, 8, 1))
    write_tar(folder / "t.csv" / "a.tar", [("a.png", image), ("a.json", b'{"class": 70000}')])
    return TarSource(folder / "t.csv")


class Colliding(Numbered):
    def items(self) -> Any:
        yield from [*super().items(), *super().items()]


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (lambda _: Numbered(0), {}, r"no usable image came from numbers; \*\.txt: not an image"),
        (lambda _: Numbered(3), {"validation": 1e-9}, "came to no images; use a larger share"),
        (lambda _: Numbered(1), {"validation": 1 - 1e-9}, "use a smaller share"),
        (lambda _: Colliding(3), {}, "two items have the key"),
        (table, {}, r"t\.csv: class number 70000 is too large"),
        (tars, {}, r"t\.csv: class number 70000 is too large"),
    ],
)
def test_what_cannot_become_a_set(
    no_shards: None, tmp_path: Path, source: Any, options: dict[str, Any], message: str
) -> None:
    made = source(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=message):
        build_set(made, tmp_path / "set", shard_samples=2, progress=False, **options)
    assert sorted(tmp_path.iterdir()) == before


def test_what_may_pass_does_not_throw_the_look_away(tmp_path: Path) -> None:
    with pytest.raises(ShardSetError, match="k/003: cannot be read"):
        build_set(Numbered(20, unreadable=3), tmp_path / "set", progress=False)
    assert (tmp_path / "set.partial").exists()


class Mostly(Numbered):
    """Of ten listed items nine are not wanted."""

    def sample(self, item: Item) -> Sample | Rejected:
        assert isinstance(item.place, int)
        if item.place % 10:
            return Rejected(item.key, "too small")
        return super().sample(item)


def test_shards_are_full_where_most_items_are_left_out(tmp_path: Path) -> None:
    build_set(Mostly(2000), tmp_path / "set", shard_bytes=50_000, progress=False)
    *shards, _ = Manifest.load(tmp_path / "set").shards
    assert len(shards) > 3
    assert all(30_000 < shard.bytes < 70_000 for shard in shards)


def test_a_stop_while_listing_is_no_loss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Stopped(Numbered):
        def items(self) -> Any:
            yield from super().items()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_set(Stopped(), tmp_path / "set", progress=False)
    said = capsys.readouterr().err
    assert f"{tmp_path}/set: stopped while the images were listed" in said
    assert "the same command goes on" in said
