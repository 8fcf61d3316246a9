"""What a run measures and draws between steps: validation loss, sample grids, the report."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from data_pipelines.loader import Batch
from eval.report import plot_losses, write_report
from eval.wiener import yardstick
from simple_diffusion.diffusion.generate import generate
from simple_diffusion.diffusion.guidance import Network
from simple_diffusion.diffusion.prediction import Prediction
from simple_diffusion.diffusion.samplers import SAMPLERS, Spacing
from simple_diffusion.diffusion.schedules import Schedule
from simple_diffusion.training.grids import grid_labels, save_grid
from simple_diffusion.training.telemetry import MetricsFile
from simple_diffusion.training.validation import validation_mse

CheckStop = Callable[[], None]


def in_precision(network: nn.Module, dtype: torch.dtype, device: torch.device) -> Network:
    """The network under autocast to `dtype` (float32: none), with float32 outputs."""

    def call(z: Tensor, logsnr: Tensor, labels: Tensor | None = None) -> Tensor:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            return network(z, logsnr, labels).float()

    return call


@dataclass(frozen=True)
class SampleSettings:
    """How images are drawn; see `config.SamplingConfig`."""

    sampler: str
    steps: int
    spacing: Spacing
    guidance: float
    guidance_interval: tuple[float, float]
    dtype: torch.dtype
    batch_size: int


@dataclass(frozen=True)
class Sampling:
    """Draws images with a network, in batches.

    Attributes:
        schedule: of the network's training.
        prediction: what the network predicts.
        shape: (C, H, W) of an image.
        null_label: the null class; None for an unconditional network.
        device: where the network is.
        settings: how to draw.
    """

    schedule: Schedule
    prediction: Prediction
    shape: tuple[int, int, int]
    null_label: int | None
    device: torch.device
    settings: SampleSettings

    def images(
        self,
        network: nn.Module,
        indices: Sequence[int],
        labels: Tensor | None,
        *,
        seed: int,
        steps: int | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Images number `indices` of the set `seed`: (len(indices), C, H, W) in [-1, 1].

        `labels` holds one label for each; `steps` replaces the settings' number.
        """
        given = self.settings
        drawn = []
        for start in range(0, len(indices), given.batch_size):
            stop = start + given.batch_size
            drawn.append(
                generate(
                    in_precision(network, given.dtype, self.device),
                    self.schedule,
                    self.prediction,
                    SAMPLERS[given.sampler],
                    indices=indices[start:stop],
                    seed=seed,
                    shape=self.shape,
                    steps=given.steps if steps is None else steps,
                    device=self.device,
                    labels=None if labels is None else labels[start:stop],
                    null_label=self.null_label,
                    guidance=given.guidance if self.null_label is not None else 1.0,
                    guidance_interval=given.guidance_interval,
                    spacing=given.spacing,
                    on_step=on_step,
                )
            )
        return torch.cat(drawn) if drawn else torch.empty(0, *self.shape, device=self.device)


@dataclass(frozen=True)
class Evaluator:
    """Validation and pictures of one run, the same on any number of processes.

    Attributes:
        accelerator: for the processes' shares and sums.
        run_dir: where files go.
        metrics: the JSON lines.
        sampling: draws images.
        validation: (rank, processes) -> that share of the held-out batches; None without any.
        wiener: makes batches of training images to fit the Wiener denoiser to; None for none.
        logsnr: the λ of the validation loss.
        dtype: precision of the validation's network calls (training's own).
        class_counts: images of each class; grids draw classes in proportion.
        seed: of the run.
        grid_num, grid_steps, final_num: sizes of the grids.
    """

    accelerator: Accelerator
    run_dir: Path
    metrics: MetricsFile
    sampling: Sampling
    validation: Callable[[int, int], Iterable[Batch]] | None
    wiener: Callable[[], Iterable[Batch]] | None
    logsnr: Sequence[float]
    dtype: torch.dtype
    class_counts: Sequence[int]
    seed: int
    grid_num: int
    grid_steps: int
    final_num: int

    def validate(
        self, network: nn.Module, name: str, step: int, images_seen: int, check_stop: CheckStop
    ) -> None:
        """Measure the validation loss and write its metrics line."""
        if self.validation is None:
            return
        sums = validation_mse(
            in_precision(network.eval(), self.dtype, self.accelerator.device),
            self.validation(self.accelerator.process_index, self.accelerator.num_processes),
            prediction=self.sampling.prediction,
            logsnr=self.logsnr,
            seed=self.seed,
            null_label=self.sampling.null_label,
            device=self.accelerator.device,
            check_stop=check_stop,
        )
        network.train()
        sums = self.accelerator.reduce(sums, reduction="sum")
        losses = (sums[:-1] / sums[-1]).tolist()
        mean = math.fsum(losses) / len(losses)
        if self.accelerator.is_main_process:
            line = {"kind": "validation", "step": step, "images_seen": images_seen}
            line |= {"weights": name, "logsnr": list(self.logsnr), "eps_mse": losses, "mean": mean}
            self.metrics.append(line)
        self.accelerator.log({"validation": mean}, step=images_seen)

    def draw(self, network: nn.Module, images_seen: int, check_stop: CheckStop) -> None:
        """Draw the grid of the day and refresh the report."""
        self._grid(network, f"{images_seen:012d}.png", self.grid_num, self.grid_steps, check_stop)
        self._report()

    def draw_final(self, network: nn.Module, check_stop: CheckStop) -> None:
        """Draw the final grid, measure the yardstick, and write the final report."""
        self._grid(network, "final.png", self.final_num, None, check_stop)
        if self.accelerator.is_main_process:
            self._measure_yardstick()
        self._report()

    def _grid(
        self, network: nn.Module, name: str, num: int, steps: int | None, check_stop: CheckStop
    ) -> None:
        ranks, rank = self.accelerator.num_processes, self.accelerator.process_index
        share = math.ceil(num / ranks)  # equal shares, so that they can be gathered
        indices = list(range(rank * share, (rank + 1) * share))
        images = self.sampling.images(
            network.eval(),
            indices,
            grid_labels(self.seed, indices, self.class_counts, self.sampling.null_label),
            seed=self.seed,
            steps=steps,
            on_step=lambda _: check_stop(),
        )
        network.train()
        images = self.accelerator.gather(images)[:num]
        if self.accelerator.is_main_process:
            save_grid(images, self.run_dir / "samples" / name)

    def _measure_yardstick(self) -> None:
        path = self.run_dir / "wiener.json"
        if self.wiener is None or self.validation is None or self._is_measured(path):
            return
        result = yardstick(
            (batch.images for batch in self.wiener()),
            (batch.images for batch in self.validation(0, 1)),
            self.logsnr,
        )
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(result), encoding="utf-8")
        temporary.replace(path)

    def _is_measured(self, path: Path) -> bool:
        try:
            return bool(json.loads(path.read_text())["logsnr"] == list(self.logsnr))
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _report(self) -> None:
        if self.accelerator.is_main_process:
            plot_losses(self.run_dir)
            write_report(self.run_dir)
