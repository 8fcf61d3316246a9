"""Averages of any length, put together after training from snapshots of two or more lengths.

An average with a power-function profile is the sum of the weights over training along a known
curve. A weighted sum of snapshots is the average along the sum of their curves; what is sought are
the weights with which that comes closest to the wanted curve. Source: Karras et al. 2024 (EDM2),
section 3.2 and appendix C.

How close: for a random walk tracked at 0.05 and 0.10, the distance between what is rebuilt and what
would have been tracked, over the distance between that and the walk's end, is with
16 / 64 / 256 snapshots: 1e-2 / 2e-4 / 3e-6 at length 0.03, 4e-4 / 6e-6 / 1e-7 at 0.075,
9e-4 / 8e-6 / 1e-7 at 0.15, 5e-3 / 1e-4 / 3e-6 at 0.20 and 2e-2 / 3e-3 / 2e-4 at 0.25.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from simple_diffusion.config import RunConfig
from simple_diffusion.training.checkpoint_places import places_of
from simple_diffusion.training.checkpoint_reading import damage, open_verified
from simple_diffusion.training.ema import ema_name, power_exponent
from simple_diffusion.training.run_folder import RunError, snapshot_root
from simple_diffusion.training.state import Checkpoint, CheckpointError

POSTHOC = "posthoc"
# Of a snapshot's own square: it keeps the weights of snapshots small that are nearly the same, as
# their differences are rounding errors, and changes a fit by far less than float32 does.
_RIDGE = 1e-10
_NEGLIGIBLE = 1e-9  # weight below which a snapshot need not be read
_FEW_IMAGES = 5

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Snapshot:
    """The averages of a run at one moment.

    Attributes:
        images_seen: when it was taken; its name.
        updated_at: images seen at the last update of the averages, which is their time.
        checkpoint: its files, not verified yet.
    """

    images_seen: int
    updated_at: int
    checkpoint: Checkpoint


@dataclass(frozen=True)
class Rebuilt:
    """One average that was put together.

    Attributes:
        length: its averaging width.
        images_seen: where in training it ends.
        profile_error: how far the weighting of the steps is from the wanted one, relative, in the
            root mean square over training. The weights' own error is far below it.
        snapshots: how many there were to use.
        tensors: its float32 parameters by name, on the CPU.
    """

    length: float
    images_seen: int
    profile_error: float
    snapshots: int
    tensors: dict[str, Tensor]


def profile_products(time_a: Floats, power_a: Floats, time_b: Floats, power_b: Floats) -> Floats:
    """∫ p_a(t) p_b(t) dt for profiles p(t) = (γ+1) t^γ / T^(γ+1) on [0, T]; they broadcast.

    Source: Karras et al. 2024 (EDM2), appendix C.

    Args:
        time_a, time_b: T, where each profile ends.
        power_a, power_b: γ of each.

    Returns:
        The products, in units of 1/time.
    """
    power = np.where(time_a < time_b, power_b, -power_a)
    shape = (power_a + 1.0) * (power_b + 1.0) / (power_a + power_b + 1.0)
    result: Floats = shape * (time_a / time_b) ** power / np.maximum(time_a, time_b)
    return result


def posthoc_weights(
    stored: Sequence[tuple[float, float]], target_images: float, target_length: float
) -> Floats:
    """The weights of stored averages whose sum has the wanted profile, as nearly as can be.

    Args:
        stored: (images, length) of each: where it ends, and its averaging width.
        target_images: where the wanted one ends, not after the last stored one.
        target_length: its averaging width.

    Returns:
        Float64, shape (len(stored),), summing to 1.

    Raises:
        ValueError: there are none, or the wanted one ends after all of them.
    """
    return _fit(stored, target_images, target_length)[0]


def _fit(
    stored: Sequence[tuple[float, float]], target_images: float, target_length: float
) -> tuple[Floats, float]:
    """The weights, and the distance between the profiles over the wanted one's size."""
    if not stored or target_images > max(images for images, _ in stored):
        raise ValueError(
            f"an average that ends at image {target_images} cannot be rebuilt from ones that end "
            f"at {[images for images, _ in stored][-_FEW_IMAGES:]}"
        )
    # In units of the wanted time, so that nothing depends on how long training was.
    times = np.array([images for images, _ in stored], dtype=np.float64) / target_images
    powers = np.array([power_exponent(length) for _, length in stored])
    one, power = np.ones(1), np.array([power_exponent(target_length)])
    gram = profile_products(times[:, None], powers[:, None], times[None], powers[None])
    wanted = profile_products(times, powers, one, power)
    sizes = np.sqrt(np.diag(gram))
    # With unit diagonal: early profiles are thousands of times as high as late ones.
    scaled = gram / sizes[:, None] / sizes[None] + _RIDGE * np.eye(len(times))
    weights: Floats = np.linalg.solve(scaled, wanted / sizes) / sizes
    weights /= weights.sum()
    square = float(profile_products(one, power, one, power)[0])
    distance = float(weights @ gram @ weights - 2.0 * weights @ wanted) + square
    return weights, float(np.sqrt(max(distance, 0.0) / square))


