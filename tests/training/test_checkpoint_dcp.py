"""Checkpoints of many processes: written by shares, read by any number, and failing together."""

import errno
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from simple_diffusion.training import checkpoint_dcp
from simple_diffusion.training.state import (
    CheckpointError,
    CheckpointStore,
    Saved,
    find_checkpoint,
    load_optimizer,
)
from tests.training.checkpoint_ranks import (
    die,
    expected_of,
    run_ranks,
    same,
    save_trained,
    trained,
    whole,
)

SAVED = [(2, "fsdp"), (4, "fsdp"), (4, "hybrid"), (2, "ddp")]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], Path]:
    """The same network, saved by several numbers of processes in several layouts."""
    roots = {}
    for processes, layout in SAVED:
        root = tmp_path_factory.mktemp("saved") / f"{layout}{processes}"
        answers = run_ranks(processes, save_trained, str(root), layout)
        assert all(isinstance(answer, Saved) for answer in answers), answers
        roots[processes, layout] = root
    return roots


def load_trained(rank: int, group: dist.ProcessGroup, roots: list[str], layout: str) -> Any:
    """Load each into another network that has learnt for longer; the roots where it differs."""
    wrong = []
    for root in roots:
        groups, (optimizer, names) = trained(layout, seed=1, steps=3)
        found = CheckpointStore(root, group=group).newest()
        assert found is not None
        found.load_into({name: groups[name] for name in ("model", "ema", "empty")})
        load_optimizer(found, optimizer, names)
        state = {
            f"{names[parameter]}/{key}": value
            for parameter, values in optimizer.state.items()
            for key, value in values.items()
        }
        if not same(whole({**groups, "optimizer": state}), expected_of(root)):
            wrong.append(root)
    return wrong


class TestResharding:
    @pytest.mark.parametrize("key", SAVED)
    def test_one_process_reads_all(
        self, saved: dict[tuple[int, str], Path], key: tuple[int, str]
    ) -> None:
        found, expected = find_checkpoint(saved[key]), expected_of(saved[key])
        assert found.groups() == list(expected)
        assert same({group: found.tensors(group) for group in found.groups()}, expected)
        assert {g: found.shapes(g) for g in expected} == {
            g: {name: (t.shape, t.dtype) for name, t in tensors.items()}
            for g, tensors in expected.items()
        }

    @pytest.mark.parametrize(("processes", "layout"), [*SAVED, (1, "ddp"), (2, "hybrid")])
    def test_any_layout_loads_any_other(
        self, saved: dict[tuple[int, str], Path], processes: int, layout: str
    ) -> None:
        roots = [str(root) for root in saved.values()]
        assert run_ranks(processes, load_trained, roots, layout) == [[]] * processes

    @pytest.mark.parametrize("key", SAVED)
    def test_every_process_writes_a_share_and_nothing_is_written_twice(
        self, saved: dict[tuple[int, str], Path], key: tuple[int, str]
    ) -> None:
        found = find_checkpoint(saved[key])
        assert isinstance(found.path, Path)
        shards = sorted(found.path.glob("rank-*.safetensors"))
        assert [path.name for path in shards] == [
            f"rank-{n:05d}.safetensors" for n in range(key[0])
        ]
        sizes = []
        for path in shards:
            content = path.read_bytes()
            sizes.append(len(content) - 8 - int.from_bytes(content[:8], "little"))
        tensors = [t for group in expected_of(saved[key]).values() for t in group.values()]
        total = sum(t.numel() * t.element_size() for t in tensors)
        assert sum(sizes) == total
        assert min(sizes) > 0
        if key[1] == "ddp":  # no shards of uneven sizes there: all can be dealt out evenly
            assert max(sizes) - min(sizes) <= max(t.numel() * t.element_size() for t in tensors)

    def test_what_is_said_of_it(self, tmp_path: Path) -> None:
        answers = run_ranks(2, save_trained, str(tmp_path / "root"), "fsdp")
        assert [answer.path for answer in answers] == [str(tmp_path / "root" / f"{8:012d}")] * 2
        files = json.loads((Path(answers[0].path) / "COMPLETE.json").read_text())
        for answer in answers:
            assert answer.images_seen == 8
            assert answer.bytes == sum(facts["bytes"] for facts in files.values())
            assert 0 < answer.stall_seconds <= answer.seconds


def misfit(rank: int, group: dist.ProcessGroup, root: str) -> Any:
    groups, _ = trained("fsdp")
    found = CheckpointStore(root, group=group).newest()
    assert found is not None
    model = dict(groups["model"])
    model["other"] = model.pop("row")
    model["cube"] = torch.zeros(3, 2, 6, dtype=torch.bfloat16)
    try:
        found.load_into({"model": model})
    except CheckpointError as error:
        return str(error)
    return None


def test_another_model_is_refused_by_all(saved: dict[tuple[int, str], Path]) -> None:
    answers = run_ranks(2, misfit, str(saved[2, "ddp"]))
    assert len(set(answers)) == 1
    assert re.search(
        "model is of another model: it lacks other; there is no place for row; other shapes: "
        r"cube \(3x2x5 float32 saved, 3x2x6 bfloat16 here\)",
        answers[0],
    )


