"""Batches as a torch DataLoader that starts anywhere: order -> shards -> decode -> batches."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from data_pipelines.bad_samples import BadSamples
from data_pipelines.dataset import Batch, ShardDataset, as_is
from data_pipelines.loader_worker import start_worker
from data_pipelines.manifest import ShardSetError
from data_pipelines.order.order import Order, Piece, StepOrder, default_streams
from data_pipelines.remote.node_locks import allowed_open_files
from data_pipelines.remote.prefetch import Prefetcher
from data_pipelines.run_order import run_order, select
from data_pipelines.selection import Selection
from data_pipelines.shard_sets import ShardSets
from data_pipelines.shards import ShardReader
from data_pipelines.store import ShardStore, check_working_set, descriptor_parts, open_store

_EVALUATION_SEED = 0


class StepSampler(Sampler[Piece]):
    """Yields one rank's piece of every step from `images_seen` until `total_images` are seen."""

    def __init__(
        self,
        order: StepOrder,
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
    """Iterates the batches, and counts the bad samples.

    Args:
        dataset: Where batches come from.
        pieces: Which batches: a sampler or list of `Piece`.
        name: Where the data is, for messages.
        classes: Class names in the order of the labels.
        workers: Worker processes; 0 loads in this one.
        max_bad_fraction: Share of bad samples above which the loader stops.
        prefetch: Makes what fetches remote shards ahead of need, for one pass; None if all shards
            are local.
    """

    def __init__(
        self,
        dataset: ShardDataset,
        pieces: Sampler[Piece] | Sequence[Piece],
        *,
        name: str,
        classes: Sequence[str],
        workers: int,
        max_bad_fraction: float,
        prefetch: Callable[[], Prefetcher] | None = None,
    ) -> None:
        if workers < 0:
            raise ValueError(f"workers is {workers}; it must not be negative")
        self.classes = tuple(classes)
        self._stores = [reader.store for reader in dataset.readers]
        self._prefetch = prefetch
        self._bad = BadSamples(name, max_bad_fraction)
        self._loader: DataLoader[Batch | ShardSetError] = DataLoader(
            dataset,
            batch_size=None,  # an item is a whole batch already
            sampler=pieces,
            num_workers=workers,
            collate_fn=as_is,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=start_worker,
            prefetch_factor=4 if workers else None,
            # Its own generator: starting an iterator would draw from the global one.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self._loader)  # forks the workers before there are threads
        ahead = closing(self._prefetch()) if self._prefetch is not None else nullcontext()
        with ahead as prefetcher:
            for number, item in enumerate(batches, start=1):
                if isinstance(item, ShardSetError):
                    raise item
                self._bad.add(len(item.keys), item.replaced)
                for store in self._stores:  # what was fetched ahead, in this process
                    item.counts += store.counts.take()
                if prefetcher is not None:
                    prefetcher.consumed(number)
                yield item


def make_loader(
    data: ShardSets | Path | str,
    *,
    image_size: int,
    shapes: Sequence[tuple[int, int]] | None = None,
    batch_size: int,
    images_seen: int = 0,
    total_images: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    ranks_on_node: int = 1,
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
        data: The shard sets, or the folder of a single one.
        image_size: Side of the square images in pixels.
        shapes: Height and width of each aspect bucket; every step's images then have one of these
            shapes, that of a bucket drawn as often as the set has images of about its shape. None
            for squares only.
        batch_size: Samples per step over all ranks.
        images_seen: Global number of the first sample; with buckets, a multiple of the batch.
        total_images: The last step is the first one after which this many samples were seen.
        seed: Chooses the order and the crops.
        rank: This process.
        world_size: Number of processes; must divide `batch_size`.
        ranks_on_node: How many of them share this machine's cache of remote shards.
        streams: As in `Order`; with several sets, at most this many for each.
        window: As in `Order`.
        workers: Worker processes of this rank.
        random_crop: Crop at a place drawn from (seed, sample number) instead of the centre.
        max_bad_fraction: Share of bad samples above which `BadDataError` is raised, once
            1 / max_bad_fraction samples were seen.

    Raises:
        ShardSetError: A set is missing, damaged or empty, or the cache cannot hold what is read
            from at one time.
        ValueError: An argument is out of range, or the batch does not split evenly.
    """
    sets = data if isinstance(data, ShardSets) else ShardSets.of(data)
    selections = select(sets, shapes, batch_size)
    order = run_order(
        selections,
        sets.weights,
        bucketed=shapes is not None,
        seed=seed,
        batch_size=batch_size,
        streams=streams,
        window=window,
    )
    pieces = StepSampler(
        order,
        batch_size=batch_size,
        images_seen=images_seen,
        total_images=total_images,
        rank=rank,
        world_size=world_size,
    )
    check_working_set(sets.stores, order.working_set(batch_size, world_size, ranks_on_node))
    # Every stream has one window under way, so that many shards are read from in turn.
    parts = descriptor_parts(sets.stores)
    readers = []
    for store in sets.stores:
        count = len(store.manifest.shards)
        wanted = min(count, (streams or default_streams(count)) * window)
        readers.append(ShardReader(store, max_open=allowed_open_files(wanted, parts)))
    for reader in readers:
        if reader.store.bounded:
            reader.beside = [r for r in readers if r.store.bounded and r is not reader]
    dataset = ShardDataset(
        readers,
        selections,
        [{name: sets.classes.index(name) for name in m.classes} for m in sets.manifests],
        shapes or [(image_size, image_size)],
        seed if random_crop else None,
        channels_last=True,
    )
    return Loader(
        dataset,
        pieces,
        name=sets.name,
        classes=sets.classes,
        workers=workers,
        max_bad_fraction=max_bad_fraction,
        prefetch=sets.prefetcher(pieces, ranks_on_node=ranks_on_node, workers=workers),
    )


def evaluation_loader(
    data: ShardStore | Path | str,
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
        data: The shard set, or its folder.
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
    store = open_store(data) if isinstance(data, Path | str) else data
    manifest = store.manifest
    if not 0 < num <= manifest.num_samples:
        raise ValueError(
            f"num is {num}; {store.root} has 1 to {manifest.num_samples} samples to offer"
        )
    if batch_size < 1 or not 0 <= rank < world_size:
        raise ValueError(
            f"batch_size {batch_size}, rank {rank}, world_size {world_size}: the batch must be "
            "positive and the rank below the world size"
        )
    selection = Selection(manifest, None, store.root)
    order = Order(selection.sizes[0], seed=_EVALUATION_SEED)
    pieces = []
    starts = range(0, num, batch_size)
    for start in starts if batches is None else [starts[number] for number in batches]:
        numbers = np.arange(start, min(start + batch_size, num), dtype=np.int64)
        mine = np.array_split(numbers, world_size)[rank]
        if mine.size:
            pieces.append(Piece(mine, np.zeros_like(mine), *order.locate(mine)))
    wanted = min(len(manifest.shards), order.streams * order.window)
    most = allowed_open_files(wanted, descriptor_parts([store]))
    labels = {name: label for label, name in enumerate(manifest.classes)}
    dataset = ShardDataset(
        [ShardReader(store, max_open=most)],
        [selection],
        [labels],
        [(image_size, image_size)],
        None,
    )
    return Loader(
        dataset,
        pieces,
        name=store.root,
        classes=manifest.classes,
        workers=workers,
        max_bad_fraction=max_bad_fraction,
    )
