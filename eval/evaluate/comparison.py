"""Statistics of samples against a reference: figures, their record, their table."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

import simple_diffusion
from data_pipelines.manifest import Manifest
from eval.features import Extractor, ExtractorFacts, figure_name
from eval.metrics import METRICS, score, score_by_class
from eval.statistics import FeatureStatistics
from simple_diffusion.training.reference import reference_statistics

FORMAT = 1


@dataclass(frozen=True)
class Reference:
    """Real images to compare with.

    Attributes:
        root: shard set.
        image_size: side of the centre squares that are compared.
        extractor: makes the features.
        num: how many of its images; None for all.
        cache: folder of statistics; None for the usual one.
    """

    root: Path
    image_size: int
    extractor: Extractor
    num: int | None = None
    cache: Path | None = None

    def statistics(self, state: PartialState) -> FeatureStatistics:
        """Measured by all processes together, or read from the cache."""
        return reference_statistics(
            self.root,
            image_size=self.image_size,
            extractor=self.extractor,
            num=self.num,
            cache=self.cache,
            rank=state.process_index,
            processes=state.num_processes,
            wait=state.wait_for_everyone,
        )

    def pins(self, statistics: FeatureStatistics) -> dict[str, Any]:
        """What the statistics depend on, besides the extractor."""
        manifest = Manifest.load(self.root)
        return {
            "path": str(self.root),
            "fingerprint": manifest.fingerprint,
            "synthetic": manifest.synthetic,
            "num": statistics.count,
            "kept": len(statistics.kept),
            "image_size": self.image_size,
            "crop": "centre square",
        }


def compare(
    metrics: Sequence[str],
    samples: FeatureStatistics,
    sample_pins: Mapping[str, Any],
    reference: Reference,
    real: FeatureStatistics,
    *,
    by_class: bool = False,
) -> dict[str, Any]:
    """The record of a comparison, as JSON values: the figures, and everything that pins them."""
    facts = reference.extractor.facts
    scores = score(metrics, samples, real)
    document: dict[str, Any] = {
        "format": FORMAT,
        "figures": {figure_name(name, facts.name): vars(one) for name, one in scores.items()},
        # fd and is use all images; the other metrics compare the kept ones
        "samples": {**sample_pins, "kept": len(samples.kept)},
        "reference": reference.pins(real),
        "extractor": asdict(facts),
        "versions": {"simple_diffusion": simple_diffusion.__version__, "torch": torch.__version__},
    }
    if by_class:
        classes = Manifest.load(reference.root).classes
        document["by_class"] = {
            classes[label]: {figure_name(n, facts.name): value for n, value in values.items()}
            for label, values in score_by_class(metrics, samples, real).items()
        }
    return document


def check_enough(metrics: Sequence[str], num: int, real: int) -> None:
    """Refuse sets that are too small for a metric, before anything is drawn.

    Raises:
        ValueError: naming the metric and what it needs.
    """
    for name in metrics:
        least = METRICS[name].least
        if num < least or (METRICS[name].needs_reference and real < least):
            raise ValueError(
                f"metric {name!r} needs {least} images on both sides, not {num} against {real}"
            )


def check_classes(classes: Sequence[str], reference: Path) -> None:
    """Refuse figures of single classes where a label means something else in the reference.

    Raises:
        ValueError: the classes differ.
    """
    if tuple(classes) != Manifest.load(reference).classes or not classes:
        raise ValueError(f"{reference}: does not have the samples' classes; leave --by_class out")


def key_of(pins: Mapping[str, Any], facts: ExtractorFacts) -> str:
    """A short name for samples as an extractor sees them: equal pins, equal key."""
    text = json.dumps([dict(pins), asdict(facts)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def write_record(path: Path, document: Mapping[str, Any]) -> None:
    """Write a record, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def table(document: Mapping[str, Any], metrics: Sequence[str]) -> str:
    """The figures as lines of text, each with the floor beside it."""
    rows: list[tuple[str, ...]] = [("figure", "value", "± error", "matched", "floor", "better")]
    extractor = document["extractor"]["name"]
    for metric in metrics:
        name = figure_name(metric, extractor)
        one = document["figures"][name]
        cells = (_number(one[key]) for key in ("value", "error", "matched", "floor"))
        rows.append((name, *cells, "higher" if METRICS[metric].higher_is_better else "lower"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.5g}"
