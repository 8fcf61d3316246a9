"""What the data order costs at scale: time and memory of an epoch's plan and of one batch.

    python benchmarks/order.py --samples 1000000000 --shards 100000 --rank 1023 --world_size 1024

"first" is the first batch of an epoch whose plan is ready, with its windows still to be permuted;
"next" is the mean of the ten batches after it. Memory is what numpy and Python hold.
"""

import argparse
import time
import tracemalloc
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from data_pipelines.order import Order


def measure(call: Callable[[], object]) -> list[float]:
    """Returns a call's milliseconds, and the MiB that it kept and that it held at its peak."""
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    start = time.perf_counter()
    call()
    seconds = time.perf_counter() - start
    kept, peak = tracemalloc.get_traced_memory()
    return [1e3 * seconds, (kept - before) / 2**20, (peak - before) / 2**20]


def show(title: str, figures: Sequence[float]) -> None:
    """Prints a line of the table."""
    print(f"{title:24}" + "".join(f"{figure:12.2f}" for figure in figures))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=10**9)
    parser.add_argument("--shards", type=int, default=10**5)
    parser.add_argument("--rank", type=int, default=1023)
    parser.add_argument("--world_size", type=int, default=1024)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[2048, 16384])
    args = parser.parse_args()

    mean = args.samples / args.shards
    sizes = np.random.default_rng(0).integers(int(mean / 2), int(mean * 1.5) + 1, args.shards)
    tracemalloc.start()
    print(f"{sizes.sum():,} samples in {args.shards:,} ragged shards")
    print(f"rank {args.rank} of {args.world_size}")
    print(f"{'':24}{'ms':>12}{'MiB kept':>12}{'MiB peak':>12}")
    Order([2, 3], seed=0).rank_batch(0, 2, 0, 1)  # numpy loads parts of itself on first use
    for number, batch_size in enumerate(args.batch_sizes):
        order = Order(sizes, seed=0)
        batch = partial(
            order.rank_batch, batch_size=batch_size, rank=args.rank, world_size=args.world_size
        )
        start = order.num_samples // 2
        plan = measure(partial(order._epoch, 0))
        first = measure(partial(batch, start))
        later = [measure(partial(batch, start + step * batch_size)) for step in range(1, 11)]
        if number == 0:
            show("plan of an epoch", plan)
        show(f"batch {batch_size}, first", first)
        show(f"batch {batch_size}, next", np.mean(later, axis=0))


if __name__ == "__main__":
    main()
