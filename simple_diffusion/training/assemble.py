"""From a config to a trainer: every part gets what it uses, none gets the config."""

import logging
import os
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import is_tensorboard_available, set_seed

from data_pipelines.loader import Loader, evaluation_loader
from data_pipelines.manifest import Manifest
from data_pipelines.shard_sets import ShardSets, set_names
from eval.features import open_extractor
from eval.metrics import check_metrics
from simple_diffusion.config import (
    RunConfig,
    SamplingConfig,
    build_network,
    build_objective,
)
from simple_diffusion.diffusion.multiscale import scales
from simple_diffusion.models.attention import check_backend
from simple_diffusion.models.uvit import UViT
from simple_diffusion.training.data_facts import DataFacts, held_out_path
from simple_diffusion.training.draws import Draws
from simple_diffusion.training.ema import Ema
from simple_diffusion.training.evaluator import Evaluator
from simple_diffusion.training.optim import adamw, learning_rate
from simple_diffusion.training.reference import reference_statistics
from simple_diffusion.training.run_folder import CHECKPOINTS, RunError, claim_run_folder
from simple_diffusion.training.sampling import SampleSettings, Sampling
from simple_diffusion.training.scores import Scorer
from simple_diffusion.training.state import CheckpointStore
from simple_diffusion.training.telemetry import MetricsFile
from simple_diffusion.training.train_data import (
    check_classes,
    check_synthetic,
    check_yardstick,
    image_shapes,
    open_train_sets,
    train_loader,
)
from simple_diffusion.training.trainer import Intervals, Trainer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

logger = logging.getLogger(__name__)


def make_accelerator(config: RunConfig, run_dir: Path) -> Accelerator:
    """Accelerate's face to the device and the other processes.

    Raises:
        RunError: the launcher started several processes that do not see each other.
    """
    if config.log.tracker == "tensorboard" and not is_tensorboard_available():
        raise RunError(
            "log.tracker is tensorboard, which is not installed; run "
            "`pip install -c constraints.txt -e '.[tensorboard]'`, or set it to none"
        )
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="bf16" if config.train.precision == "bf16" else "no",
        log_with=None if config.log.tracker == "none" else config.log.tracker,
        project_dir=str(run_dir),
    )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != launched:
        raise RunError(
            f"the launcher started {launched} processes, but {accelerator.num_processes} work "
            "together; launch with: torchrun --nproc_per_node N -m simple_diffusion train ..."
        )
    if config.train.batch_size % accelerator.num_processes:
        raise RunError(
            f"train.batch_size {config.train.batch_size} is not divisible by the "
            f"{accelerator.num_processes} processes"
        )
    return accelerator


def assemble(config: RunConfig) -> Trainer:
    """Check everything that can be checked before training, and build the trainer.

    Raises:
        ValueError: (or a subclass) for anything in the config, the data or the run folder that
            does not fit; nothing has been written then, but for a new run's folder.
    """
    run_dir = Path(config.run_dir)
    accelerator = make_accelerator(config, run_dir)
    sets = open_train_sets(config.data)
    held_out = held_out_path(config.data)
    check_classes(sets, held_out, config)
    check_synthetic(sets, held_out, config)
    check_yardstick(sets, config)
    set_seed(config.seed)
    network = build_network(config.model, config.data.image_size).to(accelerator.device)
    check_backend(config.model.attention, accelerator.device)
    schedule = config.schedule.build(config.data.image_size)
    objective = build_objective(config.objective, schedule)
    if objective.multiscale_from is not None:
        scales(config.data.image_size, objective.multiscale_from)  # refuses what does not fit
    shapes = image_shapes(config, network.multiple)
    loader = train_loader(config, sets, shapes, accelerator)
    loader(0)  # an impossible order or batch is an error now, not after the first checkpoint
    if accelerator.is_main_process:
        for change in claim_run_folder(run_dir, config):
            logger.warning("config changed since the run began: %s", change)
    accelerator.wait_for_everyone()
    if config.log.tracker != "none":
        accelerator.init_trackers("log")
    optim = config.optim
    ema = Ema(network, config.ema.lengths, config.ema.every_steps)
    optimizer = adamw(
        network,
        lr=optim.lr,
        betas=optim.betas,
        eps=optim.eps,
        weight_decay=optim.weight_decay,
    )
    if config.train.compile:
        network.compile()
    null_label = null_label_of(network)
    draws = Draws(
        seed=config.seed,
        batch_size=config.train.batch_size,
        times=objective.times,
        flip=config.data.flip,
        label_drop=config.objective.label_drop,
        null_label=null_label,
        device=accelerator.device,
    )
    metrics = MetricsFile(run_dir / "metrics.jsonl")
    evaluator = _evaluator(config, accelerator, metrics, network, held_out, sets)
    return Trainer(
        accelerator=accelerator,
        network=network,
        model=accelerator.prepare_model(network),
        objective=objective,
        optimizer=optimizer,
        rate=partial(
            learning_rate,
            peak=optim.lr,
            warmup_images=optim.warmup_images,
            decay_images=optim.decay_images,
            total_images=config.train.total_images,
        ),
        ema=ema,
        draws=draws,
        loader=loader,
        evaluator=evaluator,
        store=CheckpointStore(
            run_dir / CHECKPOINTS, config.checkpoint.keep, config.checkpoint.milestone_images
        ),
        metrics=metrics,
        intervals=Intervals(
            log=config.log.every_images,
            validation=config.validation.every_images,
            scores=config.scores.every_images,
            grid=config.grids.every_images,
            checkpoint=config.checkpoint.every_images,
        ),
        batch_size=config.train.batch_size,
        micro_batch_size=config.train.micro_batch_size,
        total_images=config.train.total_images,
        clip_norm=optim.clip_norm,
        identity={"data": sets.fingerprint},
        facts={
            "parameters": sum(p.numel() for p in network.parameters()),
            "device": _device_name(accelerator.device),
            "processes": accelerator.num_processes,
            "threads": torch.get_num_threads(),
            "precision": config.train.precision,
            "total_images": config.train.total_images,
        },
        data=DataFacts.of(sets, config.model.num_classes),
        sets=set_names([store.root for store in sets.stores]),
    )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


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
    return Sampling(
        schedule=config.schedule.build(side),
        prediction=config.objective.prediction,
        shape=(network.in_channels, *(size or (side, side))),
        null_label=null_label_of(network),
        device=device,
        settings=settings,
    )


def _evaluator(
    config: RunConfig,
    accelerator: Accelerator,
    metrics: MetricsFile,
    network: UViT,
    held_out: Path | None,
    sets: ShardSets,
) -> Evaluator:
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
