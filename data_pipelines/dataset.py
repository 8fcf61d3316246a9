"""Samples -> one rank's batch of a step: read, decode, and replace what cannot be used."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from data_pipelines.counts import ReadCounts
from data_pipelines.decode import DecodeError, decode_into
from data_pipelines.hashing import Domain, uniforms
from data_pipelines.manifest import ShardSetError
from data_pipelines.order.order import Piece
from data_pipelines.selection import Selection
from data_pipelines.shards import RawSample, SampleError, ShardReader

_MAX_NEIGHBOURS = 1000
_SMALL = ("labels", "positions", "sets")  # fields of a batch


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
        images: uint8, shape (b, 3, H, W); channels-last in memory where so asked for.
        labels: int64, shape (b,): place in the class names, -1 where there is none.
        positions: int64, shape (b,): global sample numbers.
        sets: int64, shape (b,): the shard set of each sample.
        captions: b texts, empty where there is none.
        keys: b sample keys.
        replaced: The bad samples of this piece.
        counts: What was read for it.
    """

    images: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    sets: torch.Tensor
    captions: list[str]
    keys: list[str]
    replaced: list[Replacement] = field(default_factory=list)
    counts: ReadCounts = field(default_factory=ReadCounts)

    def __getstate__(self) -> dict[str, Any]:
        # Small tensors go by value: each would cost a piece of shared memory of its own.
        small = {name: getattr(self, name).numpy() for name in _SMALL}
        return {**self.__dict__, **small}

    def __setstate__(self, state: dict[str, Any]) -> None:
        small = {name: torch.from_numpy(state[name]) for name in _SMALL}
        self.__dict__.update({**state, **small})

    def pin_memory(self) -> "Batch":
        """Moves the tensors to page-locked memory; torch's DataLoader calls it."""
        self.images = self.images.pin_memory()
        for name in _SMALL:
            setattr(self, name, getattr(self, name).pin_memory())
        return self


class ShardDataset(Dataset[Batch | ShardSetError]):
    """Map-style dataset whose index is a `Piece` of a step and whose item is its `Batch`.

    A set that turns out to be broken is returned as the error, not raised: the DataLoader would
    bury the message under a worker's traceback.

    Args:
        readers: The shard sets, in the order in which pieces number them.
        selections: Which samples of each set there are to choose from.
        labels: For each set, class name -> label.
        shapes: Height and width of the images of each bucket; one shape without buckets.
        crop_seed: If given, crops lie at a hash of (crop_seed, position), else in the centre.
        channels_last: Leave the images in the layout in which they are decoded.
    """

    def __init__(
        self,
        readers: Sequence[ShardReader],
        selections: Sequence[Selection],
        labels: Sequence[dict[str, int]],
        shapes: Sequence[tuple[int, int]],
        crop_seed: int | None,
        channels_last: bool = False,
    ) -> None:
        self.readers, self.selections = tuple(readers), tuple(selections)
        self.shapes, self.crop_seed = tuple(shapes), crop_seed
        self._channels_last = channels_last
        self._labels = tuple(labels)

    def __getitem__(self, piece: Piece) -> Batch | ShardSetError:
        try:
            return self._batch(piece)
        except ShardSetError as error:
            return error

    def _batch(self, piece: Piece) -> Batch:
        count = len(piece.positions)
        shape = self.shapes[max(0, piece.bucket)]
        batch = Batch(
            images=channels_last(count, *shape),
            labels=torch.full((count,), -1, dtype=torch.int64),
            positions=torch.from_numpy(piece.positions),
            sets=torch.from_numpy(piece.sets),
            captions=[],
            keys=[],
        )
        places = zip(
            piece.sets.tolist(), piece.shards.tolist(), piece.indices.tolist(), strict=True
        )
        for row, (number, shard, index) in enumerate(places):
            self._fill(batch, row, number, piece.bucket, shard, index)
        for reader in self.readers:
            reader.rest()
            batch.counts += reader.store.counts.take()
        if not self._channels_last:
            batch.images = batch.images.contiguous()
        return batch

    def _fill(
        self, batch: Batch, row: int, number: int, bucket: int, shard: int, index: int
    ) -> None:
        """Puts a sample into a row, or the first usable one after it in the set."""
        position = int(batch.positions[row])
        reader, selection = self.readers[number], self.selections[number]
        for attempt in range(_MAX_NEIGHBOURS):
            try:
                sample = reader.read(shard, selection.number(reader, bucket, shard, index))
                label = self._label(sample, number, shard)
                self._decode(sample, batch.images[row], number, shard, position)
            except SampleError as error:
                if attempt == 0:
                    bad = Replacement(position, error.shard, error.key, error.reason)
                    batch.replaced.append(bad)
                shard, index = selection.next(bucket, shard, index)
                continue
            batch.labels[row] = label
            batch.captions.append(sample.caption or "")
            batch.keys.append(sample.key)
            return
        root = reader.store.root
        raise ShardSetError(
            f"{root}: {_MAX_NEIGHBOURS} samples in a row cannot be used, the first is "
            f"{bad.key!r} in {bad.shard} ({bad.reason}); see `simple-diffusion data verify {root}`"
        )

    def _label(self, sample: RawSample, number: int, shard: int) -> int:
        if sample.class_ is None:
            return -1
        name = str(sample.class_)
        if name not in self._labels[number]:
            path = self.readers[number].store.manifest.shards[shard].path
            raise SampleError(path, sample.key, f"class {name!r} is not in the manifest")
        return self._labels[number][name]

    def _decode(
        self, sample: RawSample, out: torch.Tensor, number: int, shard: int, position: int
    ) -> None:
        crop = (0.5, 0.5)
        if self.crop_seed is not None:
            across, down = uniforms(self.crop_seed, Domain.CROP, position, np.arange(2))
            crop = (float(across), float(down))
        try:
            decode_into(sample.image, out, crop=crop)
        except DecodeError as error:
            path = self.readers[number].store.manifest.shards[shard].path
            raise SampleError(path, sample.key, str(error)) from None


def channels_last(count: int, height: int, width: int) -> torch.Tensor:
    """Memory for images, uint8, shape (count, 3, height, width), channels-last.

    In a worker it is memory that the main process sees, so that nothing is copied on the way.
    """
    shape = (count, height, width, 3)
    if get_worker_info() is None:
        pixels = torch.empty(shape, dtype=torch.uint8)
    else:
        storage = torch.UntypedStorage._new_shared(count * height * width * 3)
        pixels = torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)
    return pixels.permute(0, 3, 1, 2)


def as_is(item: Any) -> Any:
    """A collate function for items that are whole batches already."""
    return item
