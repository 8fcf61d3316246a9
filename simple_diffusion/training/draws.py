"""All randomness of a training step, as a function of (seed, global sample positions)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from simple_diffusion.diffusion.generate import from_uint8
from simple_diffusion.diffusion.objectives import Batch
from simple_diffusion.diffusion.randomness import (
    generators,
    hash64,
    normals,
    permutation,
    uniforms,
)
from simple_diffusion.diffusion.timesteps import TimeDistribution, stratified_quantiles


@dataclass(frozen=True)
class Draws:
    """Turns decoded images into training batches.

    Attributes:
        seed: the run's seed.
        batch_size: size of the global batch.
        times: the distribution of t.
        flip: mirror half of the images.
        label_drop: share of labels replaced by the null class.
        null_label: the null class; None for an unconditional network.
        device: where the batch goes.
        choices: whether to draw what few-step objectives choose by (`Batch.pick` and `place`).
    """

    seed: int
    batch_size: int
    times: TimeDistribution
    flip: bool
    label_drop: float
    null_label: int | None
    device: torch.device
    choices: bool = False

    def batch(self, images: Tensor, labels: Tensor, positions: Tensor, start: int) -> Batch:
        """A training batch.

        Args:
            images: uint8, (b, C, H, W), on the CPU (pinned or not), in any memory layout.
            labels: int64 (b,); -1 where the image has no class.
            positions: global sample numbers g, int64 (b,).
            start: images seen before this step, so that g - start is in [0, batch_size).
        """
        x0 = from_uint8(images.to(self.device, non_blocking=True).contiguous())
        if self.flip:
            mirrored = uniforms(self.seed, "flip", positions) < 0.5
            there = mirrored.to(self.device, non_blocking=True)
            x0 = torch.where(there[:, None, None, None], x0.flip(-1), x0)
        each = generators(self.seed, "noise", positions, self.device)
        eps = normals(each, x0.shape[1:])
        return Batch(
            x0=x0,
            eps=eps,
            t=self.t(positions, start),
            labels=self._labels(labels, positions),
            pick=self._stratified("pick", positions, start).numpy() if self.choices else None,
            place=uniforms(self.seed, "place", positions).numpy() if self.choices else None,
            images_seen=start,
        )

    def t(self, positions: Tensor, start: int) -> Tensor:
        """Times of these samples, float32 (b,): one stratum of the step for each."""
        t = self.times.quantile(self._stratified("t", positions, start))
        return t.float().to(self.device, non_blocking=True)

    def _stratified(self, purpose: str, positions: Tensor, start: int) -> Tensor:
        """Uniform numbers, float64 (b,): one in each stratum of the step."""
        name = "strata" if purpose == "t" else f"strata/{purpose}"
        strata = permutation(self.seed, f"{name}/{start}", self.batch_size)[positions - start]
        jitter = uniforms(self.seed, purpose, positions)
        return stratified_quantiles(strata, jitter, self.batch_size)

    def dropout_seed(self, rank: int, start: int) -> int:
        """Seed of torch's own generators for a step: what dropout draws is made where it runs,
        so it repeats for an equal number of processes only.
        """
        return int(hash64(self.seed, f"dropout/{rank}", [start])[0] >> 1)

    def _labels(self, labels: Tensor, positions: Tensor) -> Tensor | None:
        if self.null_label is None:
            return None
        dropped = uniforms(self.seed, "label_drop", positions) < self.label_drop
        labels = torch.where(dropped | (labels < 0), self.null_label, labels)
        return labels.to(self.device, non_blocking=True)
