"""What an interruption may leave behind, at any point, and what becomes of it."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.building import build_set as building
from data_pipelines.building.build_set import build_set
from data_pipelines.building.stream import BuildReport, write_shards
from data_pipelines.building.unfinished import locked
from data_pipelines.manifest import Manifest, ShardSetError
from data_pipelines.sample import Rejected, Sample
from tests.data_pipelines.building.numbered import Numbered, contents
from tests.data_pipelines.samples import flat_png


def build(out: Path, source: Any = None, **options: Any) -> BuildReport:
    defaults = {"shard_samples": 8, "validation": 0.0, "progress": False}
    return build_set(source or Numbered(30), out, **{**defaults, **options})


def samples(count: int = 5) -> Iterator[Sample | Rejected]:
    for number in range(count):
        yield Sample(f"s{number}", flat_png(number), "png", 8, 8, "a")


def write(out: Path, items: Callable[[], Any] = samples, **options: Any) -> BuildReport:
    fields = {"source": "test", "licence": "CC0", "recipe": {"a": 1}, "progress": False}
    return write_shards(items, out, **{**fields, **options})


def interrupted(*args: object, **options: object) -> None:
    raise KeyboardInterrupt


POINTS = {
    "manifest": (Manifest, "save"),
    "old set": (building, "remove_set"),
    "name": (building.os, "replace"),
    "rest": (building.shutil, "rmtree"),
}


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("validation", [0.0, 0.2])
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_interruption_at_the_end(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    point: str,
    validation: float,
    overwrite: bool,
) -> None:
    out, partial = tmp_path / "set", tmp_path / "set.partial"
    build(tmp_path / "reference", validation=validation)
    options: dict[str, Any] = {"validation": validation, "overwrite": overwrite}
    if overwrite:
        build(out, Numbered(10))
    owner, name = POINTS[point]
    real = getattr(owner, name)

    def replace(source: Any, target: Any) -> None:
        if Path(target) == out:
            interrupted()
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, replace if point == "name" else interrupted)
        with pytest.raises(KeyboardInterrupt):
            build(out, **options)
    assert partial.exists()
    build(out, **options)
    assert contents(out) == contents(tmp_path / "reference")
    assert not partial.exists()


def test_the_end_of_a_complete_set_does_not_hinder_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As before there was an order in the removal: the plan is there, what it plans is not."""
    out, partial = tmp_path / "set", tmp_path / "set.partial"
    with pytest.raises(ShardSetError, match="k/020"):
        build(out, Numbered(30, unreadable=20))
    shutil.copytree(partial, tmp_path / "kept")
    build(out)
    (tmp_path / "kept").rename(partial)
    shutil.rmtree(partial / "set")
    build(out, Numbered(10), overwrite=True)
    assert Manifest.load(out).num_samples == 8
    assert not partial.exists()


def test_unfinished_work_of_another_recipe_is_kept(tmp_path: Path) -> None:
    out, partial = tmp_path / "set", tmp_path / "set.partial"
    build(out)
    with pytest.raises(ShardSetError, match="k/020"):
        build(out, Numbered(40, unreadable=20), overwrite=True)
    before = contents(partial)
    assert build(out).reused
    assert contents(partial) == before
    shutil.rmtree(partial)
    partial.mkdir()
    (partial / "thesis.txt").write_text("years of work")
    assert build(out).reused
    assert [path.name for path in partial.iterdir()] == ["thesis.txt"]


def test_write_shards_leaves_others_alone(tmp_path: Path) -> None:
    out, partial = tmp_path / "set", tmp_path / "set.partial"
    with locked(partial, out), pytest.raises(ShardSetError, match="another process is building"):
        write(out, overwrite=True)
    assert [path.name for path in partial.iterdir()] == ["driver.lock"]
    (partial / "thesis.txt").write_text("years of work")
    with pytest.raises(ShardSetError, match=r"such as thesis\.txt"):
        write(out, overwrite=True)
    assert (partial / "thesis.txt").exists()


def test_nobody_builds_beside_write_shards(tmp_path: Path) -> None:
    out = tmp_path / "set"

    def meddled() -> Iterator[Sample | Rejected]:
        for item in samples():
            for other in (build, write):
                with pytest.raises(ShardSetError, match="another process is building it"):
                    other(out, overwrite=True)
            yield item

    assert write(out, meddled).manifest.num_samples == 5
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_set_that_came_while_we_waited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process finishes between the look at `out` and the lock."""
    real = building.locked
    for name, make in (("one", build), ("two", write)):
        out = tmp_path / name

        def finished_first(partial: Path, out: Path, make: Any = make) -> Any:
            monkeypatch.setattr(f"{make.module}.locked", real)
            make(out)
            return real(partial, out)

        make.module = (  # type: ignore[attr-defined]
            "data_pipelines.building." + {"one": "build_set", "two": "stream"}[name]
        )
        monkeypatch.setattr(f"{make.module}.locked", finished_first)  # type: ignore[attr-defined]
        assert make(out).reused
        assert not out.with_name(f"{name}.partial").exists()


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("plan.json", b"{"),
        ("plan.json", b'{"recipe": {}}'),
        ("plan.json", b"[]"),
        ("results/train-000000.json", b'{"shards": [{"path": "x"}]}'),
        ("results/train-000000.json", b"\0\0\0"),
    ],
)
def test_damaged_files_of_a_build(tmp_path: Path, name: str, damage: bytes) -> None:
    out, partial = tmp_path / "set", tmp_path / "set.partial"
    with pytest.raises(ShardSetError, match="k/020"):
        build(out, Numbered(30, unreadable=20))
    assert json.loads((partial / name).read_text())
    (partial / name).write_bytes(damage)
    with pytest.raises(ShardSetError, match=rf"{name}: damaged, or of another .*--overwrite"):
        build(out)
    build(out, overwrite=True)
    build(tmp_path / "reference")
    assert contents(out) == contents(tmp_path / "reference")
