"""The order of a run: its shard sets, weights and aspect buckets put together."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipelines.aspects import MAX_BIN, bin_ratio
from data_pipelines.order.bucket_order import BucketOrder, MixedSteps
from data_pipelines.order.buckets import Shape, nearest_bucket
from data_pipelines.order.labels import Ints
from data_pipelines.order.mixture import Mixture, set_seed
from data_pipelines.order.order import Order, StepOrder, default_streams
from data_pipelines.selection import Selection, aspect_totals
from data_pipelines.shard_sets import ShardSets
from data_pipelines.store import ShardStore


def select(sets: ShardSets, shapes: Sequence[Shape] | None, batch_size: int) -> list[Selection]:
    """Which samples of each set there are to choose from, by bucket if there are shapes.

    Images of a bucket that could not fill a batch go to the nearest one that can.

    Raises:
        ShardSetError: There are shapes, but a manifest does not know those of its images.
    """
    return [
        Selection(
            store.manifest,
            None if shapes is None else _buckets(store, shapes, batch_size),
            store.root,
            None if shapes is None else len(shapes),
        )
        for store in sets.stores
    ]


def _buckets(store: ShardStore, shapes: Sequence[Shape], batch_size: int) -> Ints:
    """The bucket of each aspect bin."""
    bins = np.arange(-MAX_BIN, MAX_BIN + 1)
    ratios, ones = bin_ratio(bins), np.ones(len(bins))
    totals = aspect_totals(store.manifest, store.root)
    images = np.array([totals.get(number, 0) for number in bins.tolist()])
    kept = list(range(len(shapes)))
    while True:
        nearest = nearest_bucket(ratios, ones, [shapes[number] for number in kept])
        filled = np.bincount(nearest, weights=images, minlength=len(kept))
        if len(kept) == 1 or filled.min() >= batch_size:
            return np.array(kept, dtype=np.int64)[nearest]
        del kept[int(filled.argmin())]


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
