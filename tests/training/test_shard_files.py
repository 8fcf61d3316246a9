"""Files of tensors: what the safetensors package writes is read, what is written it reads."""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from simple_diffusion.training import shard_files
from simple_diffusion.training.checkpoint_places import CheckpointError, LocalFolder
from simple_diffusion.training.shard_files import (
    DTYPES,
    TensorFile,
    read_json,
    sha256_of,
    write_tensors,
    write_text,
)


def tensors() -> dict[str, Tensor]:
    """All types and odd shapes."""
    torch.manual_seed(0)
    values = {str(d): (torch.randn(3, 4, 2) * 50).to(d) for d in DTYPES.values()}
    values |= {"a/b.c": torch.randn(7).bfloat16(), "scalar": torch.tensor(3.5)}
    return values | {"empty": torch.zeros(0, 3), "turned": torch.randn(4, 5).t()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        t.dtype == second[n].dtype and torch.equal(t, second[n]) for n, t in first.items()
    )


@pytest.mark.parametrize("piece", [7, 64 * 2**20])
def test_the_safetensors_package_reads_what_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(shard_files, "_PIECE", piece)
    facts = write_tensors(LocalFolder(tmp_path), "x.safetensors", tensors())
    content = (tmp_path / "x.safetensors").read_bytes()
    assert same(load_file(tmp_path / "x.safetensors"), tensors())
    assert facts.bytes == len(content)
    assert facts.sha256 == hashlib.sha256(content).hexdigest()
    assert sha256_of(LocalFolder(tmp_path), "x.safetensors") == facts.sha256


@pytest.mark.parametrize("piece", [7, 64 * 2**20])
def test_what_the_safetensors_package_writes_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(shard_files, "_PIECE", piece)
    given = {name: t.contiguous() for name, t in tensors().items()}
    save_file(given, tmp_path / "x.safetensors", metadata={"who": "somebody else"})
    with TensorFile(LocalFolder(tmp_path), "x.safetensors") as file:
        read = {n: file.rows(n, 0, s.shape[0] if s.shape else 1) for n, s in file.tensors.items()}
        assert same(read, given)
        assert torch.equal(file.rows("turned", 2, 4), given["turned"][2:4])
        assert file.rows("turned", 3, 3).shape == (0, 4)


def test_a_text_file(tmp_path: Path) -> None:
    facts = write_text(LocalFolder(tmp_path), "t.json", '{"ä": 1}')
    content = (tmp_path / "t.json").read_bytes()
    assert (facts.bytes, facts.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert read_json(LocalFolder(tmp_path), "t.json", 100) == {"ä": 1}


def header(entry: Any, data: bytes = b"") -> bytes:
    text = json.dumps(entry).encode() if not isinstance(entry, bytes) else entry
    return struct.pack("<Q", len(text)) + text + data


OK = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no safetensors file"),
        (b"short", "no safetensors file"),
        (struct.pack("<Q", 2**62) + b"{}", "no safetensors file"),
        (struct.pack("<Q", 3) + b"{}", "cut short"),
        (header(b"[]"), "must hold an object"),
        (header(b"{" * 4), "not valid JSON"),
        (header(b"[" * 50_000), "not valid JSON"),
        (header({"w": 3}), "cannot be used"),
        (header({"w": {**OK, "dtype": "PICKLE"}}, bytes(8)), "cannot be used"),
        (header({"w": {**OK, "shape": [2**40]}}, bytes(8)), "do not agree"),
        (header({"w": {**OK, "shape": [-2]}}, bytes(8)), "must be counts"),
        (header({"w": {**OK, "shape": [2.0]}}, bytes(8)), "must be counts"),
        (header({"w": {**OK, "data_offsets": [-8, 0]}}, bytes(8)), "must be counts"),
        (header({"w": {**OK, "data_offsets": [0]}}, bytes(8)), "cannot be used"),
        (header({"w": OK}, bytes(7)), "cut short"),
        (header({"w": {**OK, "shape": [2**40], "data_offsets": [0, 2**42]}}), "cut short"),
    ],
)
def test_what_is_no_safetensors_file_is_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        TensorFile(LocalFolder(tmp_path), "x")


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="missing"):
        TensorFile(LocalFolder(tmp_path), "x")
    with pytest.raises(CheckpointError, match="missing"):
        read_json(LocalFolder(tmp_path), "x", 10)


@pytest.mark.parametrize(
    ("text", "message"),
    [("[1]", "must hold an object"), ("{", "not valid"), ('{"a": 1234}', "larger than 10 bytes")],
)
def test_json_is_bounded_and_an_object(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        read_json(LocalFolder(tmp_path), "x", 10)
