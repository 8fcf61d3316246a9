"""From a config to a trainer: every part gets what it uses, none gets the config."""

import logging
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import is_tensorboard_available, set_seed
from torch import Tensor
from torch.distributed import new_group

from data_pipelines.shard_sets import set_names
from simple_diffusion.config import RunConfig, build_network, build_objective
from simple_diffusion.config_few_step import ShortcutConfig
from simple_diffusion.config_files import dump_config
from simple_diffusion.devices import peak_tflops
from simple_diffusion.diffusion.multiscale import scales
from simple_diffusion.diffusion.objectives import Denoising, FewStep
from simple_diffusion.models.attention import check_backend
from simple_diffusion.models.uvit import UViT
from simple_diffusion.plan.counts import count_flops, count_parameters
from simple_diffusion.training.agreement import Agreement
from simple_diffusion.training.assemble_evaluator import DTYPES, make_evaluator, null_label_of
from simple_diffusion.training.data_facts import DataFacts, held_out_path
from simple_diffusion.training.draws import Draws
from simple_diffusion.training.ema import Ema, ema_name
from simple_diffusion.training.health import Health
from simple_diffusion.training.init_from import initialise
from simple_diffusion.training.keeper import Keeper
from simple_diffusion.training.optim import adamw, learning_rate
from simple_diffusion.training.parallel import check_launch, check_shards, parallelise
from simple_diffusion.training.run_folder import (
    RunError,
    checkpoint_root,
    claim_run_folder,
    snapshot_root,
)
from simple_diffusion.training.run_state import RunState
from simple_diffusion.training.signals import StopSignals
from simple_diffusion.training.state import CheckpointStore
from simple_diffusion.training.stepper import Stepper
from simple_diffusion.training.teacher import TeacherNetwork
from simple_diffusion.training.telemetry import MetricsFile, Window
from simple_diffusion.training.train_data import (
    check_classes,
    check_synthetic,
    check_yardstick,
    image_shapes,
    open_train_sets,
    train_loader,
)
from simple_diffusion.training.trainer import Intervals, Trainer
from simple_diffusion.training.watchdog import Watchdog, heartbeat_store

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
        kwargs_handlers=[
            # Gradients live in the buckets that are sent: a copy of the weights less.
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),
            # The watchdog knows who is missing; a time-out of the group only that someone is.
            InitProcessGroupKwargs(timeout=timedelta(seconds=10 * config.health.stall_seconds)),
        ],
    )
    check_launch(accelerator.num_processes)
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
    check_shards(config.parallel.strategy, config.parallel.shards, accelerator.num_processes)
    for level in config.parallel.recompute:
        network.blocks(level)  # refuses levels that it does not have
    objective = build_objective(config)
    if config.objective.multiscale_from is not None:
        scales(
            config.data.image_size, config.objective.multiscale_from
        )  # refuses what does not fit
    shapes = image_shapes(config, network.multiple)
    loader = train_loader(config, sets, shapes, accelerator)
    loader(0)  # an impossible order or batch is an error now, not after the first checkpoint
    if accelerator.is_main_process:
        for change in claim_run_folder(run_dir, config):
            logger.warning("config changed since the run began: %s", change)
    accelerator.wait_for_everyone()
    if config.log.tracker != "none":
        accelerator.init_trackers("log")
    metrics = MetricsFile(run_dir / "metrics.jsonl")
    signals, alone = StopSignals(), accelerator.num_processes == 1
    heartbeats = heartbeat_store(accelerator.process_index, accelerator.num_processes)
    watchdog = Watchdog(
        rank=accelerator.process_index,
        processes=accelerator.num_processes,
        store=heartbeats,
        stall_seconds=config.health.stall_seconds,
    )
    agreement = Agreement(
        signals, None if alone else new_group(backend="gloo"), heartbeats, watchdog.alive
    )
    stores = _stores(config, alone)
    if config.init_from.run is not None and not stores[0].exists():
        initialise(config, network, accelerator)
    evaluator = make_evaluator(config, accelerator, agreement, metrics, network, held_out, sets)
    teacher = _teacher(config, objective, network, accelerator)
    if config.train.compile:
        network.compile_blocks()
    network.recompute(config.parallel.recompute)
    parallel = parallelise(
        network,
        accelerator,
        strategy=config.parallel.strategy,
        shards=config.parallel.shards,
        dtype=DTYPES[config.train.precision],
    )
    ema = Ema(dict(network.named_parameters()), config.ema.lengths, config.ema.every_steps)
    if teacher is not None:
        teacher.follow(_teacher_weights(config, objective, ema, network))
    optim = config.optim
    optimizer = adamw(
        network,
        lr=optim.lr,
        betas=optim.betas,
        eps=optim.eps,
        weight_decay=optim.weight_decay,
    )
    stepper = Stepper(
        network=network,
        parallel=parallel,
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
        draws=Draws(
            seed=config.seed,
            batch_size=config.train.batch_size,
            times=config.objective.times.build(),
            flip=config.data.flip,
            label_drop=config.objective.label_drop,
            null_label=null_label_of(network),
            device=accelerator.device,
            choices=isinstance(objective, FewStep),
        ),
        rank=accelerator.process_index,
        micro_batch_size=config.train.micro_batch_size,
        clip_norm=optim.clip_norm,
        teacher=teacher,
    )
    state = RunState(
        network=network,
        optimizer=optimizer,
        ema=ema,
        health=Health(config.health.max_skipped, config.health.spike_factor),
        window=Window(accelerator.device),
        data=DataFacts.of(sets, config.model.num_classes),
        data_name=sets.fingerprint,
        config_text=dump_config(config),
        main=accelerator.is_main_process,
        processes=accelerator.num_processes,
    )
    device_name = _device_name(accelerator.device)
    keeper = Keeper(
        accelerator=accelerator,
        agreement=agreement,
        watchdog=watchdog,
        store=stores[0],
        snapshots=stores[1],
        metrics=metrics,
        facts={
            "parameters": sum(count_parameters(config).values()),
            "device": device_name,
            "processes": accelerator.num_processes,
            "parallel": config.parallel.strategy,
            "threads": torch.get_num_threads(),
            "precision": config.train.precision,
            "total_images": config.train.total_images,
        },
        total_images=config.train.total_images,
        batch_size=config.train.batch_size,
        grace_seconds=config.checkpoint.grace_seconds,
    )
    return Trainer(
        accelerator=accelerator,
        state=state,
        stepper=stepper,
        loader=loader,
        evaluator=evaluator,
        keeper=keeper,
        agreement=agreement,
        watchdog=watchdog,
        metrics=metrics,
        intervals=Intervals(
            log=config.log.every_images,
            validation=config.validation.every_images,
            scores=config.scores.every_images,
            grid=config.grids.every_images,
            checkpoint=config.checkpoint.every_images,
            snapshot=config.ema.snapshot_images,
        ),
        batch_size=config.train.batch_size,
        total_images=config.train.total_images,
        flops_per_image=count_flops(config)[1],
        peak_tflops=config.log.peak_tflops or peak_tflops(device_name, config.train.precision),
        sets=set_names([store.root for store in sets.stores]),
    )


