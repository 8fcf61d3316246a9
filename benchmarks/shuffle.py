"""How well the order mixes shards that are sorted by class, against a full shuffle.

    python benchmarks/shuffle.py --shards 100 --shard_samples 100 --classes 10

Each batch's class counts are compared with the expected ones by Pearson's chi-square, divided by
the classes less one. Of a full shuffle (without replacement, as an epoch is) that is 1 on average,
less (batch - 1) / (samples - 1); above 1, batches hold too much of some classes.
"runs" does the same for spans of 10 batches, which shows whether the mix drifts over the epoch.
"far" is the share of batches worse than 95 of 100 of a full shuffle.
"""

import argparse
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from data_pipelines.hashing import permutation
from data_pipelines.order.order import Order

Ints = NDArray[np.int64]


def excess(classes: Ints, batch_size: int) -> NDArray[np.float64]:
    """Chi-square of each batch's class counts per degree of freedom, shape (batches,).

    Args:
        classes: Class of each sample of an epoch in its order, shape (samples,).
        batch_size: Neighbouring samples that make a batch.
    """
    number = int(classes.max()) + 1
    share = np.bincount(classes) / classes.size
    batches = classes[: classes.size // batch_size * batch_size].reshape(-1, batch_size)
    counts = (batches[:, :, None] == np.arange(number)).sum(axis=1)
    expected = batch_size * share
    return ((counts - expected) ** 2 / expected).sum(axis=1) / (number - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=100)
    parser.add_argument("--shard_samples", type=int, default=100)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--windows", type=int, nargs="+", default=[1, 4, 16])
    args = parser.parse_args()
    samples = args.shards * args.shard_samples
    # Sorted by class: the first shards hold the first class only, and so on.
    class_of = np.arange(samples) * args.classes // samples

    def measure(epoch: Callable[[int], Ints]) -> list[NDArray[np.float64]]:
        orders = [class_of[epoch(number)] for number in range(args.epochs)]
        return [
            np.concatenate([excess(order, size) for order in orders])
            for size in (args.batch_size, 10 * args.batch_size)
        ]

    def show(title: str, figures: list[NDArray[np.float64]]) -> None:
        batch, run = figures
        far = (batch > limit).mean()
        print(f"| {title} | {batch.mean():.2f} | {far:.2f} | {run.mean():.2f} |", flush=True)

    full = measure(lambda number: permutation(samples, number))
    limit = np.quantile(full[0], 0.95)
    print(f"{args.shards} shards of {args.shard_samples}, sorted by {args.classes} classes, ")
    print(f"batches of {args.batch_size}, {args.epochs} epochs")
    print("| streams | window | shards at once | batch | far | runs |")
    show("full shuffle | | all", full)
    for streams in args.streams:
        for window in args.windows:
            order = Order(
                [args.shard_samples] * args.shards, seed=0, streams=streams, window=window
            )

            def epoch(number: int, order: Order = order) -> Ints:
                shards, indices = order.locate(np.arange(samples) + number * samples)
                return shards * args.shard_samples + indices

            at_once = min(streams * window, args.shards)
            show(f"{streams} | {window} | {at_once}", measure(epoch))


if __name__ == "__main__":
    main()
