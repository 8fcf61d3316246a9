"""The typed run configuration: frozen dataclasses that a YAML file fills.

Durations are counted in images. Nothing here is handed whole to a module: `training.assemble`
takes it apart, and constructors get what they use.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from simple_diffusion.config_checks import require
from simple_diffusion.config_cluster import (
    CheckpointConfig,
    HealthConfig,
    InitConfig,
    ParallelConfig,
)
from simple_diffusion.config_data import DataConfig
from simple_diffusion.config_few_step import FewStepConfig, NoFewStep, ShortcutConfig, StepsConfig
from simple_diffusion.config_noise import (
    CosineConfig,
    ScheduleConfig,
    TimesConfig,
    UniformConfig,
    UniformTimeConfig,
    WeightingConfig,
)
from simple_diffusion.diffusion import schedules
from simple_diffusion.diffusion.few_step_sampler import FEW_STEP
from simple_diffusion.diffusion.objectives import Denoising, FewStep
from simple_diffusion.diffusion.prediction import Prediction
from simple_diffusion.diffusion.samplers import SAMPLERS
from simple_diffusion.diffusion.spacing import Spacing
from simple_diffusion.models.uvit import UViT

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class ModelConfig:
    """Arguments of `models.UViT`, but for the image size. `num_classes` 0 is unconditional."""

    stem: Literal["patch", "haar", "cdf53"] = "patch"
    patch_size: int = 1
    bottleneck: int | None = None
    channels: tuple[int, ...] = (64, 128)
    blocks: tuple[int, ...] = (1,)
    depth: int = 4
    head_dim: int = 64
    mlp_ratio: float = 4.0
    mlp: Literal["gelu", "swiglu"] = "gelu"
    skips: Literal["block", "level"] = "block"
    positions: Literal["learned", "rotary"] = "learned"
    qk_norm: bool = True
    norm: Literal["pre", "post"] = "pre"
    branches: Literal["zero", "small", "default"] = "zero"
    dropout: float = 0.0
    dropout_resolution: int | None = None
    num_classes: int = 0
    condition_width: int = 256
    step_condition: bool = False
    attention: Literal["sdpa", "xformers"] = "sdpa"


@dataclass(frozen=True)
class ObjectiveConfig:
    """The denoising objective; `label_drop` is the share of labels replaced by the null class."""

    prediction: Prediction = "v"
    loss: Prediction = "eps"
    weighting: WeightingConfig = field(default_factory=UniformConfig)
    times: TimesConfig = field(default_factory=UniformTimeConfig)
    multiscale_from: int | None = None
    correct_density: bool = False
    label_drop: float = 0.1

    def __post_init__(self) -> None:
        require(0.0 <= self.label_drop < 1.0, "objective.label_drop must lie in [0, 1)")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW. The rate rises over `warmup_images`, and falls to 0 over the last `decay_images`."""

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    warmup_images: int = 0
    decay_images: int = 0

    def __post_init__(self) -> None:
        require(0.0 < self.lr < math.inf, "optim.lr must be positive and finite")
        require(self.clip_norm > 0.0, "optim.clip_norm must be positive")
        require(self.warmup_images >= 0, "optim.warmup_images must not be negative")
        require(self.decay_images >= 0, "optim.decay_images must not be negative")


@dataclass(frozen=True)
class EmaConfig:
    """Averages of the weights. A length is the averaging width as a share of training so far.

    `snapshot_images`: keep the averages every so many images for ever, so that `simple-diffusion
    ema` can rebuild averages of other lengths; null for no snapshots.
    """

    lengths: tuple[float, ...] = (0.10,)
    every_steps: int = 1
    snapshot_images: int | None = None

    def __post_init__(self) -> None:
        require(len(self.lengths) > 0, "ema.lengths needs at least one length")
        require(
            len(set(self.lengths)) == len(self.lengths) and all(0 < s < 0.28 for s in self.lengths),
            "ema.lengths must be different and lie in (0, 0.28)",
        )
        names = {f"{length:.3f}" for length in self.lengths}
        require(len(names) == len(self.lengths), "ema.lengths must differ in three decimals")
        require(self.every_steps >= 1, "ema.every_steps must be at least 1")
        snapshot = self.snapshot_images
        require(snapshot is None or snapshot >= 1, "ema.snapshot_images must be at least 1")


