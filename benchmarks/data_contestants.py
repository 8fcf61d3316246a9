"""One loader of images, timed on request: the child processes of `benchmarks/data.py`.

    python benchmarks/data_contestants.py ours

Reads tasks as lines of JSON, {"shards", "size", "workers", "batch_size", "seconds"}, and answers
each with {"images", "seconds", "cpu_seconds"}. Every contestant yields batches of uint8 tensors,
(B, 3, size, size), of the same square images, decoded and scaled as it is usually told to.
"""

import io
import itertools
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

SHUFFLE = 16  # samples in the shuffle buffers: shuffling is not what is timed
Make = Callable[[Path, int, int, int], Iterable[Any]]


def images_of(shards: Path) -> Iterator[bytes]:
    """The encoded images of a folder of tars."""
    import tarfile

    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                if member.name.endswith(".jpg") and file is not None:
                    yield file.read()


def bare(shards: Path, size: int, workers: int, batch_size: int) -> Iterator[torch.Tensor]:
    """The limit: encoded images in memory, simplejpeg and torch's scaling in a loop."""
    import simplejpeg
    import torch.nn.functional as F

    encoded = itertools.cycle(list(itertools.islice(images_of(shards), 64)))
    while True:
        batch = torch.empty((batch_size, 3, size, size), dtype=torch.uint8)
        for row in range(batch_size):
            pixels = simplejpeg.decode_jpeg(next(encoded), "RGB", min_height=size, min_width=size)
            image = torch.from_numpy(pixels).permute(2, 0, 1)
            if tuple(image.shape[1:]) != (size, size):
                image = F.interpolate(image[None], (size, size), mode="bicubic", antialias=True)[0]
            batch[row] = image
        yield batch


def ours(shards: Path, size: int, workers: int, batch_size: int) -> Iterable[Any]:
    """The loader that training uses."""
    from data_pipelines.loader import make_loader

    loader = make_loader(
        shards,
        image_size=size,
        batch_size=batch_size,
        total_images=10**9,
        seed=0,
        workers=workers,
    )
    return (batch.images for batch in loader)


def pillow_tensor(image: Image.Image, size: int) -> torch.Tensor:
    """A square picture scaled by Pillow: uint8, (3, size, size)."""
    scaled = image if image.size == (size, size) else image.resize((size, size), Image.LANCZOS)
    return torch.from_numpy(np.array(scaled)).permute(2, 0, 1).contiguous()


def webdataset(shards: Path, size: int, workers: int, batch_size: int) -> Iterable[Any]:
    """Stock webdataset: shuffle, decode("pil"), LANCZOS, stack, torch's DataLoader."""
    import webdataset as wds

    def pair(sample: dict[str, Any]) -> tuple[torch.Tensor, str]:
        return pillow_tensor(sample["jpg"], size), sample["json"]["class"]

    def stack(pairs: list[tuple[torch.Tensor, str]]) -> torch.Tensor:
        return torch.stack([image for image, _ in pairs])

    dataset = wds.WebDataset([str(path) for path in sorted(shards.glob("*.tar"))], shardshuffle=100)
    dataset = dataset.repeat().shuffle(SHUFFLE).decode("pil").map(pair)
    dataset = dataset.batched(batch_size, collation_fn=stack, partial=False)
    return torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=workers)


def energon(shards: Path, size: int, workers: int, batch_size: int) -> Iterable[Any]:
    """megatron-energon: its own decoder "pilrgb", LANCZOS, its savable loader."""
    # Its decorators look the sample's class up by module: it cannot be made in here.
    from energon_task import Pictures
    from megatron.energon import WorkerConfig, get_savable_loader, get_train_dataset

    dataset = get_train_dataset(
        shards,
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=workers),
        batch_size=batch_size,
        shuffle_buffer_size=SHUFFLE,
        max_samples_per_sequence=None,
        task_encoder=Pictures(partial(pillow_tensor, size=size)),
    )
    return (batch.image for batch in get_savable_loader(dataset))


CONTESTANTS: dict[str, Make] = {
    "bare": bare,
    "ours": ours,
    "webdataset": webdataset,
    "energon": energon,
}


def cpu_seconds() -> float:
    """Processor time of this process and its workers."""
    total = time.process_time()
    for child in psutil.Process().children(recursive=True):
        used = child.cpu_times()
        total += used.user + used.system
    return total


def timed(make: Make, task: dict[str, Any]) -> dict[str, float]:
    """Runs a loader until its workers are all at work, then for so many seconds more."""
    batches = iter(make(Path(task["shards"]), task["size"], task["workers"], task["batch_size"]))
    for _ in range(task["workers"] + 1):
        batch = next(batches)
    shape = (task["batch_size"], 3, task["size"], task["size"])
    assert (tuple(batch.shape), batch.dtype) == (shape, torch.uint8), (batch.shape, batch.dtype)
    images, start, before = 0, time.perf_counter(), cpu_seconds()
    while time.perf_counter() - start < task["seconds"]:
        images += len(next(batches))
    seconds, used = time.perf_counter() - start, cpu_seconds() - before
    return {"images": images, "seconds": seconds, "cpu_seconds": used}


def main() -> None:
    make = CONTESTANTS[sys.argv[1]]
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    torch.set_num_threads(1)  # per core is what counts, and workers have one thread anyway
    answers, sys.stdout = sys.stdout, io.TextIOWrapper(sys.stderr.buffer)
    for line in sys.stdin:
        print(json.dumps(timed(make, json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
