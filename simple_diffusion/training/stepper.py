"""One optimiser step: forward and backward over the micro-batches, then the update, or none."""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data_pipelines.dataset import Batch as ImageBatch
from simple_diffusion.diffusion.objectives import Batch, Losses, Objective
from simple_diffusion.training.draws import Draws
from simple_diffusion.training.ema import Ema
from simple_diffusion.training.health import poison
from simple_diffusion.training.optim import set_learning_rate
from simple_diffusion.training.parallel import Parallel, clip_gradients
from simple_diffusion.training.teacher import TeacherNetwork


@dataclass(frozen=True)
class StepResult:
    """What came of a step, on the device.

    Attributes:
        losses: of this process's images, in their order.
        terms: named parts of the losses.
        norm: gradient norm before clipping, 0-d, the same on all processes; not finite if the
            step was skipped.
    """

    losses: Tensor
    terms: dict[str, Tensor]
    norm: Tensor


@dataclass
class Stepper:
    """Updates a network and its averages, without waiting for the device.

    A step with a non-finite loss or gradient anywhere changes nothing, on any process.

    Attributes:
        network: the plain module whose weights are trained.
        parallel: the same, as the processes share it.
        objective: (model, batch, teacher) -> losses.
        optimizer: over the network's parameters; fused, so that it can skip on the device.
        rate: images seen at the end of a step -> learning rate.
        ema: averages of the network.
        draws: the randomness of a step.
        rank: of this process.
        micro_batch_size: images a device takes at once; None for all of its share.
        clip_norm: largest gradient norm.
        teacher: makes the targets of few-step objectives; None for plain denoising.
    """

    network: nn.Module
    parallel: Parallel
    objective: Objective
    optimizer: torch.optim.Optimizer
    rate: Callable[[int], float]
    ema: Ema
    draws: Draws
    rank: int
    micro_batch_size: int | None
    clip_norm: float
    teacher: TeacherNetwork | None = None

    def __post_init__(self) -> None:
        self._parameters: dict[str, Tensor] = dict(self.network.named_parameters())

    def step(self, images: ImageBatch, number: int, images_seen: int) -> StepResult:
        """Do step `number`, which begins at `images_seen`, with this process's images."""
        torch.manual_seed(self.draws.dropout_seed(self.rank, images_seen))
        batch = self.draws.batch(images.images, images.labels, images.positions, images_seen)
        if self.teacher is not None:
            self.teacher.refresh()
        losses = self._gradients(batch)
        norm = clip_gradients(self.network, self.clip_norm)
        finite = norm.isfinite()
        seen = images_seen + self.draws.batch_size
        set_learning_rate(self.optimizer, self.rate(seen))
        self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self._parameters, number, seen, finite)
        return StepResult(losses.loss, losses.terms, norm)

    def _gradients(self, batch: Batch) -> Losses:
        """Backward over the micro-batches; the losses of all of them."""
        local = batch.x0.shape[0]
        size = self.micro_batch_size or local
        parts = math.ceil(local / size)
        found: list[Losses] = []
        for number, part in enumerate(_split(batch, size), start=1):
            with nullcontext() if number == parts else self.parallel.unsynchronised():
                losses = self.objective(self.parallel.model, part, self.teacher)
                loss = losses.loss.sum() / local
                loss.backward(gradient=poison(loss.detach()))
            found.append(Losses(losses.loss.detach(), losses.terms))
        return Losses(
            torch.cat([one.loss for one in found]),
            {name: torch.cat([one.terms[name] for one in found]) for name in found[0].terms},
        )


def _split(batch: Batch, size: int) -> Iterator[Batch]:
    for start in range(0, batch.x0.shape[0], size):
        yield batch.rows(slice(start, start + size))
