"""The part of a run's config that says where its images come from."""

import math
from dataclasses import dataclass, field

from simple_diffusion.config_checks import require


@dataclass(frozen=True)
class MixConfig:
    """A further shard set to draw from; weights are relative, that of `data.path` among them."""

    path: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        require(0.0 < self.weight < math.inf, "data.mix_with: weight must be positive and finite")


@dataclass(frozen=True)
class BucketsConfig:
    """Batches of one shape each, near the images' own, of about image_size² pixels.

    Aspect ratios go up to `max_aspect`, either way; what is longer is cropped. Sides are multiples
    of `multiple` pixels. `max_aspect` 1 is the square alone: no buckets.
    """

    max_aspect: float = 1.0
    multiple: int = 64

    def __post_init__(self) -> None:
        require(1.0 <= self.max_aspect <= 16.0, "data.buckets.max_aspect must lie in [1, 16]")
        require(self.multiple >= 1, "data.buckets.multiple must be at least 1")


@dataclass(frozen=True)
class CacheConfig:
    """Where shards of URLs are kept on the local disk, and when a silent server is given up.

    `folder` null is `simple_diffusion/shards` in the user's cache folder. Each node needs its own,
    its processes share it. A request without progress for `stall_seconds` is tried again; training
    saves and stops after `give_up_seconds` without any.
    """

    folder: str | None = None
    max_gb: float = 100.0
    stall_seconds: float = 30.0
    give_up_seconds: float = 600.0

    def __post_init__(self) -> None:
        require(0.0 < self.max_gb < math.inf, "data.cache.max_gb must be positive")
        require(0.0 < self.stall_seconds < math.inf, "data.cache.stall_seconds must be positive")
        require(
            self.stall_seconds <= self.give_up_seconds < math.inf,
            "data.cache.give_up_seconds must be at least data.cache.stall_seconds",
        )


@dataclass(frozen=True)
class DataConfig:
    """Where the images come from.

    Sets are folders or URLs (s3://, gs://, https://). `mix_with` are further sets to draw from; the
    share of each is its weight over the sum of all. `validation_path` null means PATH/validation
    where that is a folder, else no validation. `streams` and `window` set the shuffle (see
    data_pipelines.order.order); null streams chooses by shard count. `max_synthetic` is the share
    of images made by a model that training accepts.
    """

    path: str = "data/icons_64"
    weight: float = 1.0
    mix_with: tuple[MixConfig, ...] = ()
    validation_path: str | None = None
    image_size: int = 64
    buckets: BucketsConfig = field(default_factory=BucketsConfig)
    random_crop: bool = False
    flip: bool = False
    streams: int | None = None
    window: int = 4
    workers: int = 1
    cache: CacheConfig = field(default_factory=CacheConfig)
    max_bad_fraction: float = 0.01
    max_synthetic: float = 0.0

    def __post_init__(self) -> None:
        require(0.0 <= self.max_synthetic <= 1.0, "data.max_synthetic must lie in [0, 1]")
        require(0.0 < self.weight < math.inf, "data.weight must be positive and finite")
        mixed = self.weight == 1.0 or len(self.mix_with) > 0
        require(mixed, "data.weight is a share of a mixture; name the other sets as data.mix_with")
