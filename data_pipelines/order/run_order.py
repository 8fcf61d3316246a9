"""The order of a run: its shard sets, weights and aspect buckets put together."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipelines.aspects import MAX_BIN, bin_ratio
from data_pipelines.order.bucket_order import BucketOrder, MixedSteps
from data_pipelines.order.buckets import Shape, nearest_bucket
from data_pipelines.order.mixture import Mixture, set_seed
from data_pipelines.order.order import Order, StepOrder, default_streams
from data_pipelines.selection import Selection
from data_pipelines.shard_sets import ShardSets


def select(sets: ShardSets, shapes: Sequence[Shape] | None) -> list[Selection]:
    """Which samples of each set there are to choose from, by bucket if there are shapes.

    Raises:
        ShardSetError: There are shapes, but a manifest does not know those of its images.
    """
    bucket_of_bin = None
    if shapes is not None:
        ratios = bin_ratio(np.arange(-MAX_BIN, MAX_BIN + 1))
        bucket_of_bin = nearest_bucket(ratios, np.ones_like(ratios), shapes)
    return [Selection(store.manifest, bucket_of_bin, store.root) for store in sets.stores]


def run_order(
    selections: Sequence[Selection],
    weights: Sequence[float],
    *,
    bucketed: bool,
    seed: int,
    batch_size: int,
    streams: int | None,
    window: int,
) -> StepOrder:
    """The order of a run's samples.

    Args:
        selections: What there is to choose from, for each shard set.
        weights: Relative share of each set; of its samples, with buckets of its whole steps.
        bucketed: Whether the selections are by aspect bucket.
        seed: Chooses the permutations.
        batch_size: Samples per step over all ranks.
        streams: As in `Order`; of several sets, each has at most as many as suit its shards.
        window: As in `Order`.

    Raises:
        ValueError: An argument is out of range.
    """
    alone = len(selections) == 1
    options: list[dict[str, Any]] = []
    for number, selection in enumerate(selections):
        own_streams = streams
        if streams is not None and not alone:
            own_streams = min(streams, default_streams(len(selection.sizes[0])))
        own_seed = seed if alone else set_seed(seed, number)
        options.append({"seed": own_seed, "streams": own_streams, "window": window})
    if bucketed:
        buckets = [
            BucketOrder(selection.sizes, batch_size=batch_size, **own)
            for selection, own in zip(selections, options, strict=True)
        ]
        return buckets[0] if alone else MixedSteps(buckets, weights)
    orders = [Order(s.sizes[0], **own) for s, own in zip(selections, options, strict=True)]
    return orders[0] if alone else Mixture(orders, weights)
