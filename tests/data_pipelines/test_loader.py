"""The loader: the right samples, whatever the ranks and workers, and corrupt ones replaced."""

import json
import logging
import multiprocessing
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from data_pipelines.bad_samples import BadDataError
from data_pipelines.dataset import Batch
from data_pipelines.index import index_shards
from data_pipelines.loader import Loader, evaluation_loader, make_loader
from data_pipelines.manifest import ShardSetError
from data_pipelines.order.order import Order
from tests.data_pipelines.samples import encode, flat_png, photo, write_numbered_tars, write_tar

COUNTS = [7, 0, 11, 2, 13, 5, 8, 4]
TOTAL = sum(COUNTS)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("loader") / "set"
    write_numbered_tars(root, COUNTS)
    index_shards(root, progress=False)
    return root


def loader(root: Path, **options: object) -> Loader:
    defaults = {"image_size": 8, "batch_size": 8, "total_images": 3 * TOTAL, "seed": 5}
    return make_loader(root, **{**defaults, **options})  # type: ignore[arg-type]


def rows(batches: list[Batch]) -> list[tuple[object, ...]]:
    """Flattens batches to (position, key, label, caption, grey level)."""
    return [
        (int(b.positions[i]), b.keys[i], int(b.labels[i]), b.captions[i], int(b.images[i].max()))
        for b in batches
        for i in range(len(b.keys))
    ]


