"""Features with known distributions, and statistics made of them."""

import numpy as np
import torch
from torch import Tensor

from eval.statistics import FeatureStatistics


def normal(n: int, dim: int, seed: int) -> Tensor:
    """Standard normal features, float32 (n, dim)."""
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def digests(n: int, seed: int) -> np.ndarray:
    """Digests as of n different images, uint64 (n,)."""
    return np.random.default_rng(seed).integers(0, 2**64, n, dtype=np.uint64)


def statistics(features: Tensor, seed: int = 0, keep: int = 10_000, **more) -> FeatureStatistics:
    """Statistics of features as of different images; `more` goes to `update`."""
    probabilities = more.get("probabilities")
    classes = 0 if probabilities is None else probabilities.shape[1]
    found = FeatureStatistics(features.shape[1], classes, keep)
    found.update(features, digests(len(features), seed), **more)
    return found
