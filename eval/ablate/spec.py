"""What a job must know to run one cell of a study: `cell.yaml`, and the identity of a cell.

The identity is a hash of what the result depends on, so it names the cell's folder: a study that
is changed or extended finds again whatever it shares with the earlier one.
"""

import hashlib
import json
import math
import os
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import draccus
import yaml

from simple_diffusion.config import RunConfig
from simple_diffusion.config_checks import require
from simple_diffusion.config_files import ConfigError, decode, decode_as, read_mapping

CELL = "cell.yaml"
RUN = "run"
LOOPS = ("synthetic", "augmented", "fresh")
ID_LENGTH = 12  # of 64 hexadecimal digits: enough that two cells of a study never meet


@dataclass(frozen=True)
class Measure:
    """How a trained cell is measured.

    Attributes:
        metrics: names in `eval.metrics.METRICS`; the first one leads the report.
        num: images drawn.
        extractor: name in `eval.features.EXTRACTORS`.
        reference: shard set of real images; null for the config's validation set, all of it.
        sampler: null for the config's, as are `steps`, `guidance` and `batch_size`.
        steps: sampling steps.
        guidance: scale of classifier-free guidance.
        curve_every_images: also measure during training, every so many images; null for not.
        batch_size: images drawn at once.
        weights: file of the extractor's weights, where it has no usual place.
    """

    metrics: tuple[str, ...] = ("kid", "fd")
    num: int = 256
    extractor: str = "lite0"
    reference: str | None = None
    sampler: str | None = None
    steps: int | None = None
    guidance: float | None = None
    curve_every_images: int | None = None
    batch_size: int | None = None
    weights: str | None = None

    def __post_init__(self) -> None:
        require(len(self.metrics) > 0, "measure.metrics needs at least one metric")
        require(len(set(self.metrics)) == len(self.metrics), "measure.metrics names one twice")
        require(2 <= self.num <= 10**7, "measure.num must be from 2 to 10,000,000")
        guidance = self.guidance
        require(guidance is None or math.isfinite(guidance), "measure.guidance must be finite")
        for key in ("steps", "curve_every_images", "batch_size"):
            value = getattr(self, key)
            require(value is None or value >= 1, f"measure.{key} must be at least 1")

    def of(self, config: RunConfig) -> "Measure":
        """The same with the config's sampling settings where this has none."""
        sampling = config.sampling
        return replace(
            self,
            sampler=self.sampler or sampling.sampler,
            steps=self.steps or sampling.steps,
            guidance=sampling.guidance if self.guidance is None else self.guidance,
            batch_size=self.batch_size or sampling.batch_size,
        )


@dataclass(frozen=True)
class Budget:
    """How long a cell trains: `images`, or `minutes` of wall time spent in training."""

    images: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        require(self.images is None or self.images >= 1, "budget.images must be at least 1")
        require(
            self.minutes is None or 0.0 < self.minutes < math.inf,
            "budget.minutes must be positive and finite",
        )


@dataclass(frozen=True)
class DataRecipe:
    """What a cell of a self-consuming chain trains on.

    Attributes:
        parent: the cell whose model draws; null for generation 0, which trains on real images.
        loop: ``synthetic`` (drawn images alone), ``augmented`` (with the same real images every
            time) or ``fresh`` (with new real images every time).
        generation: from 0.
        images: how many the model draws, and how many real images are taken.
    """

    parent: str | None = None
    loop: str = LOOPS[0]
    generation: int = 0
    images: int = 1

    def __post_init__(self) -> None:
        if self.parent is not None:  # it becomes a path
            plain = len(self.parent) == ID_LENGTH and set(self.parent) <= set("0123456789abcdef")
            require(plain, f"data.parent must be a cell, not {self.parent!r}")
        require(self.loop in LOOPS, f"data.loop must be one of {', '.join(LOOPS)}")
        require(self.generation >= 0, "data.generation must not be negative")
        orphan = self.parent is None
        require(orphan == (self.generation == 0), "data.parent: generation 0 alone has none")
        require(self.images >= 1, "data.images must be at least 1")


@dataclass(frozen=True)
class CellSpec:
    """One cell: everything that its result depends on.

    Attributes:
        config: of the training run, in the form that `canonical` gives; its `run_dir` is ignored.
        measure: how it is measured.
        budget: how long it trains.
        data: null to train on the config's data.
    """

    config: RunConfig
    measure: Measure = field(default_factory=Measure)
    budget: Budget = field(default_factory=Budget)
    data: DataRecipe | None = None

    @property
    def parent(self) -> str | None:
        """The cell that must be finished before this one can begin."""
        return None if self.data is None else self.data.parent

    @property
    def id(self) -> str:
        """Hash of all that differs from the defaults, so that a new option keeps old cells."""
        usual = _flat(draccus.encode(RunConfig()))
        config = _flat(draccus.encode(self.config))
        measure = asdict(self.measure.of(self.config))
        # image i depends on (seed, i) alone, and an extractor on what its weights hold
        del measure["batch_size"], measure["weights"]
        measure["metrics"] = sorted(measure["metrics"])
        document = {
            "config": {
                k: v for k, v in config.items() if k != "run_dir" and usual.get(k, _NO) != v
            },
            "measure": _given(measure),
            "budget": _given(asdict(self.budget)),
            "data": None if self.data is None else asdict(self.data),
        }
        text = json.dumps(document, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:ID_LENGTH]

    def write(self, folder: Path) -> None:
        """Write `cell.yaml`, whole or not at all, with the run in the folder's `run`."""
        config = replace(self.config, run_dir=str(folder / RUN))
        document = {
            "config": draccus.encode(config),
            "measure": draccus.encode(self.measure),
            "budget": asdict(self.budget),
            "data": None if self.data is None else asdict(self.data),
        }
        text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
        # a name of its own: two drivers may come to the same cell at once
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=f"{CELL}.", suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, folder / CELL)

    @classmethod
    def read(cls, folder: Path) -> "CellSpec":
        """Read `cell.yaml`.

        Raises:
            ConfigError: missing or malformed; the message names the file and the key.
        """
        path = folder / CELL
        tree = read_mapping(path)
        config, data = _section(tree, "config", path), tree.pop("data", None)
        rest = decode_as(_Sections, tree, {}, str(path))
        if data is not None:
            if not isinstance(data, dict):
                raise ConfigError(f"{path}: data must be null or a section, not {data!r}")
            data = decode_as(DataRecipe, data, {}, str(path))
        return cls(decode(config, {}, f"{path}: config"), rest.measure, rest.budget, data)


@dataclass(frozen=True)
class _Sections:
    measure: Measure = field(default_factory=Measure)
    budget: Budget = field(default_factory=Budget)


_NO = object()  # equal to nothing that a config holds


def _given(tree: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in tree.items() if value is not None}


def _section(tree: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    section = tree.pop(key, None)
    if not isinstance(section, dict):
        raise ConfigError(f"{path}: needs a section {key}")
    return section


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat
