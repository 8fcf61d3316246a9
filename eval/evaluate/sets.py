"""Scores of images from anywhere: a folder of pictures, or a shard set."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from data_pipelines.decode import DecodeError, decode
from data_pipelines.loader import evaluation_loader
from data_pipelines.manifest import MANIFEST_NAME, Manifest
from data_pipelines.shards import MAX_IMAGE_BYTES
from data_pipelines.sources.listing import find_images
from eval.evaluate.comparison import Reference, check_enough, compare, key_of
from eval.evaluate.processes import start_processes
from eval.metrics import check_metrics
from eval.parts import Images, Parts, with_progress
from eval.statistics import KEEP
from simple_diffusion.training.reference import alone, default_cache

_BATCH = 64


def evaluate_images(
    root: Path,
    metrics: Sequence[str],
    reference: Reference,
    *,
    num: int | None = None,
    by_class: bool = False,
    state: PartialState | None = None,
) -> dict[str, Any]:
    """Score the images of a folder or a shard set. Every process of a launch calls it alike.

    Images are decoded as the reference's are: scaled and cropped to centre squares of its size.

    Args:
        root: a shard set (a folder with a manifest), or a folder that is searched for images.
        metrics: names in `eval.metrics.METRICS`.
        reference: what to compare with.
        num: the first so many images of a shard set's fixed order, or of a folder's by name; None
            for all.
        by_class: give figures of single classes too, where the images have the reference's classes.
        state: this process's place; None to ask the launcher.

    Returns:
        The record, on every process.

    Raises:
        ValueError: unknown metrics, no or too few images, one that cannot be decoded, or a
            reference that cannot be used.
    """
    check_metrics(metrics, reference.extractor.facts.classes)
    state = state or start_processes()
    images = _Shards(root) if (root / MANIFEST_NAME).is_file() else _Folder(root)
    count = images.count if num is None else num
    if not 2 <= count <= images.count:
        raise ValueError(f"{root}: {count} images to score; it has {images.count}")
    if by_class and images.classes != Manifest.load(reference.root).classes:
        raise ValueError(
            f"{root}: does not have the classes of {reference.root}; leave classes out"
        )
    real = reference.statistics(state)
    pins = {
        "images": str(root),
        "content": images.content(),
        "num": count,
        "image_size": reference.image_size,
        "crop": "centre square",
    }
    facts = reference.extractor.facts
    folder = (reference.cache or default_cache()) / f"images-{key_of(pins, facts)}.parts"
    parts = Parts(folder, count, _BATCH, facts)
    check_enough(metrics, count, real.count)
    with alone(folder) if state.is_main_process else nullcontext():
        state.wait_for_everyone()
        mine = parts.missing(state.process_index, state.num_processes)
        decoded = images.decoded(parts, mine, reference.image_size)
        with_progress(parts, mine, decoded, reference.extractor, "images")
        state.wait_for_everyone()
        statistics = parts.statistics(KEEP)
        state.wait_for_everyone()
        if state.is_main_process:
            parts.remove()
    return compare(metrics, statistics, pins, reference, real, by_class=by_class)


class _Shards:
    """The images of a shard set."""

    def __init__(self, root: Path) -> None:
        self._root, self._manifest = root, Manifest.load(root)
        self.count, self.classes = self._manifest.num_samples, self._manifest.classes

    def content(self) -> str:
        return self._manifest.fingerprint

    def decoded(self, parts: Parts, mine: list[int], image_size: int) -> Iterator[Images]:
        loader = evaluation_loader(
            self._root, image_size=image_size, num=parts.num, batch_size=parts.size, batches=mine
        )
        return ((batch.images, batch.labels) for batch in loader)


class _Folder:
    """The images in a folder and below it, by name."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise ValueError(f"{root}: there is no such folder")
        self._root = root
        self._paths = [image.path for image in find_images(root, None)[0]]
        self.count, self.classes = len(self._paths), ()
        if not self.count:
            raise ValueError(f"{root}: holds no images")

    def content(self) -> str:
        """Names, sizes and times of the files: reading them all twice would take too long."""
        digest = hashlib.sha256()
        for path in self._paths:
            stat = (self._root / path).stat()
            digest.update(repr((path, stat.st_size, stat.st_mtime_ns)).encode())
        return digest.hexdigest()

    def decoded(self, parts: Parts, mine: list[int], image_size: int) -> Iterator[Images]:
        for part in mine:
            paths = [self._root / self._paths[index] for index in parts.indices(part)]
            yield torch.stack([_decode(path, image_size) for path in paths]), None


def _decode(path: Path, image_size: int) -> torch.Tensor:
    if path.stat().st_size > MAX_IMAGE_BYTES:
        raise ValueError(f"{path}: larger than {MAX_IMAGE_BYTES} bytes; remove it")
    try:
        return decode(path.read_bytes(), image_size)
    except DecodeError as error:
        raise ValueError(f"{path}: {error}; mend or remove it") from None