def posthoc_root(config: RunConfig, name: str) -> str:
    """Where a rebuilt average is, like a run's checkpoints: a folder, or a URL."""
    return f"{config.checkpoint.path or config.run_dir}/{POSTHOC}/{name}"


def list_snapshots(config: RunConfig) -> list[Snapshot]:
    """The snapshots of a run, oldest first, without those from before the first update.

    Raises:
        RunError: there are none.
        CheckpointError: one cannot be read.
    """
    root = snapshot_root(config)
    found = []
    for place in places_of(root).listed():
        checkpoint = open_verified(place.folder)
        seen, updated = (checkpoint.state.get(key) for key in ("images_seen", "ema_updated_at"))
        if not isinstance(seen, int) or not isinstance(updated, int):
            raise CheckpointError(f"{checkpoint.path}: not a snapshot (when was it taken?)")
        if updated:
            found.append(Snapshot(seen, updated, checkpoint))
    if not found:
        raise RunError(
            f"{root}: no snapshots of the averages, from which others could be rebuilt; set "
            "ema.snapshot_images (a 64th of train.total_images or so) and two ema.lengths, such as "
            "0.05 and 0.10, and train"
        )
    return found


def reconstruct(
    config: RunConfig, lengths: Sequence[float], images: int | None = None
) -> dict[str, Rebuilt]:
    """Rebuild averages of a run; it takes memory for them, and for one average of one snapshot.

    Only snapshots up to `images` count, so that the result is the same while training goes on.

    Args:
        config: of the run, its `run_dir` being where it is now.
        lengths: averaging widths.
        images: where in training they end, a moment that has a snapshot; None for the last.

    Returns:
        Name of each average, in the order of `lengths`, -> what was rebuilt.

    Raises:
        ValueError: a length that no profile has, or two with one name.
        RunError: no snapshots, or none at `images`.
        CheckpointError: a snapshot is damaged.
    """
    names = [ema_name(length) for length in lengths]
    if len(set(names)) < len(names):
        raise ValueError(f"lengths {list(lengths)} must differ in the first three decimals")
    snapshots = _until(list_snapshots(config), images)
    tracked = {ema_name(length): length for length in config.ema.lengths}
    sources = [(snapshot, name) for snapshot in snapshots for name in tracked]
    stored = [(snapshot.updated_at, tracked[name]) for snapshot, name in sources]
    fits = [_fit(stored, snapshots[-1].updated_at, length) for length in lengths]
    sums = _weighted_sums(sources, np.stack([weights for weights, _ in fits]))
    return {
        name: Rebuilt(length, snapshots[-1].images_seen, error, len(snapshots), tensors)
        for name, length, (_, error), tensors in zip(names, lengths, fits, sums, strict=True)
    }


def _until(snapshots: list[Snapshot], images: int | None) -> list[Snapshot]:
    if images is None:
        return snapshots
    there = [snapshot.images_seen for snapshot in snapshots]
    if images not in there:
        near = sorted(there, key=lambda one: abs(one - images))[:_FEW_IMAGES]
        raise RunError(
            f"no snapshot at image {images}, where the average is to end; near it there are "
            f"{', '.join(map(str, sorted(near)))}"
        )
    return [snapshot for snapshot in snapshots if snapshot.images_seen <= images]


def _weighted_sums(
    sources: Sequence[tuple[Snapshot, str]], weights: Floats
) -> list[dict[str, Tensor]]:
    """Sum averages of snapshots: for each row of weights, shape (sums, sources), one sum."""
    sums: list[dict[str, Tensor]] = [{} for _ in weights]
    needed = [n for n in range(len(sources)) if np.abs(weights[:, n]).max() > _NEGLIGIBLE]
    for number in tqdm(needed, desc="snapshots", unit="average", leave=False):
        snapshot, name = sources[number]
        _refuse_damaged(snapshot.checkpoint)
        for key, tensor in snapshot.checkpoint.tensors(name).items():
            for total, weight in zip(sums, weights[:, number], strict=True):
                if key not in total:
                    total[key] = torch.zeros_like(tensor, dtype=torch.float32)
                total[key].add_(tensor, alpha=float(weight))
    return sums


def _refuse_damaged(snapshot: Checkpoint) -> None:
    why = damage(snapshot.folder, snapshot.files)
    if why is not None:
        raise CheckpointError(f"{why}; remove this snapshot and the others will have to do")
