"""Images that a run's network draws: batch by batch, or as a shard set that says what they are."""

import hashlib
import io
import json
import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import draccus
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from data_pipelines.building.stream import BuildReport, Sample, write_shards
from simple_diffusion.config import SamplingConfig
from simple_diffusion.diffusion.generate import to_uint8
from simple_diffusion.models.labels import class_label
from simple_diffusion.training.assemble_evaluator import make_sampling, sample_settings
from simple_diffusion.training.grids import grid_labels
from simple_diffusion.training.saved_run import SavedRun

SYNTHETIC = "synthetic"


def sample_shards(
    saved: SavedRun,
    sampling: SamplingConfig,
    out: Path,
    *,
    num: int,
    seed: int,
    classes: Sequence[str] | None = None,
    size: tuple[int, int] | None = None,
    shard_samples: int = 1000,
    overwrite: bool = False,
    progress: bool = True,
) -> BuildReport:
    """Draw images 0 to `num` - 1 of the set `seed` and write them as a shard set of PNGs.

    The set has the classes of the run's training data in the same order, so that labels keep their
    meaning, and every sample is marked as synthetic. A complete set of the same images is reused;
    an interrupted one leaves nothing. One batch is held in memory at a time.

    Args:
        saved: the run and its weights.
        sampling: how to draw.
        out: folder of the shard set.
        num: number of images.
        seed: names the set of images.
        classes: as in `image_labels`.
        size: (height, width) of the images; None for the training squares.
        shard_samples, overwrite: as in `data_pipelines.building.stream.write_shards`.
        progress: show a progress bar.

    Raises:
        ValueError: unknown classes, or as in `data_pipelines.building.stream.write_shards`.
    """
    labels = image_labels(saved, classes, num, seed)
    return write_shards(
        partial(_samples, saved, sampling, labels, num, seed, progress, size),
        out,
        source=f"drawn by the run {saved.path.resolve().name}: {saved.weights} after "
        f"{saved.images_seen} images of training",
        licence="; ".join(dict.fromkeys([*saved.data.licence.split("; "), SYNTHETIC])),
        recipe=_recipe(saved, sampling, labels, num, seed, classes, size),
        classes=saved.data.classes,
        shard_samples=shard_samples,
        overwrite=overwrite,
        total=num,
        progress=False,  # there is one already, of sampling steps
    )


def image_labels(
    saved: SavedRun, classes: Sequence[str] | None, num: int, seed: int
) -> Tensor | None:
    """The class of each image of a set: int64 (num,), or None for an unconditional network.

    Args:
        saved: the run.
        classes: names or numbers, taken in turn; None to draw them as often as in the training
            data.
        num: number of images.
        seed: names the set.

    Raises:
        ValueError: an unknown class, or any class of an unconditional network.
    """
    room = saved.config.model.num_classes
    if classes is None:
        return grid_labels(seed, range(num), saved.data.class_counts, room or None)
    labels = [class_label(one, saved.data.classes, room) for one in classes]
    return torch.tensor([labels[i % len(labels)] for i in range(num)])


def draw_batches(
    saved: SavedRun,
    sampling: SamplingConfig,
    labels: Tensor | None,
    num: int,
    seed: int,
    *,
    size: tuple[int, int] | None = None,
    progress: bool = True,
) -> Iterator[tuple[range, Tensor]]:
    """Draws a set of images.

    Args:
        saved: the run and its weights.
        sampling: how to draw.
        labels: as `image_labels` gives them.
        num: number of images.
        seed: names the set.
        size: (height, width) of the images; None for the training squares.
        progress: show a progress bar of sampling steps.

    Yields:
        The numbers of a batch of images, and the images: (B, C, H, W) in [-1, 1], on the CPU.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = saved.network(device)
    drawer = make_sampling(saved.config, network, device, sample_settings(sampling), size)
    starts = range(0, num, sampling.batch_size)
    steps = len(starts) * sampling.steps
    with tqdm(total=steps, desc="sampling", unit="step", disable=not progress) as bar:
        for start in starts:
            indices = range(start, min(start + sampling.batch_size, num))
            part = None if labels is None else labels[indices.start : indices.stop]
            images = drawer.images(
                network, indices, part, seed=seed, on_step=lambda _: bar.update()
            )
            yield indices, images.cpu()


def _samples(
    saved: SavedRun,
    sampling: SamplingConfig,
    labels: Tensor | None,
    num: int,
    seed: int,
    progress: bool,
    size: tuple[int, int] | None = None,
) -> Iterator[Sample]:
    names = saved.data.classes
    batches = draw_batches(saved, sampling, labels, num, seed, size=size, progress=progress)
    for indices, images in batches:
        pixels = to_uint8(images).permute(0, 2, 3, 1).contiguous().numpy()
        for index, picture in zip(indices, pixels, strict=True):
            buffer = io.BytesIO()
            Image.fromarray(picture).save(buffer, "PNG")
            height, width = picture.shape[:2]
            # Without names, or for the null class, there is no class to speak of.
            label = len(names) if labels is None else int(labels[index])
            yield Sample(
                key=f"{index:08d}",
                image=buffer.getvalue(),
                extension="png",
                width=width,
                height=height,
                class_=names[label] if label < len(names) else None,
                synthetic=True,
            )


def _recipe(
    saved: SavedRun,
    sampling: SamplingConfig,
    labels: Tensor | None,
    num: int,
    seed: int,
    classes: Sequence[str] | None,
    size: tuple[int, int] | None,
) -> dict[str, Any]:
    """All that the images depend on, as JSON values."""
    config, settings = draccus.encode(saved.config), draccus.encode(sampling)
    # Which folder a run lies in, and what it writes there, changes no image.
    used = [config[name] for name in ("model", "schedule")]
    used += [config["data"]["image_size"], config["objective"]["prediction"]]
    # Infinities are no JSON.
    ends = [end if math.isfinite(end) else None for end in sampling.guidance_interval]
    return {
        "builder": "sample",
        "run": saved.path.resolve().name,
        "config_sha256": _sha256(json.dumps(used, sort_keys=True).encode()),
        "images_seen": saved.images_seen,
        "weights": saved.weights,
        "weights_sha256": saved.checkpoint.sha256(saved.weights),
        "num": num,
        "seed": seed,
        "classes": None if classes is None else list(classes),
        "labels_sha256": None if labels is None else _sha256(labels.numpy().tobytes()),
        **({} if size is None else {"size": list(size)}),
        **settings,
        "guidance": sampling.guidance if labels is not None else 1.0,
        "guidance_interval": ends,
    }


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
