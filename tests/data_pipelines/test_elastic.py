"""The stream of sample ids: the same however often it is cut, and whatever processes go on with it.

The oracle is the unbroken stream of one process, and, for that one, that every epoch holds each
sample exactly once.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.index import index_shards
from data_pipelines.loader import make_loader
from tests.data_pipelines.samples import write_numbered_tars

Ids = list[tuple[int, str]]  # (position, key)
BATCH, SAMPLES = 8, 100
PATIENCE_S = 120.0


def shard_set(root: Path, counts: list[int]) -> Path:
    write_numbered_tars(root, counts)
    index_shards(root, progress=False)
    return root


def read(path: Path) -> dict[int, Ids]:
    """Step -> what a rank's file has of it; a line cut short by a kill is left out."""
    steps = {}
    for text in path.read_text().splitlines():
        try:
            start, positions, keys = json.loads(text)
        except json.JSONDecodeError:
            break
        steps[start] = list(zip(positions, keys, strict=True))
    return steps


class Ranks:
    """The processes of one launch."""

    def __init__(self, folder: Path, world_size: int, **options: Any) -> None:
        self.files = [folder / f"rank-{rank}-of-{world_size}" for rank in range(world_size)]
        self.processes = []
        for rank, file in enumerate(self.files):
            file.unlink(missing_ok=True)
            given = {**options, "rank": rank, "world_size": world_size, "out": str(file)}
            words = [sys.executable, "-m", "tests.data_pipelines.read_ids", json.dumps(given)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            self.processes.append(subprocess.Popen(words, env=environment, start_new_session=True))

    def kill_after(self, steps: int) -> dict[int, Ids]:
        """SIGKILL to all, workers too, once each rank has had so many steps; what all have had."""
        deadline = time.monotonic() + PATIENCE_S
        while not all(f.exists() and len(read(f)) >= steps for f in self.files):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for process in self.processes:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return self.common()

    def finish(self) -> dict[int, Ids]:
        for process in self.processes:
            assert process.wait(PATIENCE_S) == 0
        return self.common()

    def common(self) -> dict[int, Ids]:
        """The steps that every rank has had: those before a checkpoint of all."""
        read_by = [read(file) for file in self.files]
        together = set.intersection(*(set(steps) for steps in read_by))
        return {start: [one for steps in read_by for one in steps[start]] for start in together}


def in_this_process(root: Path, **options: Any) -> dict[int, Ids]:
    seen = options.get("images_seen", 0)
    loader = make_loader(root, image_size=8, seed=3, **options)
    return {
        seen + number * options["batch_size"]: list(
            zip(batch.positions.tolist(), batch.keys, strict=True)
        )
        for number, batch in enumerate(loader)
    }


@pytest.mark.integration
def test_killed_twice_and_gone_on_with_other_ranks_and_workers(tmp_path: Path) -> None:
    root = shard_set(tmp_path / "set", [17, 1, 22, 9, 30, 4, 17])
    total = 3 * SAMPLES + 4 * BATCH  # ends within the fourth epoch
    unbroken = in_this_process(root, batch_size=BATCH, total_images=total)
    options = {"data": str(root), "image_size": 8, "seed": 3, "batch_size": BATCH, "pause": 0.1}
    seen: dict[int, Ids] = {}
    # ranks, workers, steps until killed, steps until it stops of itself
    for ranks, workers, steps, length in [
        (2, 2, 5, 99),
        (2, 2, 3, 99),
        (1, 3, None, 9),
        (4, 0, None, 99),
    ]:
        start = max(seen) + BATCH if seen else 0
        images = min(total, start + length * BATCH)
        launch = Ranks(
            tmp_path, ranks, images_seen=start, total_images=images, workers=workers, **options
        )
        steps_had = launch.finish() if steps is None else launch.kill_after(steps)
        assert min(steps_had) == start
        seen |= steps_had
    assert sorted(seen) == sorted(unbroken)
    for start, ids in unbroken.items():
        assert sorted(seen[start]) == sorted(ids)
    stream = [key for start in sorted(unbroken) for _, key in sorted(unbroken[start])]
    for epoch in range(3):
        keys = stream[epoch * SAMPLES : (epoch + 1) * SAMPLES]
        assert sorted(keys) == [f"{number:05d}" for number in range(SAMPLES)]


@pytest.mark.parametrize(
    ("counts", "ranks", "batch"),
    [
        ([7, 11, 2], 2, 4),
        ([7, 11, 2], 4, 4),  # fewer shards than ranks
        ([7, 11, 2], 4, 64),  # batches of several epochs
        ([1], 1, 1),
        ([1], 4, 8),  # one sample
        ([0, 3, 0], 2, 2),  # empty shards
    ],
)
def test_ragged_and_tiny_sets_finish(
    tmp_path: Path, counts: list[int], ranks: int, batch: int
) -> None:
    root = shard_set(tmp_path, counts)
    steps, samples = 12, sum(counts)
    parts = [
        in_this_process(
            root, batch_size=batch, total_images=steps * batch, rank=rank, world_size=ranks
        )
        for rank in range(ranks)
    ]
    assert all(len(part) == steps for part in parts)
    assert all(len(ids) == batch // ranks for part in parts for ids in part.values())
    stream = sorted(one for part in parts for ids in part.values() for one in ids)
    assert [position for position, _ in stream] == list(range(steps * batch))
    for first in range(0, steps * batch - samples + 1, samples):
        count = Counter(key for _, key in stream[first : first + samples])
        assert count == Counter({f"{number:05d}": 1 for number in range(samples)})