def _teacher(
    config: RunConfig, objective: Denoising | FewStep, network: UViT, accelerator: Accelerator
) -> TeacherNetwork | None:
    """What makes the targets of a few-step objective; None for plain denoising."""
    if not isinstance(objective, FewStep):
        return None
    dtype = DTYPES[config.train.precision]
    if objective.needs_jvp:
        if config.model.attention != "sdpa":
            raise RunError(
                "this few-step objective differentiates the network forward, which "
                f"model.attention {config.model.attention} cannot; use sdpa"
            )
        if accelerator.device.type == "cpu":
            # Half precision takes ten times as long there, forward-mode.
            dtype = torch.float32
    return TeacherNetwork(
        network,
        accelerator,
        strategy=config.parallel.strategy,
        shards=config.parallel.shards,
        dtype=dtype,
    )


def _teacher_weights(
    config: RunConfig, objective: Denoising | FewStep, ema: Ema, network: UViT
) -> dict[str, Tensor]:
    if isinstance(objective, FewStep) and objective.teacher == "average":
        assert isinstance(config.few_step, ShortcutConfig)
        return ema.tensors(ema_name(config.few_step.target_length))
    return dict(network.named_parameters())


def _stores(config: RunConfig, alone: bool) -> tuple[CheckpointStore, CheckpointStore]:
    """Those of checkpoints and of snapshots; each writes over a group of its own."""
    keep = config.checkpoint
    groups = (None, None) if alone else (new_group(backend="gloo"), new_group(backend="gloo"))
    return (
        CheckpointStore(checkpoint_root(config), keep.keep, keep.milestone_images, groups[0]),
        CheckpointStore(snapshot_root(config), None, None, groups[1]),
    )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
