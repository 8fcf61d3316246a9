"""A small network with random weights, as a pipeline."""

import pytest
import torch

from simple_diffusion.diffusion.schedules import Cosine
from simple_diffusion.pipelines import PixelDiffusionPipeline, PixelScheduler, PixelUViT


def make_pipeline(num_classes: int = 4, names: tuple[str, ...] = ()) -> PixelDiffusionPipeline:
    """A pipeline for 8x8 images whose network depends on all that it is told."""
    unet = PixelUViT(
        image_size=8,
        patch_size=2,
        channels=[16],
        blocks=[],
        depth=1,
        head_dim=16,
        num_classes=num_classes,
        condition_width=16,
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.15)
    scheduler = PixelScheduler.of(
        Cosine(),
        "v",
        sampler="ddim",
        steps=4,
        spacing="t",
        guidance=1.5 if num_classes else 1.0,
        guidance_interval=(-3.0, float("inf")),
    )
    id2label = {str(i): name for i, name in enumerate(names)}
    pipeline = PixelDiffusionPipeline(unet.eval(), scheduler, id2label=id2label or None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def pipeline() -> PixelDiffusionPipeline:
    """Conditional, with four classes, three of them named."""
    return make_pipeline(4, ("circle", "square", "stripe"))


@pytest.fixture(scope="session")
def unconditional() -> PixelDiffusionPipeline:
    """Without classes."""
    return make_pipeline(0)
