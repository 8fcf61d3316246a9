"""Checkpoints of the first format, and what does not fit or is not what the index says."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from simple_diffusion.training.state import (
    MARKER,
    STATE,
    CheckpointError,
    CheckpointStore,
    find_checkpoint,
    open_checkpoint,
)

GROUPS: dict[str, dict[str, Tensor]] = {
    "model": {"w": torch.arange(12.0).reshape(3, 4), "b": torch.tensor(2.0)},
    "ema_0.050": {"w": torch.randn(3, 4), "b": torch.tensor(1.0)},
    "optimizer": {},
}


def write_first_format(root: Path) -> Path:
    """As version 1 wrote it: one file a group."""
    folder = root / f"{16:012d}"
    folder.mkdir(parents=True)
    for name, tensors in GROUPS.items():
        save_file(tensors, folder / f"{name}.safetensors")
    (folder / STATE).write_text(json.dumps({"step": 2, "format_version": 1}))
    facts = {
        path.name: {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in folder.iterdir()
    }
    (folder / MARKER).write_text(json.dumps(facts))
    return folder


def save(root: Path, groups: dict[str, dict[str, Tensor]] = GROUPS) -> Path:
    store = CheckpointStore(root)
    store.save(16, groups, {"step": 2})
    store.wait()
    return root / f"{16:012d}"


def empty() -> dict[str, dict[str, Tensor]]:
    return {g: {n: torch.full_like(t, -1) for n, t in ts.items()} for g, ts in GROUPS.items()}


@pytest.mark.parametrize("write", [write_first_format, save])
def test_both_formats_are_read(tmp_path: Path, write: object) -> None:
    assert callable(write)
    write(tmp_path)
    found, target = find_checkpoint(tmp_path), empty()
    assert found.state["step"] == 2
    assert sorted(found.groups()) == sorted(GROUPS)
    found.load_into(target)
    for group, tensors in GROUPS.items():
        read = found.tensors(group)
        assert read.keys() == tensors.keys() == found.shapes(group).keys()
        for name, tensor in tensors.items():
            assert torch.equal(read[name], tensor)
            assert torch.equal(target[group][name], tensor)
            assert found.shapes(group)[name] == (tensor.shape, tensor.dtype)


def test_a_checksum_of_values_not_of_files(tmp_path: Path) -> None:
    write_first_format(tmp_path / "first")
    save(tmp_path / "second")
    first, second = find_checkpoint(tmp_path / "first"), find_checkpoint(tmp_path / "second")
    assert first.sha256("model") == second.sha256("model")
    assert first.sha256("model") != first.sha256("ema_0.050")


def test_only_what_is_asked_for_is_filled(tmp_path: Path) -> None:
    save(tmp_path)
    target = empty()
    find_checkpoint(tmp_path).load_into({"model": target["model"]})
    assert torch.equal(target["model"]["w"], GROUPS["model"]["w"])
    assert target["ema_0.050"]["w"].unique().tolist() == [-1.0]


def test_parameters_are_filled_in_place(tmp_path: Path) -> None:
    save(tmp_path)
    layer = torch.nn.Parameter(torch.zeros(3, 4))
    find_checkpoint(tmp_path).load_into({"model": {"w": layer, "b": torch.zeros(())}})
    assert torch.equal(layer, GROUPS["model"]["w"])
    assert layer.requires_grad


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"w": torch.zeros(3, 4)}, "there is no place for b"),
        ({**GROUPS["model"], "x": torch.zeros(1)}, "it lacks x"),
        ({**GROUPS["model"], "w": torch.zeros(4, 3)}, r"w \(3x4 float32 saved, 4x3 float32 here"),
        ({**GROUPS["model"], "b": torch.tensor(1)}, r"b \(scalar float32 saved, scalar int64"),
        (
            {**GROUPS["model"], **{f"x{n}": torch.zeros(1) for n in range(7)}},
            "it lacks x0, x1, x2, x3, x4 and 2 more",
        ),
    ],
)
def test_another_model_is_refused_untouched(
    tmp_path: Path, model: dict[str, Tensor], message: str
) -> None:
    save(tmp_path)
    copies = {name: tensor.clone() for name, tensor in model.items()}
    with pytest.raises(CheckpointError, match=message):
        find_checkpoint(tmp_path).load_into({"model": copies})
    assert all(torch.equal(tensor, copies[name]) for name, tensor in model.items())


def test_no_such_group(tmp_path: Path) -> None:
    save(tmp_path)
    found = find_checkpoint(tmp_path)
    for ask in (found.tensors, found.shapes, found.sha256, lambda g: found.load_into({g: {}})):
        with pytest.raises(CheckpointError, match=r"no group 'ema'.* it has model, ema_0\.050"):
            ask("ema")


def test_a_file_that_does_not_hold_what_the_index_says(tmp_path: Path) -> None:
    path = save(tmp_path)
    index = json.loads((path / "index.json").read_text())
    index["tensors"]["model/w"]["shape"] = [4, 3]
    index["tensors"]["model/w"]["chunks"] = [[0, [0, 0], [4, 3]]]
    text = json.dumps(index).encode()
    (path / "index.json").write_bytes(text)
    marker = json.loads((path / MARKER).read_text())
    marker["index.json"] = {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    (path / MARKER).write_text(json.dumps(marker))
    found = open_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"model/w is not what index\.json says"):
        found.tensors("model")
    target = {"w": torch.zeros(4, 3), "b": torch.zeros(())}
    with pytest.raises(CheckpointError, match=r"model/w is not what index\.json says"):
        found.load_into({"model": target})


def test_a_file_that_has_gone_meanwhile(tmp_path: Path) -> None:
    path = save(tmp_path)
    found = open_checkpoint(path)
    (path / "rank-00000.safetensors").unlink()
    with pytest.raises(CheckpointError, match="missing"):
        found.tensors("model")
