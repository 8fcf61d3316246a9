"""Scores of samples during training: the same figures on any number of processes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from eval.features import Extractor, figure_name
from eval.metrics import Score, score
from eval.statistics import KEEP, FeatureStatistics, image_digests
from simple_diffusion.diffusion.generate import to_uint8
from simple_diffusion.training.agreement import Agreement
from simple_diffusion.training.grids import grid_labels
from simple_diffusion.training.sampling import Sampling


@dataclass(frozen=True)
class Scorer:
    """Draws images with a network and compares them with a reference.

    Image i is drawn from (seed, i), in batches fixed by i, so it is image i of `sample` and
    `evaluate` too.

    Attributes:
        accelerator: for the processes' shares.
        extractor: makes the features.
        reference: what to compare with.
        reference_name: fingerprint of the reference's shard set.
        metrics: names in `eval.metrics.METRICS`.
        num: how many images to draw.
        steps: sampling steps; None for the sampling's own.
        sampling: draws images.
        class_counts: images of each class in training; classes are drawn in proportion.
        seed: names the set of images.
    """

    accelerator: Accelerator
    extractor: Extractor
    reference: FeatureStatistics
    reference_name: str
    metrics: Sequence[str]
    num: int
    steps: int | None
    sampling: Sampling
    class_counts: Sequence[int]
    seed: int

    def scores(self, network: nn.Module, agreement: Agreement) -> dict[str, Score]:
        """Figures by name, such as ``kid_lite0``; the same on every process.

        Raises:
            StopRequested: on every process, if one was told to stop.
        """
        size = self.sampling.settings.batch_size
        ranks, rank = self.accelerator.num_processes, self.accelerator.process_index
        facts = self.extractor.facts
        found = FeatureStatistics(facts.dim, facts.classes, KEEP)
        starts = range(0, self.num, size * ranks)
        quiet = not self.accelerator.is_main_process
        for start in tqdm(starts, desc="scoring", unit="batch", leave=False, disable=quiet):
            # A process beyond the end draws a last time all the same: gathering needs everyone.
            mine = range(start + rank * size, start + (rank + 1) * size)
            with agreement.together():
                rows = self._measure(network, mine, agreement.check)
            rows = [self.accelerator.gather(one.to(self.accelerator.device)).cpu() for one in rows]
            kept = min(size * ranks, self.num - start)
            features, digests, *probabilities = (one[:kept] for one in rows)
            found.update(
                features,
                digests.numpy().view("uint64"),
                probabilities=probabilities[0] if probabilities else None,
            )
        figures = score(self.metrics, found, self.reference)
        return {figure_name(name, facts.name): figure for name, figure in figures.items()}

    def pins(self) -> dict[str, str | int | float]:
        """What the figures depend on, besides the network."""
        settings = self.sampling.settings
        low, high = settings.guidance_interval
        return {
            "extractor": self.extractor.facts.name,
            "extractor_sha256": self.extractor.facts.sha256,
            "num": self.num,
            "reference": self.reference_name,
            "reference_images": self.reference.count,
            "sampler": settings.sampler,
            "steps": self.steps or settings.steps,
            "spacing": settings.spacing,
            "guidance": settings.guidance if self.sampling.null_label is not None else 1.0,
            "guidance_interval": f"{low:g} to {high:g}",
            "precision": str(settings.dtype).removeprefix("torch."),
            "seed": self.seed,
        }

    def _measure(
        self, network: nn.Module, indices: range, check_stop: Callable[[], None]
    ) -> list[Tensor]:
        labels = grid_labels(self.seed, indices, self.class_counts, self.sampling.null_label)
        images = self.sampling.images(
            network,
            indices,
            labels,
            seed=self.seed,
            steps=self.steps,
            on_step=lambda _: check_stop(),
        )
        if not images.isfinite().all():
            raise ValueError("the model draws values that are not finite: it has diverged")
        pixels = to_uint8(images)
        found = self.extractor(pixels)
        digests = torch.from_numpy(image_digests(pixels.cpu()).view("int64"))
        given = [found.features, digests]
        return given if found.probabilities is None else [*given, found.probabilities]
