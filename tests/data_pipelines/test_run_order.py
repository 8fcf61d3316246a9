"""Mixtures and buckets through the loader: elastic, exactly once, one shape a step."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.index import index_shards
from data_pipelines.loader import make_loader
from data_pipelines.run_order import select
from data_pipelines.shard_sets import ShardSets, WeightedSet, set_names
from tests.data_pipelines.samples import encode, write_tar

SHAPES = ((16, 8), (8, 8), (8, 16))  # height, width
BATCH = 4
Step = tuple[tuple[int, int], list[tuple[int, int, str]]]  # shape; (position, set, key)


def shaped_set(root: Path, name: str, counts: list[int]) -> str:
    """Images of ever different sizes, whose bucket is told by their key."""
    number = 0
    for shard, count in enumerate(counts):
        members = []
        for _ in range(count):
            height, width = SHAPES[(number * number + shard) % 3]
            scale = 1 + number % 3
            pixels = np.full((scale * height, scale * width, 3), number % 256, dtype=np.uint8)
            key = f"{name}-{number:03d}-{height}x{width}"
            members.append((f"{key}.png", encode(pixels)))
            members.append((f"{key}.json", json.dumps({"class": name}).encode()))
            number += 1
        write_tar(root / name / f"{shard}.tar", members)
    index_shards(root / name, progress=False)
    return str(root / name)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> ShardSets:
    root = tmp_path_factory.mktemp("sets")
    first = shaped_set(root, "a", [9, 2, 14, 5])
    return ShardSets([WeightedSet(first), WeightedSet(shaped_set(root, "b", [20, 9]), 2.0)])


def steps_of(sets: ShardSets, *, bucketed: bool, ranks: int, seen: int, total: int) -> list[Step]:
    """The steps of all ranks, put together."""
    by_rank = [
        list(
            make_loader(
                sets,
                image_size=8,
                shapes=SHAPES if bucketed else None,
                batch_size=BATCH,
                images_seen=seen,
                total_images=total,
                seed=5,
                rank=rank,
                world_size=ranks,
            )
        )
        for rank in range(ranks)
    ]
    steps: list[Step] = []
    for parts in zip(*by_rank, strict=True):
        shapes = {tuple(part.images.shape[2:]) for part in parts}
        assert len(shapes) == 1
        rows = [
            row
            for part in parts
            for row in zip(part.positions.tolist(), part.sets.tolist(), part.keys, strict=True)
        ]
        steps.append((shapes.pop(), sorted(rows)))
        for part in parts:  # every label is that of the set's only class
            assert part.labels.tolist() == part.sets.tolist()
            for image, key in zip(part.images, part.keys, strict=True):
                assert (image == int(key.split("-")[1])).all()
    return steps


@pytest.mark.parametrize("bucketed", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
def test_elastic_and_complete(sets: ShardSets, bucketed: bool, mixed: bool) -> None:
    if not mixed:
        sets = ShardSets([WeightedSet(sets.stores[0].root)])
    total = 240
    unbroken = steps_of(sets, bucketed=bucketed, ranks=1, seen=0, total=total)
    broken: list[Step] = []
    for ranks, until in [(2, 52), (4, 120), (1, 132), (2, total)]:
        seen = BATCH * len(broken)
        broken += steps_of(sets, bucketed=bucketed, ranks=ranks, seen=seen, total=until)
    assert broken == unbroken
    stream = [row for _, rows in unbroken for row in rows]
    assert [position for position, _, _ in stream] == list(range(total))
    drawn = Counter(number for _, number, _ in stream)
    assert drawn == ({0: 80, 1: 160} if mixed else {0: total})
    for number, size in enumerate([30, 29][: len(drawn)]):
        keys = [key for _, which, key in stream if which == number]
        if not bucketed:
            for first in range(0, len(keys) - size + 1, size):
                assert len(set(keys[first : first + size])) == size
            continue
        for height, width in SHAPES:
            own = [key for key in keys if key.endswith(f"-{height}x{width}")]
            members = len(set(own))
            for first in range(0, len(own) - members + 1, members):
                assert len(set(own[first : first + members])) == members
            # Each epoch of the set gives the bucket its share, up to a batch.
            assert abs(len(own) - len(keys) * members / size) < 2 * BATCH
    if bucketed:
        for shape, rows in unbroken:
            assert {key.split("-")[2] for _, _, key in rows} == {f"{shape[0]}x{shape[1]}"}
            assert len({number for _, number, _ in rows}) == 1


def test_merged_facts(sets: ShardSets) -> None:
    assert sets.classes == ("a", "b")
    assert sets.num_samples == 59
    assert sets.class_counts == (round(59 / 3), round(118 / 3))
    alone = [ShardSets([WeightedSet(store.root)]) for store in sets.stores]
    assert len({sets.fingerprint, *(one.fingerprint for one in alone)}) == 3
    assert alone[0].fingerprint == sets.manifests[0].fingerprint
    heavier = [WeightedSet(sets.stores[0].root, 2.0), WeightedSet(sets.stores[1].root, 2.0)]
    assert ShardSets(heavier).fingerprint != sets.fingerprint


def test_names() -> None:
    assert set_names(["data/a", "s3://b/c/"]) == ("a", "c")
    assert set_names(["x/a", "y/a", "b"]) == ("a-0", "a-1", "b")
    assert set_names(["x/a", "y/a", "c/a-0"]) == ("0-a", "1-a", "2-a-0")


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_weights_that_are_none(sets: ShardSets, weight: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        ShardSets([WeightedSet(sets.stores[0].root, weight)])


def test_a_bad_image_is_replaced_by_one_of_its_bucket(tmp_path: Path) -> None:
    root = Path(shaped_set(tmp_path, "c", [12]))
    good = ShardSets.of(root)
    tar = root / "0.tar"
    bad = good.stores[0].index(0)
    assert bad is not None
    offset, size = bad.places[4, 0].tolist()
    data = bytearray(tar.read_bytes())
    data[offset : offset + size] = bytes(size)  # no image any more; the index stays as it was
    tar.write_bytes(data)
    batches = list(
        make_loader(
            root,
            image_size=8,
            shapes=SHAPES,
            batch_size=2,
            total_images=48,
            seed=0,
            max_bad_fraction=0.5,
        )
    )
    assert {r.key for b in batches for r in b.replaced} == {bad.key(4)}
    for batch in batches:
        height, width = batch.images.shape[2:]
        assert all(key.endswith(f"-{height}x{width}") for key in batch.keys)


def test_too_few_images_of_a_shape_go_to_the_nearest(tmp_path: Path) -> None:
    """Of shard_set's first five, two are upright and three square; none is lying."""
    root = ShardSets.of(shaped_set(tmp_path, "d", [5]))
    totals = {}
    for batch_size in (2, 3, 4):
        (selection,) = select(root, SHAPES, batch_size)
        totals[batch_size] = [int(sizes.sum()) for sizes in selection.sizes]
    assert totals == {2: [2, 3, 0], 3: [0, 5, 0], 4: [0, 5, 0]}