@dataclass(frozen=True)
class TrainConfig:
    """The loop. `batch_size` is global; `micro_batch_size` is per device, null for no accumulation.

    `precision` auto, in a file, is what the machine is fastest in. `compile` compiles each block
    with torch.compile; on CPUs it costs minutes and gains nothing.
    """

    batch_size: int = 64
    micro_batch_size: int | None = None
    total_images: int = 50_000
    precision: Precision = "bf16"
    compile: bool = False

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, "train.batch_size must be at least 1")
        require(self.total_images >= 1, "train.total_images must be at least 1")
        micro = self.micro_batch_size
        require(micro is None or micro >= 1, "train.micro_batch_size must be at least 1")


@dataclass(frozen=True)
class ValidationConfig:
    """Unweighted eps-MSE at fixed λ on held-out images, with the first EMA.

    `wiener_images`: fit a linear-Gaussian denoiser to so many training images, as a yardstick for
    the same λ and images; 0 for none.
    """

    every_images: int = 10_000
    images: int = 256
    batch_size: int = 64
    logsnr: tuple[float, ...] = (-10.0, -8.0, -6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0, 8.0, 10.0)
    wiener_images: int = 0

    def __post_init__(self) -> None:
        require(self.every_images >= 1, "validation.every_images must be at least 1")
        require(self.images >= 0, "validation.images must not be negative")
        require(self.batch_size >= 1, "validation.batch_size must be at least 1")
        finite = all(math.isfinite(level) for level in self.logsnr)
        require(len(self.logsnr) > 0 and finite, "validation.logsnr needs one or more finite λ")
        require(
            self.wiener_images == 0 or 10 <= self.wiener_images <= 4096,
            "validation.wiener_images must be 0 (none) or from 10 to 4096",
        )


@dataclass(frozen=True)
class SamplingConfig:
    """How images are drawn: the grids during training, and the defaults of `sample` and `export`.

    `guidance_interval` is (lowest, highest) λ at which guidance applies. The sampler `few_step` is
    for runs with a few-step objective, and takes the spacing and the guidance of its training.
    """

    sampler: str = "dpm++2m"
    steps: int = 50
    spacing: Spacing = "logsnr"
    guidance: float = 1.0
    guidance_interval: tuple[float, float] = (-math.inf, math.inf)
    precision: Precision = "fp32"
    batch_size: int = 32

    def __post_init__(self) -> None:
        names = (*SAMPLERS, FEW_STEP)
        require(self.sampler in names, f"sampling.sampler must be one of {', '.join(names)}")
        require(self.steps >= 1, "sampling.steps must be at least 1")
        require(self.batch_size >= 1, "sampling.batch_size must be at least 1")
        low, high = self.guidance_interval
        require(low <= high, "sampling.guidance_interval must be [lowest λ, highest λ]")
        require(math.isfinite(self.guidance), "sampling.guidance must be finite")


@dataclass(frozen=True)
class GridConfig:
    """Sample grids drawn during training, always from the same noise, and the one at the end."""

    every_images: int = 10_000
    num: int = 16
    steps: int = 20
    final_num: int = 64

    def __post_init__(self) -> None:
        require(self.every_images >= 1, "grids.every_images must be at least 1")
        require(
            min(self.num, self.final_num, self.steps) >= 1,
            "grids.num, grids.final_num and grids.steps must be at least 1",
        )


@dataclass(frozen=True)
class ScoresConfig:
    """Scores of samples against the held-out images, with the first EMA; `num` 0 for none.

    `metrics` are names in eval.metrics.METRICS, `extractor` one in eval.features.EXTRACTORS, and
    `weights` its file where it has no usual place. `steps` null means `sampling.steps`.
    """

    every_images: int = 10_000
    num: int = 0
    steps: int | None = None
    metrics: tuple[str, ...] = ("kid", "fd")
    extractor: str = "lite0"
    weights: str | None = None

    def __post_init__(self) -> None:
        require(self.every_images >= 1, "scores.every_images must be at least 1")
        require(self.num == 0 or self.num >= 2, "scores.num must be 0 (none) or at least 2")
        require(self.steps is None or self.steps >= 1, "scores.steps must be at least 1")
        require(len(self.metrics) > 0, "scores.metrics needs at least one metric")


