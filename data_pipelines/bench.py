"""How fast a shard set can be read on this machine, and which stage sets the limit.

Images are read in the order of training, a batch at a time, on one thread. Each stage is timed
alone on the same images: a stage's own speed is the most that one thread could give if all the
others cost nothing. Then the real dataset does it all together, and the real loader with workers.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from tqdm import tqdm

from data_pipelines.dataset import ShardDataset, channels_last
from data_pipelines.decode import DecodeError, decode, decode_pixels, fit
from data_pipelines.loader import Loader, StepSampler
from data_pipelines.manifest import ShardSetError
from data_pipelines.order.order import Order, Piece
from data_pipelines.selection import Selection
from data_pipelines.shards import RawSample, SampleError, ShardReader
from data_pipelines.store import open_store

BATCH = 32  # a power of two: any number of streams divides it, or is divided by it
_MAX_OPEN = 64


@dataclass
class Speed:
    """What one stage did.

    Attributes:
        images: Images that went through.
        seconds: Time that this took.
        cpu_seconds: Processor time, that of workers included.
    """

    images: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @property
    def per_second(self) -> float:
        """Images in a second; infinite for a stage that took no time."""
        return self.images / self.seconds if self.seconds > 0.0 else float("inf")

    @property
    def per_cpu_second(self) -> float:
        """Images in a second of one processor."""
        return self.images / self.cpu_seconds if self.cpu_seconds > 0.0 else float("inf")

    def __add__(self, other: "Speed") -> "Speed":
        """Both done one after the other to the same images."""
        assert self.images == other.images
        seconds, cpu_seconds = self.seconds + other.seconds, self.cpu_seconds + other.cpu_seconds
        return Speed(self.images, seconds, cpu_seconds)


@dataclass(frozen=True)
class BenchReport:
    """The speeds of a shard set's stages.

    Attributes:
        root: The set.
        shape: Height and width that the images were brought to.
        image_bytes: Mean size of a stored image.
        read: Finding a sample and copying its bytes; its metadata parsed.
        decode: Bytes to pixels, JPEG at the smallest scale that covers the shape.
        resize: Cutting, scaling and turning the pixels.
        collate: Making the batch out of the images.
        together: All of it, by the dataset that training uses.
        loaders: Number of workers -> the loader that training uses.
        unusable: Samples among them that could not be used.
    """

    root: str
    shape: tuple[int, int]
    image_bytes: float
    read: Speed
    decode: Speed
    resize: Speed
    collate: Speed
    together: Speed
    loaders: dict[int, Speed]
    unusable: int

    @property
    def stages(self) -> dict[str, Speed]:
        """The stages, by name, in order."""
        names = ("read", "decode", "resize", "collate")
        return {name: getattr(self, name) for name in names}

    def __str__(self) -> str:
        total = self.read + self.decode + self.resize + self.collate
        rows: list[tuple[str, Speed, float | None]] = [
            (name, one, one.seconds / total.seconds) for name, one in self.stages.items()
        ]
        rows += [("sum of these", total, None), ("all together", self.together, None)]
        rows += [
            (f"loader, {workers} worker{'' if workers == 1 else 's'}", one, None)
            for workers, one in self.loaders.items()
        ]
        slowest = max(self.stages, key=lambda name: self.stages[name].seconds)
        lines = [
            f"{self.root}: {self.read.images} images of {self.image_bytes / 1e3:.1f} kB to "
            f"{self.shape[0]}x{self.shape[1]} pixels, stages on one thread",
            f"{'stage':<18}{'images/s':>12}{'per CPU-s':>12}{'MB/s':>10}{'time':>8}",
            *(self._line(*row) for row in rows),
            f"{slowest} sets the limit: one thread cannot exceed {total.per_second:.0f} images/s, "
            f"nor {self.stages[slowest].per_second:.0f} if all but {slowest} were free",
        ]
        if self.unusable:
            lines.append(
                f"{self.unusable} samples could not be used and were left out; list them with "
                f"`simple-diffusion data verify {self.root}`"
            )
        return "\n".join(lines)

    def _line(self, name: str, speed: Speed, share: float | None) -> str:
        rate = speed.per_second * self.image_bytes / 1e6
        figures = [
            f"{value:.{digits}f}" if value < float("inf") else "-"
            for value, digits in ((speed.per_second, 0), (speed.per_cpu_second, 0), (rate, 1))
        ]
        part = "" if share is None else f"{100 * share:.0f}%"
        return f"{name:<18}{figures[0]:>12}{figures[1]:>12}{figures[2]:>10}{part:>8}".rstrip()


def bench(
    root: Path | str,
    *,
    size: int | tuple[int, int],
    num: int = 512,
    workers: Sequence[int] = (0,),
    progress: bool = True,
) -> BenchReport:
    """Times the stages between a shard set and a batch.

    Args:
        root: Folder of the shard set.
        size: Height and width of the images, or the side of squares.
        num: Images to time, rounded up to whole batches of 32; after the set's last one the next
            epoch begins.
        workers: For each of these numbers of worker processes the loader is timed too.
        progress: Show a progress bar.

    Raises:
        ShardSetError: The set is missing, damaged or empty, or none of its images can be used.
        ValueError: An argument is out of range.
    """
    shape = (size, size) if isinstance(size, int) else size
    if min(shape) < 1 or num < 1 or min(workers, default=0) < 0:
        raise ValueError(
            f"size {shape[0]}x{shape[1]}, num {num}, workers {list(workers)}: sizes and num must "
            "be positive, workers not negative"
        )
    store = open_store(root)
    sizes = [shard.samples for shard in store.manifest.shards]
    order, batches = Order(sizes, seed=0), -(-num // BATCH)
    reader = ShardReader(store, max_open=_MAX_OPEN)
    labels = {name: label for label, name in enumerate(store.manifest.classes)}
    selection = Selection(store.manifest, None, store.root)
    dataset = ShardDataset([reader], [selection], [labels], [shape], None, channels_last=True)
    steps = 1 + batches * (1 + len(workers))
    with (
        _one_thread(),
        tqdm(total=steps * BATCH, desc="timing", unit=" images", disable=not progress) as bar,
    ):
        stages = _Stages(reader, dataset, shape)
        for step in range(-1, batches):
            piece = order.rank_batch(max(0, step) * BATCH, BATCH, 0, 1)
            # The first time opens shards, and does whatever libraries do on first use.
            timed = stages if step >= 0 else _Stages(reader, dataset, shape)
            timed.time(piece)
            bar.update(BATCH)
        if not stages.read.images:
            raise ShardSetError(
                f"{store.root}: none of {batches * BATCH} images can be used; see "
                f"`simple-diffusion data verify {store.root}`"
            )
        loaders = {
            count: _time_loader(dataset, order, store.manifest.classes, batches, count, bar)
            for count in workers
        }
    reader.close()
    return BenchReport(
        root=store.root,
        shape=shape,
        image_bytes=stages.bytes / stages.read.images,
        read=stages.read,
        decode=stages.decode,
        resize=stages.resize,
        collate=stages.collate,
        together=stages.together,
        loaders=loaders,
        unusable=stages.unusable,
    )


class _Stages:
    """The times so far, added up over batches."""

    def __init__(self, reader: ShardReader, dataset: ShardDataset, shape: tuple[int, int]) -> None:
        self._reader, self._dataset, self._shape = reader, dataset, shape
        self.read, self.decode, self.resize = Speed(), Speed(), Speed()
        self.collate, self.together = Speed(), Speed()
        self.bytes = self.unusable = 0

    def time(self, piece: Piece) -> None:
        """Times every stage on the samples of one batch."""
        samples = self._read(piece)
        if not samples:
            return
        count, images = len(samples), []
        for sample in samples:
            with _timed(self.decode, 1):
                pixels, orientation = decode_pixels(sample.image, covering=self._shape)
            with _timed(self.resize, 1):
                image = fit(pixels, orientation, self._shape)
            images.append(image)
        with _timed(self.collate, count):
            batch = channels_last(count, *self._shape)
            for row, image in enumerate(images):
                batch[row] = image
        del images, batch
        with _timed(self.together, BATCH):
            whole = self._dataset[piece]
        if isinstance(whole, ShardSetError):
            raise whole

    def _read(self, piece: Piece) -> list[RawSample]:
        """The samples of a batch that can be used; the time of the others is not counted."""
        usable, samples = [], []
        for place in zip(piece.shards.tolist(), piece.indices.tolist(), strict=True):
            try:
                decode(self._reader.read(*place).image, self._shape)
            except (SampleError, DecodeError):
                self.unusable += 1
                continue
            usable.append(place)
        with _timed(self.read, len(usable)):
            for shard, index in usable:
                samples.append(self._reader.read(shard, index))
        self.bytes += sum(len(sample.image) for sample in samples)
        return samples


def _time_loader(
    dataset: ShardDataset,
    order: Order,
    classes: Sequence[str],
    batches: int,
    workers: int,
    bar: tqdm,
) -> Speed:
    """Times the loader from its `workers`-th batch on, when all of them are at work."""
    first = max(1, workers)
    pieces = StepSampler(
        order,
        batch_size=BATCH,
        images_seen=0,
        # More than is timed, so that every worker has something to do until the clock stops.
        total_images=(first + batches + 5 * workers) * BATCH,
        rank=0,
        world_size=1,
    )
    loader = Loader(
        dataset,
        pieces,
        name=dataset.readers[0].store.root,
        classes=classes,
        workers=workers,
        max_bad_fraction=1.0,
    )
    for number, _ in enumerate(loader, start=1):
        if number == first:
            start, before = time.perf_counter(), _cpu_seconds()
        elif number > first:
            bar.update(BATCH)
        if number == first + batches:
            return Speed(
                batches * BATCH, time.perf_counter() - start, max(0.0, _cpu_seconds() - before)
            )
    raise AssertionError("the loader ended early")


def _cpu_seconds() -> float:
    """Processor time of this process and its living children."""
    total = time.process_time()
    for child in psutil.Process().children(recursive=True):
        try:
            used = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += used.user + used.system
    return total


@contextmanager
def _timed(speed: Speed, images: int) -> Iterator[None]:
    start, before = time.perf_counter(), time.process_time()
    yield
    speed.cpu_seconds += time.process_time() - before
    speed.seconds += time.perf_counter() - start
    speed.images += images


@contextmanager
def _one_thread() -> Iterator[None]:
    """Torch on one thread, as it is in workers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
