"""Do the figures rank known damage as the eye does? A table of perturbations of real images.

    python benchmarks/perturbations.py data/photos --size 128

Half A of a shard set's images is the reference; half B is scored against it as it is, and after
blurring, noise, JPEG and so on. FD is given as a multiple of the undamaged half's.
"""

import argparse
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from tqdm import tqdm

from data_pipelines.loader import evaluation_loader
from data_pipelines.manifest import Manifest
from eval.features import open_extractor
from eval.metrics import score
from eval.statistics import describe

METRICS = ("kid", "fd", "precision", "recall")


def each(change: Callable[[Image.Image], Image.Image]) -> Callable[[Tensor], Tensor]:
    """A change of single pictures as a change of a batch."""

    def apply(images: Tensor) -> Tensor:
        pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
        arrays = [np.asarray(change(picture)) for picture in pictures]
        return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()

    return apply


def blur(sigma: float) -> Callable[[Tensor], Tensor]:
    return each(lambda picture: picture.filter(ImageFilter.GaussianBlur(sigma)))


def noise(deviation: float) -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)

    def apply(images: Tensor) -> Tensor:
        noisy = images + deviation * torch.randn(images.shape, generator=generator)
        return noisy.round().clamp(0, 255).byte()

    return apply


def jpeg(quality: int) -> Callable[[Tensor], Tensor]:
    def change(picture: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer).convert("RGB")

    return each(change)


def shuffle(patches: int) -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)

    def apply(images: Tensor) -> Tensor:
        count, channels, side, _ = images.shape
        patch = side // patches
        tiles = images.unfold(2, patch, patch).unfold(3, patch, patch).flatten(2, 3)
        order = torch.randperm(patches**2, generator=generator)
        tiles = tiles[:, :, order].unflatten(2, (patches, patches))
        return tiles.permute(0, 1, 2, 4, 3, 5).reshape(count, channels, side, side)

    return apply


def pixelate(factor: int) -> Callable[[Tensor], Tensor]:
    def change(picture: Image.Image) -> Image.Image:
        small = picture.resize((picture.width // factor,) * 2, Image.Resampling.BOX)
        return small.resize(picture.size, Image.Resampling.NEAREST)

    return each(change)


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "nothing": lambda images: images,
    "JPEG quality 20": jpeg(20),
    "blur, sigma 1": blur(1),
    "blur, sigma 2": blur(2),
    "blur, sigma 4": blur(4),
    "noise, deviation 10": noise(10),
    "noise, deviation 25": noise(25),
    "pixelated to a quarter": pixelate(4),
    "8x8 patches shuffled": shuffle(8),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards", type=Path)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--num", type=int, help="images (default: all)")
    parser.add_argument("--extractor", default="lite0")
    arguments = parser.parse_args()
    manifest = Manifest.load(arguments.shards)
    num = arguments.num or manifest.num_samples
    loader = evaluation_loader(arguments.shards, image_size=arguments.size, num=num, batch_size=num)
    batch = next(iter(loader))
    half = num // 2
    changes = {name: change(batch.images[half:]) for name, change in CHANGES.items()}
    most = int(batch.labels[half:].bincount().argmax())
    changes["one class only"] = batch.images[half:][batch.labels[half:] == most]
    extractor = open_extractor(arguments.extractor, device=torch.device("cpu"))
    real = describe([(batch.images[:half], None)], extractor)
    rows = {}
    for name, images in tqdm(changes.items()):
        rows[name] = score(METRICS, describe([(images, None)], extractor), real)
    floor = rows["nothing"]["fd"].value
    print(f"{arguments.shards}, {arguments.size}px, {arguments.extractor}, 2 x {half} images")
    print(f"{'':24} {'KID x1000':>10} {'FD':>8} {'FD ratio':>9} {'precision':>10} {'recall':>7}")
    for name, found in sorted(rows.items(), key=lambda row: row[1]["kid"].value):
        kid, fd, precision, recall = (found[metric].value for metric in METRICS)
        figures = f"{1000 * kid:10.2f} {fd:8.1f} {fd / floor:9.2f} {precision:10.3f} {recall:7.3f}"
        print(f"{name:24} {figures}")


if __name__ == "__main__":
    main()
