"""Do samples copy training images? Each sample's nearest training image, and a picture of them.

How near is too near is told by held-out images: a model that learned nothing by heart is about as
far from its training images as they are.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from data_pipelines.loader import evaluation_loader
from data_pipelines.manifest import Manifest
from eval.features import Extractor
from eval.neighbours import Nearest
from eval.statistics import FeatureStatistics
from simple_diffusion.diffusion.generate import from_uint8
from simple_diffusion.training.grids import save_grid

_BATCH = 64
COLUMNS = 5  # nearest training images shown


def memorisation(
    features: Tensor,
    samples: Callable[[range], Tensor],
    train_set: Path,
    held_out: FeatureStatistics,
    extractor: Extractor,
    *,
    image_size: int,
    shown: int,
    picture: Path,
) -> dict[str, Any]:
    """Compare samples and held-out images with every training image.

    Args:
        features: of the samples, float32 (n, dim).
        samples: draws samples by number, for the picture.
        train_set: shard set that the model was trained on.
        held_out: statistics of real images that it was not trained on.
        extractor: makes the features.
        image_size: side of the images.
        shown: rows of the picture: the samples nearest to a training image, nearest first.
        picture: PNG to write; each row is a sample, then its nearest training images.

    Returns:
        JSON values. ``nearer_share`` is the share of samples nearer to a training image than 99% of
        the held-out images are: about 0.01 for a model that copies nothing. It is null where
        held-out images are themselves training images, which leaves nothing to compare with.
    """
    ours, real = Nearest(features, COLUMNS), Nearest(held_out.kept, 1)
    for first, images, _ in _training_images(train_set, image_size):
        found = extractor(images).features
        ids = torch.arange(first, first + len(images))
        ours.update(found, ids)
        real.update(found, ids)
    distances, ids = ours.result()
    usual = real.result()[0][:, 0]
    rows = distances[:, 0].argsort()[:shown].tolist()
    _draw(picture, rows, ids, samples, train_set, image_size)
    limit = usual.quantile(0.01)
    return {
        "train_set": str(train_set),
        "train_fingerprint": Manifest.load(train_set).fingerprint,
        "median_distance": float(distances[:, 0].median()),
        "median_distance_of_held_out": float(usual.median()),
        "nearer_share": float((distances[:, 0] < limit).double().mean()) if limit > 0 else None,
        "picture": picture.name,
        "rows": rows,
    }


def _training_images(root: Path, image_size: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    num = Manifest.load(root).num_samples
    loader = evaluation_loader(root, image_size=image_size, num=num, batch_size=_BATCH)
    with tqdm(total=num, desc="training images", unit="img") as bar:
        for batch in loader:
            yield int(batch.positions[0]), batch.images, batch.labels
            bar.update(len(batch.images))


def _draw(
    path: Path,
    rows: list[int],
    ids: Tensor,
    samples: Callable[[range], Tensor],
    train_set: Path,
    image_size: int,
) -> None:
    num = Manifest.load(train_set).num_samples
    tiles = []
    for row in rows:
        near = ids[row].tolist()
        loader = evaluation_loader(
            train_set, image_size=image_size, num=num, batch_size=1, batches=near
        )
        tiles += [samples(range(row, row + 1)).cpu(), *(batch.images for batch in loader)]
    save_grid(from_uint8(torch.cat(tiles)), path, columns=1 + ids.shape[1])