def test_batches_hold_what_the_order_says(root: Path) -> None:
    batches = list(loader(root))
    assert len(batches) == len(loader(root)) == -(-3 * TOTAL // 8)
    order = Order(COUNTS, seed=5)
    firsts = [sum(COUNTS[:shard]) for shard in range(len(COUNTS))]
    for step, batch in enumerate(batches):
        assert batch.images.shape == (8, 3, 8, 8)
        assert batch.images.dtype == torch.uint8
        assert batch.labels.dtype == batch.positions.dtype == torch.int64
        assert sorted(batch.positions.tolist()) == list(range(8 * step, 8 * step + 8))
        shards, indices = order.locate(batch.positions.numpy())
        numbers = [firsts[s] + i for s, i in zip(shards, indices, strict=True)]
        assert batch.keys == [f"{number:05d}" for number in numbers]
        assert batch.captions == [f"caption {number}" for number in numbers]
        assert batch.labels.tolist() == [number % 3 for number in numbers]
        levels = torch.tensor(numbers, dtype=torch.uint8).view(8, 1, 1, 1)
        assert torch.equal(batch.images, levels.expand_as(batch.images))


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("images_seen", [0, 40, 56])
def test_resuming_is_skipping(root: Path, workers: int, images_seen: int) -> None:
    whole = rows(list(loader(root)))
    rest = rows(list(loader(root, images_seen=images_seen, workers=workers)))
    assert rest == whole[images_seen:]


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_ranks_are_disjoint_and_complete(root: Path, world_size: int) -> None:
    whole = list(loader(root))
    ranks = [list(loader(root, rank=r, world_size=world_size)) for r in range(world_size)]
    for step, batch in enumerate(whole):
        assert rows([part[step] for part in ranks]) == rows([batch])


def test_ragged_shards_never_run_dry(root: Path) -> None:
    """Two ranks, two workers each: every sample once an epoch, and the same number of steps."""
    parts = [
        list(loader(root, batch_size=4, total_images=TOTAL - TOTAL % 4, rank=r, world_size=2,
                    streams=2, workers=2))
        for r in range(2)
    ]  # fmt: skip
    assert len(parts[0]) == len(parts[1]) == TOTAL // 4
    keys = [key for part in parts for batch in part for key in batch.keys]
    assert len(set(keys)) == len(keys) == TOTAL - TOTAL % 4


def test_workers_outlive_a_signal_to_the_group(root: Path) -> None:
    whole = rows(list(loader(root)))
    found = []
    for step, batch in enumerate(loader(root, workers=2)):
        found += rows([batch])
        if step == 1:
            workers = [str(child.pid) for child in multiprocessing.active_children()]
            assert len(workers) == 2
            for name in ("TERM", "INT", "USR1"):  # sent by another process
                subprocess.run(["kill", f"-{name}", *workers], check=True)
    assert found == whole


def test_workers_end_with_the_main_process(root: Path) -> None:
    """An exception that keeps the iterator alive must not leave the process waiting for ever."""
    code = (
        "import sys; from data_pipelines.loader import make_loader\n"
        "batches = iter(make_loader(sys.argv[1], image_size=8, batch_size=8, total_images=800,"
        " seed=0, workers=2)); next(batches); raise SystemError('a bug')"
    )
    command = [sys.executable, "-c", code, str(root)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1
    assert ended.stderr.endswith("SystemError: a bug\n")


def test_nothing_left_to_do(root: Path) -> None:
    assert list(loader(root, images_seen=64, total_images=64)) == []


def test_the_global_generator_is_left_alone(root: Path) -> None:
    state = torch.get_rng_state()
    next(iter(loader(root, workers=1)))
    assert torch.equal(torch.get_rng_state(), state)


def test_random_crops_depend_on_seed_and_position_only(tmp_path: Path) -> None:
    images = [encode(photo(16, 64, seed)) for seed in range(8)]
    write_tar(tmp_path / "a.tar", [(f"{n}.png", image) for n, image in enumerate(images)])
    index_shards(tmp_path, progress=False)

    def images_of(**options: object) -> dict[int, torch.Tensor]:
        options = {"image_size": 16, "total_images": 32, "random_crop": True, **options}
        return {
            int(position): image
            for batch in loader(tmp_path, **options)
            for position, image in zip(batch.positions, batch.images, strict=True)
        }

    whole, two = images_of(), images_of(batch_size=4, workers=1)
    batches = loader(tmp_path, total_images=32)
    keys = {int(g): key for b in batches for g, key in zip(b.positions, b.keys, strict=True)}
    assert all(torch.equal(whole[g], two[g]) for g in range(32))
    # The same image comes with another crop in the next epoch.
    again = {key: [g for g in keys if keys[g] == key] for key in keys.values()}
    assert sum(torch.equal(whole[a], whole[b]) for a, b, *_ in again.values()) < 4
    centred, reseeded = images_of(random_crop=False), images_of(seed=6)
    assert sum(torch.equal(whole[g], centred[g]) for g in range(32)) < 8
    assert sum(torch.equal(whole[g], reseeded[g]) for g in range(32)) < 8


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """200 samples, of which 3 cannot be used; two of these are neighbours."""
    jpeg = encode(photo(64, 64), "JPEG")
    bad = {20: jpeg[:300], 21: b"", 130: b"some text\n"}
    write_numbered_tars(tmp_path / "damaged", [50, 50, 50, 50], bad)
    index_shards(tmp_path / "damaged", progress=False)
    return tmp_path / "damaged"


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_samples_are_replaced(
    damaged: Path, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        batches = list(loader(damaged, total_images=400, workers=workers, max_bad_fraction=0.02))
    replaced = [r for batch in batches for r in batch.replaced]
    assert [(r.shard, r.key) for r in replaced].count(("set-000.tar", "00020")) == 2  # two epochs
    assert {r.key for r in replaced} == {"00020", "00021", "00130"}
    reasons = {r.key: r.reason for r in replaced}
    assert "damaged JPEG" in reasons["00020"]
    assert "empty" in reasons["00021"]
    assert "not a file of a known format" in reasons["00130"]
    # The batch keeps its size and positions; the next usable neighbour took each place.
    by_position = {row[0]: row[1:] for row in rows(batches)}
    assert sorted(by_position) == list(range(400))
    neighbours = {"00020": 22, "00021": 22, "00130": 131}
    for r in replaced:
        number = neighbours[r.key]
        expected = (f"{number:05d}", number % 3, f"caption {number}", number)
        assert by_position[r.position] == expected
    assert len(caplog.records) == 3  # each sample once, with shard, key and reason
    assert "set-002.tar: sample '00130' replaced: not a file" in caplog.text


def test_too_many_bad_samples(damaged: Path) -> None:
    with pytest.raises(BadDataError) as caught:
        list(loader(damaged, total_images=400))
    message = str(caught.value)
    assert "more than the allowed share of 0.01" in message
    assert re.search(r"2 of \d+ samples", message)
    assert re.search(r"Worst shards: set-00\d\.tar \(\d\)", message)
    assert "'00130': not a file of a known format" in message
    assert "data verify" in message
    with pytest.raises(BadDataError, match=r"1 of \d+ samples"):
        list(loader(damaged, total_images=400, max_bad_fraction=0.0))


def test_the_rate_needs_enough_samples(damaged: Path) -> None:
    # The first bad sample comes early, when it alone is more than 1% of what was seen.
    first = next(b for b in loader(damaged, total_images=400, max_bad_fraction=1.0) if b.replaced)
    assert first.positions.min() + 8 < 100
    assert len(list(loader(damaged, total_images=96))) == 12


def test_other_bad_samples(tmp_path: Path) -> None:
    members = [
        ("a.json", b'{"class": "cat"}'),
        ("b.png", flat_png(1)), ("b.json", b"{"),
        ("c.png", flat_png(2)), ("c.json", b'{"class": "dog"}'),
        ("d.png", flat_png(3)),
    ]  # fmt: skip
    write_tar(tmp_path / "a.tar", members)
    manifest = index_shards(tmp_path, progress=False).manifest
    document = json.loads((tmp_path / "manifest.json").read_text())
    document.update(classes=[], class_counts=[])
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    assert manifest.classes == ("dog",)
    (batch,) = loader(tmp_path, batch_size=4, total_images=4, max_bad_fraction=1.0)
    assert set(batch.keys) == {"d"}
    assert batch.labels.tolist() == [-1] * 4
    assert batch.captions == [""] * 4
    reasons = {r.key: r.reason for r in batch.replaced}
    assert "no image" in reasons["a"]
    assert "not valid JSON" in reasons["b"]
    assert "class 'dog' is not in the manifest" in reasons["c"]


def test_nothing_usable(tmp_path: Path) -> None:
    write_numbered_tars(tmp_path, [2, 1], dict.fromkeys(range(3), b"x"))
    index_shards(tmp_path, progress=False)
    with pytest.raises(ShardSetError, match="1000 samples in a row"):
        list(loader(tmp_path, batch_size=2, total_images=2, max_bad_fraction=1.0))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_changes_its_count(tmp_path: Path, workers: int) -> None:
    write_numbered_tars(tmp_path, [3])
    index_shards(tmp_path, progress=False)
    text = (tmp_path / "manifest.json").read_text()
    (tmp_path / "manifest.json").write_text(
        text.replace('"samples": 3', '"samples": 4').replace('"0": 3', '"0": 4')
    )
    with pytest.raises(ShardSetError, match="holds 3 samples") as caught:
        list(loader(tmp_path, batch_size=4, workers=workers))
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 6, "world_size": 4}, "cannot be split over 4 ranks"),
        ({"batch_size": 6}, "8 streams neither divide batch size 6"),
        ({"streams": 16}, "only 8 shards"),
        ({"images_seen": -8}, "images_seen is -8"),
        ({"max_bad_fraction": 2.0}, "must be in"),
        ({"workers": -1}, "workers is -1"),
    ],
)
def test_bad_options(root: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loader(root, **options)


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (1, 2), (3, 0)])
def test_evaluation_samples_are_fixed(root: Path, world_size: int, workers: int) -> None:
    reference = rows(list(evaluation_loader(root, image_size=8, num=TOTAL, batch_size=7)))
    assert [row[0] for row in reference] == list(range(TOTAL))
    assert len({row[1] for row in reference}) == TOTAL
    assert [row[1] for row in reference] != sorted(str(row[1]) for row in reference)
    found = []
    for rank in range(world_size):
        part = evaluation_loader(
            root, image_size=8, num=20, batch_size=9, workers=workers, rank=rank,
            world_size=world_size,
        )  # fmt: skip
        found += rows(list(part))
    assert sorted(found) == reference[:20]


@pytest.mark.parametrize("num", [0, TOTAL + 1])
def test_evaluation_cannot_invent_samples(root: Path, num: int) -> None:
    with pytest.raises(ValueError, match=f"1 to {TOTAL} samples"):
        evaluation_loader(root, image_size=8, num=num, batch_size=8)