def full_disk(rank: int, group: dist.ProcessGroup, root: str) -> Any:
    groups, _ = trained("fsdp")
    store = CheckpointStore(root, group=group)
    store.save(1, groups, {})
    store.wait()
    if rank == 1:
        original = checkpoint_dcp.write_tensors

        def full(*arguments: Any) -> Any:
            original(*arguments)
            raise OSError(errno.ENOSPC, "No space left on device")

        checkpoint_dcp.write_tensors = full
    store.save(2, groups, {})
    try:
        store.wait()
    except CheckpointError as error:
        said = str(error)
    left = sorted(path.name for path in Path(root).iterdir())
    if rank == 1:
        checkpoint_dcp.write_tensors = original
    store.save(3, groups, {})
    store.wait()
    newest = store.newest()
    assert newest is not None
    return said, left, str(newest.path)


def test_a_full_disk_of_one_is_told_by_all_and_leaves_the_earlier_one(tmp_path: Path) -> None:
    root = tmp_path / "root"
    answers = run_ranks(2, full_disk, str(root))
    assert len({answer[0] for answer in answers}) == 1
    said, _, newest = answers[0]
    assert answers[0][2] == answers[1][2] == str(root / f"{3:012d}") == newest
    assert re.search(
        r"000000000002 in .* could not be saved: no space left \(0 MB needed, \d+ MB free\) "
        r"\(process 1 of 2\); the newest complete one is .*000000000001.*same command again",
        said,
    )
    # Rank 0 has cleaned up by the time it speaks.
    assert answers[0][1] == [f"{1:012d}"]


def killed(rank: int, group: dist.ProcessGroup, root: str, when: str) -> Any:
    groups, _ = trained("hybrid")
    store = CheckpointStore(root, group=group)
    store.save(1, groups, {})
    store.wait()
    victim = 0 if when == "finish" else 1
    if rank == victim:
        if when == "write":
            checkpoint_dcp.write_tensors = lambda *_: die()
        else:
            checkpoint_dcp.write_text = lambda *_: die()
    store.save(2, groups, {})
    try:
        store.wait()
    except RuntimeError as error:
        return str(error)
    return None


@pytest.mark.parametrize(("when", "victim"), [("write", 1), ("finish", 0)])
def test_sigkill_of_one_ends_the_others_and_leaves_the_earlier_one(
    tmp_path: Path, when: str, victim: int
) -> None:
    root = tmp_path / "root"
    answers = run_ranks(2, killed, str(root), when)
    assert answers[victim] == -9
    assert re.search("000000000002 .* was not saved: another process is gone", answers[1 - victim])
    newest = CheckpointStore(root).newest()
    assert newest is not None
    assert newest.path == root / f"{1:012d}"


def newest_of(rank: int, group: dist.ProcessGroup, root: str) -> Any:
    found = CheckpointStore(root, group=group).newest()
    return None if found is None else (str(found.path), found.state["step"])


@pytest.mark.parametrize("damaged", ["rank-00000.safetensors", "rank-00001.safetensors"])
def test_all_find_the_same_one_whoever_sees_the_damage(tmp_path: Path, damaged: str) -> None:
    root = tmp_path / "root"
    run_ranks(2, save_trained, str(root), "fsdp")
    shards = root / f"{8:012d}"
    store = CheckpointStore(root, keep=None)
    store.save(4, {"model": {"w": torch.ones(3)}}, {"step": 1})
    store.wait()
    content = bytearray((shards / damaged).read_bytes())
    content[-1] ^= 1
    (shards / damaged).write_bytes(content)
    answers = run_ranks(3, newest_of, str(root))
    assert answers == [(str(root / f"{4:012d}"), 1)] * 3
    assert sorted(path.name for path in root.iterdir()) == [f"{4:012d}", f"{8:012d}.damaged"]


def test_nothing_there_is_none_for_all(tmp_path: Path) -> None:
    assert run_ranks(2, newest_of, str(tmp_path)) == [None, None]


def unshared(rank: int, group: dist.ProcessGroup, root: str) -> Any:
    mine = Path(root) / f"node{rank}"
    (mine / ".tmp-000000000001").mkdir(parents=True, exist_ok=True)
    if rank == 0:
        (mine / ".tmp-000000000001").rmdir()
    store = CheckpointStore(mine, group=group)
    store.save(1, trained("fsdp")[0], {})
    try:
        store.wait()
    except CheckpointError as error:
        return str(error)
    return None


def test_a_folder_that_nodes_do_not_share_is_told_at_the_first_save(tmp_path: Path) -> None:
    for answer in run_ranks(2, unshared, str(tmp_path)):
        assert re.search(r"rank-00001.* all nodes must share .*checkpoint\.path", answer)
    assert not CheckpointStore(tmp_path / "node0").exists()
