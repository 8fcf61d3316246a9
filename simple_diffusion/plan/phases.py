"""What a run does between two checkpoints, acted out without content to find its peak memory.

Each phase makes the tensors that the trainer makes, in its order, and keeps them as long; what the
networks, objectives and samplers do is their own code.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from simple_diffusion.config import Precision, RunConfig, build_network, build_objective
from simple_diffusion.diffusion.few_step_sampler import StepRule, sampler_named
from simple_diffusion.diffusion.generate import from_uint8, to_uint8
from simple_diffusion.diffusion.guidance import Network, denoiser
from simple_diffusion.diffusion.logsnr import match_dims
from simple_diffusion.diffusion.objectives import Batch, FewStep, Shortcut
from simple_diffusion.diffusion.prediction import diffuse, error_factor, target
from simple_diffusion.diffusion.randomness import normals
from simple_diffusion.models.layers import optim_groups
from simple_diffusion.plan.counts import even_choices
from simple_diffusion.plan.live import LiveMemory, Parts
from simple_diffusion.plan.malloc import footprints

Phase = Literal["training", "validation", "drawing"]
PHASES: tuple[Phase, ...] = get_args(Phase)
DEVICE = torch.device("cpu")
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}

# Enough for every kind of moment: the second micro-batch finds gradients, the second step finds the
# optimiser's state, the third sampling step what a multistep sampler remembers.
MICRO_BATCHES = 2
STEPS = 2
SAMPLING_STEPS = 4


def local_batch(config: RunConfig, devices: int) -> tuple[int, int]:
    """(images of a step on one device, images that it takes at once)."""
    share = config.train.batch_size // devices
    return share, min(share, config.train.micro_batch_size or share)


@dataclass(frozen=True)
class PhaseMemory:
    """Memory of one device at the peak of a phase, in bytes.

    Attributes:
        parts: what tensors hold at the moment when they hold most.
        resident: the most that the C library's allocator has taken for them from the system by
            then, holes between them included; None where that cannot be found out.
    """

    parts: Parts
    resident: int | None

    @property
    def total(self) -> int:
        """What the process grows by, as far as is known."""
        return max(sum(self.parts.values()), self.resident or 0)


def rehearse(config: RunConfig, devices: int = 1) -> dict[Phase, PhaseMemory]:
    """Peak memory of each phase on one device; validation only if it is on.

    Args:
        config: the run.
        devices: over how many the batch is divided; each holds all of the weights.
    """
    rehearsal = Rehearsal(config, devices)
    acts: dict[Phase, Callable[[], Parts]] = {"training": rehearsal.training}
    if config.validation.images:
        acts["validation"] = rehearsal.validation
    acts["drawing"] = rehearsal.drawing
    peaks, traces, start = [], [], 0
    for act in acts.values():
        peaks.append(act())
        traces.append(rehearsal.memory.trace[start:])
        start = len(rehearsal.memory.trace)
    resident: Sequence[int | None] = footprints(traces) or [None] * len(peaks)
    memories = map(PhaseMemory, peaks, resident)
    return dict(zip(acts, memories, strict=True))


def differentiates_forward(config: RunConfig) -> bool:
    """Whether training takes derivatives of its teacher."""
    objective = build_objective(config)
    return isinstance(objective, FewStep) and objective.needs_jvp


class Rehearsal:
    """The tensors that a run keeps from step to step, and the phases that come and go.

    Args:
        config: the run.
        devices: over how many the batch is divided; each holds all of the weights.
    """

    def __init__(self, config: RunConfig, devices: int) -> None:
        self.config, self.devices = config, devices
        self.share, self.micro = local_batch(config, devices)
        self.memory = LiveMemory()
        self.schedule = config.schedule.build(config.data.image_size)
        self.objective = build_objective(config)
        few = self.objective if isinstance(self.objective, FewStep) else None
        self.rule = StepRule.of(few) if few else None
        if few is not None and few.needs_jvp:
            # Tensors without content cannot be differentiated forward; this one calls its teacher
            # for as many images.
            shared = {field.name: getattr(few, field.name) for field in fields(FewStep)}
            self.objective = Shortcut(**shared)
        with self.memory:
            self.network = build_network(config.model, config.data.image_size)
            self.network.recompute(config.parallel.recompute)
            self.averages = [
                build_network(config.model, config.data.image_size).requires_grad_(False).eval()
                for _ in config.ema.lengths
            ]
            self.memory.claim("weights", _tensors(self.network))
            for average in self.averages:
                self.memory.claim("averages", _tensors(average))
            groups = optim_groups(self.network)
            self.optimizer = torch.optim.AdamW(
                [{"params": params} for params in groups.values()], fused=True
            )
            # Decoded images stay with the loop until the next ones are there.
            self.images = self._uint8(self.share)
        for parameter in self.network.parameters():
            parameter.register_post_accumulate_grad_hook(self._claim_gradient)

    def micro_batch(self, size: int) -> Parts:
        """Peak of one micro-batch of so many images forward and backward, without the optimiser."""
        self.micro = size
        with self.memory:
            self.network.zero_grad(set_to_none=True)
            self.memory.forget_peak()
            model = _in_precision(self.network, self.config.train.precision)
            self._forward_backward(model, self._draw_batch(), 0)
        return self.memory.peak

    def training(self) -> Parts:
        """Peak of a training step while a checkpoint is written, from a copy, beside it."""
        with self.memory:
            copies: list[Tensor] = []
            for _ in range(STEPS):
                self.memory.forget_peak()
                self._step()
                for state in self.optimizer.state.values():
                    self.memory.claim("optimiser", state.values())
                copies = self._copy_all() if not copies else []
        return self.memory.peak

    def _copy_all(self) -> list[Tensor]:
        tensors = [p for network in (self.network, *self.averages) for p in network.parameters()]
        tensors += [t for state in self.optimizer.state.values() for t in state.values()]
        with torch.no_grad():
            copies = [torch.empty_like(tensor) for tensor in tensors]
        self.memory.claim("checkpoint", copies)
        return copies

    def validation(self) -> Parts:
        """Peak of the validation loss of one batch."""
        given = self.config.validation
        size = min(given.batch_size, math.ceil(given.images / self.devices))
        with self.memory, torch.no_grad():
            self.memory.forget_peak()
            self._validate(self._uint8(size))
        return self.memory.peak

    def drawing(self) -> Parts:
        """Peak of drawing the larger grid of samples, and of making a picture of it."""
        num = max(self.config.grids.num, self.config.grids.final_num)
        with self.memory, torch.no_grad():
            self.memory.forget_peak()
            images = self._samples(math.ceil(num / self.devices))
            if self.devices > 1:
                images = torch.cat([images] * self.devices)[:num]  # everyone's
            _picture(images)
        return self.memory.peak

    def _uint8(self, count: int) -> Tensor:
        images = torch.empty(count, *self._shape, dtype=torch.uint8)
        self.memory.claim("batch", [images])
        return images

    @property
    def _shape(self) -> tuple[int, int, int]:
        return self.network.in_channels, self.config.data.image_size, self.config.data.image_size

    def _claim_gradient(self, parameter: Tensor) -> None:
        self.memory.claim("gradients", [parameter.grad])

    def _step(self) -> None:
        batch = self._draw_batch()
        model = _in_precision(self.network, self.config.train.precision)
        for number in range(min(MICRO_BATCHES, math.ceil(self.share / self.micro))):
            self._forward_backward(model, batch, number)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.optim.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for average in self.averages:
                torch._foreach_lerp_(
                    list(average.parameters()), list(self.network.parameters()), 0.5
                )

    def _forward_backward(self, model: Network, batch: Batch, number: int) -> None:
        here = slice(number * self.micro, (number + 1) * self.micro)
        losses = self.objective(model, batch.rows(here), self._teacher)
        (losses.loss.sum() / self.share).backward()

    def _draw_batch(self) -> Batch:
        x0 = from_uint8(self.images)
        if self.config.data.flip:
            mirrored = torch.zeros(self.share, dtype=torch.bool)
            x0 = torch.where(mirrored[:, None, None, None], x0.flip(-1), x0)
        eps = normals([torch.Generator(DEVICE)] * self.share, self._shape)
        labels = self._labels(self.share)
        batch = Batch(x0, eps, torch.rand(self.share), labels, *even_choices(self.share))
        self.memory.claim("batch", [batch.x0, batch.eps, batch.t, batch.labels])
        return batch

    @property
    def _teacher(self) -> Network:
        """What makes targets; the weights that it has are kept in any case."""
        forward = differentiates_forward(self.config)
        return _in_precision(self.averages[0], "fp32" if forward else self.config.train.precision)

    def _labels(self, count: int) -> Tensor | None:
        if not self.network.num_classes:
            return None
        return torch.zeros(count, dtype=torch.int64)

    def _validate(self, images: Tensor) -> None:
        prediction = self.config.objective.prediction
        network = _in_precision(self.averages[0], self.config.train.precision)
        x0 = from_uint8(images)
        eps = normals([torch.Generator(DEVICE)] * len(images), self._shape)
        self.memory.claim("batch", [x0, eps])
        labels = self._labels(len(images))
        for _ in self.config.validation.logsnr[:2]:  # the second finds what the first has left
            logsnr = torch.rand(len(images))
            output = network(diffuse(x0, eps, logsnr), logsnr, labels)
            error = output - target(prediction, x0, eps, logsnr)
            error = error * match_dims(error_factor(logsnr, prediction, "eps"), error)
            error.double().square().mean(dim=(1, 2, 3))

    def _samples(self, num: int) -> Tensor:
        """The last batch of `num` samples, put together with those drawn before."""
        given = self.config.sampling
        last = num % given.batch_size or given.batch_size
        size = min(given.batch_size, num)
        drawn = [torch.empty(num - last, *self._shape)] if num > last else []
        labels = self._labels(size)
        denoise = denoiser(
            self._given_content(_in_precision(self.averages[0], given.precision)),
            self.schedule,
            self.config.objective.prediction,
            labels=labels,
            null_label=0 if labels is not None else None,
            guidance=given.guidance if labels is not None else 1.0,
        )
        noise = torch.empty(size, *self._shape)
        with self.memory.faking(False):  # the grid of noise levels has values
            samples = sampler_named(given.sampler, self.rule)(
                denoise,
                noise,
                self.schedule,
                min(given.steps, SAMPLING_STEPS),
                spacing=given.spacing,
            )
        return torch.cat([*drawn, samples[:last]])

    def _given_content(self, network: Network) -> Network:
        def call(z: Tensor, logsnr: Tensor, labels: Tensor | None, *step: Tensor) -> Tensor:
            with self.memory.faking(True):
                result: Tensor = network(z, logsnr, labels, *step)
            return result

        return call


def _in_precision(network: nn.Module, precision: Precision) -> Callable[..., Tensor]:
    dtype = DTYPES[precision]

    def call(z: Tensor, logsnr: Tensor, *conditions: Tensor | None) -> Tensor:
        with torch.autocast(DEVICE.type, dtype=dtype, enabled=dtype != torch.float32):
            result: Tensor = network(z, logsnr, *conditions)
        return result.float()

    return call


def _picture(images: Tensor) -> Tensor:
    """Tile images into one sheet of 8-bit pixels."""
    count, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    tiles = images.new_ones((rows * columns, channels, height, width))
    sheet = tiles.reshape(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    return to_uint8(sheet.reshape(rows * height, columns * width, channels))


def _tensors(network: nn.Module) -> Sequence[Tensor]:
    return [*network.parameters(), *network.buffers()]
