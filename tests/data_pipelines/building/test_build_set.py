"""Building in parallel: the same bytes whoever builds, after kills and stops; clear refusals."""

import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.aspects import read_aspect_counts
from data_pipelines.building import set_folder, writer
from data_pipelines.building.build_set import build_set
from data_pipelines.building.set_folder import share_of
from data_pipelines.building.stream import BuildReport
from data_pipelines.manifest import Manifest, ShardSetError
from data_pipelines.sample import Rejected, Sample
from data_pipelines.shard_index import ShardIndex, index_path
from data_pipelines.shards import ShardReader
from data_pipelines.sources.base import Item
from data_pipelines.store import open_store
from data_pipelines.verify import verify
from tests.data_pipelines.building.numbered import Numbered, contents, picture

ROOT = Path(__file__).resolve().parents[3]


def build(out: Path, source: Any = None, **options: Any) -> BuildReport:
    defaults = {"shard_samples": 8, "validation": 0.25, "progress": False}
    return build_set(source or Numbered(), out, **{**defaults, **options})


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken build by one worker."""
    out = tmp_path_factory.mktemp("reference") / "set"
    build(out)
    return out


def keys(root: Path) -> list[list[str]]:
    """The keys of each shard."""
    reader = ShardReader(open_store(root))
    shards = reader.store.manifest.shards
    return [[reader.key(s, i) for i in range(shard.samples)] for s, shard in enumerate(shards)]


def test_what_is_written(reference: Path) -> None:
    good = [n for n in range(60) if n % 10 < 8]
    held = {n for n in range(60) if share_of(f"k/{n:03d}") < 0.25}
    listed = [n for n in range(60) if n not in held]
    expected = [
        [f"k/{n:03d}" for n in listed[start : start + 8] if n in good]
        for start in range(0, len(listed), 8)
    ]
    assert keys(reference) == [shard for shard in expected if shard]
    validation = [key for shard in keys(reference / "validation") for key in shard]
    assert validation == [f"k/{n:03d}" for n in sorted(held) if n in good]
    assert len(validation) > 3
    manifest = Manifest.load(reference)
    assert manifest.classes == ("class 0", "class 1", "class 2")
    train = [n for n in listed if n in good]
    assert manifest.class_counts == tuple(sum(n % 3 == c for n in train) for c in range(3))
    reader = ShardReader(open_store(reference))
    sample = reader.read(1, 2)
    number = int(sample.key.removeprefix("k/"))
    jpeg, width, height = picture(number % 4)
    assert (sample.image, sample.width, sample.height) == (jpeg, width, height)
    assert (sample.class_, sample.caption) == (f"class {number % 3}", f"number {number}")
    assert not list(reference.parent.glob("*.partial"))
    for root in (reference, reference / "validation"):
        assert verify(root, progress=False).sound
        for shard in Manifest.load(root).shards:
            index = ShardIndex.load(index_path(root / shard.path), tar_bytes=shard.bytes)
            numbers = [int(index.key(i).removeprefix("k/")) for i in range(len(index))]
            sizes = [picture(n % 4)[1:] for n in numbers]
            assert list(zip(index.widths, index.heights, strict=True)) == sizes
            assert sum(read_aspect_counts(shard.aspects).values()) == shard.samples


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_workers_gives_the_same_bytes(
    reference: Path, tmp_path: Path, workers: int
) -> None:
    build(tmp_path / "set", workers=workers)
    assert contents(tmp_path / "set") == contents(reference)
    assert len(contents(reference)) > 10


def start(out: Path) -> "subprocess.Popen[bytes]":
    """Begins to build with two workers in another process, in a group of its own."""
    code = (
        "from pathlib import Path; from data_pipelines.building.build_set import build_set; "
        "from tests.data_pipelines.building.numbered import Numbered; "
        f"build_set(Numbered(pause=0.03), Path({str(out)!r}), shard_samples=8, "
        f"validation=0.25, workers=2)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        start_new_session=True,
        stderr=subprocess.PIPE,
    )


def await_results(out: Path, process: "subprocess.Popen[bytes]", least: int) -> None:
    results = out.with_name(out.name + ".partial") / "results"
    deadline = time.monotonic() + 60
    while len(list(results.glob("*.json"))) < least:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_killed_twice_and_continued(reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    done = []
    for least in (1, 3):
        process = start(out)
        await_results(out, process, least)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        done.append(sorted((tmp_path / "set.partial" / "results").glob("*.json")))
    assert len(done[0]) < len(done[1]) < 9
    with pytest.raises(ShardSetError, match="no such folder"):
        Manifest.load(out)

    class Watched(Numbered):
        read: list[str] = []  # noqa: RUF012

        def sample(self, item: Item) -> Sample | Rejected:
            self.read.append(item.key)
            return super().sample(item)

    report = build(out, Watched())
    assert contents(out) == contents(reference)
    # Finished shards were not made again.
    assert len(done[1]) >= 3
    assert len(Watched.read) <= 60 - 8 * (len(done[1]) - 1)
    # The report is of the whole build all the same.
    assert report.tally.samples == 48
    assert report.tally.rejected.total() == 13


def test_ctrl_c(reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    process = start(out)
    await_results(out, process, 1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    assert f"{out}: stopped, " in said.decode()
    assert " of 9 shards are finished" in said.decode()
    assert "the same command goes on" in said.decode()
    build(out, workers=3)
    assert contents(out) == contents(reference)


def test_a_killed_worker_is_replaced(
    reference: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = Numbered(killed=20, kills=(tmp_path, 1))
    with caplog.at_level(logging.WARNING):
        build(tmp_path / "set", source, workers=2)
    assert contents(tmp_path / "set") == contents(reference)
    (message,) = [record.getMessage() for record in caplog.records]
    shard = next(
        n for n, part in enumerate(Manifest.load(reference).shards) if "k/020" in keys(reference)[n]
    )
    assert message.startswith(f"shard shard-{shard:06d}.tar: its worker was killed (SIGKILL)")


def test_a_worker_killed_again_and_again_stops_the_build(reference: Path, tmp_path: Path) -> None:
    source = Numbered(killed=20, kills=(tmp_path, 100))
    with pytest.raises(ShardSetError, match=r"shard-\d+\.tar: the worker .* was killed \(SIGKILL"):
        build(tmp_path / "set", source, workers=2)
    assert len(list(tmp_path.glob("kill-*"))) == 2
    build(tmp_path / "set", workers=2)
    assert contents(tmp_path / "set") == contents(reference)


def test_the_report_counts_by_hand(tmp_path: Path) -> None:
    report = build(tmp_path / "set")
    assert report.tally.rejected == {"damaged number 9": 3, "damaged number 19": 3} | {
        "too small": 6,
        "not an image": 1,
    }
    assert len(report.tally.examples["too small"]) == 6
    assert Rejected("item 38", "too small: 38 x 38") in report.rejected
    # Of 48 pictures, 12 of each kind but those lost: sizes 36x24, 24x36, 24x24, 80x24.
    kinds = [n % 4 for n in range(60) if n % 10 < 8]
    assert report.tally.samples == len(kinds) == 48
    wide, tall, square, wider = (kinds.count(kind) for kind in range(4))
    assert report.tally.image_bytes == sum(len(picture(kind)[0]) for kind in kinds)
    text = str(report)
    assert "short side: up to 63 px 48 (100%)" in text
    shares = [f"{n} ({100 * n / 48:.3g}%)" for n in (tall, square, wide, wider)]
    rows = zip(("1:2 to 3:4", "about square", "4:3 to 2:1", "2:1 and wider"), shares, strict=True)
    assert f"width to height: {', '.join(f'{name} {share}' for name, share in rows)}" in text
    assert "rejected: 13" in text
    assert "*.txt: not an image (7 of these files)" in text
    assert "48 jpg" in text
    total = report.manifest.num_samples + (report.validation or report.manifest).num_samples
    assert total == 48


def test_groups_are_on_one_side(tmp_path: Path) -> None:
    source = Numbered(count=120, groups=11)
    report = build(tmp_path / "set", source, split_by_group=True, validation=0.4)
    groups = {item.key: item.group for item in source.items() if isinstance(item, Item)}
    train = {groups[key] for shard in keys(tmp_path / "set") for key in shard}
    held = {groups[key] for shard in keys(tmp_path / "set" / "validation") for key in shard}
    assert held == {str(g) for g in range(11) if share_of(str(g)) < 0.4}
    assert len(held) > 1
    assert train == {None, *(str(g) for g in range(11))} - held
    lacking = len([n for n in range(120) if n % 7 == 0])
    assert f"without the field to split by: {lacking}" in str(report)


def test_about_so_many_bytes(tmp_path: Path) -> None:
    source = Numbered(count=400)
    build(tmp_path / "set", source, shard_samples=None, shard_bytes=100_000, validation=0.0)
    *shards, _ = Manifest.load(tmp_path / "set").shards
    assert len(shards) > 3
    for shard in shards:
        assert 60_000 < shard.bytes < 120_000


def test_complete_and_foreign_sets(reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    shutil.copytree(reference, out)
    assert build(out, workers=2).reused
    with pytest.raises(ShardSetError, match=r"count: 60 -> 50.*--overwrite"):
        build(out, Numbered(count=50))
    report = build(out, Numbered(count=50), overwrite=True)
    assert report.tally.samples == 40
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(ShardSetError, match=r"such as thesis\.txt"):
        build(out, overwrite=True)


def test_an_unfinished_build_of_another_recipe(tmp_path: Path) -> None:
    partial = tmp_path / "set.partial"
    with pytest.raises(ValueError, match="two items"):
        build(tmp_path / "set", Colliding())
    assert not (partial / "plan.json").exists()  # nothing that could be gone on with
    with pytest.raises(ShardSetError, match="k/030"):
        build(tmp_path / "set", Numbered(unreadable=30))
    assert (partial / "plan.json").exists()
    with pytest.raises(ShardSetError, match=r"of another recipe \(count: 60 -> 50\).*--overwrite"):
        build(tmp_path / "set", Numbered(count=50))
    report = build(tmp_path / "set", Numbered(count=50), overwrite=True)
    assert report.tally.samples == 40
    assert not partial.exists()


def test_strangers_in_the_partial_folder(tmp_path: Path) -> None:
    (tmp_path / "set.partial").mkdir()
    (tmp_path / "set.partial" / "thesis.txt").write_text("years of work")
    with pytest.raises(ShardSetError, match=r"such as thesis\.txt"):
        build(tmp_path / "set", overwrite=True)
    assert (tmp_path / "set.partial" / "thesis.txt").exists()


def test_left_by_a_killed_write_shards(reference: Path, tmp_path: Path) -> None:
    (tmp_path / "set.partial").mkdir()
    (tmp_path / "set.partial" / "shard-000000.tar").write_bytes(b"half")
    build(tmp_path / "set")
    assert contents(tmp_path / "set") == contents(reference)


def test_a_removed_shard_is_made_again(reference: Path, tmp_path: Path) -> None:
    with pytest.raises(ShardSetError, match="k/030"):
        build(tmp_path / "set", Numbered(unreadable=30))
    (tmp_path / "set.partial" / "set" / "shard-000000.tar").unlink()
    build(tmp_path / "set", Numbered())
    there = [shard.sha256 for shard in Manifest.load(tmp_path / "set").shards]
    assert there == [shard.sha256 for shard in Manifest.load(reference).shards]


def test_two_at_once(tmp_path: Path) -> None:
    class Meddling(Numbered):
        def sample(self, item: Item) -> Sample | Rejected:
            with pytest.raises(ShardSetError, match="another process is building it"):
                build(tmp_path / "set", Numbered(count=50), overwrite=True)
            return super().sample(item)

    report = build(tmp_path / "set", Meddling(count=30))
    assert report.tally.samples == 24


class Colliding(Numbered):
    def items(self) -> Any:
        yield from super().items()
        yield Item("k/017", "other/place.jpg")


class Dotted(Numbered):
    def items(self) -> Any:
        yield Item("k/0.1", 0)


class Buggy(Numbered):
    def sample(self, item: Item) -> Sample | Rejected:
        raise TypeError("a bug")


class Surrogate(Numbered):
    def sample(self, item: Item) -> Sample | Rejected:
        sample = super().sample(item)
        if isinstance(sample, Sample) and item.place == 3:
            return replace(sample, caption="\udcff")
        return sample


@pytest.mark.parametrize("workers", [1, 2])
def test_what_may_pass_is_not_rejected(tmp_path: Path, workers: int) -> None:
    with pytest.raises(ShardSetError, match=r"k/030: cannot be read \(Input/output error\); run"):
        build(tmp_path / "set", Numbered(unreadable=30), workers=workers)
    assert (tmp_path / "set.partial" / "results").exists()
    assert not list((tmp_path / "set.partial").rglob("*.unfinished"))


def test_errors_of_the_source(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"two items have the key 'k/017': 17 and other/place"):
        build(tmp_path / "set", Colliding())
    with pytest.raises(ValueError, match=r"'k/0\.1' cannot be a sample's key"):
        build(tmp_path / "set", Dotted())
    with pytest.raises(TypeError, match="a bug"):
        build(tmp_path / "set", Buggy())
    report = build(tmp_path / "set", Surrogate(), overwrite=True)
    assert report.tally.rejected["its class or caption is not valid Unicode"] == 1


def test_a_bug_in_a_worker_keeps_its_trace(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)shard-00000[01]\.tar.*TypeError: a bug"):
        build(tmp_path / "set", Buggy(), workers=2)


def test_nothing_to_build(tmp_path: Path) -> None:
    with pytest.raises(ShardSetError, match=r"no usable image came from numbers; \*\.txt: not an"):
        build(tmp_path / "set", Numbered(count=0))
    with pytest.raises(ShardSetError, match="use a larger share"):
        build(tmp_path / "other", Numbered(count=3), validation=1e-9)


def test_shards_without_a_sample_are_left_out(tmp_path: Path) -> None:
    report = build(tmp_path / "set", shard_samples=2, validation=0.0)
    names = [shard.path for shard in report.manifest.shards]
    numbers = [number for number in range(30) if number % 5 != 4]  # items 8 and 9, 18 and 19, ...
    assert names == [f"shard-{number:06d}.tar" for number in numbers]
    assert verify(tmp_path / "set", progress=False).sound


def test_no_space_while_writing(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = writer.HashedFile.write

    def full(self: Any, data: Any) -> int:
        if "shard-000003" in self.path.name and self.size > 2_000 and not self._file.closed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(writer.HashedFile, "write", full)
        with pytest.raises(ShardSetError, match=r"no space left on the disk.*is kept in .*partial"):
            build(tmp_path / "set")
    assert len(list((tmp_path / "set.partial" / "results").iterdir())) == 3
    build(tmp_path / "set")
    assert contents(tmp_path / "set") == contents(reference)


def test_too_little_space_is_seen_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(
        set_folder.shutil, "disk_usage", lambda path: usage._replace(free=2**24 + 100_000)
    )
    build(tmp_path / "small", Numbered(count=10))
    with pytest.raises(ShardSetError, match=r"MiB more are needed.*16 MiB free"):
        build(tmp_path / "large", Numbered(count=1000))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ShardSetError, match="cannot be written"):
        build(tmp_path / "set")


def test_a_read_only_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path, **options: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(ShardSetError, match=r"set: cannot be written \(Read-only file system"):
        build(tmp_path / "set")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": 1.0}, "must be a share"),
        ({"shard_samples": 0}, "shard_samples is 0"),
        ({"shard_bytes": 10**6}, "exclude each other"),
        ({"shard_bytes": 0, "shard_samples": None}, "shard_bytes is 0"),
        ({"workers": 0}, "workers is 0"),
        ({"executor": "cloud"}, "executor is 'cloud'; it must be one of local, slurm"),
        ({"slurm_options": {"partition": "cpu"}}, "'partition' is of no use with .*'local'"),
        ({"validation": 0.0, "split_by_group": True}, "needs a validation share"),
        ({"split_by_group": True}, "no image has a value of the field"),
    ],
)
def test_bad_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(tmp_path / "set", **options)
    assert not (tmp_path / "set").exists()


def test_slurm_needs_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ValueError, match=r"pip install 'simple-diffusion\[slurm\]'"):
        build(tmp_path / "set", executor="slurm")
    assert list(tmp_path.iterdir()) == []


def test_classes_keep_the_order_of_the_source(tmp_path: Path) -> None:
    class Named(Numbered):
        classes = ("class 2", "none", "class 0")

    report = build(tmp_path / "set", Named())
    assert report.manifest.classes == ("class 2", "none", "class 0", "class 1")
    assert report.manifest.class_counts[1] == 0
    document = json.loads((tmp_path / "set" / "manifest.json").read_text())
    assert document["classes"][0] == "class 2"
