"""Feature extractors by name, and the names of the figures made with them.

A figure means nothing without the network whose features it compares: its weights, the size it
sees and how images are resized. So each extractor states those as `ExtractorFacts`, and each
figure carries the extractor in its name. Only the Fréchet distance in the features of the
Inception network of 2015-12-05 is called FID.
"""

import difflib
from collections.abc import Callable
from pathlib import Path

import torch

from eval.extractors.base import Extractor, ExtractorFacts, Features, WeightsMissingError

__all__ = [
    "EXTRACTORS",
    "Extractor",
    "ExtractorFacts",
    "Features",
    "WeightsMissingError",
    "figure_name",
    "open_extractor",
]

# What a figure is called in the literature; all others are METRIC_EXTRACTOR.
_ESTABLISHED = {("fd", "inception"): "fid", ("is", "inception"): "is", ("mmd", "clip"): "cmmd"}


def _lite0(weights: Path | None, device: torch.device) -> Extractor:
    from eval.extractors.lite0 import open_lite0

    return open_lite0(weights, device)


def _inception(weights: Path | None, device: torch.device) -> Extractor:
    from eval.extractors.inception import open_inception

    return open_inception(weights, device)


def _dinov2(weights: Path | None, device: torch.device) -> Extractor:
    from eval.extractors.dinov2 import open_dinov2

    return open_dinov2(weights, device)


def _clip(weights: Path | None, device: torch.device) -> Extractor:
    from eval.extractors.clip import open_clip

    return open_clip(weights, device)


# Imports are put off: naming the extractors must not load them.
EXTRACTORS: dict[str, Callable[[Path | None, torch.device], Extractor]] = {
    "lite0": _lite0,
    "inception": _inception,
    "dinov2": _dinov2,
    "clip": _clip,
}
"""Openers by name: (path of the weights or None for the usual place, device) -> extractor."""


def open_extractor(name: str, *, weights: Path | None = None, device: torch.device) -> Extractor:
    """Open a feature extractor, ready to be called.

    Args:
        name: one of `EXTRACTORS`.
        weights: where its weights lie, a file or (dinov2, clip) a folder; None for the usual place:
            the installed package, the cache of an earlier download, or the download itself.
        device: where it is to compute.

    Raises:
        ValueError: no extractor of that name.
        WeightsMissingError: the weights are absent or not the ones meant; says what to do.
    """
    if name not in EXTRACTORS:
        near = difflib.get_close_matches(name, EXTRACTORS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"no feature extractor is called {name!r}: {hint}there are {', '.join(EXTRACTORS)}"
        )
    return EXTRACTORS[name](weights, device)


def figure_name(metric: str, extractor: str) -> str:
    """What a metric in some extractor's features is called, as in ("kid", "lite0") -> "kid_lite0".

    Only the figures that the literature means get its names: "fid" and "is" with Inception, "cmmd"
    with CLIP.
    """
    return _ESTABLISHED.get((metric, extractor), f"{metric}_{extractor}")
