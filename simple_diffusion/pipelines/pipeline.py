"""Class-conditional (or unconditional) images from noise, as a diffusers pipeline."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from PIL import Image
from torch import Tensor

from simple_diffusion.diffusion.few_step_sampler import FEW_STEP
from simple_diffusion.diffusion.generate import generate, to_uint8
from simple_diffusion.diffusion.guidance import Network
from simple_diffusion.models.labels import class_label
from simple_diffusion.pipelines.scheduler import (
    Interval,
    PixelScheduler,
    one_of,
    open_interval,
)
from simple_diffusion.pipelines.uvit import PixelUViT

OUTPUT_TYPES = ("pil", "pt", "np")
Classes = int | str | Sequence[int | str]


class PixelDiffusionPipeline(DiffusionPipeline):
    """Draws images with a network trained by simple_diffusion.

    Args:
        unet: the network.
        scheduler: its noise schedule and the defaults of sampling.
        id2label: class names by label, the labels as decimal digits (they are JSON keys).

    Raises:
        ValueError: `id2label` does not number its names from 0, or has more than there are classes.
    """

    model_cpu_offload_seq = "unet"

    # The names are a dict because the hub's download takes any list in model_index.json for a part.
    def __init__(
        self,
        unet: PixelUViT,
        scheduler: PixelScheduler,
        id2label: dict[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(id2label=id2label)
        self.class_names = _names(id2label or {}, unet.num_classes)

    def __call__(
        self,
        class_labels: Classes | None = None,
        num_images: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: Interval | None = None,
        sampler: str | None = None,
        spacing: str | None = None,
        seed: int = 0,
        first_index: int = 0,
        batch_size: int = 32,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw images. What is None is as the scheduler's config says.

        Image number i of the set `seed` depends on (seed, i) and its class alone, not on the
        batch: there is no generator to pass, and the same call gives the same images.

        Args:
            class_labels: classes by name or number, one or several; images take them in turn.
                None draws without a class, from a conditional network too.
            num_images: how many; None for one of each of `class_labels`, or one image.
            num_inference_steps: sampling steps.
            guidance_scale: classifier-free guidance; 1 is the conditional model.
            guidance_interval: (lowest, highest) λ at which guidance applies, None for open ends.
            sampler: ddpm, ddim, euler, heun, dpm++2m; or few_step for networks trained for it,
                which have their guidance and spacing from training.
            spacing: in what the steps are even: t, logsnr or tau.
            seed: names the set of images.
            first_index: number of the first image within the set.
            batch_size: images that the network sees at once.
            output_type: ``pil`` for a list of `PIL.Image`; ``pt`` for a float32 tensor
                (N, C, H, W) and ``np`` for an array (N, H, W, C), both in [0, 1].
            return_dict: False for a plain tuple.

        Returns:
            `ImagePipelineOutput` with `images`.

        Raises:
            ValueError: an unknown class or name, or guidance without classes.
        """
        one_of("output_type", output_type, OUTPUT_TYPES)
        self._check_scheduler()
        config = self.scheduler.config
        labels = self._labels(class_labels, num_images)
        if class_labels is None and guidance_scale not in (None, 1, 1.0):
            raise ValueError(
                f"guidance_scale={guidance_scale} needs classes to guide towards: give class_labels"
            )
        name = config.sampler if sampler is None else sampler
        usual = {"spacing": config.spacing, "guidance": config.guidance_scale}
        if name == FEW_STEP and config.few_step is not None:
            usual = {key: config.few_step[key] for key in usual}
            if class_labels is not None and guidance_scale not in (None, usual["guidance"]):
                raise ValueError(
                    f"guidance_scale={guidance_scale}: few_step draws with the guidance of the "
                    f"network's training, {usual['guidance']}; leave it out, or use another sampler"
                )
        guidance = usual["guidance"] if guidance_scale is None else guidance_scale
        interval = config.guidance_interval if guidance_interval is None else guidance_interval
        images = self._draw(
            labels,
            first_index=first_index,
            batch_size=batch_size,
            seed=seed,
            sampler=self.scheduler.sampler_named(name),
            steps=config.num_inference_steps
            if num_inference_steps is None
            else num_inference_steps,
            guidance=1.0 if class_labels is None else guidance,
            guidance_interval=open_interval(interval),
            spacing=usual["spacing"] if spacing is None else spacing,
        )
        self.maybe_free_model_hooks()
        output = _as_type(images, output_type)
        return ImagePipelineOutput(images=output) if return_dict else (output,)

    def _draw(
        self, labels: list[int], *, first_index: int, batch_size: int, steps: int, **how: Any
    ) -> Tensor:
        """Images in [-1, 1], (len(labels), C, H, W), on the CPU, batch by batch."""
        if batch_size < 1 or first_index < 0:
            raise ValueError("batch_size must be at least 1 and first_index at least 0")
        unet, device = self.unet, self._execution_device
        conditional = unet.num_classes > 0
        starts = range(0, len(labels), batch_size)
        drawn = []
        with self.progress_bar(total=len(starts) * steps) as bar:
            for start in starts:
                part = labels[start : start + batch_size]
                indices = range(first_index + start, first_index + start + len(part))
                images = generate(
                    self._network(),
                    self.scheduler.schedule,
                    self.scheduler.config.prediction_type,
                    indices=indices,
                    shape=(unet.in_channels, unet.image_size, unet.image_size),
                    steps=steps,
                    device=device,
                    labels=torch.tensor(part) if conditional else None,
                    null_label=unet.null_label if conditional else None,
                    on_step=lambda _: bar.update(),
                    **how,
                )
                drawn.append(images.cpu())
        return torch.cat(drawn)

    def _labels(self, given: Classes | None, num_images: int | None) -> list[int]:
        """One label for each image; the null class, or 0 for an unconditional network, for None."""
        classes = self.unet.num_classes
        if given is None:
            labels = [classes]
        else:
            several = [given] if isinstance(given, int | str) else list(given)
            labels = [class_label(one, self.class_names, classes) for one in several]
        count = len(labels) if num_images is None else num_images
        if count < 1 or not labels:
            raise ValueError(
                "nothing to draw: give at least one class, and num_images of 1 or more"
            )
        return [labels[i % len(labels)] for i in range(count)]

    def _network(self) -> Network:
        """The network, under autocast where its weights are in half precision."""
        unet, dtype = self.unet, self.unet.dtype
        if dtype not in (torch.float16, torch.bfloat16):
            return unet

        def call(z: Tensor, logsnr: Tensor, *conditions: Tensor | None) -> Tensor:
            with torch.autocast(z.device.type, dtype=dtype):
                result: Tensor = unet(z, logsnr, *conditions)
            return result

        return call

    def _check_scheduler(self) -> None:
        if not isinstance(self.scheduler, PixelScheduler):
            raise ValueError(
                f"{type(self.scheduler).__name__} does not know this network's noise schedule; "
                "keep the PixelScheduler, and choose a sampler when calling: pipe(sampler='heun')"
            )


def _names(id2label: Mapping[str, str], num_classes: int) -> list[str]:
    if set(id2label) != {str(i) for i in range(len(id2label))}:
        raise ValueError("id2label: its keys must be the labels '0', '1', ... without gaps")
    if len(id2label) > num_classes:
        raise ValueError(f"id2label: {len(id2label)} names for a network of {num_classes} classes")
    return [id2label[str(i)] for i in range(len(id2label))]


def _as_type(images: Tensor, output_type: str) -> list[Image.Image] | Tensor | np.ndarray:
    if output_type == "pil":
        arrays = to_uint8(images).permute(0, 2, 3, 1).numpy()
        return [Image.fromarray(a.squeeze(-1) if a.shape[-1] == 1 else a) for a in arrays]
    images = (images + 1.0) / 2.0
    return images if output_type == "pt" else images.permute(0, 2, 3, 1).numpy()
