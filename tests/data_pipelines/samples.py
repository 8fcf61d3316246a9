"""Images and tars for the tests: made here, small, and of every kind that is needed."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


def photo(height: int, width: int, seed: int = 0) -> Pixels:
    """A smooth, colourful picture: uint8, shape (height, width, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = [
        np.sin(2 * np.pi * (a * x + b * y) + c)
        for a, b, c in rng.uniform(-6, 6, size=(3, 3)).tolist()
    ]
    return np.stack([127.5 + 120 * wave for wave in waves], axis=-1).round().astype(np.uint8)


def encode(pixels: Pixels, form: str = "PNG", **options: object) -> bytes:
    """Encodes an array by Pillow."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def flat_png(value: int, size: int = 8) -> bytes:
    """A PNG of one grey level, which stands for its sample's number in the loader's tests."""
    return encode(np.full((size, size, 3), value, dtype=np.uint8))


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    """Writes members in the order given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def write_numbered_tars(root: Path, counts: list[int], bad: dict[int, bytes] | None = None) -> None:
    """Writes tars whose n-th sample overall has key `n` and grey level n % 256.

    Args:
        root: Folder to create.
        counts: Samples in each tar.
        bad: Image bytes to store instead, by sample number.
    """
    number = 0
    for shard, count in enumerate(counts):
        members = []
        for _ in range(count):
            image = (bad or {}).get(number, flat_png(number % 256))
            metadata = {"class": f"class {number % 3}", "caption": f"caption {number}"}
            members.append((f"{number:05d}.png", image))
            members.append((f"{number:05d}.json", json.dumps(metadata).encode()))
            number += 1
        write_tar(root / f"set-{shard:03d}.tar", members)


def psnr(a: Pixels, b: Pixels) -> float:
    """Peak signal-to-noise ratio of two uint8 images in dB."""
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))
