from pathlib import Path

import pytest
from PIL import Image

from data_pipelines.loader import evaluation_loader
from eval.evaluate.comparison import Reference
from eval.evaluate.sets import evaluate_images
from tests.eval.fake_extractor import FakeExtractor

METRICS = ("kid", "fd")


def reference(shards: Path, cache: Path, extractor: FakeExtractor | None = None) -> Reference:
    return Reference(shards / "validation", 16, extractor or FakeExtractor(), cache=cache)


@pytest.fixture
def folder(tiny_shards: Path, tmp_path: Path) -> Path:
    """The images of the shard set as files."""
    root = tmp_path / "pictures"
    loader = evaluation_loader(tiny_shards, image_size=16, num=80, batch_size=80)
    batch = next(iter(loader))
    for number, image in enumerate(batch.images):
        path = root / f"{number % 3}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return root


def test_a_folder_and_shards_of_the_same_images_agree(
    tiny_shards: Path, folder: Path, tmp_path: Path
) -> None:
    real = reference(tiny_shards, tmp_path / "cache")
    shards = evaluate_images(tiny_shards, METRICS, real, num=80)
    files = evaluate_images(folder, METRICS, real)
    for name, figure in shards["figures"].items():
        assert files["figures"][name]["value"] == pytest.approx(figure["value"], abs=1e-9)
        assert files["figures"][name]["floor"] == figure["floor"]
    assert files["samples"]["num"] == 80
    assert list((tmp_path / "cache").glob("*.parts")) == []


def test_real_images_score_at_the_floor(tiny_shards: Path, tmp_path: Path) -> None:
    record = evaluate_images(tiny_shards / "validation", ("fd",), reference(tiny_shards, tmp_path))
    assert record["figures"]["fd_fake"]["value"] == pytest.approx(0, abs=1e-6)


def test_figures_of_single_classes(tiny_shards: Path, folder: Path, tmp_path: Path) -> None:
    real = reference(tiny_shards, tmp_path)
    record = evaluate_images(tiny_shards, ("kid",), real, by_class=True)
    assert set(record["by_class"]) <= {"circle", "square", "stripe"}
    with pytest.raises(ValueError, match="classes"):
        evaluate_images(folder, ("kid",), real, by_class=True)


def test_bad_input(tiny_shards: Path, folder: Path, tmp_path: Path) -> None:
    real = reference(tiny_shards, tmp_path / "cache")
    with pytest.raises(ValueError, match="no such folder"):
        evaluate_images(tmp_path / "nowhere", METRICS, real)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images"):
        evaluate_images(tmp_path / "empty", METRICS, real)
    with pytest.raises(ValueError, match="it has 80"):
        evaluate_images(folder, METRICS, real, num=81)
    (folder / "0" / "0.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"0\.png"):
        evaluate_images(folder, METRICS, real)
