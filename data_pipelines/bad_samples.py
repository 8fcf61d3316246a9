"""The rate of samples that cannot be used: logged one by one, and a stop when they are too many."""

import logging
from collections.abc import Iterable

from data_pipelines.dataset import Replacement

logger = logging.getLogger(__name__)


class BadDataError(ValueError):
    """Too many samples of a shard set cannot be used."""


class BadSamples:
    """Counts the samples that could not be used.

    Args:
        name: Where the data is, for messages.
        limit: Share of bad samples above which `add` raises, once 1 / limit samples were seen.
    """

    def __init__(self, name: str, limit: float) -> None:
        if not 0.0 <= limit <= 1.0:
            raise ValueError(f"max_bad_fraction is {limit}; it must be in [0, 1]")
        self._name, self._limit = name, limit
        self._seen = 0
        self._replaced = 0
        self._reasons: dict[tuple[str, str], str] = {}

    def add(self, samples: int, replaced: Iterable[Replacement]) -> None:
        """Takes note of a batch's size and its replaced samples.

        Raises:
            BadDataError: The share of bad samples is above the limit.
        """
        self._seen += samples
        for bad in replaced:
            self._replaced += 1
            if (bad.shard, bad.key) not in self._reasons:
                self._reasons[bad.shard, bad.key] = bad.reason
                logger.warning("%s: sample %r replaced: %s", bad.shard, bad.key, bad.reason)
        # One bad sample among the first few is no rate yet.
        enough = self._limit == 0.0 or self._seen >= 1.0 / self._limit
        if enough and self._replaced > self._limit * self._seen:
            raise BadDataError(self._complaint())

    def _complaint(self) -> str:
        by_shard: dict[str, int] = {}
        for shard, _ in self._reasons:
            by_shard[shard] = by_shard.get(shard, 0) + 1
        worst = sorted(by_shard, key=lambda shard: -by_shard[shard])[:5]
        examples = [f"{shard}: {key!r}: {reason}" for (shard, key), reason in self._reasons.items()]
        return (
            f"{self._name}: {self._replaced} of {self._seen} samples could not be used, more than "
            f"the allowed share of {self._limit:g}. Worst shards: "
            + ", ".join(f"{shard} ({by_shard[shard]})" for shard in worst)
            + ". For example "
            + "; ".join(examples[:5])
            + ". List all with `simple-diffusion data verify`"
        )
