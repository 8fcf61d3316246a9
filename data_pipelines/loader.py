"""A shard set as a torch DataLoader that starts anywhere: order -> shards -> decode -> batches."""

import logging
import os
import resource
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from data_pipelines.decode import DecodeError, decode
from data_pipelines.hashing import uniforms
from data_pipelines.manifest import Manifest, ShardSetError
from data_pipelines.order import Order, Piece
from data_pipelines.shards import RawSample, SampleError, ShardReader

logger = logging.getLogger(__name__)

_CROP = 3  # domain of the hash; order.py has the others
_EVALUATION_SEED = 0
_MAX_NEIGHBOURS = 1000


class BadDataError(ValueError):
    """Too many samples of a shard set cannot be used."""


@dataclass(frozen=True)
class Replacement:
    """A sample that could not be used and gave its place to a neighbour.

    Attributes:
        position: Global sample number, which the neighbour took over.
        shard: Path of the bad sample's shard.
        key: Its key.
        reason: What is wrong with it.
    """

    position: int
    shard: str
    key: str
    reason: str


@dataclass
class Batch:
    """One rank's piece of a step.

    Attributes:
        images: uint8, shape (b, 3, S, S).
        labels: int64, shape (b,): place in the manifest's class names, -1 where there is none.
        positions: int64, shape (b,): global sample numbers.
        captions: b texts, empty where there is none.
        keys: b sample keys.
        replaced: The bad samples of this piece.
    """

    images: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    captions: list[str]
    keys: list[str]
    replaced: list[Replacement] = field(default_factory=list)

    def pin_memory(self) -> "Batch":
        """Moves the tensors to page-locked memory; torch's DataLoader calls it."""
        self.images = self.images.pin_memory()
        self.labels = self.labels.pin_memory()
        self.positions = self.positions.pin_memory()
        return self


class ShardDataset(Dataset[Batch | ShardSetError]):
    """Map-style dataset whose index is a `Piece` of a step and whose item is its `Batch`.

    A set that turns out to be broken is returned as the error, not raised: the DataLoader would
    bury the message under a worker's traceback.

    Args:
        reader: The shard set.
        image_size: Side of the square images.
        crop_seed: If given, crops lie at a hash of (crop_seed, position), else in the centre.
    """

    def __init__(self, reader: ShardReader, image_size: int, crop_seed: int | None) -> None:
        self.reader = reader
        self.image_size = image_size
        self.crop_seed = crop_seed
        self._labels = {name: label for label, name in enumerate(reader.manifest.classes)}

    def __getitem__(self, piece: Piece) -> Batch | ShardSetError:
        try:
            return self._batch(piece)
        except ShardSetError as error:
            return error

    def _batch(self, piece: Piece) -> Batch:
        count, side = len(piece.positions), self.image_size
        batch = Batch(
            images=torch.empty((count, 3, side, side), dtype=torch.uint8),
            labels=torch.full((count,), -1, dtype=torch.int64),
            positions=torch.from_numpy(piece.positions),
            captions=[],
            keys=[],
        )
        for row in range(count):
            place = int(piece.shards[row]), int(piece.indices[row])
            self._fill(batch, row, *place)
        return batch

    def _fill(self, batch: Batch, row: int, shard: int, index: int) -> None:
        """Puts a sample into a row, or the first usable one after it in the set."""
        position = int(batch.positions[row])
        for attempt in range(_MAX_NEIGHBOURS):
            try:
                sample = self.reader.read(shard, index)
                label, image = self._decode(sample, shard, position)
            except SampleError as error:
                if attempt == 0:
                    bad = Replacement(position, error.shard, error.key, error.reason)
                    batch.replaced.append(bad)
                shard, index = self._next(shard, index)
                continue
            batch.images[row] = image
            batch.labels[row] = label
            batch.captions.append(sample.caption or "")
            batch.keys.append(sample.key)
            return
        raise ShardSetError(
            f"{self.reader.root}: {_MAX_NEIGHBOURS} samples in a row cannot be used, the first is "
            f"{bad.key!r} in {bad.shard} ({bad.reason}); see "
            f"`simple-diffusion data verify {self.reader.root}`"
        )

    def _decode(self, sample: RawSample, shard: int, position: int) -> tuple[int, torch.Tensor]:
        path = self.reader.manifest.shards[shard].path
        label = -1
        if sample.class_ is not None:
            name = str(sample.class_)
            if name not in self._labels:
                raise SampleError(path, sample.key, f"class {name!r} is not in the manifest")
            label = self._labels[name]
        crop = (0.5, 0.5)
        if self.crop_seed is not None:
            across, down = uniforms(self.crop_seed, _CROP, position, np.arange(2))
            crop = (float(across), float(down))
        try:
            return label, decode(sample.image, self.image_size, crop=crop)
        except DecodeError as error:
            raise SampleError(path, sample.key, str(error)) from None

    def _next(self, shard: int, index: int) -> tuple[int, int]:
        shards = self.reader.manifest.shards
        if index + 1 < shards[shard].samples:
            return shard, index + 1
        shard = (shard + 1) % len(shards)
        while shards[shard].samples == 0:
            shard = (shard + 1) % len(shards)
        return shard, 0


