"""The verb `plan`."""

import argparse
from pathlib import Path

import pytest

from simple_diffusion.cli.plan import add_parser

CONFIG = """\
data: {image_size: 16}
model: {patch_size: 4, channels: [32], blocks: [], depth: 1, head_dim: 16}
train: {batch_size: 8}
"""


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    return parser


def test_plan_prints_the_overridden_config(
    parser: argparse.ArgumentParser, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(CONFIG)
    arguments = parser.parse_args(["plan", str(path), "--hours", "2"])
    assert arguments.takes_overrides
    arguments.overrides = ["--train.total_images=72000", "--run_dir=runs/mine"]
    assert arguments.func(arguments) == 0
    printed = capsys.readouterr().out
    assert "plan of runs/mine" in printed
    assert "10 images/s" in printed


def test_help_has_an_example(
    parser: argparse.ArgumentParser, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parser.parse_args(["plan", "--help"])
    assert "simple-diffusion plan configs/" in capsys.readouterr().out
