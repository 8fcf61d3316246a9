"""What a run measures and draws between steps: validation loss, sample grids, the report."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from data_pipelines.dataset import Batch
from eval.report import plot_losses, write_report
from eval.wiener import yardstick
from simple_diffusion.training.agreement import Agreement
from simple_diffusion.training.grids import grid_labels, save_grid
from simple_diffusion.training.sampling import Sampling, in_precision
from simple_diffusion.training.scores import Scorer
from simple_diffusion.training.telemetry import MetricsFile
from simple_diffusion.training.validation import validation_mse
from simple_diffusion.training.weights import WholeNetwork


@dataclass(frozen=True)
class Evaluator:
    """Validation and pictures of one run, the same on any number of processes.

    Attributes:
        accelerator: for the processes' shares and sums.
        agreement: hears of signals; all processes break off together.
        whole: lent the weights to evaluate.
        run_dir: where files go.
        metrics: the JSON lines.
        sampling: draws images.
        validation: (rank, processes) -> that share of the held-out batches; None without any.
        wiener: makes batches of training images to fit the Wiener denoiser to; None for none.
        scorer: scores samples against a reference; None for no scores.
        logsnr: the λ of the validation loss.
        dtype: precision of the validation's network calls (training's own).
        class_counts: images of each class; grids draw classes in proportion.
        seed: of the run.
        grid_num, grid_steps, final_num: sizes of the grids.
    """

    accelerator: Accelerator
    agreement: Agreement
    whole: WholeNetwork
    run_dir: Path
    metrics: MetricsFile
    sampling: Sampling
    validation: Callable[[int, int], Iterable[Batch]] | None
    wiener: Callable[[], Iterable[Batch]] | None
    scorer: Scorer | None
    logsnr: Sequence[float]
    dtype: torch.dtype
    class_counts: Sequence[int]
    seed: int
    grid_num: int
    grid_steps: int
    final_num: int

    def validate(self, network: nn.Module, name: str, step: int, images_seen: int) -> None:
        """Measure the validation loss and write its metrics line."""
        if self.validation is None:
            return
        with self.agreement.together():
            sums = validation_mse(
                in_precision(network, self.dtype, self.accelerator.device),
                self.validation(self.accelerator.process_index, self.accelerator.num_processes),
                prediction=self.sampling.prediction,
                logsnr=self.logsnr,
                seed=self.seed,
                null_label=self.sampling.null_label,
                device=self.accelerator.device,
                check_stop=self.agreement.check,
            )
        sums = self.accelerator.reduce(sums, reduction="sum")
        losses = (sums[:-1] / sums[-1]).tolist()
        mean = math.fsum(losses) / len(losses)
        if self.accelerator.is_main_process:
            line = {"kind": "validation", "step": step, "images_seen": images_seen}
            line |= {"weights": name, "logsnr": list(self.logsnr), "eps_mse": losses, "mean": mean}
            self.metrics.append(line)
        self.accelerator.log({"validation": mean}, step=images_seen)

    def score(self, network: nn.Module, name: str, step: int, images_seen: int) -> None:
        """Score samples and write their metrics line."""
        if self.scorer is None:
            return
        figures = self.scorer.scores(network, self.agreement)
        if self.accelerator.is_main_process:
            line = {"kind": "scores", "step": step, "images_seen": images_seen, "weights": name}
            line |= self.scorer.pins() | {"scores": {k: vars(v) for k, v in figures.items()}}
            self.metrics.append(line)
        values = {name: figure.value for name, figure in figures.items()}
        self.accelerator.log(values, step=images_seen)

    def draw(self, network: nn.Module, images_seen: int) -> None:
        """Draw the grid of the day and refresh the report."""
        self._grid(network, f"{images_seen:012d}.png", self.grid_num, self.grid_steps)
        self._report()

    def draw_final(self, network: nn.Module) -> None:
        """Draw the final grid, measure the yardstick, and write the final report."""
        self._grid(network, "final.png", self.final_num, None)
        if self.accelerator.is_main_process:
            self._measure_yardstick()
        self._report()

    def _grid(self, network: nn.Module, name: str, num: int, steps: int | None) -> None:
        ranks, rank = self.accelerator.num_processes, self.accelerator.process_index
        share = math.ceil(num / ranks)  # equal shares, so that they can be gathered
        indices = list(range(rank * share, (rank + 1) * share))
        with self.agreement.together():
            images = self.sampling.images(
                network,
                indices,
                grid_labels(self.seed, indices, self.class_counts, self.sampling.null_label),
                seed=self.seed,
                steps=steps,
                on_step=lambda _: self.agreement.check(),
            )
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
