"""The diffusers face: a trained network as a `diffusers` model, scheduler and pipeline.

    import diffusers, simple_diffusion.pipelines
    pipe = diffusers.DiffusionPipeline.from_pretrained("exported")
    pipe(class_labels=["arrow"], num_images=4).images

This import is needed and enough: diffusers finds a pipeline's class among its own attributes, and
the classes of its parts in modules that are loaded already; it imports none because a folder says
so. The folders name `simple_diffusion.pipelines.uvit` and `.scheduler`, so those modules and
the classes in them keep their names.
"""

import diffusers

from simple_diffusion.pipelines.pipeline import PixelDiffusionPipeline
from simple_diffusion.pipelines.scheduler import PixelScheduler
from simple_diffusion.pipelines.uvit import PixelUViT

diffusers.PixelDiffusionPipeline = PixelDiffusionPipeline

__all__ = ["PixelDiffusionPipeline", "PixelScheduler", "PixelUViT"]
