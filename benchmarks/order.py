"""What the data order costs at scale: time and memory of an epoch's plan and of one batch.

    python benchmarks/order.py --samples 1000000000 --shards 100000 --rank 1023 --world_size 1024

"first" is the first batch of an epoch whose plan is ready, with its windows still to be permuted;
"next" is the mean of the ten batches after it. Memory is what numpy and Python hold, not the peak.
"""

import argparse
import time
import tracemalloc
from collections.abc import Callable
from functools import partial

import numpy as np

from data_pipelines.order import Order


def measure(call: Callable[[], object]) -> tuple[float, float]:
    """Returns a call's seconds and the MiB that it left allocated."""
    before = tracemalloc.get_traced_memory()[0]
    start = time.perf_counter()
    call()
    seconds = time.perf_counter() - start
    return seconds, (tracemalloc.get_traced_memory()[0] - before) / 2**20


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
    print(f"{'':28}{'ms':>10}{'MiB':>10}")
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
            print(f"{'plan of an epoch':28}{1e3 * plan[0]:10.2f}{plan[1]:10.2f}")
        print(f"{f'batch {batch_size}, first':28}{1e3 * first[0]:10.2f}{first[1]:10.2f}")
        seconds, size = np.mean(later, axis=0)
        print(f"{f'batch {batch_size}, next':28}{1e3 * seconds:10.2f}{size:10.2f}")


if __name__ == "__main__":
    main()
