"""The speeds of a shard set's stages, by a clock that only the stages move: all is exact."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipelines import bench as module
from data_pipelines import dataset
from data_pipelines.bench import BenchReport, Speed, bench
from data_pipelines.index import index_shards
from data_pipelines.manifest import ShardSetError
from data_pipelines.shards import ShardReader
from tests.data_pipelines.samples import flat_png, write_numbered_tars


class Clock:
    """Wall time, and processor time at half its speed."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        patch.setattr(module.time, "perf_counter", lambda: self.now)
        patch.setattr(module.time, "process_time", lambda: self.now / 2)

    def after(self, seconds: float, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, taking so long."""

        def slow(*arguments: Any, **options: Any) -> Any:
            self.now += seconds
            return call(*arguments, **options)

        return slow


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    write_numbered_tars(root, [50, 7, 13], bad={3: b"no image", 60: b"nor this"})
    index_shards(root)
    return root


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(monkeypatch)
    monkeypatch.setattr(ShardReader, "read", clock.after(1.0, ShardReader.read))
    monkeypatch.setattr(module, "decode_pixels", clock.after(2.0, module.decode_pixels))
    monkeypatch.setattr(module, "fit", clock.after(3.0, module.fit))
    monkeypatch.setattr(dataset, "decode_into", clock.after(5.0, dataset.decode_into))
    # Made by the bench itself; the dataset's own are made by the dataset.
    monkeypatch.setattr(module, "channels_last", clock.after(32.0, module.channels_last))
    return clock


def test_every_stage_gets_its_own_time(tmp_path: Path, clock: Clock) -> None:
    root = tmp_path / "good"
    write_numbered_tars(root, [50, 14])
    index_shards(root)
    report = bench(root, size=8, num=33, workers=[0], progress=False)
    assert report.shape == (8, 8)
    assert report.unusable == 0
    assert report.read == Speed(64, 64.0, 32.0)
    assert report.decode == Speed(64, 128.0, 64.0)
    assert report.resize == Speed(64, 3.0 * 64, 1.5 * 64)
    assert report.collate == Speed(64, 64.0, 32.0)  # twice 32 images in 32 seconds
    assert report.together == Speed(64, 6.0 * 64, 3.0 * 64)
    loader = report.loaders[0]
    assert (loader.images, loader.seconds) == (64, 6.0 * 64)


def test_samples_that_cannot_be_used_are_counted_and_left_out(shards: Path, clock: Clock) -> None:
    # 70 samples in 70 places: the next 26 of 96 begin the second epoch.
    report = bench(shards, size=8, num=96, workers=[], progress=False)
    bad, good = report.unusable, report.read.images
    assert bad in (2, 3, 4)  # two, and what the second epoch has met again
    assert good + bad == 96
    for stage in (report.read, report.decode, report.resize, report.collate):
        assert stage.images == good
    assert report.read.seconds == good  # what was read of the bad ones is not counted
    assert report.together.images == 96  # the dataset puts a neighbour in their place
    assert report.loaders == {}
    assert f"{bad} samples could not be used" in str(report)


def test_bytes_are_those_of_the_images_alone(tmp_path: Path) -> None:
    write_numbered_tars(tmp_path / "set", [32])
    index_shards(tmp_path / "set")
    report = bench(tmp_path / "set", size=4, num=32, workers=[], progress=False)
    assert report.image_bytes == sum(len(flat_png(number)) for number in range(32)) / 32


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_are_timed_on_as_many_images(shards: Path, workers: int) -> None:
    report = bench(shards, size=(8, 12), num=64, workers=[workers], progress=False)
    assert report.shape == (8, 12)
    speed = report.loaders[workers]
    assert speed.images == 64
    assert speed.seconds > 0.0


def test_the_number_of_threads_is_given_back(shards: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        bench(shards, size=8, num=1, workers=[], progress=False)
        assert torch.get_num_threads() == 3
        with pytest.raises(ShardSetError):
            bench(shards.parent, size=8, num=1, workers=[], progress=False)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_progress_is_shown_on_request_and_on_stderr(
    shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench(shards, size=8, num=32, workers=[0], progress=False)
    assert capsys.readouterr() == ("", "")
    bench(shards, size=8, num=32, workers=[0])
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "timing: 100%" in shown.err


def test_a_set_without_a_usable_image_is_an_error(tmp_path: Path) -> None:
    root = tmp_path / "set"
    write_numbered_tars(root, [4], bad=dict.fromkeys(range(4), b"no image"))
    index_shards(root)
    with pytest.raises(ShardSetError, match=r"none of .* images can be used; see .*data verify"):
        bench(root, size=8, num=4, workers=[], progress=False)


@pytest.mark.parametrize("wrong", [{"size": 0}, {"size": (8, 0)}, {"num": 0}, {"workers": [0, -1]}])
def test_arguments_out_of_range(shards: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be positive, workers not negative"):
        bench(shards, **{"size": 8, "progress": False} | wrong)


def test_speeds() -> None:
    slow, fast = Speed(60, 3.0, 1.5), Speed(60, 1.0, 1.0)
    assert (slow.per_second, slow.per_cpu_second) == (20.0, 40.0)
    assert slow + fast == Speed(60, 4.0, 2.5)
    nothing = Speed(60, 0.0, 0.0)
    assert (nothing.per_second, nothing.per_cpu_second) == (float("inf"), float("inf"))


def test_the_table() -> None:
    report = BenchReport(
        root="data/photos",
        shape=(256, 384),
        image_bytes=50_000.0,
        read=Speed(100, 0.1, 0.05),
        decode=Speed(100, 0.5, 0.5),
        resize=Speed(100, 0.0, 0.0),
        collate=Speed(100, 0.4, 0.2),
        together=Speed(100, 1.25, 1.0),
        loaders={1: Speed(100, 1.0, 1.25), 2: Speed(100, 0.625, 1.25)},
        unusable=0,
    )
    assert str(report).splitlines() == [
        "data/photos: 100 images of 50.0 kB to 256x384 pixels, stages on one thread",
        "stage                 images/s   per CPU-s      MB/s    time",
        "read                      1000        2000      50.0     10%",
        "decode                     200         200      10.0     50%",
        "resize                       -           -         -      0%",
        "collate                    250         500      12.5     40%",
        "sum of these               100         133       5.0",
        "all together                80         100       4.0",
        "loader, 1 worker           100          80       5.0",
        "loader, 2 workers          160          80       8.0",
        "decode sets the limit: one thread cannot exceed 100 images/s, nor 200 if all but decode "
        "were free",
    ]
