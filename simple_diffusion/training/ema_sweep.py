"""Validation loss of averages of many lengths, rebuilt from a run's snapshots."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from data_pipelines.loader import evaluation_loader
from data_pipelines.manifest import Manifest
from simple_diffusion.config import RunConfig, build_network
from simple_diffusion.models.attention import check_backend
from simple_diffusion.models.uvit import UViT
from simple_diffusion.training.assemble_evaluator import DTYPES, null_label_of
from simple_diffusion.training.data_facts import held_out_path
from simple_diffusion.training.posthoc import Rebuilt, reconstruct
from simple_diffusion.training.run_folder import RunError
from simple_diffusion.training.sampling import in_precision
from simple_diffusion.training.validation import validation_mse


@dataclass(frozen=True)
class Measured:
    """The validation loss of one average.

    Attributes:
        weights: its name.
        length: its averaging width.
        profile_error: see `posthoc.Rebuilt`.
        eps_mse: unweighted eps-MSE at each λ of `validation.logsnr`.
        mean: of these.
    """

    weights: str
    length: float
    profile_error: float
    eps_mse: tuple[float, ...]
    mean: float


@dataclass(frozen=True)
class Sweep:
    """The validation losses of averages that all end at one moment of a run.

    Attributes:
        images_seen: that moment.
        snapshots: how many they were rebuilt from.
        images: held-out images that were measured on.
        logsnr: the λ of the losses.
        measured: one for each length, shortest first.
    """

    images_seen: int
    snapshots: int
    images: int
    logsnr: tuple[float, ...]
    measured: tuple[Measured, ...]

    @property
    def best(self) -> Measured:
        """The one with the lowest mean."""
        return min(self.measured, key=lambda one: one.mean)

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        text = json.dumps({**asdict(self), "best": self.best.weights}, indent=1)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(path)


def sweep_lengths(
    config: RunConfig,
    lengths: Sequence[float],
    device: torch.device,
    *,
    images: int | None = None,
    at_once: int = 4,
) -> Sweep:
    """Measure averages on the run's own held-out images, as training does.

    Args:
        config: of the run, its `run_dir` being where it is now.
        lengths: averaging widths.
        device: where the network runs.
        images: where in training they end; None for the last snapshot.
        at_once: how many to rebuild in one reading of the snapshots; each takes memory of one copy
            of the weights.

    Raises:
        ValueError: lengths, images, data or device that do not fit.
    """
    held_out = held_out_path(config.data)
    if held_out is None or not config.validation.images:
        raise RunError(
            f"{config.run_dir} has no held-out images to measure on; build its data with "
            "--validation, or set data.validation_path and validation.images in its config.yaml"
        )
    check_backend(config.model.attention, device)
    network = build_network(config.model, config.data.image_size).to(device)
    network.eval().requires_grad_(False)
    number = min(config.validation.images, Manifest.load(held_out).num_samples)
    ordered = sorted(lengths)
    measured: list[Measured] = []
    with tqdm(total=len(ordered), desc="lengths", unit="length") as bar:
        for start in range(0, len(ordered), at_once):
            averages = reconstruct(config, ordered[start : start + at_once], images)
            for name, average in averages.items():
                losses = _losses(config, network, average, held_out, number, device)
                mean = math.fsum(losses) / len(losses)
                one = Measured(name, average.length, average.profile_error, losses, mean)
                measured.append(one)
                bar.update()
    return Sweep(
        images_seen=average.images_seen,
        snapshots=average.snapshots,
        images=number,
        logsnr=tuple(config.validation.logsnr),
        measured=tuple(measured),
    )


def _losses(
    config: RunConfig,
    network: UViT,
    average: Rebuilt,
    held_out: Path,
    number: int,
    device: torch.device,
) -> tuple[float, ...]:
    network.load_state_dict(average.tensors)
    sums = validation_mse(
        in_precision(network, DTYPES[config.train.precision], device),
        evaluation_loader(
            held_out,
            image_size=config.data.image_size,
            num=number,
            batch_size=config.validation.batch_size,
            max_bad_fraction=config.data.max_bad_fraction,
        ),
        prediction=config.objective.prediction,
        logsnr=config.validation.logsnr,
        seed=config.seed,
        null_label=null_label_of(network),
        device=device,
        check_stop=lambda: None,
    )
    return tuple((sums[:-1] / sums[-1]).tolist())
