"""Statistics of reference images, measured once and kept."""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from data_pipelines.loader import evaluation_loader
from data_pipelines.manifest import Manifest
from eval.features import Extractor
from eval.parts import Parts, with_progress
from eval.statistics import KEEP, FeatureStatistics

_BATCH = 64
_FORMAT = 1


def default_cache() -> Path:
    """Where reference statistics are kept: $XDG_CACHE_HOME or ~/.cache, simple_diffusion/."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "simple_diffusion"


def reference_statistics(
    root: Path,
    *,
    image_size: int,
    extractor: Extractor,
    num: int | None = None,
    cache: Path | None = None,
    rank: int = 0,
    processes: int = 1,
    wait: Callable[[], None] = lambda: None,
) -> FeatureStatistics:
    """Statistics of a shard set's images, centre-cropped to squares as in training.

    They are kept under `cache` by what they depend on: the set's content, the size and number of
    the images, and the extractor.

    Args:
        root: the shard set.
        image_size: side of the images.
        extractor: makes the features.
        num: how many images, the first of a fixed pseudo-random order; None for all.
        cache: folder; None for `default_cache`.
        rank: this process, of `processes` that share the work and the cache's folder.
        processes: how many there are.
        wait: returns when all processes have called it.

    Raises:
        ShardSetError: the set is missing or damaged.
        ValueError: it does not have `num` images.
    """
    manifest = Manifest.load(root)
    num = manifest.num_samples if num is None else num
    if not 2 <= num <= manifest.num_samples:
        raise ValueError(f"{root}: a reference of {num} images; it has {manifest.num_samples}")
    pins = {
        "format": _FORMAT,
        "data": manifest.fingerprint,
        "image_size": image_size,
        "num": num,
        "keep": KEEP,
        "extractor": asdict(extractor.facts),
    }
    key = hashlib.sha256(json.dumps(pins, sort_keys=True).encode()).hexdigest()[:24]
    path = (cache or default_cache()) / f"reference-{key}.safetensors"
    with alone(path) if rank == 0 else nullcontext():
        wait()
        found = _read(path)
        if found is not None:
            wait()
            return found
        parts = Parts(path.with_suffix(".parts"), num, _BATCH, extractor.facts)
        mine = parts.missing(rank, processes)
        loader = evaluation_loader(
            root, image_size=image_size, num=num, batch_size=_BATCH, batches=mine
        )
        images = ((batch.images, batch.labels) for batch in loader)
        with_progress(parts, mine, images, extractor, "reference")
        wait()
        statistics = parts.statistics(KEEP)
        wait()
        if rank == 0:
            _save(statistics, path)
            parts.remove()
    return statistics


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Lets one launch at a time make what is at `path`; the next finds what it made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        # On a file system without locks two launches may both do the work.
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _save(statistics: FeatureStatistics, path: Path) -> None:
    """Write statistics, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        save_file(statistics.to_tensors(), temporary)
    except SafetensorError as error:
        raise OSError(f"{temporary}: cannot be written ({error})") from None
    temporary.replace(path)


def _read(path: Path) -> FeatureStatistics | None:
    """Statistics from the cache; None where there are none that can be used."""
    try:
        return FeatureStatistics.from_tensors(load_file(path))
    except (OSError, SafetensorError, ValueError):
        return None
