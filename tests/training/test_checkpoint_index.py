"""What a checkpoint says it holds: a round trip, and everything that cannot be is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from simple_diffusion.training import checkpoint_index
from simple_diffusion.training.checkpoint_index import INDEX, Chunk, Entry, Index, read_index
from simple_diffusion.training.checkpoint_places import CheckpointError, LocalFolder

FILES = ["rank-00000.safetensors", "rank-00001.safetensors"]
WHOLE = Index(
    ("model", "nothing"),
    {
        "model/w": Entry(
            torch.float32,
            (3, 4),
            (
                Chunk((0, 0), (2, 4), FILES[0], "model/w"),
                Chunk((2, 0), (1, 4), FILES[1], "model/w"),
            ),
        ),
        "model/a/step": Entry(torch.int64, (), (Chunk((), (), FILES[1], "model/a/step"),)),
        "model/none": Entry(torch.bfloat16, (0, 2), ()),
    },
)


def test_round_trip(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(WHOLE.to_json())
    assert read_index(LocalFolder(tmp_path), [*FILES, "state.json"]) == WHOLE
    assert WHOLE.group("nothing") == {}
    assert WHOLE.group("model").keys() == {"w", "a/step", "none"}


def entry(**changes: Any) -> dict[str, Any]:
    good = {"dtype": "F32", "shape": [3, 4], "chunks": [[0, [0, 0], [2, 4]], [1, [2, 0], [1, 4]]]}
    return {"model/w": {**good, **changes}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tensors": entry(chunks=[[0, [0, 0], [2, 4]]])}, "do not fill it"),
        ({"tensors": entry(chunks=[[0, [0, 0], [4, 3]]])}, "outside of it"),
        ({"tensors": entry(chunks=[[0, [0], [12]]])}, "outside of it"),
        ({"tensors": entry(chunks=[[0, [0, 0], [1, 4]], [0, [1, 0], [2, 4]]])}, "two chunks in"),
        ({"tensors": entry(chunks=[[2, [0, 0], [3, 4]]])}, "no file number 2"),
        ({"tensors": entry(chunks=[[-1, [0, 0], [3, 4]]])}, "no file number -1"),
        ({"tensors": entry(chunks=[[0, [-1, 0], [3, 4]]])}, "must be counts"),
        ({"tensors": entry(chunks=[[0, [0, 0], [True, 4]]])}, "must be counts"),
        ({"tensors": entry(shape=[1] * 17)}, "must be counts"),
        ({"tensors": entry(shape=3)}, "cannot be used"),
        ({"tensors": entry(dtype="object")}, "cannot be used"),
        ({"tensors": []}, "cannot be used"),
        ({"files": ["/etc/passwd", "x"]}, "not among the checkpoint's files"),
        ({"files": 3}, "cannot be used"),
        ({"groups": ["other"]}, "in no group"),
        ({"groups": [1]}, "must be names"),
    ],
)
def test_untrusted(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    tree = {"groups": ["model"], "files": FILES, "tensors": entry(), **change}
    (tmp_path / INDEX).write_text(json.dumps(tree))
    with pytest.raises(CheckpointError, match=message):
        read_index(LocalFolder(tmp_path), FILES)


def test_good_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(
        json.dumps({"groups": ["model"], "files": FILES, "tensors": entry()})
    )
    assert read_index(LocalFolder(tmp_path), FILES).tensors["model/w"] == WHOLE.tensors["model/w"]


def test_what_could_not_be_read_again_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_index, "MAX_INDEX_BYTES", 100)
    with pytest.raises(CheckpointError, match=r"at most 100 are read; lower parallel\.shards"):
        WHOLE.to_json()
