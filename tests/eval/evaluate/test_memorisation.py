from pathlib import Path

import torch
from torch import Tensor

from data_pipelines.loader import evaluation_loader
from eval.evaluate.memorisation import memorisation
from simple_diffusion.training.reference import reference_statistics
from tests.eval.fake_extractor import FakeExtractor


def training_images(root: Path) -> Tensor:
    loader = evaluation_loader(root, image_size=16, num=60, batch_size=60)
    return next(iter(loader)).images


def measure(root: Path, tmp_path: Path, images: Tensor) -> dict:
    extractor = FakeExtractor()
    held_out = reference_statistics(
        root / "validation", image_size=16, extractor=extractor, cache=tmp_path
    )
    return memorisation(
        extractor(images).features,
        lambda rows: images[rows.start : rows.stop],
        root,
        held_out,
        extractor,
        image_size=16,
        shown=4,
        picture=tmp_path / "neighbours.png",
    )


def test_copies_are_found(tiny_shards: Path, tmp_path: Path) -> None:
    copies = training_images(tiny_shards)
    found = measure(tiny_shards, tmp_path, copies)
    assert found["nearer_share"] == 1.0
    assert found["median_distance"] < 1e-6 < found["median_distance_of_held_out"]


def test_strangers_are_not(tiny_shards: Path, tmp_path: Path) -> None:
    noise = torch.randint(0, 256, (40, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    found = measure(tiny_shards, tmp_path, noise.byte())
    assert found["nearer_share"] == 0.0
    assert found["median_distance"] > found["median_distance_of_held_out"]


def test_the_picture_shows_the_copy_first(tiny_shards: Path, tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    noise = torch.randint(0, 256, (40, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    images = noise.byte()
    images[17] = training_images(tiny_shards)[5]
    found = measure(tiny_shards, tmp_path, images)
    assert found["rows"][0] == 17
    page = np.asarray(Image.open(tmp_path / "neighbours.png"))
    assert np.array_equal(page[:16, :16], images[17].permute(1, 2, 0).numpy())
    assert np.array_equal(page[:16, 16:32], page[:16, :16])  # its source stands beside it