class StepSampler(Sampler[Piece]):
    """Yields one rank's piece of every step from `images_seen` until `total_images` are seen."""

    def __init__(
        self,
        order: Order,
        *,
        batch_size: int,
        images_seen: int,
        total_images: int,
        rank: int,
        world_size: int,
    ) -> None:
        if images_seen < 0:
            raise ValueError(f"images_seen is {images_seen}; it must not be negative")
        order.check_batch(batch_size, world_size)
        self._order, self._batch_size = order, batch_size
        self._starts = range(images_seen, total_images, batch_size)
        self._rank, self._world_size = rank, world_size

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[Piece]:
        for start in self._starts:
            yield self._order.rank_batch(start, self._batch_size, self._rank, self._world_size)


class Loader:
    """Iterates the batches, and counts and reports the bad samples.

    Args:
        dataset: Where batches come from.
        pieces: Which batches: a sampler or list of `Piece`.
        workers: Worker processes; 0 loads in this one.
        max_bad_fraction: Share of bad samples above which the loader stops.
    """

    def __init__(
        self,
        dataset: ShardDataset,
        pieces: Sampler[Piece] | Sequence[Piece],
        *,
        workers: int,
        max_bad_fraction: float,
    ) -> None:
        if not 0.0 <= max_bad_fraction <= 1.0:
            raise ValueError(f"max_bad_fraction is {max_bad_fraction}; it must be in [0, 1]")
        if workers < 0:
            raise ValueError(f"workers is {workers}; it must not be negative")
        self.manifest = dataset.reader.manifest
        self._root = dataset.reader.root
        self._max_bad_fraction = max_bad_fraction
        self._seen = 0
        self._replaced = 0
        self._bad: dict[tuple[str, str], str] = {}
        self._loader: DataLoader[Batch | ShardSetError] = DataLoader(
            dataset,
            batch_size=None,  # an item is a whole batch already
            sampler=pieces,
            num_workers=workers,
            collate_fn=_as_is,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_start_worker,
            prefetch_factor=4 if workers else None,
            # Its own generator: starting an iterator would draw from the global one.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        for item in self._loader:
            if isinstance(item, ShardSetError):
                raise item
            self._account(item)
            yield item

    def _account(self, batch: Batch) -> None:
        self._seen += len(batch.keys)
        self._replaced += len(batch.replaced)
        for bad in batch.replaced:
            if (bad.shard, bad.key) not in self._bad:
                self._bad[bad.shard, bad.key] = bad.reason
                logger.warning("%s: sample %r replaced: %s", bad.shard, bad.key, bad.reason)
        limit = self._max_bad_fraction
        # One bad sample among the first few is no rate yet.
        enough = limit == 0.0 or self._seen >= 1.0 / limit
        if enough and self._replaced > limit * self._seen:
            raise BadDataError(self._complaint())

    def _complaint(self) -> str:
        by_shard: dict[str, int] = {}
        for shard, _ in self._bad:
            by_shard[shard] = by_shard.get(shard, 0) + 1
        worst = sorted(by_shard, key=lambda shard: -by_shard[shard])[:5]
        examples = [f"{shard}: {key!r}: {reason}" for (shard, key), reason in self._bad.items()]
        return (
            f"{self._root}: {self._replaced} of {self._seen} samples could not be used, more than "
            f"the allowed share of {self._max_bad_fraction:g}. Worst shards: "
            + ", ".join(f"{shard} ({by_shard[shard]})" for shard in worst)
            + ". For example "
            + "; ".join(examples[:5])
            + f". List all with `simple-diffusion data verify {self._root}`"
        )


def _as_is(item: Any) -> Any:
    return item


def _start_worker(worker: int) -> None:
    """Leaves signals to the main process: a worker that they kill would take the run with it.

    Schedulers and terminals signal the whole process group. SIGTERM must not simply be ignored,
    though: it is how the main process ends its workers when it exits, and it waits for them.
    """
    for name in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(name, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_exit_when_the_parent_says_so, daemon=True).start()


def _exit_when_the_parent_says_so() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def _open_reader(root: Path, manifest: Manifest, wanted: int) -> ShardReader:
    """Opens a set with room for `wanted` open shards, as far as the process may open files."""
    soft_limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = soft_limit // 2 if soft_limit != resource.RLIM_INFINITY else wanted
    return ShardReader(root, manifest, max_open=max(1, min(wanted, allowed)))


def make_loader(
    root: Path | str,
    *,
    image_size: int,
    batch_size: int,
    images_seen: int = 0,
    total_images: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    streams: int | None = None,
    window: int = 4,
    workers: int = 0,
    random_crop: bool = False,
    max_bad_fraction: float = 0.01,
) -> Loader:
    """Makes the training loader of one rank. Do not let Accelerate prepare it.

    What it yields depends on `seed` and the global sample numbers only: starting at
    `images_seen` is the same as skipping to it, with any number of ranks and workers.

    Args:
        root: Folder of the shard set.
        image_size: Side of the square images in pixels.
        batch_size: Samples per step over all ranks.
        images_seen: Global number of the first sample.
        total_images: The last step is the first one after which this many samples were seen.
        seed: Chooses the order and the crops.
        rank: This process.
        world_size: Number of processes; must divide `batch_size`.
        streams: As in `Order`.
        window: As in `Order`.
        workers: Worker processes of this rank.
        random_crop: Crop at a place drawn from (seed, sample number) instead of the centre.
        max_bad_fraction: Share of bad samples above which `BadDataError` is raised, once
            1 / max_bad_fraction samples were seen.

    Raises:
        ShardSetError: The set is missing, damaged or empty.
        ValueError: An argument is out of range, or the batch does not split evenly.
    """
    root = Path(root)
    manifest = Manifest.load(root)
    sizes = [shard.samples for shard in manifest.shards]
    order = Order(sizes, seed=seed, streams=streams, window=window)
    pieces = StepSampler(
        order,
        batch_size=batch_size,
        images_seen=images_seen,
        total_images=total_images,
        rank=rank,
        world_size=world_size,
    )
    # Every stream has one window under way, so that many shards are read from in turn.
    reader = _open_reader(root, manifest, min(len(sizes), order.streams * window))
    dataset = ShardDataset(reader, image_size, seed if random_crop else None)
    return Loader(dataset, pieces, workers=workers, max_bad_fraction=max_bad_fraction)


def evaluation_loader(
    root: Path | str,
    *,
    image_size: int,
    num: int,
    batch_size: int,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    batches: Sequence[int] | None = None,
    max_bad_fraction: float = 0.01,
) -> Loader:
    """Makes a loader of the first `num` samples in a fixed pseudo-random order, centre-cropped.

    Over all ranks the positions 0 to num - 1 appear once each. The last step may be smaller, and
    ranks differ by one sample a step at most; a rank may have one step fewer than another.

    Args:
        root: Folder of the shard set.
        image_size: Side of the square images in pixels.
        num: Number of samples, at most as many as the set has.
        batch_size: Samples per step over all ranks.
        workers: Worker processes of this rank.
        rank: This process.
        world_size: Number of processes.
        batches: Only these steps, counted from 0, in this order; all by default.
        max_bad_fraction: As in `make_loader`.

    Raises:
        ShardSetError: The set is missing, damaged or empty.
        ValueError: An argument is out of range.
    """
    root = Path(root)
    manifest = Manifest.load(root)
    if not 0 < num <= manifest.num_samples:
        raise ValueError(f"num is {num}; {root} has 1 to {manifest.num_samples} samples to offer")
    if batch_size < 1 or not 0 <= rank < world_size:
        raise ValueError(
            f"batch_size {batch_size}, rank {rank}, world_size {world_size}: the batch must be "
            "positive and the rank below the world size"
        )
    order = Order([shard.samples for shard in manifest.shards], seed=_EVALUATION_SEED)
    pieces = []
    starts = range(0, num, batch_size)
    for start in starts if batches is None else [starts[number] for number in batches]:
        numbers = np.arange(start, min(start + batch_size, num), dtype=np.int64)
        mine = np.array_split(numbers, world_size)[rank]
        if mine.size:
            pieces.append(Piece(mine, *order.locate(mine)))
    reader = _open_reader(root, manifest, min(len(manifest.shards), order.streams * order.window))
    dataset = ShardDataset(reader, image_size, None)
    return Loader(dataset, pieces, workers=workers, max_bad_fraction=max_bad_fraction)
