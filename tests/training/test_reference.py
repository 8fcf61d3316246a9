from pathlib import Path
from threading import Barrier, Thread

import pytest
import torch

from data_pipelines.loader import evaluation_loader
from eval.statistics import FeatureStatistics
from simple_diffusion.training.reference import default_cache, reference_statistics
from tests.eval.fake_extractor import FakeExtractor


def measure(root: Path, cache: Path, **options) -> tuple[FeatureStatistics, FakeExtractor]:
    extractor = FakeExtractor()
    found = reference_statistics(root, image_size=16, extractor=extractor, cache=cache, **options)
    return found, extractor


def test_the_statistics_are_those_of_the_images(tiny_shards: Path, tmp_path: Path) -> None:
    found, _ = measure(tiny_shards, tmp_path)
    loader = evaluation_loader(tiny_shards, image_size=16, num=found.count, batch_size=1000)
    batch = next(iter(loader))
    features = FakeExtractor()(batch.images).features.double()
    assert found.count == len(features)
    torch.testing.assert_close(found.mean, features.mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.covariance(), features.T.cov(), rtol=1e-5, atol=1e-7)
    counts = batch.labels.bincount()
    assert torch.equal(found.kept_labels.bincount(), counts)


def test_they_are_measured_once(tiny_shards: Path, tmp_path: Path) -> None:
    first, extractor = measure(tiny_shards, tmp_path)
    again, idle = measure(tiny_shards, tmp_path)
    assert extractor.seen == first.count
    assert idle.seen == 0
    assert torch.equal(first.covariance(), again.covariance())
    assert torch.equal(first.kept, again.kept)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".lock", ".safetensors"]


def test_what_they_depend_on_is_measured_anew(tiny_shards: Path, tmp_path: Path) -> None:
    measure(tiny_shards, tmp_path)
    for root, options in ((tiny_shards, {"num": 40}), (tiny_shards / "validation", {})):
        found, extractor = measure(root, tmp_path, **options)
        assert extractor.seen == found.count > 0
    extractor = FakeExtractor()
    reference_statistics(tiny_shards, image_size=8, extractor=extractor, cache=tmp_path)
    assert extractor.seen > 0


def test_processes_share_the_work(tiny_shards: Path, tmp_path: Path) -> None:
    alone, _ = measure(tiny_shards / "validation", tmp_path / "one")
    barrier, found = Barrier(3), {}

    def work(rank: int) -> None:
        found[rank] = measure(
            tiny_shards, tmp_path / "three", rank=rank, processes=3, wait=barrier.wait
        )

    threads = [Thread(target=work, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone, extractor = measure(tiny_shards, tmp_path / "one")
    for statistics, _ in found.values():
        assert torch.equal(statistics.covariance(), alone.covariance())
    assert sum(one.seen for _, one in found.values()) == extractor.seen


def test_launches_wait_for_each_other(tiny_shards: Path, tmp_path: Path) -> None:
    found = []
    threads = [
        Thread(target=lambda: found.append(measure(tiny_shards, tmp_path))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seen = sorted(extractor.seen for _, extractor in found)
    assert seen == [0, 0, 0, found[0][0].count]
    assert all(torch.equal(one.kept, found[0][0].kept) for one, _ in found)


def test_a_damaged_cache_is_measured_again(tiny_shards: Path, tmp_path: Path) -> None:
    first, _ = measure(tiny_shards, tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    again, extractor = measure(tiny_shards, tmp_path)
    assert extractor.seen == first.count
    assert torch.equal(first.covariance(), again.covariance())


def test_too_many_are_refused(tiny_shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a reference of 5000 images"):
        measure(tiny_shards, tmp_path, num=5000)


def test_the_cache_is_where_caches_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "simple_diffusion"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache" / "simple_diffusion"
