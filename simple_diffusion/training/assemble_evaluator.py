"""From a config to what a run measures and draws between its steps."""

from pathlib import Path

import torch
from accelerate import Accelerator

from data_pipelines.loader import Loader, evaluation_loader
from data_pipelines.manifest import Manifest
from data_pipelines.shard_sets import ShardSets
from eval.features import open_extractor
from eval.metrics import check_metrics
from simple_diffusion.config import RunConfig, SamplingConfig, build_objective
from simple_diffusion.diffusion.few_step_sampler import StepRule
from simple_diffusion.diffusion.objectives import FewStep
from simple_diffusion.models.uvit import UViT
from simple_diffusion.training.agreement import Agreement
from simple_diffusion.training.evaluator import Evaluator
from simple_diffusion.training.reference import reference_statistics
from simple_diffusion.training.run_folder import RunError
from simple_diffusion.training.sampling import SampleSettings, Sampling
from simple_diffusion.training.scores import Scorer
from simple_diffusion.training.telemetry import MetricsFile
from simple_diffusion.training.weights import WholeNetwork

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def null_label_of(network: UViT) -> int | None:
    """The null class, or None for an unconditional network."""
    return network.num_classes if network.num_classes else None


def sample_settings(config: SamplingConfig) -> SampleSettings:
    """How to draw, from a config."""
    return SampleSettings(
        sampler=config.sampler,
        steps=config.steps,
        spacing=config.spacing,
        guidance=config.guidance,
        guidance_interval=config.guidance_interval,
        dtype=DTYPES[config.precision],
        batch_size=config.batch_size,
    )


def make_sampling(
    config: RunConfig,
    network: UViT,
    device: torch.device,
    settings: SampleSettings,
    size: tuple[int, int] | None = None,
) -> Sampling:
    """The sampling of a run's network.

    Images of any `size`, (height, width), are drawn along the schedule of the training squares:
    the network has learnt at those noise levels, and where it stands between them, no others.
    """
    side = config.data.image_size
    objective = build_objective(config)
    return Sampling(
        schedule=config.schedule.build(side),
        prediction=config.objective.prediction,
        shape=(network.in_channels, *(size or (side, side))),
        null_label=null_label_of(network),
        device=device,
        settings=settings,
        steps=StepRule.of(objective) if isinstance(objective, FewStep) else None,
    )


def make_evaluator(
    config: RunConfig,
    accelerator: Accelerator,
    agreement: Agreement,
    metrics: MetricsFile,
    network: UViT,
    held_out: Path | None,
    sets: ShardSets,
) -> Evaluator:
    """What measures and draws between steps.

    Args:
        config: the run's.
        accelerator: of its processes.
        agreement: what they decide together.
        metrics: where figures go.
        network: on its device, before it is shared between processes or compiled.
        held_out: the validation set's folder; None for none.
        sets: the training images.

    Raises:
        ValueError: the config asks for scores or held-out images that cannot be had.
    """
    size = config.data.image_size
    validation = wiener = None
    if held_out is not None and config.validation.images:
        available = Manifest.load(held_out).num_samples

        def validation(rank: int, processes: int) -> Loader:
            return evaluation_loader(
                held_out,
                image_size=size,
                num=min(config.validation.images, available),
                batch_size=config.validation.batch_size,
                rank=rank,
                world_size=processes,
                max_bad_fraction=config.data.max_bad_fraction,
            )

    if config.validation.wiener_images:

        def wiener() -> Loader:
            return evaluation_loader(
                sets.stores[0],
                image_size=size,
                num=min(config.validation.wiener_images, sets.manifests[0].num_samples),
                batch_size=config.validation.batch_size,
                max_bad_fraction=config.data.max_bad_fraction,
            )

    sampling = make_sampling(config, network, accelerator.device, sample_settings(config.sampling))
    return Evaluator(
        accelerator=accelerator,
        agreement=agreement,
        whole=WholeNetwork(network),
        run_dir=Path(config.run_dir),
        metrics=metrics,
        sampling=sampling,
        validation=validation,
        wiener=wiener,
        scorer=_scorer(config, accelerator, sampling, held_out, sets),
        logsnr=config.validation.logsnr,
        dtype=DTYPES[config.train.precision],
        class_counts=sets.class_counts,
        seed=config.seed,
        grid_num=config.grids.num,
        grid_steps=config.grids.steps,
        final_num=config.grids.final_num,
    )


def _scorer(
    config: RunConfig,
    accelerator: Accelerator,
    sampling: Sampling,
    held_out: Path | None,
    sets: ShardSets,
) -> Scorer | None:
    scores = config.scores
    if not scores.num:
        return None
    check_metrics(scores.metrics)
    if held_out is None:
        raise RunError(
            "scores.num asks for scores, but there are no held-out images to score against; build "
            "the data with --validation, set data.validation_path, or set --scores.num=0"
        )
    extractor = open_extractor(
        scores.extractor,
        weights=None if scores.weights is None else Path(scores.weights),
        device=accelerator.device,
    )
    check_metrics(scores.metrics, extractor.facts.classes)
    return Scorer(
        accelerator=accelerator,
        extractor=extractor,
        reference=reference_statistics(
            held_out,
            image_size=config.data.image_size,
            extractor=extractor,
            rank=accelerator.process_index,
            processes=accelerator.num_processes,
            wait=accelerator.wait_for_everyone,
        ),
        reference_name=Manifest.load(held_out).fingerprint,
        metrics=scores.metrics,
        num=scores.num,
        steps=scores.steps,
        sampling=sampling,
        class_counts=sets.class_counts,
        seed=config.seed,
    )
