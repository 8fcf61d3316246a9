"""The images a run trains on: the shard sets of its config, checked, and their loader."""

import hashlib
import math
import socket
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator

from data_pipelines.loader import Loader, make_loader
from data_pipelines.manifest import Manifest
from data_pipelines.order.buckets import bucket_shapes
from data_pipelines.shard_sets import ShardSets, WeightedSet
from data_pipelines.store import CacheSettings
from simple_diffusion.config import RunConfig
from simple_diffusion.config_data import CacheConfig, DataConfig
from simple_diffusion.diffusion.multiscale import halvings, pooling_factor
from simple_diffusion.training.reference import default_cache
from simple_diffusion.training.run_folder import RunError


def open_train_sets(data: DataConfig) -> ShardSets:
    """The shard sets to train on.

    Raises:
        ValueError: a set is missing or damaged, or the cache for remote ones cannot be used.
    """
    mixed = [WeightedSet(one.path, one.weight) for one in data.mix_with]
    return ShardSets([WeightedSet(data.path, data.weight), *mixed], _cache(data.cache))


def _cache(cache: CacheConfig) -> CacheSettings:
    folder = default_cache() / "shards" if cache.folder is None else Path(cache.folder)
    return CacheSettings(
        folder=folder,
        max_bytes=int(cache.max_gb * 1e9),
        stall_s=cache.stall_seconds,
        give_up_s=cache.give_up_seconds,
    )


def image_shapes(config: RunConfig, multiple: int) -> tuple[tuple[int, int], ...] | None:
    """Heights and widths of the aspect buckets; None for squares only.

    Args:
        config: the run's.
        multiple: what the network's images must be multiples of.

    Raises:
        RunError: the buckets' sides do not fit the network or the multiscale loss.
    """
    buckets, side = config.data.buckets, config.data.image_size
    if buckets.max_aspect == 1.0:
        return None
    smallest = config.objective.multiscale_from
    pooled = 1 if smallest is None else pooling_factor(side, smallest)
    least = math.lcm(multiple, pooled)
    if buckets.multiple % least:
        raise RunError(
            f"data.buckets.multiple is {buckets.multiple}, but the network takes images whose "
            f"sides are multiples of {multiple}, and the multiscale loss ones of {pooled}; use a "
            f"multiple of {least}"
        )
    shapes = bucket_shapes(side, max_aspect=buckets.max_aspect, multiple=buckets.multiple)
    if smallest is not None:
        for height, width in shapes:
            halvings(height, width, smallest)  # refuses what does not fit
    return shapes


def train_loader(
    config: RunConfig,
    sets: ShardSets,
    shapes: tuple[tuple[int, int], ...] | None,
    accelerator: Accelerator,
) -> Callable[[int], Loader]:
    """Makes images seen -> the rest of the run's batches, this process's pieces."""
    on_node = ranks_on_node(accelerator)

    def rest_of_run(images_seen: int) -> Loader:
        return make_loader(
            sets,
            image_size=config.data.image_size,
            shapes=shapes,
            batch_size=config.train.batch_size,
            images_seen=images_seen,
            total_images=config.train.total_images,
            seed=config.seed,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            ranks_on_node=on_node,
            streams=config.data.streams,
            window=config.data.window,
            workers=config.data.workers,
            random_crop=config.data.random_crop,
            max_bad_fraction=config.data.max_bad_fraction,
        )

    return rest_of_run


def check_yardstick(sets: ShardSets, config: RunConfig) -> None:
    """Raises RunError if a Wiener denoiser is to be fitted to images that are far away."""
    if config.validation.wiener_images and sets.stores[0].bounded:
        raise RunError(
            f"validation.wiener_images is {config.validation.wiener_images}, but {sets.name} is "
            "behind a URL, and the images would be of nearly as many shards; set it to 0"
        )


def ranks_on_node(accelerator: Accelerator) -> int:
    """How many of the processes share this machine, and so its cache; not all launchers say it."""
    if accelerator.num_processes == 1:
        return 1
    name = int.from_bytes(hashlib.sha256(socket.gethostname().encode()).digest()[:7], "big")
    names = accelerator.gather(torch.tensor([name], device=accelerator.device))
    return int((names == name).sum())


def check_classes(sets: ShardSets, held_out: Path | None, config: RunConfig) -> None:
    """Raises RunError unless labels fit the network and mean the same in the held-out set."""
    classes, room = len(sets.classes), config.model.num_classes
    known = () if held_out is None else Manifest.load(held_out).classes
    if room and known != sets.classes[: len(known)]:
        raise RunError(
            f"{held_out} does not have the classes of {sets.name}, so its labels would mean "
            "something else; build both from one source with --validation"
        )
    if room and classes > room:
        raise RunError(
            f"{sets.name} has {classes} classes, but model.num_classes is {room}; set "
            f"--model.num_classes={classes} (or 0 for an unconditional model)"
        )


def check_synthetic(sets: ShardSets, held_out: Path | None, config: RunConfig) -> None:
    """Raises RunError if more images were made by a model than the config allows."""
    share, most = sets.synthetic_share, config.data.max_synthetic
    if share > most:
        made = sum(manifest.synthetic for manifest in sets.manifests)
        raise RunError(
            f"{sets.name}: {made} of {sets.num_samples} images ({100 * share:.3g}% of those drawn) "
            f"were made by a model, but data.max_synthetic is {most:g}. "
            "Models trained on the images of models lose variety and quality with every "
            "generation; train on real images, add some with `simple-diffusion data combine`, or, "
            f"if it is meant, set --data.max_synthetic={math.ceil(1000 * share) / 1000:g}"
        )
    if held_out is not None and (made := Manifest.load(held_out).synthetic):
        raise RunError(
            f"{held_out}: {made} of its images were made by a model. What training is measured "
            "against must be real, or a model that copies another would seem perfect; set "
            "data.validation_path to a set of real images"
        )
