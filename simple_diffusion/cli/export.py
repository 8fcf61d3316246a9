"""`simple-diffusion export`."""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simple_diffusion.pipelines import PixelDiffusionPipeline
    from simple_diffusion.training.saved_run import SavedRun

EXAMPLE = """\
example:
  simple-diffusion export runs/quickstart exported/icons --license apache-2.0

and then, in Python:
  import simple_diffusion.pipelines
  from diffusers import DiffusionPipeline
  pipe = DiffusionPipeline.from_pretrained("exported/icons")
  pipe(class_labels=[0], num_images=4).images[0].save("image.png")
"""


def add_parser(subparsers: Any) -> None:
    """Register the verb."""
    parser = subparsers.add_parser(
        "export",
        help="write a run's network as a folder that diffusers loads",
        description="Write a run's network as a diffusers pipeline: safetensors, the noise "
        "schedule, the defaults of sampling, and a model card.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a run")
    parser.add_argument("out", metavar="DIR", type=Path, help="folder to write")
    parser.add_argument(
        "--weights", help="'model', or an average like ema_0.050 (default: the run's first average)"
    )
    parser.add_argument(
        "--checkpoint",
        type=int,
        metavar="N",
        help="the checkpoint at N images seen (default: the newest)",
    )
    parser.add_argument(
        "--license", help="licence of the weights for the model card, such as apache-2.0"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Export; returns the exit code."""
    licence = arguments.license
    if licence is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", licence):
        raise ValueError(f"--license {licence!r}: give an abbreviation such as apache-2.0 or mit")

    from simple_diffusion.training.saved_run import open_run

    saved = open_run(arguments.run, arguments.weights, arguments.checkpoint)

    from simple_diffusion.pipelines.export import check_target, export_pipeline
    from simple_diffusion.pipelines.model_card import CardFacts

    check_target(arguments.out, arguments.overwrite)
    facts = CardFacts(
        name=arguments.out.resolve().name,
        weights=saved.weights,
        images_seen=saved.images_seen,
        data_source=saved.data.source,
        data_licence=saved.data.licence,
        data_images=saved.data.images,
        licence=licence,
    )
    export_pipeline(make_pipeline(saved), arguments.out, facts, overwrite=arguments.overwrite)
    print(f"{arguments.out}: {saved.weights} after {saved.images_seen} images; load it with")
    print("  import simple_diffusion.pipelines")
    print("  from diffusers import DiffusionPipeline")
    print(f"  pipe = DiffusionPipeline.from_pretrained({str(arguments.out)!r})")
    return 0


def make_pipeline(saved: "SavedRun") -> "PixelDiffusionPipeline":
    """The pipeline of a run's weights, on the CPU."""
    from simple_diffusion.config import build_objective
    from simple_diffusion.diffusion.objectives import FewStep
    from simple_diffusion.pipelines import PixelDiffusionPipeline, PixelScheduler, PixelUViT

    config = saved.config
    objective = build_objective(config)
    size, sampling = config.data.image_size, config.sampling
    arguments = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(config.model).items()}
    unet = PixelUViT(image_size=size, **arguments)
    saved.load_into(unet)
    scheduler = PixelScheduler.of(
        config.schedule.build(size),
        config.objective.prediction,
        sampler=sampling.sampler,
        steps=sampling.steps,
        spacing=sampling.spacing,
        guidance=sampling.guidance if unet.num_classes else 1.0,
        guidance_interval=sampling.guidance_interval,
        few_step=objective if isinstance(objective, FewStep) else None,
    )
    names = {str(label): name for label, name in enumerate(saved.data.classes)}
    return PixelDiffusionPipeline(unet.eval(), scheduler, id2label=names or None)
