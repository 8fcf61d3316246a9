"""`simple-diffusion data bench`."""

import re
from pathlib import Path

import pytest

from data_pipelines.index import index_shards
from simple_diffusion.cli.main import main
from tests.data_pipelines.samples import write_numbered_tars


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_numbered_tars(tmp_path / "set", [40, 9])
    index_shards(tmp_path / "set")
    return tmp_path / "set"


def test_it_prints_a_line_for_every_stage(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "bench", str(shards), "--size", "8x16", "--num", "40", "--workers", "0", "1"]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert "64 images of 0.1 kB to 8x16 pixels" in out.splitlines()[0]
    first = [re.split(r"\s{2,}", line)[0] for line in out.splitlines()]
    assert first[1:-1] == [
        "stage", "read", "decode", "resize", "collate", "sum of these", "all together",
        "loader, 0 workers", "loader, 1 worker",
    ]  # fmt: skip
    assert "sets the limit" in first[-1]
    assert "timing" in err


def test_without_loaders(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "bench", str(shards), "--size", "8", "--num", "1", "--workers"]) == 0
    out = capsys.readouterr().out
    assert "32 images of 0.1 kB to 8x8 pixels" in out
    assert "\nloader" not in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num", "0"], "num 0"),
        (["--workers", "-1"], "workers [-1]"),
    ],
)
def test_refusals(
    shards: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "bench", str(shards), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_size_is_a_size(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["data", "bench", str(shards), "--size", "8x"])
    assert "must be HxW or N" in capsys.readouterr().err