@dataclass(frozen=True)
class LogConfig:
    """A metrics line every so many images; `tracker` is a further one besides JSON lines.

    `peak_tflops` is what one device can do in training's precision, for the share of it that is
    used (MFU); null looks the device up in a table.
    """

    every_images: int = 1_000
    tracker: Literal["none", "tensorboard"] = "none"
    peak_tflops: float | None = None

    def __post_init__(self) -> None:
        require(self.every_images >= 1, "log.every_images must be at least 1")
        peak = self.peak_tflops
        require(peak is None or 0.0 < peak < math.inf, "log.peak_tflops must be positive")


@dataclass(frozen=True)
class RunConfig:
    """Everything that defines a run."""

    run_dir: str = "runs/run"
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    schedule: ScheduleConfig = field(default_factory=CosineConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    few_step: FewStepConfig = field(default_factory=NoFewStep)
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    grids: GridConfig = field(default_factory=GridConfig)
    scores: ScoresConfig = field(default_factory=ScoresConfig)
    log: LogConfig = field(default_factory=LogConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    init_from: InitConfig = field(default_factory=InitConfig)

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**32, "seed must lie in [0, 2^32)")
        check_few_step(self)


def check_few_step(config: RunConfig) -> None:
    """Raises RefusedValueError where other sections do not fit `few_step`."""
    few, sampling = config.few_step, config.sampling
    if not isinstance(few, StepsConfig):
        require(
            not config.model.step_condition,
            "model.step_condition is for a few-step objective: set few_step.type, or leave it out",
        )
        require(
            sampling.sampler != FEW_STEP,
            f"sampling.sampler {FEW_STEP} is for a few-step objective: set few_step.type",
        )
        return
    require(config.model.step_condition, "few_step needs model.step_condition: true")
    require(
        not isinstance(few, ShortcutConfig) or few.target_length in config.ema.lengths,
        "few_step.target_length must be one of ema.lengths: add it there",
    )
    if sampling.sampler != FEW_STEP:
        return
    require(
        (sampling.spacing, sampling.guidance) == (few.spacing, few.guidance),
        f"{FEW_STEP} samples as it was trained: set sampling.spacing to {few.spacing} and "
        f"sampling.guidance to {few.guidance}, as in few_step",
    )
    require(
        sampling.guidance_interval == (-math.inf, math.inf),
        f"{FEW_STEP} is guided at all λ, as in training: leave sampling.guidance_interval out",
    )
    scored = config.scores.steps if config.scores.num else None
    for name, steps in (
        ("sampling.steps", sampling.steps),
        ("grids.steps", config.grids.steps),
        ("scores.steps", scored or sampling.steps),
    ):
        require(
            not few.dyadic or steps >= few.base_steps or not steps & (steps - 1),
            f"{name} must be 1, 2, 4, ... or at least {few.base_steps} for {FEW_STEP}: other sizes "
            "of step are not trained",
        )


def build_network(model: ModelConfig, image_size: int) -> UViT:
    """The network of a config, on the current default device (`meta` for a dry run)."""
    return UViT(image_size=image_size, **vars(model))


def build_objective(config: RunConfig) -> Denoising | FewStep:
    """The training objective of a config.

    Raises:
        ValueError: its parts do not fit together.
    """
    denoising = build_denoising(config.objective, config.schedule.build(config.data.image_size))
    return config.few_step.build(denoising, config.model.num_classes or None) or denoising


def build_denoising(config: ObjectiveConfig, schedule: schedules.Schedule) -> Denoising:
    """The denoising objective of a config."""
    return Denoising(
        schedule=schedule,
        prediction=config.prediction,
        loss=config.loss,
        weighting=config.weighting.build(),
        times=config.times.build(),
        multiscale_from=config.multiscale_from,
        correct_density=config.correct_density,
    )
