import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from eval.parts import PartError, Parts
from eval.statistics import FeatureStatistics, image_digests
from tests.eval.fake_extractor import CLASSES, DIM, FakeExtractor

NUM, SIZE = 23, 5


def picture(index: int) -> Tensor:
    return torch.randint(0, 256, (3, 8, 8), generator=torch.Generator().manual_seed(index)).byte()


def images(parts: Parts, numbers: list[int]):
    for number in numbers:
        indices = parts.indices(number)
        yield torch.stack([picture(i) for i in indices]), torch.tensor(list(indices)) % 3


def measured(folder: Path, processes: int) -> FeatureStatistics:
    parts = Parts(folder, NUM, SIZE, FakeExtractor.facts)
    for rank in reversed(range(processes)):
        mine = parts.missing(rank, processes)
        parts.measure(mine, images(parts, mine), FakeExtractor())
    return parts.statistics(keep=10)


def test_the_parts_are_the_set() -> None:
    parts = Parts(Path("nowhere"), NUM, SIZE, FakeExtractor.facts)
    groups = [parts.indices(part) for part in range(len(parts))]
    assert list(itertools.chain(*groups)) == list(range(NUM))
    shares = [parts.missing(rank, 3) for rank in range(3)]
    assert sorted(itertools.chain(*shares)) == list(range(len(parts)))


def test_figures_do_not_depend_on_the_processes(tmp_path: Path) -> None:
    one = measured(tmp_path / "1", 1)
    for processes in (2, 4, 7):
        other = measured(tmp_path / str(processes), processes)
        assert torch.equal(other.mean, one.mean)
        assert torch.equal(other.covariance(), one.covariance())
        assert torch.equal(other.kept, one.kept)
        assert torch.equal(other.kept_labels, one.kept_labels)
        assert other.inception_score() == one.inception_score()


def test_statistics_are_those_of_the_images(tmp_path: Path) -> None:
    found = measured(tmp_path, 2)
    whole = torch.stack([picture(i) for i in range(NUM)])
    features = FakeExtractor()(whole).features.double()
    assert found.count == NUM
    torch.testing.assert_close(found.mean, features.mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.covariance(), features.T.cov(), rtol=1e-5, atol=1e-6)
    smallest = image_digests(whole).argsort()[:10]
    labels = torch.arange(NUM)[torch.from_numpy(smallest)] % 3
    assert torch.equal(found.kept_labels, labels)


def test_an_interrupted_measurement_goes_on(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "parts", NUM, SIZE, FakeExtractor.facts)
    stopped = FakeExtractor(limit=10)
    with pytest.raises(KeyboardInterrupt):
        parts.measure(parts.missing(), images(parts, parts.missing()), stopped)
    left = parts.missing()
    assert left == [2, 3, 4]
    further = FakeExtractor()
    parts.measure(left, images(parts, left), further)
    assert further.seen == NUM - 10
    assert torch.equal(parts.statistics(10).covariance(), measured(tmp_path / "o", 1).covariance())


@pytest.mark.parametrize("damage", ["cut", "rubbish", "other shape", "other names"])
def test_a_damaged_part_is_measured_again(tmp_path: Path, damage: str) -> None:
    from safetensors.torch import save_file

    measured(tmp_path, 1)
    parts = Parts(tmp_path, NUM, SIZE, FakeExtractor.facts)
    path = parts.path(1)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    elif damage == "rubbish":
        path.write_bytes(b"\xff" * 100)
    else:
        tensors = parts.read(1)
        if damage == "other shape":
            tensors["features"] = torch.zeros(SIZE, DIM + 1)
        else:
            tensors["more"] = torch.zeros(SIZE, CLASSES)
        save_file(tensors, path)
    with pytest.raises(PartError, match="part-000001"):
        parts.statistics(10)
    assert parts.missing() == [1]


def test_removing_leaves_nothing(tmp_path: Path) -> None:
    measured(tmp_path / "parts", 1)
    Parts(tmp_path / "parts", NUM, SIZE, FakeExtractor.facts).remove()
    assert not (tmp_path / "parts").exists()
